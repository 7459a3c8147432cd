//! Fixed and random orders, baselines that any criterion has to beat.

use std::collections::BTreeMap;

use lora_drop_transformer::ModuleId;

use super::{Criterion, Evidence};
use crate::adapter::init::RandomStream;
use crate::settings::{Basis, CriterionName};

/// A score from a module's layer or from the seed.
pub struct OrderBaseline {
    name: CriterionName,
    score: fn(&Evidence, ModuleId) -> f64,
}

/// Lower layers are more important, as with equal scores, whose ties go to the lower layer.
pub static FIRST: OrderBaseline = OrderBaseline {
    name: CriterionName::First,
    score: |evidence, module| {
        let layers = evidence.bank.modules().keys().map(|other| other.layer + 1).max();
        (layers.unwrap_or(0) - module.layer) as f64
    },
};

/// Higher layers are more important.
pub static LAST: OrderBaseline =
    OrderBaseline { name: CriterionName::Last, score: |_, module| (module.layer + 1) as f64 };

/// Scores drawn from the seed, uniform in (0, 1).
pub static RANDOM: OrderBaseline = OrderBaseline {
    name: CriterionName::Random,
    score: |evidence, ModuleId { layer, kind }| {
        let name = format!("criterion.{}.{layer}", kind.name());
        f64::from(1.0 + RandomStream::new(evidence.seed, &name).uniform(1.0)) / 2.0
    },
};

impl Criterion for OrderBaseline {
    fn name(&self) -> &str {
        self.name.name()
    }

    fn basis(&self) -> Basis {
        self.name.basis()
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        evidence.by_module(|module| (self.score)(evidence, module))
    }
}
