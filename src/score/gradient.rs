//! What gradients say of a pair: how far its values are from where the loss wants them.

use std::collections::BTreeMap;

use lora_drop_transformer::{LoraPair, ModuleId, Observations, Parameters};

use super::{Criterion, Evidence};
use crate::adapter::LoraBank;
use crate::settings::{Basis, CriterionName};

/// Σ |w · ∂L/∂w| over A and B and over the steps of a window: the first-order change of the loss were each value zero.
pub struct Gradient;

impl Criterion for Gradient {
    fn name(&self) -> &str {
        CriterionName::Gradient.name()
    }

    fn sums(&self, _: usize) -> usize {
        1
    }

    fn after_gradients(&self, bank: &LoraBank, parameters: &Parameters, observations: &mut Observations) {
        add(bank, observations, |pair| {
            let of = |id| {
                let products = parameters.value(id).iter().zip(parameters.gradient(id));
                products.map(|(&w, &g)| (f64::from(w) * f64::from(g)).abs()).sum::<f64>()
            };
            of(pair.a) + of(pair.b)
        });
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        first_sums(evidence.observations)
    }
}

/// Projected adapter gradient energy (Zhang et al. 2026, arXiv 2605.06183): Σ ‖∂L/∂A‖² + ‖∂L/∂B‖² over the batches of the
/// sample, before anything is trained. With B = 0 only B has a gradient: that of the weight, projected by A.
pub struct Page;

impl Criterion for Page {
    fn name(&self) -> &str {
        CriterionName::Page.name()
    }

    fn basis(&self) -> Basis {
        CriterionName::Page.basis()
    }

    fn sums(&self, _: usize) -> usize {
        1
    }

    fn after_gradients(&self, bank: &LoraBank, parameters: &Parameters, observations: &mut Observations) {
        add(bank, observations, |pair| {
            let of = |id| parameters.gradient(id).iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
            of(pair.a) + of(pair.b)
        });
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        first_sums(evidence.observations)
    }
}

fn add(bank: &LoraBank, observations: &mut Observations, of_pair: impl Fn(LoraPair) -> f64) {
    for &module in bank.modules().keys() {
        if let Some(pair) = bank.pair_of(module) {
            observations.of(module, 1)[0] += of_pair(pair.lora);
        }
    }
}

fn first_sums(observations: &Observations) -> BTreeMap<ModuleId, f64> {
    observations.iter().map(|(module, sums)| (module, sums[0])).collect()
}
