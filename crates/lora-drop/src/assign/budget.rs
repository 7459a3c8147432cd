//! Keeps as many modules as fit into a fraction of plain LoRA's number of values.

use std::collections::{BTreeMap, BTreeSet};

use lora_drop_transformer::{ModuleId, ModuleKind};

use super::fraction;
use super::ranking::{Candidate, Ranking};
use crate::assignment::Sizes;
use crate::settings::Unselected;
use crate::{Error, Result};

/// Relative tolerance for fractions such as 7/12, which no float represents exactly.
const ROUNDING: f64 = 1e-9;

/// Returns the longest prefix of `order` whose values are at most `budget` times plain LoRA's.
///
/// No module is skipped in favour of a smaller one after it, so a larger budget always keeps what a
/// smaller one keeps.
pub(super) fn keep(
    rankings: &[Ranking],
    budget: f64,
    unselected: Unselected,
    sizes: &impl Fn(ModuleKind) -> Sizes,
) -> Result<BTreeSet<ModuleId>> {
    let budget = fraction("budget", budget)?;
    let order = order(rankings);
    let all = count(&order);
    let plain: usize = all.iter().map(|(kind, n)| n * sizes(*kind).own).sum();
    let cost = |length: usize| -> usize {
        let kept = count(&order[..length]);
        let of_kind = |(kind, layers): (&ModuleKind, &usize)| {
            sizes(*kind).total(kept.get(kind).copied().unwrap_or(0), *layers, unselected)
        };
        all.iter().map(of_kind).sum()
    };
    // With sharing, the shared pairs alone are valid; without it, at least one module must be kept.
    let least = usize::from(!unselected.shares());
    // Keeping a type's last module removes its shared pair, so the cost may fall with length; hence
    // the search from the longest prefix down.
    let fits = |length: &usize| cost(*length) as f64 <= budget * plain as f64 * (1.0 + ROUNDING);
    let Some(length) = (least..=order.len()).rev().find(fits) else {
        let smallest = (cost(least) as f64 / plain as f64 * 1e4).ceil() / 1e4;
        let needed = match unselected {
            Unselected::Share | Unselected::Scale => "the shared pairs alone",
            Unselected::Drop => "the most important one alone",
        };
        return Err(Error::Usage(format!(
            "budget {budget} cannot be met: {needed} need {} of plain LoRA's {plain} parameters; \
             the smallest budget is {smallest}",
            cost(least)
        )));
    };
    Ok(order[..length].iter().flat_map(|c| &c.modules).copied().collect())
}

/// Returns all candidates by descending share; ties go to the lower layer, then the earlier module
/// type.
pub(super) fn order(rankings: &[Ranking]) -> Vec<&Candidate> {
    let mut order: Vec<&Candidate> = rankings.iter().flatten().collect();
    order.sort_by(|a, b| b.share.total_cmp(&a.share).then_with(|| a.modules.cmp(&b.modules)));
    order
}

/// Counts the modules of each type.
fn count(candidates: &[&Candidate]) -> BTreeMap<ModuleKind, usize> {
    let mut count = BTreeMap::new();
    for id in candidates.iter().flat_map(|c| &c.modules) {
        *count.entry(id.kind).or_default() += 1;
    }
    count
}
