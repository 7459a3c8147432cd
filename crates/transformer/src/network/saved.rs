//! What a segment saves for its backward pass.

use lora_drop_compute::device::{Piece, SavedPiece};

use super::graph::ValueId;
use super::space::Space;

/// What the backward pass of a segment needs.
pub struct Needs {
    /// By value: whether its gradient is computed.
    pub(super) gradient: Vec<bool>,
    /// By value: whether it is saved, and as what.
    pub(super) saved_as: Vec<SavedAs>,
    /// By operation: whether its auxiliary values are saved.
    pub(super) aux: Vec<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedAs {
    No,
    /// An activation's input: rounded to bf16 if the layers that compute it multiply in bf16.
    Input,
    Exact,
}

impl Needs {
    /// Marks a value as saved; one that is already saved exactly stays so.
    pub(super) fn save(&mut self, value: ValueId, how: SavedAs) {
        if self.saved_as[value] != SavedAs::Exact {
            self.saved_as[value] = how;
        }
    }
}

/// What a segment has saved.
pub struct Saved {
    pub(super) values: Vec<Option<SavedPiece>>,
    /// Auxiliary values by operation: a layer norm's x̂ and 1/σ of each row, an RMS norm's 1/rms of
    /// each row, attention's log-sum-exps of each row, and what the adapter of each layer saves.
    pub(super) aux: Vec<Vec<Piece>>,
}

impl Saved {
    /// Frees its memory.
    pub fn release(self, space: &mut Space) {
        self.values.into_iter().flatten().for_each(|value| space.give(value.piece));
        self.aux.into_iter().flatten().for_each(|piece| space.give(piece));
    }

    /// Returns a value that is saved as f32.
    pub(super) fn exact(&self, value: ValueId) -> Option<Piece> {
        self.values[value].filter(|value| !value.rounded).map(|value| value.piece)
    }

    /// Returns a value that is saved rounded.
    pub(super) fn rounded(&self, value: ValueId) -> Option<SavedPiece> {
        self.values[value].filter(|value| value.rounded)
    }
}
