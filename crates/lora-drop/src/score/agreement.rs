//! Agreement of two scorings: Kendall's tau between their rankings, and the rule by which a ranking
//! has settled.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Importance;
use crate::assignment::{Assignment, Owner};
use crate::settings::Scope;

/// Returns Kendall's tau-b between two scorings, in [-1, 1]: the mean over module types of the tau
/// over a type's layers, or the tau over the one ranking of whole layers. Only modules that both
/// have scored are compared.
///
/// A ranking of fewer than two places has a tau of 1, one with only ties on one side 0, and one
/// with only ties on both sides 1.
pub fn kendall_tau(a: &Importance, b: &Importance, scope: Scope) -> f64 {
    let (a, b) = (by_ranking(a, scope), by_ranking(b, scope));
    let taus: Vec<f64> = a
        .iter()
        .filter_map(|(ranking, a)| {
            let b = b.get(ranking)?;
            let pairs: Vec<(f64, f64)> =
                a.iter().filter_map(|(layer, &x)| b.get(layer).map(|&y| (x, y))).collect();
            Some(tau_b(&pairs))
        })
        .collect();
    if taus.is_empty() { 1.0 } else { taus.iter().sum::<f64>() / taus.len() as f64 }
}

/// Returns ranking (the module type's index, or 0 for all) → layer → score.
fn by_ranking(importance: &Importance, scope: Scope) -> BTreeMap<usize, BTreeMap<usize, f64>> {
    let mut rankings: BTreeMap<usize, BTreeMap<usize, f64>> = BTreeMap::new();
    for m in &importance.modules {
        let ranking = match scope {
            Scope::Module => m.kind as usize,
            Scope::Layer => 0,
        };
        *rankings.entry(ranking).or_default().entry(m.layer).or_default() += m.score;
    }
    rankings
}

/// Returns tau-b: (concordant − discordant) / sqrt((pairs − ties in x) · (pairs − ties in y)).
fn tau_b(points: &[(f64, f64)]) -> f64 {
    if points.len() < 2 {
        return 1.0;
    }
    let (mut balance, mut ordered_x, mut ordered_y) = (0i64, 0u64, 0u64);
    for (i, (x, y)) in points.iter().enumerate() {
        for (u, v) in &points[i + 1..] {
            let sign = |from: &f64, to: &f64| i64::from(to > from) - i64::from(to < from);
            let (dx, dy) = (sign(x, u), sign(y, v));
            balance += dx * dy;
            ordered_x += dx.unsigned_abs();
            ordered_y += dy.unsigned_abs();
        }
    }
    match (ordered_x, ordered_y) {
        (0, 0) => 1.0,
        (0, _) | (_, 0) => 0.0,
        _ => balance as f64 / ((ordered_x as f64) * (ordered_y as f64)).sqrt(),
    }
}

/// Least tau between two scorings that agree.
const TAU: f64 = 0.8;
/// At most one in this number of modules may change.
const TOLERANCE: usize = 20;

/// The comparison of a scoring with the previous one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Kendall's tau between the two.
    pub tau: f64,
    /// Number of modules that are kept by one and not by the other.
    pub changed: usize,
    /// Whether the two agree, which ends the sample stage.
    pub settled: bool,
}

/// The rule that ends the training on the sample: at most one in `TOLERANCE` modules changes
/// between kept and not kept since the previous scoring, and Kendall's tau between the two is at
/// least `TAU`.
///
/// In a deep model, modules at the edge of being kept keep swapping places: SmolLM2's 60 modules
/// did for 120 steps at a budget of one half, with a tau of 0.94. In models of fewer than
/// `TOLERANCE` modules none may change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankingStability {
    scope: Scope,
    last: Option<(Importance, Assignment)>,
}

impl RankingStability {
    /// Creates the state before the first scoring.
    pub fn new(scope: Scope) -> Self {
        RankingStability { scope, last: None }
    }

    /// Adds a scoring, and sets its history and whether the ranking is stable. Returns its
    /// comparison with the previous one; `None` for the first.
    pub fn observe(&mut self, mut importance: Importance, assignment: Assignment) -> Option<Agreement> {
        let agreement = self.last.take().map(|(before, assigned)| {
            let tau = kendall_tau(&before, &importance, self.scope);
            let kept = |a: &Assignment, module| matches!(a.owners.get(module), Some(Owner::Own));
            let modules = assignment.owners.keys();
            let changed = modules.filter(|m| kept(&assigned, m) != kept(&assignment, m)).count();
            let settled = changed <= assignment.owners.len() / TOLERANCE && tau >= TAU;
            importance.history = before.history;
            importance.history.push((importance.steps, tau));
            importance.settled = settled;
            Agreement { tau, changed, settled }
        });
        self.last = Some((importance, assignment));
        agreement
    }

