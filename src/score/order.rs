//! Orders that look at nothing: what any criterion has to be better than.

use std::collections::BTreeMap;

use lora_drop_transformer::ModuleId;

use super::{Criterion, Evidence};
use crate::adapter::init::Counter;
use crate::settings::{Basis, CriterionName};

/// The lower a layer, the more important: what equal scores come to, for among equals the lower layer is kept.
pub struct First;

impl Criterion for First {
    fn name(&self) -> &str {
        CriterionName::First.name()
    }

    fn basis(&self) -> Basis {
        CriterionName::First.basis()
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        let layers = evidence.layers();
        evidence.by_module(|module| (layers - module.layer) as f64)
    }
}

/// The higher a layer, the more important.
pub struct Last;

impl Criterion for Last {
    fn name(&self) -> &str {
        CriterionName::Last.name()
    }

    fn basis(&self) -> Basis {
        CriterionName::Last.basis()
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        evidence.by_module(|module| (module.layer + 1) as f64)
    }
}

/// Scores that the seed draws, uniform in (0, 1).
pub struct Random;

impl Criterion for Random {
    fn name(&self) -> &str {
        CriterionName::Random.name()
    }

    fn basis(&self) -> Basis {
        CriterionName::Random.basis()
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        evidence.by_module(|ModuleId { layer, kind }| {
            let name = format!("criterion.{}.{layer}", kind.name());
            f64::from(1.0 + Counter::new(evidence.seed, &name).uniform(1.0)) / 2.0
        })
    }
}
