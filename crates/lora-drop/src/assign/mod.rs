//! Scores → assignment: which modules own their LoRA, which share one, which have none.
//!
//! Every rule walks rankings in the same order: falling importance, among equals the lower layer
//! first. So one input has one assignment, and a larger threshold, k or budget keeps everything
//! that a smaller one keeps.

mod budget;
mod ranking;

use std::collections::BTreeSet;

use lora_drop_transformer::{ModuleId, ModuleKind};

use ranking::{Ranking, rankings};

use crate::assignment::{self, Assignment, Rest, Sizes};
use crate::score::Importance;
use crate::settings::{Scope, Selection, Unselected};
use crate::{Error, Result};

/// The budget by which the sample stage judges the ranking where the budget is still to be found.
const HALF: f64 = 0.5;
/// Forgives the rounding of the running sum, and nothing that a person would write as a threshold.
const ROUNDING: f64 = 1e-12;

/// Chooses modules from their importance (docs/method.md, steps 4 and 5).
///
/// `sizes` gives the parameters of the LoRAs of a module type, rank · (in + out) for a pair; only
/// the budget asks for it.
///
/// - `Threshold(T)`: in each ranking, the fewest modules of highest importance whose shares add up
///   to T.
/// - `TopK(k)`: in each ranking, the k first. With `k = 0` and sharing, everything of a type shares
///   one pair.
/// - `Budget(F)`: the longest start of one order over all module types, by each module's share in
///   its own type's ranking, whose unique pairs, the shared ones counted, have at most F times
///   plain LoRA's parameters. The shares are normalised per type, so types compete on equal terms
///   though their outputs differ in size.
/// - `Auto`: as `Budget(0.5)`, by which the sample stage tells whether the ranking is stable;
///   what is kept is found behind it.
/// - `Layers(list)`: the modules of these layers; the scores are not looked at.
///
/// With `Scope::Layer` a layer's score is the sum of its modules' g, and a kept layer keeps all its
/// modules.
///
/// Errors: `Usage` for a setting out of range, a k above the number of layers, or a budget that
/// cannot be met (the message says the smallest that can); `Input` for scores that are no numbers,
/// or all zero in a ranking.
pub fn assign(
    importance: &Importance,
    selection: Selection,
    scope: Scope,
    rest: Rest,
    sizes: impl Fn(ModuleKind) -> Sizes,
) -> Result<Assignment> {
    let ranked = || rankings(importance, scope);
    let modules: Vec<ModuleId> =
        importance.modules.iter().map(|m| ModuleId { layer: m.layer, kind: m.kind }).collect();
    let kept: BTreeSet<ModuleId> = match selection {
        Selection::Threshold(t) => threshold(&ranked()?, t)?,
        Selection::TopK(k) => top_k(&ranked()?, k, rest.unselected)?,
        Selection::Budget(f) => budget::keep(&ranked()?, f, rest.unselected, &sizes)?,
        Selection::Auto => budget::keep(&ranked()?, HALF, rest.unselected, &sizes)?,
        Selection::Layers(list) => assignment::of_layers(&modules, &list)?,
    };
    Ok(Assignment::keeping(&kept, modules, rest))
}

/// The modules that the threshold T keeps in all rankings; at T = 1 all, those of score zero
/// included.
fn threshold(rankings: &[Ranking], threshold: f64) -> Result<BTreeSet<ModuleId>> {
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

/// The first `k` of every ranking.
fn top_k(rankings: &[Ranking], k: usize, unselected: Unselected) -> Result<BTreeSet<ModuleId>> {
    if let Some(shortest) = rankings.iter().map(Vec::len).min().filter(|&n| k > n) {
        return Err(Error::Usage(format!(
            "`top_k = {k}` is more than the {shortest} layers that there are to choose from"
        )));
    }
    if k == 0 && !unselected.shares() {
        return Err(Error::Usage("`top_k = 0` with `unselected = drop` leaves no LoRA at all".to_string()));
    }
    Ok(rankings.iter().flat_map(|ranking| &ranking[..k]).flat_map(|c| &c.modules).copied().collect())
}

/// A fraction in (0, 1], or the usage error that names the option.
fn fraction(option: &str, value: f64) -> Result<f64> {
    if value > 0.0 && value <= 1.0 {
        return Ok(value);
    }
    Err(Error::Usage(format!("{option} is {value}; it must be above 0 and at most 1")))
}

#[cfg(test)]
mod tests;
