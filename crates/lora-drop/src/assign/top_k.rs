//! Keep a fixed number of layers in each ranking.

use std::collections::BTreeSet;

use lora_drop_transformer::ModuleId;

use super::ranking::Ranking;
use crate::settings::Unselected;
use crate::{Error, Result};

/// The first `k` of every ranking.
pub(super) fn keep(rankings: &[Ranking], k: usize, unselected: Unselected) -> Result<BTreeSet<ModuleId>> {
    if let Some(shortest) = rankings.iter().map(Vec::len).min().filter(|&n| k > n) {
        return Err(Error::Usage(format!("top-k is {k}, but there are {shortest} layers to choose from")));
    }
    if k == 0 && !unselected.shares() {
        return Err(Error::Usage(
            "top-k 0 together with dropping the unselected modules leaves no LoRA at all".to_string(),
        ));
    }
    Ok(rankings.iter().flat_map(|r| &r[..k]).flat_map(|c| &c.modules).copied().collect())
}
