//! What is saved of a segment for its backward pass.

use lora_drop_compute::device::{Kept, Piece};

use super::graph::ValueId;
use super::space::Space;

/// What the backward pass needs of a segment.
pub struct Needs {
    /// By value: whether its gradient is wanted.
    pub(super) wanted: Vec<bool>,
    /// By value: whether it is saved as it is, or as an activation's input.
    pub(super) kept: Vec<SavedAs>,
    /// By operation: whether its rows' statistics are saved.
    pub(super) beside: Vec<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedAs {
    No,
    /// Rounded to bf16 beside products in bf16.
    Input,
    Exact,
}

impl Needs {
    pub(super) fn keep(&mut self, value: ValueId, how: SavedAs) {
        if self.kept[value] != SavedAs::Exact {
            self.kept[value] = how;
        }
    }
}

/// What is saved of a segment.
pub struct Saved {
    pub(super) values: Vec<Option<Kept>>,
    /// By operation: of a norm x̂ and the rows' deviations, of attention the rows' sums, of layers
    /// what each one's adapter saves.
    pub(super) beside: Vec<Vec<Piece>>,
}

impl Saved {
    /// Gives its memory back.
    pub fn release(self, space: &mut Space) {
        self.values.into_iter().flatten().for_each(|kept| space.give(kept.piece));
        self.beside.into_iter().flatten().for_each(|piece| space.give(piece));
    }

    /// A value that is saved as it is.
    pub(super) fn exact(&self, value: ValueId) -> Option<Piece> {
        self.values[value].filter(|kept| !kept.rounded).map(|kept| kept.piece)
    }

    /// One that is saved rounded.
    pub(super) fn rounded(&self, value: ValueId) -> Option<Kept> {
        self.values[value].filter(|kept| kept.rounded)
    }
}
