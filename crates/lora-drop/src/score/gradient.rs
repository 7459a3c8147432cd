//! Scores of pairs from gradients: sums over the values of A and B and over the steps of a window.

use std::collections::BTreeMap;

use lora_drop_transformer::{ModuleId, Observations, Parameters};

use super::{Criterion, Evidence};
use crate::adapter::LoraBank;
use crate::settings::{Basis, CriterionName};

/// A score that sums a term over the values and gradients of a module's pair.
pub struct GradientSum {
    name: CriterionName,
    /// Term of a value w with the gradient ∂L/∂w.
    term: fn(f64, f64) -> f64,
}

/// Σ |w · ∂L/∂w| over the steps of a window: to first order, the change of the loss if a value were
/// set to zero.
pub static GRADIENT: GradientSum = GradientSum { name: CriterionName::Gradient, term: |w, g| (w * g).abs() };

/// Projected adapter gradient energy (Zhang et al. 2026, arXiv 2605.06183): Σ ‖∂L/∂A‖² + ‖∂L/∂B‖²
/// over the batches of the sample, before training. With B = 0 only B has a gradient: the weight's
/// gradient, projected by A.
pub static PAGE: GradientSum = GradientSum { name: CriterionName::Page, term: |_, g| g * g };

impl Criterion for GradientSum {
    fn name(&self) -> &str {
        self.name.name()
    }

    fn basis(&self) -> Basis {
        self.name.basis()
    }

    fn sums(&self, _: usize) -> usize {
        1
    }

    fn after_gradients(&self, bank: &LoraBank, parameters: &Parameters, observations: &mut Observations) {
        let of = |id| {
            let values = parameters.value(id).iter().zip(parameters.gradient(id));
            values.map(|(&w, &g)| (self.term)(w.into(), g.into())).sum::<f64>()
        };
        for (module, pair) in bank.adapted() {
            observations.of(module, 1)[0] += of(pair.lora.a) + of(pair.lora.b);
        }
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        evidence.observations.iter().map(|(module, sums)| (module, sums[0])).collect()
    }
}
