//! Selects the directions to keep: of each module type those with the most energy, until the type's
//! share of the budget is spent.
//!
//! Types are not weighed against each other: the energy of a query's output, which goes through the
//! attention's softmax, means something else to the model than that of a value's, which is added to
//! the hidden states (measurements in docs/prune.md).

use std::collections::BTreeSet;

use lora_drop_transformer::ModuleKind;

use crate::settings::definition::choices;
use crate::{Error, Result};

choices! {
    /// What decides which directions are kept.
    #[derive(Default)]
    PruneCriterion {
        /// Energy of the output on the data, direction by direction.
        #[default]
        Energy = "energy",
        /// Squared singular values of s B A: the energy if all inputs were white, without data.
        Svd = "svd",
        /// Energy of the output on the data, whole modules at a time.
        Modules = "modules",
    }
}

/// A pair to be pruned.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The type of its modules.
    pub kind: ModuleKind,
    /// Energies of its directions, descending, all above zero.
    pub energies: Vec<f64>,
    /// Its rank.
    pub rank: usize,
    /// Number of values of one direction: in + out.
    pub each: usize,
}

impl Candidate {
    fn parameters(&self) -> usize {
        self.rank * self.each
    }
}

/// Number of values in pairs of these ranks.
pub fn parameters(candidates: &[Candidate], ranks: &[usize]) -> usize {
    candidates.iter().zip(ranks).map(|(candidate, rank)| rank * candidate.each).sum()
}

/// Share of all energy that is in the first `ranks` directions of the pairs.
pub fn kept_energy(candidates: &[Candidate], ranks: &[usize]) -> f64 {
    let all: f64 = candidates.iter().flat_map(|candidate| &candidate.energies).sum();
    let kept: f64 = candidates.iter().zip(ranks).flat_map(|(c, &rank)| c.energies.iter().take(rank)).sum();
    kept / all
}

/// Returns the rank that each pair keeps with a budget, a fraction of all values. The directions of
/// each module type are ordered over its layers by descending energy per value, ties by pair, and
/// kept as long as they fit into this fraction of the type's values. So a larger budget keeps
/// everything that a smaller one keeps. A budget of 1 keeps everything unchanged.
///
/// # Errors
/// `Error::Usage` if the first direction of no type fits into the budget; it says the smallest
/// budget that works.
pub fn ranks(candidates: &[Candidate], by: PruneCriterion, budget: f64) -> Result<Vec<usize>> {
    if budget >= 1.0 {
        return Ok(candidates.iter().map(|candidate| candidate.rank).collect());
    }
    let mut ranks = vec![0; candidates.len()];
    let mut least = 1f64;
    let kinds: BTreeSet<ModuleKind> = candidates.iter().map(|candidate| candidate.kind).collect();
    for kind in kinds {
        let of_kind = || candidates.iter().enumerate().filter(|(_, candidate)| candidate.kind == kind);
        let total = of_kind().map(|(_, candidate)| candidate.parameters()).sum::<usize>() as f64;
        let order = order(of_kind(), by);
        let mut used = 0;
        for (place, &(pair, directions)) in order.iter().enumerate() {
            used += directions * candidates[pair].each;
            if place == 0 {
                least = least.min(used as f64 / total);
            }
            if used as f64 > budget * total {
                break;
            }
            ranks[pair] += directions;
        }
    }
    match ranks.iter().any(|&rank| rank > 0) {
        true => Ok(ranks),
        false => Err(too_small(budget, least)),
    }
}

/// Orders the units that are kept or dropped as a whole (a direction, or all of a pair) by
/// descending energy per value. Returns each unit's pair and number of directions.
fn order<'a>(pairs: impl Iterator<Item = (usize, &'a Candidate)>, by: PruneCriterion) -> Vec<(usize, usize)> {
    let mut order: Vec<(f64, usize, usize)> = Vec::new();
    for (pair, candidate) in pairs {
        if by == PruneCriterion::Modules {
            let energy: f64 = candidate.energies.iter().sum();
            let density = energy / candidate.parameters() as f64;
            order.extend((energy > 0.0).then_some((density, pair, candidate.rank)));
        } else {
            let density = |energy: &f64| (energy / candidate.each as f64, pair, 1);
            order.extend(candidate.energies.iter().map(density));
        }
    }
    order.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
    order.into_iter().map(|(_, pair, directions)| (pair, directions)).collect()
}

