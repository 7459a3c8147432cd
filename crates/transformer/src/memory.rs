//! Memory: what passes reuse, what decides how much of it they take, and what a model's weights take.

use std::sync::Arc;

use lora_drop_compute::rotary::RotaryTable;

use crate::linear::Weight;

/// Memory for activations that passes reuse.
#[derive(Default)]
pub struct Memory {
    pub(crate) floats: Vec<f32>,
    pub(crate) rotary: Option<Arc<RotaryTable>>,
}

impl Memory {
    /// As much as the largest pass so far has taken, and what the last ones have left there.
    pub fn floats(&self) -> &[f32] {
        &self.floats
    }
}

/// What of every block's activations a pass keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there is no way back.
    One,
    /// The blocks' inputs. The way back forms the rest again.
    Inputs,
    /// All that the way back needs.
    All,
}

impl Keep {
    /// What a training pass keeps.
    pub fn of_training(recompute: bool) -> Self {
        if recompute { Keep::Inputs } else { Keep::All }
    }
}

/// What decides how many floats of activations a pass takes (`Model::floats`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassSize {
    pub tokens: usize,
    pub sequences: usize,
    /// Tokens that are predicted and learned; none for a model with a head.
    pub learned: usize,
    pub keep: Keep,
    /// Whether the LoRAs' inputs are dropped.
    pub lora_dropout: bool,
    /// Whether modules are scored, which takes more of an encoder's last block.
    pub scored: bool,
}

impl PassSize {
    /// Of a pass without a way back over sequences that begin at these offsets, for a model with a head.
    pub fn of_forward(offsets: &[usize], scored: bool) -> Self {
        let sequences = offsets.len() - 1;
        let (keep, lora_dropout) = (Keep::One, false);
        PassSize { tokens: offsets[sequences], sequences, learned: 0, keep, lora_dropout, scored }
    }

    /// Of a training pass over them, for a model with a head.
    pub fn of_training(offsets: &[usize], recompute: bool, lora_dropout: bool, scored: bool) -> Self {
        let keep = Keep::of_training(recompute);
        PassSize { keep, lora_dropout, ..PassSize::of_forward(offsets, scored) }
    }
}

/// Bytes of frozen weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// Of mapped files.
    pub mapped: usize,
    /// Copies: widened, or quantised.
    pub copied: usize,
}

impl WeightBytes {
    pub(crate) fn add(&mut self, weight: &Weight) {
        let (mapped, bytes) = match weight {
            Weight::Frozen(tensor) => (tensor.is_mapped(), size_of::<f32>() * tensor.len()),
            Weight::Blocks(matrix) => (matrix.is_mapped(), matrix.bytes().len()),
            Weight::Trained(_) => return,
        };
        *if mapped { &mut self.mapped } else { &mut self.copied } += bytes;
    }
}

/// Bytes of a mapped file that a fault makes resident around the one that was asked for: Linux's `fault_around_bytes`.
const AROUND: usize = 64 << 10;

/// Bytes of a table of embeddings that are resident once its `used` rows have been read: all of a copy, and of a mapped
/// one the pages around them.
pub(crate) fn embedding_bytes(table: &Weight, used: &[bool]) -> usize {
    let mut all = WeightBytes::default();
    all.add(table);
    let bytes = all.mapped + all.copied;
    if all.mapped == 0 || used.is_empty() {
        return bytes;
    }
    let start = match table {
        Weight::Frozen(tensor) => tensor.as_ptr() as usize,
        Weight::Blocks(matrix) => matrix.bytes().as_ptr() as usize,
        Weight::Trained(_) => unreachable!("what trains is not mapped"),
    };
    let row = bytes / used.len();
    let (mut pieces, mut next) = (0, 0);
    for (number, _) in used.iter().enumerate().filter(|(_, used)| **used) {
        let from = start + number * row;
        let (first, last) = (from / AROUND, (from + row - 1) / AROUND);
        pieces += (last + 1).saturating_sub(first.max(next));
        next = next.max(last + 1);
    }
    bytes.min(pieces * AROUND)
}