    /// Returns the last scoring, and the assignment that follows from it.
    pub fn last(&self) -> Option<&(Importance, Assignment)> {
        self.last.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assign::assign;
    use crate::settings::{Selection, Unselected};
    use lora_drop_transformer::{ModuleId, ModuleKind};

    fn scored(query: &[f64], value: &[f64]) -> Importance {
        let of = |kind, scores: &[f64]| -> Vec<(ModuleId, f64)> {
            scores.iter().enumerate().map(|(layer, &g)| (ModuleId { layer, kind }, g)).collect()
        };
        let scores = [of(ModuleKind::Query, query), of(ModuleKind::Value, value)].concat();
        Importance::from_scores(&scores.into_iter().collect(), Scope::Module)
    }

    #[test]
    fn tau_b_equals_scipys() {
        // scipy.stats.kendalltau([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) = 0.6
        let exact = tau_b(&[(1.0, 2.0), (2.0, 1.0), (3.0, 4.0), (4.0, 3.0), (5.0, 5.0)]);
        assert!((exact - 0.6).abs() < 1e-12);
        // scipy.stats.kendalltau([1, 2, 2, 3], [1, 2, 3, 3]) = 0.8
        let tied = tau_b(&[(1.0, 1.0), (2.0, 2.0), (2.0, 3.0), (3.0, 3.0)]);
        assert!((tied - 0.8).abs() < 1e-12, "{tied}");
        assert_eq!(tau_b(&[(1.0, 1.0), (1.0, 2.0)]), 0.0);
        assert_eq!(tau_b(&[(1.0, 1.0), (1.0, 1.0)]), 1.0);
    }

    #[test]
    fn tau_is_the_mean_over_module_types_or_of_the_summed_layers() {
        let a = scored(&[1.0, 2.0, 3.0], &[10.0, 20.0, 30.0]);
        let b = scored(&[3.0, 2.0, 1.0], &[10.0, 20.0, 30.0]);
        assert_eq!(kendall_tau(&a, &b, Scope::Module), 0.0);
        assert_eq!(kendall_tau(&a, &b, Scope::Layer), 1.0);
    }

    #[test]
    fn settles_once_the_choice_and_the_order_agree() {
        let choose = |i: &Importance| {
            assign(i, Selection::TopK(1), Scope::Module, Unselected::Share.into(), |_| 1.into())
                .expect("valid scores")
        };
        let first = scored(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]);
        let swapped_low = scored(&[2.0, 1.0, 3.0], &[2.0, 1.0, 3.0]);
        let other_top = scored(&[1.0, 3.0, 2.0], &[1.0, 2.0, 3.0]);
        let mut settling = RankingStability::new(Scope::Module);
        let mut see = |i: &Importance| settling.observe(i.clone(), choose(i));
        assert_eq!(see(&first), None);
        assert_eq!(see(&first), Some(Agreement { tau: 1.0, changed: 0, settled: true }));
        // the same assignment, but modules that are not kept have swapped places
        let moved = see(&swapped_low).expect("a third scoring");
        assert!(moved.changed == 0 && !moved.settled && moved.tau < TAU);
        let changed = see(&other_top).expect("a fourth scoring");
        assert!(changed.changed == 2 && !changed.settled);
        assert!(see(&other_top).expect("an agreement").settled);
    }

    #[test]
    fn a_deep_model_settles_though_neighbours_at_the_edge_change_places() {
        let choose = |i: &Importance| {
            assign(i, Selection::TopK(10), Scope::Module, Unselected::Share.into(), |_| 1.into())
                .expect("valid scores")
        };
        let rising: Vec<f64> = (1..=30).map(f64::from).collect();
        // Layers 19 and 20 are on either side of the edge.
        let (mut edge, mut two_edges) = (rising.clone(), rising.clone());
        edge.swap(19, 20);
        two_edges.swap(18, 21);
        two_edges.swap(19, 20);
        let mut settling = RankingStability::new(Scope::Module);
        let mut see = |i: Importance| {
            let assignment = choose(&i);
            settling.observe(i, assignment)
        };
        assert_eq!(see(scored(&rising, &rising)), None);
        let one = see(scored(&edge, &rising)).expect("a second scoring");
        assert!(one.changed == 2 && one.settled, "{one:?}");
        let three = see(scored(&two_edges, &edge)).expect("a third scoring");
        assert!(three.changed == 4 && !three.settled, "{three:?}");
    }
}
