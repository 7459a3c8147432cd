//! The order in which modules are kept: one ranking for each module type, or one over whole layers.

use std::collections::BTreeMap;

use lora_drop_transformer::ModuleId;

use crate::score::Importance;
use crate::settings::Scope;
use crate::{Error, Result};

/// A unit that is kept or not as a whole: one module, or a layer with all its target modules.
#[derive(Debug)]
pub(super) struct Candidate {
    pub modules: Vec<ModuleId>,
    /// Its share of the ranking's scores; the shares of a ranking add up to 1.
    pub share: f64,
}

/// Candidates by descending share, ties to the lower layer.
pub(super) type Ranking = Vec<Candidate>;

/// Returns the rankings of a scope, module types in their usual order.
///
/// # Errors
/// `Error::Input` if a score is negative, infinite or NaN, a module is scored twice, or a ranking
/// has only zeros.
pub(super) fn rankings(importance: &Importance, scope: Scope) -> Result<Vec<Ranking>> {
    let mut scores = BTreeMap::new();
    for m in &importance.modules {
        let name = || format!("layer {} {}", m.layer, m.kind.name());
        if !m.score.is_finite() || m.score < 0.0 {
            return Err(Error::Input(format!(
                "the score of {} is {}, expected a number from 0 up: training on the sample diverged; lower `learning_rate`",
                name(),
                m.score
            )));
        }
        if scores.insert(ModuleId { layer: m.layer, kind: m.kind }, m.score).is_some() {
            return Err(Error::Input(format!("{} is scored twice", name())));
        }
    }

    // Ranking → layer → modules; the layer scope has only ranking 0.
    let mut groups: BTreeMap<usize, BTreeMap<usize, Vec<ModuleId>>> = BTreeMap::new();
    for id in scores.keys() {
        let ranking = match scope {
            Scope::Module => id.kind as usize,
            Scope::Layer => 0,
        };
        groups.entry(ranking).or_default().entry(id.layer).or_default().push(*id);
    }

    let mut rankings = Vec::new();
    for by_layer in groups.into_values() {
        let sum = |modules: &[ModuleId]| modules.iter().map(|id| scores[id]).sum::<f64>();
        let total: f64 = by_layer.values().map(|modules| sum(modules)).sum();
        if total == 0.0 || !total.is_finite() {
            let of = match scope {
                Scope::Module => by_layer.values().flatten().next().map_or("module", |id| id.kind.name()),
                Scope::Layer => "layer",
            };
            let seen =
                if total == 0.0 { "all zero: train longer on the sample" } else { "too large to add up" };
            return Err(Error::Input(format!("the scores of every {of} are {seen}")));
        }
        let mut ranking: Ranking = by_layer
            .into_values()
            .map(|modules| Candidate { share: sum(&modules) / total, modules })
            .collect();
        // Stable sort: layers ascend before it, so ties keep the lower layer first.
        ranking.sort_by(|a, b| b.share.total_cmp(&a.share));
        rankings.push(ranking);
    }
    if rankings.is_empty() {
        return Err(Error::Input("no module was scored: there is nothing to choose from".to_string()));
    }
    Ok(rankings)
}
