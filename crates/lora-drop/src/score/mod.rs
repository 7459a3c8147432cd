//! How important each module is, by criteria of one file each.

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

pub use agreement::{Agreement, Settling, kendall_tau};
pub use hidden_states::HiddenStates;
pub use output::{LoraOutput, lora_output_score};

use crate::adapter::LoraBank;
use crate::settings::{Basis, CriterionName, Scope};

/// Every criterion that settings can name.
static CRITERIA: [&dyn Criterion; CriterionName::ALL.len()] = [
    &LoraOutput,
    &size::Size,
    &gradient::GRADIENT,
    &gradient::PAGE,
    &hidden_states::ACTIVATION,
    &hidden_states::CKA,
    &order::FIRST,
    &order::LAST,
    &order::RANDOM,
];

/// The criterion of this name.
pub fn criterion(name: CriterionName) -> &'static dyn Criterion {
    CRITERIA[name as usize]
}

/// From what is seen of the modules to one score a module, one file a criterion or a few that see
/// the same.
///
/// What it sums up while LoRA trains lies in [`Observations`], a part of the run's state, and never
/// in the criterion: sums begin at zero in each window of steps, passes add to them through
/// [`Criterion::observer`], steps through [`Criterion::after_gradients`], and [`Criterion::scores`]
/// reads them at the window's end.
pub trait Criterion: Sync {
    /// As importance.json has it.
    fn name(&self) -> &str;

    /// What it has to see.
    fn basis(&self) -> Basis {
        Basis::Training
    }

    /// How many numbers it sums up of a module whose pair has this rank.
    fn sums(&self, _rank: usize) -> usize {
        0
    }

    /// What sees the modules in the passes; None where no pass is to be observed.
    fn observer(&self) -> Option<&dyn Observer> {
        None
    }

    /// Sees a step's gradients, which lie in `parameters`, before the optimiser uses them.
    fn after_gradients(&self, _: &LoraBank, _: &Parameters, _: &mut Observations) {}

    /// Whether it can judge an adapter that is trained already, by one forward pass at most.
    fn scores_adapters(&self) -> bool {
        false
    }

    /// g of every module of the bank: not below zero, and the larger the more important.
    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64>;
}

/// What a criterion scores by.
pub struct Evidence<'a> {
    pub bank: &'a LoraBank,
    pub parameters: &'a Parameters,
    /// Sums of what passes and gradients have shown.
    pub observations: &'a Observations,
    /// Of the model without LoRA; empty where the criterion's basis is another.
    pub hidden_states: &'a HiddenStates,
    pub seed: u64,
}

impl Evidence<'_> {
    /// The modules with a score each.
    fn by_module(&self, score: impl Fn(ModuleId) -> f64) -> BTreeMap<ModuleId, f64> {
        self.bank.modules().keys().map(|&module| (module, score(module))).collect()
    }
}

/// One scored module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleScore {
    pub layer: usize,
    pub kind: ModuleKind,
    /// g, by the criterion (docs/method.md, step 3).
    pub score: f64,
    /// I: the share of g in its ranking (module type, or all modules).
    pub importance: f64,
}

/// What scores were summed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The last optimiser steps before the scoring; 0 for an adapter that was scored as it is.
    pub steps: usize,
    /// Rows and real tokens in them; a row counts as often as it came.
    pub rows: usize,
    pub tokens: usize,
}

/// The scores of all target modules.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Importance {
    /// Sorted by kind, then layer.
    pub modules: Vec<ModuleScore>,
    /// Rows and real tokens of the sample.
    pub rows: usize,
    pub tokens: usize,
    /// Tokens of a micro-batch (`--micro-tokens`): sums over other ones round otherwise, and so do
    /// the scores.
    pub micro_tokens: usize,
    /// Optimiser steps before the scoring, and whether the ranking had settled by then.
    pub steps: usize,
    pub settled: bool,
    /// What the sums of the last scoring cover; zeros in files of version 0.1, which did not say.
    pub window: Window,
    /// Scorings on the way: the step, and Kendall's tau against the scoring before.
    pub history: Vec<(usize, f64)>,
    /// What held-out rows said of budgets, where one was to be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve: Option<BudgetCurve>,
}

/// The loss on held-out rows of what fine-tuning would begin with, over budgets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetCurve {
    /// Rows that were held out.
    pub rows: usize,
    /// Their mean loss with a LoRA for each module, and its standard error, by which the loss may
    /// rise.
    pub loss: f64,
    pub tolerance: f64,
    /// Their loss without any LoRA.
    pub without: f64,
    /// Falling, up to the first whose loss is too large; none where the loss without LoRA is not.
    pub points: Vec<BudgetPoint>,
    /// The budget that is kept; 1 where none of them will do.
    pub kept: f64,
}

impl BudgetCurve {
    /// Whether the rows would not miss even the whole LoRA, so that they cannot say how much of it
    /// is enough.
    pub fn is_uninformative(&self) -> bool {
        self.without <= self.loss + self.tolerance
    }
}

/// A budget of the curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetPoint {
    pub budget: f64,
    /// Values in unique pairs, and their share of plain LoRA's.
    pub parameters: usize,
    pub share: f64,
    pub loss: f64,
}

impl Importance {
    /// Normalises scores g to importance I = g / Σ g over the module's type, or over all modules
    /// (docs/method.md, step 3).
    ///
    /// Where the sum is zero or no number, the importance is 0; choosing from such scores is an
    /// error ([`crate::assign::assign`]). The facts of the sample stay empty, for the caller to
    /// fill in.
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
