//! Scores of blocks from hidden states before training; all modules of a block get its score.

use std::collections::BTreeMap;

use lora_drop_transformer::ModuleId;
use rayon::prelude::*;

use super::{Criterion, Evidence};
use crate::algebra::dot;
use crate::settings::{Basis, CriterionName};

/// Sums over the hidden states of forward passes: of the embedding's output (level 0), and of each
/// block's output.
#[derive(Clone, Debug, Default)]
pub struct HiddenStates {
    levels: Vec<Level>,
}

#[derive(Clone, Debug, Default)]
struct Level {
    /// Σ ‖h‖ over all tokens.
    norms: f64,
    tokens: usize,
    /// Mean hidden state of each row, (hidden) each.
    means: Vec<Vec<f32>>,
}

impl HiddenStates {
    /// Adds the states of a level, (tokens, hidden); rows start at `offsets`, which ends with the
    /// last row's end.
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
}

/// A criterion that gives all modules of a block the same score.
pub struct BlockCriterion {
    name: CriterionName,
    scores: fn(&HiddenStates) -> Vec<f64>,
}

/// The mean norm of a block's output (after Dawadikar et al. 2026, Information 17(3):283).
pub static ACTIVATION: BlockCriterion = BlockCriterion {
    name: CriterionName::Activation,
    scores: |states| states.levels.iter().skip(1).map(|level| level.norms / level.tokens as f64).collect(),
};

/// 1 − CKA between a block's input and output (after Ogawa et al. 2026, arXiv 2602.05988): how much
/// the block changes which rows are similar. Linear CKA (Kornblith et al. 2019, eq. 3) of the rows'
/// mean states.
pub static CKA: BlockCriterion = BlockCriterion {
    name: CriterionName::Cka,
    scores: |states| {
        let grams: Vec<Vec<f64>> = states.levels.par_iter().map(|level| centred_gram(&level.means)).collect();
        let similarity = |ends: &[Vec<f64>]| {
            let [input, output] = [&ends[0], &ends[1]];
            let norms = (dot(input, input) * dot(output, output)).sqrt();
            // If all rows are equal, CKA is undefined and counts as 1.
            if norms > 0.0 { dot(input, output) / norms } else { 1.0 }
        };
        grams.windows(2).map(|ends| (1.0 - similarity(ends)).max(0.0)).collect()
    },
};

impl Criterion for BlockCriterion {
    fn name(&self) -> &str {
        self.name.name()
    }

    fn basis(&self) -> Basis {
        self.name.basis()
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        let scores = (self.scores)(evidence.hidden_states);
        evidence.by_module(|module| scores[module.layer])
    }
}

/// Returns X Xᵀ, (rows, rows), for the rows of X minus their mean.
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
    centred.iter().flat_map(|x| centred.iter().map(|y| dot(x, y))).collect()
}