/// Returns the largest rank that all pairs can have within a budget; pairs with fewer directions
/// are padded.
///
/// # Errors
/// `Error::Usage` if not even rank 1 fits; it says the smallest budget for which it does.
pub fn equal_rank(candidates: &[Candidate], budget: f64) -> Result<usize> {
    let each: usize = candidates.iter().map(|candidate| candidate.each).sum();
    let total: usize = candidates.iter().map(Candidate::parameters).sum();
    let most = candidates.iter().map(|candidate| candidate.rank).max().unwrap_or(0);
    match (1..=most).rev().find(|rank| (rank * each) as f64 <= budget * total as f64) {
        Some(rank) => Ok(rank),
        None => Err(too_small(budget, each as f64 / total as f64)),
    }
}

/// Returns the error of a budget that is too small. The smallest is rounded up, so that it works.
fn too_small(budget: f64, least: f64) -> Error {
    let least = (least * 1e6).ceil() / 1e6;
    Error::Usage(format!("a budget of {budget} keeps nothing; the smallest that does is {least}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(energies: &[f64], rank: usize, each: usize) -> Candidate {
        Candidate { kind: ModuleKind::Query, energies: energies.to_vec(), rank, each }
    }

    /// Energies per value: 10, 4, 1 and 20, 3, 0.5.
    fn two() -> Vec<Candidate> {
        vec![candidate(&[20.0, 8.0, 2.0], 4, 2), candidate(&[60.0, 9.0, 1.5], 3, 3)]
    }

    #[test]
    fn the_most_energy_for_a_parameter_comes_first() {
        // 17 values in all: 3, 5, 7, 10, 12, 15 in the order of energy per value.
        let kept = |budget| ranks(&two(), PruneCriterion::Energy, budget).unwrap();
        for (parameters, expected) in
            [(3, [0, 1]), (4, [0, 1]), (5, [1, 1]), (7, [2, 1]), (9, [2, 1]), (10, [2, 2]), (16, [3, 3])]
        {
            assert_eq!(kept(f64::from(parameters) / 17.0), expected, "{parameters}");
        }
        assert_eq!(kept(1.0), [4, 3], "a direction without energy stays when all does");
        assert_eq!(parameters(&two(), &[2, 1]), 7);
        assert_eq!(kept_energy(&two(), &[1, 1]), 80.0 / 100.5);
    }

    #[test]
    fn each_type_has_its_share() {
        // The value modules have little energy, and keep a half as the query modules do.
        let value = candidate(&[1e-3, 1e-4, 1e-5, 1e-6], 4, 3);
        let candidates = [two(), vec![Candidate { kind: ModuleKind::Value, ..value }]].concat();
        assert_eq!(ranks(&candidates, PruneCriterion::Energy, 0.5).unwrap(), [2, 1, 2]);
        // If nothing of a type fits, the others still keep theirs.
        assert_eq!(ranks(&candidates, PruneCriterion::Energy, 0.2).unwrap(), [0, 1, 0]);
    }

    #[test]
    fn whole_modules_stay_or_go() {
        // Energies per value 30/8 and 70.5/9.
        let kept = |budget| ranks(&two(), PruneCriterion::Modules, budget);
        assert_eq!(kept(9.0 / 17.0).unwrap(), [0, 3]);
        assert_eq!(kept(0.99).unwrap(), [0, 3]);
        let message = kept(0.5).unwrap_err().to_string();
        assert!(message.contains("the smallest that does is 0.529412"), "{message}");
    }

    #[test]
    fn a_larger_budget_keeps_what_a_smaller_one_keeps() {
        let candidates: Vec<Candidate> =
            (1..9).map(|i| candidate(&[90.0 / i as f64, 7.0, 1.0 / i as f64], 3, 5 + (i * 7) % 4)).collect();
        for &by in PruneCriterion::ALL {
            let found = (1..=100).filter_map(|percent| ranks(&candidates, by, percent as f64 / 100.0).ok());
            let found: Vec<_> = found.collect();
            assert!(found.len() > 80);
            for pair in found.windows(2) {
                assert!(pair[0].iter().zip(&pair[1]).all(|(less, more)| less <= more));
            }
        }
    }

    #[test]
    fn one_rank_for_all() {
        assert_eq!(equal_rank(&two(), 1.0).unwrap(), 3);
        assert_eq!(equal_rank(&two(), 10.0 / 17.0).unwrap(), 2);
        assert_eq!(equal_rank(&two(), 9.0 / 17.0).unwrap(), 1);
        let message = equal_rank(&two(), 0.2).unwrap_err().to_string();
        assert!(message.contains("0.294118"), "{message}");
    }

    #[test]
    fn too_small_a_budget_names_one_that_works() {
        let message = ranks(&two(), PruneCriterion::Energy, 0.1).unwrap_err().to_string();
        assert_eq!(message, "a budget of 0.1 keeps nothing; the smallest that does is 0.176471");
        assert_eq!(ranks(&two(), PruneCriterion::Energy, 0.176471).unwrap(), [0, 1]);
    }
}
