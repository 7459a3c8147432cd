//! The size of a pair's update of the weight, independent of the input.

use std::collections::BTreeMap;

use lora_drop_transformer::ModuleId;

use super::{Criterion, Evidence, lora_output_score};
use crate::settings::CriterionName;

/// ‖s B A‖² in the Frobenius norm, which is the score by [`super::LoraOutput`] of inputs that are
/// the unit vectors, one token each.
pub struct UpdateNorm;

impl Criterion for UpdateNorm {
    fn name(&self) -> &str {
        CriterionName::Size.name()
    }

    fn scores_adapters(&self) -> bool {
        true
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        let Evidence { bank, parameters, .. } = evidence;
        let size = |(module, pair): (ModuleId, &crate::adapter::BankPair)| {
            let rows: Vec<&[f32]> = parameters.value(pair.lora.a).chunks(pair.input).collect();
            let product = |x: &[f32], y: &[f32]| -> f64 {
                x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
            };
            let gram: Vec<f64> = rows.iter().flat_map(|x| rows.iter().map(|y| product(x, y))).collect();
            let b_t = parameters.value(pair.lora.b);
            (module, lora_output_score(b_t, &gram, f64::from(pair.lora.scale)))
        };
        bank.adapted().map(size).collect()
    }
}
