//! How important each module is: the criteria that score modules, and their scores.

mod agreement;
mod gradient;
mod hidden_states;
mod order;
mod output;
pub mod record;
mod size;

use std::collections::BTreeMap;

use lora_drop_transformer::{ModuleId, ModuleKind, Observations, Observer, Parameters};
use serde::{Deserialize, Serialize};

pub use agreement::{Agreement, RankingStability, kendall_tau};
pub use hidden_states::HiddenStates;
pub use output::{LoraOutput, lora_output_score};

use crate::adapter::LoraBank;
use crate::settings::{Basis, CriterionName, Scope};

/// Every criterion that settings can name.
static CRITERIA: [&dyn Criterion; CriterionName::ALL.len()] = [
    &LoraOutput,
    &size::UpdateNorm,
    &gradient::GRADIENT,
    &gradient::PAGE,
    &hidden_states::ACTIVATION,
    &hidden_states::CKA,
    &order::FIRST,
    &order::LAST,
    &order::RANDOM,
];

/// Returns the criterion of this name.
pub fn criterion(name: CriterionName) -> &'static dyn Criterion {
    CRITERIA[name as usize]
}

/// Computes one score per module from training or passes.
///
/// Its sums are kept in [`Observations`], a part of the run's state, and never in the criterion.
/// They start at zero in each window of steps, forward passes add to them through
/// [`Criterion::observer`] and steps through [`Criterion::after_gradients`], and
/// [`Criterion::scores`] reads them at the window's end.
pub trait Criterion: Sync {
    /// Its name in importance.json.
    fn name(&self) -> &str;

    /// What it needs to observe of a model.
    fn basis(&self) -> Basis {
        Basis::Training
    }

    /// Number of sums that it needs for a module whose pair has this rank.
    fn sums(&self, _rank: usize) -> usize {
        0
    }

    /// Observer of modules in forward passes, if it needs one.
    fn observer(&self) -> Option<&dyn Observer> {
        None
    }

    /// Called with a step's gradients, in `parameters`, before the optimiser uses them.
    fn after_gradients(&self, _: &LoraBank, _: &Parameters, _: &mut Observations) {}

    /// Whether it can score a trained adapter, with at most one forward pass.
    fn scores_adapters(&self) -> bool {
        false
    }

    /// Returns the score g ≥ 0 of every module of the bank; larger is more important.
    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64>;
}

/// The data that a criterion computes scores from.
pub struct Evidence<'a> {
    /// The modules' pairs.
    pub bank: &'a LoraBank,
    /// The values and gradients of the pairs.
    pub parameters: &'a Parameters,
    /// The criterion's sums over passes and gradients.
    pub observations: &'a Observations,
    /// Hidden states of the model without LoRA; empty unless the basis is `HiddenStates`.
    pub hidden_states: &'a HiddenStates,
    /// The run's seed.
    pub seed: u64,
}

impl Evidence<'_> {
    /// Returns a score for each module of the bank.
    fn by_module(&self, score: impl Fn(ModuleId) -> f64) -> BTreeMap<ModuleId, f64> {
        self.bank.modules().keys().map(|&module| (module, score(module))).collect()
    }
}

/// One scored module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleScore {
    /// The layer, from 0.
    pub layer: usize,
    /// The module type.
    pub kind: ModuleKind,
    /// g, the criterion's score (docs/method.md, step 3).
    pub score: f64,
    /// I, the share of g in its ranking (of the module type, or of all modules).
    pub importance: f64,
}

/// The steps that a scoring's sums cover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Number of these steps, the last ones before the scoring; 0 for a trained adapter.
    pub steps: usize,
    /// Rows of the steps; a repeated row counts each time.
    pub rows: usize,
    /// Real tokens of the rows.
    pub tokens: usize,
}

