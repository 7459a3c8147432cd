//! Other assignments that are tried.

use std::collections::BTreeMap;

use lora_drop_transformer::{ModuleId, ModuleKind};

use super::prepare::Prepared;
use crate::Result;
use crate::assignment::{Assignment, Owner};
use crate::prune::{By, Candidate, Directions, Factors, ranks};
use crate::score::Evidence;
use crate::settings::{Keep, TrainSettings, Unselected};

pub fn other(
    assignment: Assignment,
    evidence: &Evidence,
    scores: &BTreeMap<ModuleId, f64>,
    prepared: &Prepared,
    settings: &TrainSettings,
) -> Result<Assignment> {
    let budget = match settings.budget {
        Some(crate::settings::Budget::Share(share)) => share,
        _ => 1.0,
    };
    Ok(match (settings.keep, settings.unselected) {
        (Keep::Directions, _) => directions(evidence, budget)?,
        (Keep::Added, _) => {
            let mut added = assignment;
            for (id, owner) in &mut added.owners {
                if *owner == Owner::Own {
                    *owner = Owner::Added;
                }
                added.ranks.insert(*id, settings.rank / 2);
            }
            added
        }
        (Keep::Modules, Unselected::Neighbours) => groups(evidence, scores, prepared, settings, budget),
        _ => assignment,
    })
}

fn directions(evidence: &Evidence, budget: f64) -> Result<Assignment> {
    let (mut ids, mut candidates) = (Vec::new(), Vec::new());
    for (id, pair) in evidence.bank.adapted() {
        let factors = Factors {
            a: evidence.parameters.value(pair.lora.a),
            b_t: evidence.parameters.value(pair.lora.b),
            rank: pair.lora.rank,
        };
        let moment = evidence.observations.get(id).unwrap_or_default();
        let energies = Directions::new(factors, moment).energies;
        candidates.push(Candidate {
            kind: id.kind,
            energies,
            rank: pair.lora.rank,
            each: pair.input + pair.output,
        });
        ids.push(id);
    }
    let ranks = ranks(&candidates, By::Energy, budget)?;
    let owner = |rank: usize| if rank > 0 { Owner::Own } else { Owner::None };
    let mut assignment: Assignment =
        ids.iter().zip(&ranks).map(|(id, rank)| (*id, owner(*rank))).collect::<BTreeMap<_, _>>().into();
    assignment.ranks = ids.into_iter().zip(ranks).filter(|(_, rank)| *rank > 0).collect();
    Ok(assignment)
}

/// Neighbours that one pair fits best, merged until the budget is met: as Ward's clustering does, with the least added error for
/// a value that is saved.
fn groups(
    evidence: &Evidence,
    scores: &BTreeMap<ModuleId, f64>,
    prepared: &Prepared,
    settings: &TrainSettings,
    budget: f64,
) -> Assignment {
    let kinds: Vec<ModuleKind> = prepared.kinds.clone();
    // Products of the layers' s B A with each other.
    let mut inner: BTreeMap<(ModuleKind, usize, usize), f64> = BTreeMap::new();
    let layers = prepared.model.config.layers;
    for &kind in &kinds {
        let product = |layer: usize| {
            let pair = evidence.bank.pair_of(ModuleId { layer, kind }).expect("adapted");
            let of = |id, width: usize| -> Vec<Vec<f64>> {
                let values = evidence.parameters.value(id);
                values.chunks(width).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
            };
            (of(pair.lora.a, pair.input), of(pair.lora.b, pair.output))
        };
        let all: Vec<_> = (0..layers).map(product).collect();
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        for i in 0..layers {
            for j in i..layers {
                let ((a, b), (c, d)) = (&all[i], &all[j]);
                let mut sum = 0.0;
                for (a, b) in a.iter().zip(b) {
                    for (c, d) in c.iter().zip(d) {
                        sum += dot(a, c) * dot(b, d);
                    }
                }
                inner.insert((kind, i, j), sum);
                inner.insert((kind, j, i), sum);
            }
        }
    }
    // Of a group: Σ over its layers of g · |Δ − mean|² / |Δ|².
    let error = |kind: ModuleKind, from: usize, to: usize| -> f64 {
        let count = (to - from) as f64;
        let at = |i, j| inner[&(kind, i, j)];
        let mean: f64 =
            (from..to).flat_map(|i| (from..to).map(move |j| (i, j))).map(|(i, j)| at(i, j)).sum::<f64>()
                / (count * count);
        (from..to)
            .map(|i| {
                let with: f64 = (from..to).map(|j| at(i, j)).sum::<f64>() / count;
                let total: f64 = scores.iter().filter(|(id, _)| id.kind == kind).map(|(_, g)| g).sum();
                let g = scores[&ModuleId { layer: i, kind }] / total;
                g * (at(i, i) - 2.0 * with + mean) / at(i, i).max(1e-300)
            })
            .sum()
    };
    let size = |kind| prepared.sizes(kind, settings).own;
    let full: usize = kinds.iter().map(|&kind| layers * size(kind)).sum();
    let mut groups: BTreeMap<ModuleKind, Vec<(usize, usize)>> =
        kinds.iter().map(|&kind| (kind, (0..layers).map(|l| (l, l + 1)).collect())).collect();
    let used = |groups: &BTreeMap<ModuleKind, Vec<(usize, usize)>>| -> usize {
        groups.iter().map(|(&kind, groups)| groups.len() * size(kind)).sum()
    };
    while used(&groups) as f64 > budget * full as f64 * (1.0 + 1e-9) {
        let mut best: Option<(f64, ModuleKind, usize)> = None;
        for (&kind, of_kind) in &groups {
            for (at, pair) in of_kind.windows(2).enumerate() {
                let added = error(kind, pair[0].0, pair[1].1)
                    - error(kind, pair[0].0, pair[0].1)
                    - error(kind, pair[1].0, pair[1].1);
                let cost = added / size(kind) as f64;
                if best.is_none_or(|(least, ..)| cost < least) {
                    best = Some((cost, kind, at));
                }
            }
        }
        let Some((_, kind, at)) = best else { break };
        let of_kind = groups.get_mut(&kind).expect("of a kind");
        of_kind[at].1 = of_kind[at + 1].1;
        of_kind.remove(at + 1);
    }
    let mut assignment = Assignment::default();
    for (kind, of_kind) in groups {
        for (from, to) in of_kind {
            for layer in from..to {
                let id = ModuleId { layer, kind };
                let alone = to - from == 1;
                assignment.owners.insert(id, if alone { Owner::Own } else { Owner::Shared });
                if !alone {
                    assignment.groups.insert(id, from);
                }
            }
        }
    }
    assignment
}
