//! What hidden states say of a block, before anything is trained: all modules of a block have its score.

use std::collections::BTreeMap;

use lora_drop_transformer::ModuleId;
use rayon::prelude::*;

use super::{Criterion, Evidence};
use crate::settings::{Basis, CriterionName};

/// The hidden states of a forward pass over rows: the embedding's output first, and then each block's.
#[derive(Clone, Debug, Default)]
pub struct HiddenStates {
    levels: Vec<Level>,
}

#[derive(Clone, Debug, Default)]
struct Level {
    /// Σ ‖h‖ over all tokens, and their number.
    norms: f64,
    tokens: usize,
    /// The mean of each row's tokens: (hidden) each.
    means: Vec<Vec<f32>>,
}

impl HiddenStates {
    /// Takes in the states of a level, (tokens, hidden), for rows that start at `offsets`.
    pub fn add(&mut self, level: usize, offsets: &[usize], states: &[f32]) {
        self.levels.resize_with(self.levels.len().max(level + 1), Level::default);
        let (level, tokens) = (&mut self.levels[level], offsets[offsets.len() - 1]);
        let hidden = states.len() / tokens.max(1);
        for ends in offsets.windows(2).filter(|ends| ends[0] < ends[1]) {
            let mut sum = vec![0.0; hidden];
            for state in states[ends[0] * hidden..ends[1] * hidden].chunks(hidden) {
                level.norms += state.iter().map(|&h| f64::from(h).powi(2)).sum::<f64>().sqrt();
                sum.iter_mut().zip(state).for_each(|(sum, &h)| *sum += f64::from(h));
            }
            let count = (ends[1] - ends[0]) as f64;
            level.means.push(sum.into_iter().map(|sum| (sum / count) as f32).collect());
        }
        level.tokens += tokens;
    }

    /// The mean norm of a block's output.
    fn norm(&self, block: usize) -> f64 {
        let level = &self.levels[block + 1];
        level.norms / level.tokens as f64
    }

    /// One score for each block, and so for each module of it.
    fn by_module(
        &self,
        evidence: &Evidence,
        of: impl Fn(usize) -> f64 + Sync + Send,
    ) -> BTreeMap<ModuleId, f64> {
        let scores: Vec<f64> = (0..self.levels.len().saturating_sub(1)).into_par_iter().map(of).collect();
        evidence.by_module(|module| scores[module.layer])
    }
}

/// The mean norm of a block's output (after Dawadikar et al. 2026, Information 17(3):283).
pub struct Activation;

impl Criterion for Activation {
    fn name(&self) -> &str {
        CriterionName::Activation.name()
    }

    fn basis(&self) -> Basis {
        CriterionName::Activation.basis()
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        let states = evidence.hidden_states;
        states.by_module(evidence, |block| states.norm(block))
    }
}

/// 1 − CKA between a block's input and its output (after Ogawa et al. 2026, arXiv 2602.05988): how much the block changes which
/// rows are like which. Linear CKA (Kornblith et al. 2019, eq. 3) of the rows' mean states.
pub struct Cka;

impl Criterion for Cka {
    fn name(&self) -> &str {
        CriterionName::Cka.name()
    }

    fn basis(&self) -> Basis {
        CriterionName::Cka.basis()
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        let states = evidence.hidden_states;
        let grams: Vec<Vec<f64>> = states.levels.par_iter().map(|level| centred_gram(&level.means)).collect();
        let similarity = |block: usize| {
            let [input, output] = [&grams[block], &grams[block + 1]];
            let norms = (inner(input, input) * inner(output, output)).sqrt();
            // Rows that are all alike are as alike in both.
            if norms > 0.0 { inner(input, output) / norms } else { 1.0 }
        };
        states.by_module(evidence, |block| (1.0 - similarity(block)).max(0.0))
    }
}

/// X Xᵀ of the rows of X less their mean: (rows, rows).
fn centred_gram(rows: &[Vec<f32>]) -> Vec<f64> {
    let hidden = rows.first().map_or(0, Vec::len);
    let mut mean = vec![0.0; hidden];
    for row in rows {
        mean.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) / rows.len() as f64);
    }
    let centred: Vec<Vec<f64>> = rows
        .iter()
        .map(|row| row.iter().zip(&mean).map(|(&x, mean)| f64::from(x) - mean).collect())
        .collect();
    centred.iter().flat_map(|x| centred.iter().map(|y| inner(x, y))).collect()
}

/// Σ xᵢ yᵢ, in sums that can be vectorised.
fn inner(x: &[f64], y: &[f64]) -> f64 {
    let (xs, x_rest) = x.as_chunks::<8>();
    let (ys, y_rest) = y.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (x, y) in xs.iter().zip(ys) {
        (0..8).for_each(|lane| sums[lane] += x[lane] * y[lane]);
    }
    sums.iter().sum::<f64>() + x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum::<f64>()
}