/// The scores of all target modules.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Importance {
    /// Sorted by kind, then layer.
    pub modules: Vec<ModuleScore>,
    /// Rows of the sample.
    pub rows: usize,
    /// Real tokens of the sample.
    pub tokens: usize,
    /// Token budget of a micro-batch, on which the rounding of the sums depends.
    pub micro_tokens: usize,
    /// Optimiser steps before the scoring.
    pub steps: usize,
    /// Whether the ranking had settled by then.
    pub settled: bool,
    /// The window of the last scoring; zeros in files of version 0.1.
    pub window: Window,
    /// The earlier scorings: the step, and Kendall's tau against the scoring before.
    pub history: Vec<(usize, f64)>,
    /// Losses over budgets, if `budget = auto` has found one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve: Option<BudgetCurve>,
}

/// Loss on held-out rows, over budgets, of the model with which fine-tuning would begin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetCurve {
    /// Number of rows that were held out.
    pub rows: usize,
    /// Their mean loss with a LoRA for each module.
    pub loss: f64,
    /// Tolerated rise of the loss: its standard error.
    pub tolerance: f64,
    /// Their mean loss without any LoRA.
    pub without: f64,
    /// Descending budgets, up to the first whose loss is too large; none if the loss without LoRA
    /// is not too large.
    pub points: Vec<BudgetPoint>,
    /// The budget that is kept; 1 if all losses are too large.
    pub kept: f64,
}

impl BudgetCurve {
    /// Whether even the loss without any LoRA is not too large, so that the rows cannot say how
    /// much LoRA is enough.
    pub fn is_uninformative(&self) -> bool {
        self.without <= self.loss + self.tolerance
    }
}

/// A budget of the curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetPoint {
    /// The fraction of plain LoRA's values that was allowed.
    pub budget: f64,
    /// Values in unique pairs.
    pub parameters: usize,
    /// Their share of plain LoRA's values.
    pub share: f64,
    /// Mean loss of the held-out rows.
    pub loss: f64,
}

impl Importance {
    /// Normalises scores g to importance I = g / Σ g over the module's type, or over all modules
    /// (docs/method.md, step 3).
    ///
    /// If the sum is zero, infinite or NaN, the importance is 0; choosing from such scores is an
    /// error of [`crate::assign::assign`]. The fields about the sample are left zero.
    pub fn from_scores(scores: &BTreeMap<ModuleId, f64>, scope: Scope) -> Self {
        let total = |kind: ModuleKind| -> f64 {
            scores.iter().filter(|(id, _)| scope == Scope::Layer || id.kind == kind).map(|(_, g)| g).sum()
        };
        let mut modules: Vec<ModuleScore> = scores
            .iter()
            .map(|(id, &score)| {
                let share = score / total(id.kind);
                let importance = if share.is_finite() { share } else { 0.0 };
                ModuleScore { layer: id.layer, kind: id.kind, score, importance }
            })
            .collect();
        modules.sort_by_key(|m| (m.kind, m.layer));
        Importance { modules, ..Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn importance_is_normalised_per_ranking_and_sorted() {
        let id = |layer, kind| ModuleId { layer, kind };
        let scores = BTreeMap::from([
            (id(0, ModuleKind::Query), 1.0),
            (id(0, ModuleKind::Value), 30.0),
            (id(1, ModuleKind::Query), 3.0),
            (id(1, ModuleKind::Value), 10.0),
        ]);
        let of = |scope| -> Vec<(ModuleKind, usize, f64)> {
            let importance = Importance::from_scores(&scores, scope);
            importance.modules.iter().map(|m| (m.kind, m.layer, m.importance)).collect()
        };
        let (q, v) = (ModuleKind::Query, ModuleKind::Value);
        assert_eq!(of(Scope::Module), [(q, 0, 0.25), (q, 1, 0.75), (v, 0, 0.75), (v, 1, 0.25)]);
        assert_eq!(
            of(Scope::Layer),
            [(q, 0, 1.0 / 44.0), (q, 1, 3.0 / 44.0), (v, 0, 30.0 / 44.0), (v, 1, 10.0 / 44.0)]
        );
    }

    #[test]
    fn zero_scores_have_no_importance() {
        let scores = BTreeMap::from([(ModuleId { layer: 0, kind: ModuleKind::Query }, 0.0)]);
        assert_eq!(Importance::from_scores(&scores, Scope::Module).modules[0].importance, 0.0);
    }
}
