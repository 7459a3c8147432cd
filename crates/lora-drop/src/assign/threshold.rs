//! The paper's rule: keep the most important until their shares add up to the threshold T
//! (docs/method.md, step 4).

use std::collections::BTreeSet;

use lora_drop_transformer::ModuleId;

use super::{fraction, ranking::Ranking};
use crate::Result;

/// Forgives the rounding of the running sum, and nothing that a person would write as a threshold.
const ROUNDING: f64 = 1e-12;

/// The kept modules of all rankings; at T = 1 all of them, those of score zero included.
pub(super) fn keep(rankings: &[Ranking], threshold: f64) -> Result<BTreeSet<ModuleId>> {
    let threshold = fraction("threshold", threshold)?;
    let mut kept = BTreeSet::new();
    for ranking in rankings {
        let mut sum = 0.0;
        for candidate in ranking {
            if threshold < 1.0 && sum >= threshold - ROUNDING {
                break;
            }
            sum += candidate.share;
            kept.extend(&candidate.modules);
        }
    }
    Ok(kept)
}
