//! From scores to an assignment: which modules own their LoRA, which share one, which have none.
//!
//! Every rule follows rankings in the same order: descending importance, ties to the lower layer.
//! So the same scores give the same assignment, and a larger threshold, k or budget keeps
//! everything that a smaller one keeps.

mod budget;
mod ranking;

use std::collections::BTreeSet;

use lora_drop_transformer::{ModuleId, ModuleKind};

use ranking::{Ranking, rankings};

use crate::assignment::{self, Assignment, Rest, Sizes};
use crate::score::Importance;
use crate::settings::{Scope, Selection, Unselected};
use crate::{Error, Result};

/// Budget with which the sample stage judges the ranking while the final budget is still unknown.
const HALF: f64 = 0.5;
/// Tolerance for rounding of the running sum, far below the precision of any threshold in use.
const ROUNDING: f64 = 1e-12;

/// Chooses modules from their importance (docs/method.md, steps 4 and 5).
///
/// `sizes` gives the numbers of values in the LoRAs of a module type, rank · (in + out) for a pair;
/// only budgets use it.
///
/// - `Threshold(T)`: in each ranking, the fewest modules of highest importance whose shares add up
///   to T.
/// - `TopK(k)`: in each ranking, the first k. With `k = 0` and sharing, all modules of a type share
///   one pair.
/// - `Budget(F)`: modules of all types in one order, by each module's share in its own type's
///   ranking, as many as have at most F times plain LoRA's values in unique pairs, shared ones
///   included. Shares are normalised per type, so types compete on equal terms although their
///   outputs differ in size.
/// - `Auto`: as `Budget(0.5)`, by which the sample stage judges whether the ranking is stable; the
///   budget is found after that stage.
/// - `Layers(list)`: the modules of these layers, whatever their scores.
///
/// With `Scope::Layer` a layer's score is the sum of its modules' scores, and a kept layer keeps
/// all its modules.
///
/// # Errors
/// `Error::Usage` for a setting out of range, a k above the number of layers, or a budget that
/// cannot be met (the message names the smallest that can); `Error::Input` for scores that are
/// negative, infinite or NaN, or all zero in a ranking.
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

/// Returns the modules that the threshold T keeps in all rankings; T = 1 keeps all, even those of
/// score zero.
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

/// Returns the modules of the first `k` candidates of every ranking.
fn top_k(rankings: &[Ranking], k: usize, unselected: Unselected) -> Result<BTreeSet<ModuleId>> {
    if let Some(shortest) = rankings.iter().map(Vec::len).min().filter(|&n| k > n) {
        return Err(Error::Usage(format!("`top_k = {k}` is more than the {shortest} layers to choose from")));
    }
    if k == 0 && !unselected.shares() {
        return Err(Error::Usage("`top_k = 0` with `unselected = drop` leaves no LoRA at all".to_string()));
    }
    Ok(rankings.iter().flat_map(|ranking| &ranking[..k]).flat_map(|c| &c.modules).copied().collect())
}

/// Checks that a fraction is in (0, 1].
fn fraction(setting: &str, value: f64) -> Result<f64> {
    if value > 0.0 && value <= 1.0 {
        return Ok(value);
    }
    Err(Error::Usage(format!("`{setting}` is {value}; it must be above 0 and at most 1")))
}

#[cfg(test)]
mod tests;
