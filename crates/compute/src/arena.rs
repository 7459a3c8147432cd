//! Activations in one buffer that is made once and reused by every step.

use crate::cpu::LINE;

/// Floats that are there beyond what was planned, so that pieces can start at cache lines, a
/// thousand of them.
const GAPS: usize = 1024 * LINE / size_of::<f32>();

/// Hands out disjoint pieces of a buffer. Their contents are whatever was there: every operation
/// overwrites its output (only parameters' gradients are added to).
pub struct Arena<'a> {
    rest: &'a mut [f32],
    /// Floats that may still be left out.
    gaps: usize,
}

impl<'a> Arena<'a> {
    /// Floats of the buffer of an arena of `len` floats.
    pub const fn room(len: usize) -> usize {
        len + GAPS
    }

    /// An arena of `len` floats over `buffer`, which grows if it has no room for them and never
    /// shrinks.
    pub fn new(buffer: &'a mut Vec<f32>, len: usize) -> Self {
        let all = Arena::room(len);
        if buffer.len() < all {
            // Not resize: the old contents need not be copied.
            *buffer = vec![0.0; all];
        }
        Arena { rest: &mut buffer[..all], gaps: GAPS }
    }

    /// The next `len` floats. Panics when the plan was too small: a fault of the program, not of
    /// its input.
    pub fn take(&mut self, len: usize) -> &'a mut [f32] {
        let rest = std::mem::take(&mut self.rest);
        let planned = rest.len() - self.gaps;
        assert!(len <= planned, "the arena was planned {} floats too small", len - planned);
        let gap = rest.as_ptr().align_offset(LINE).min(self.gaps);
        self.gaps -= gap;
        let (piece, rest) = rest[gap..].split_at_mut(len);
        self.rest = rest;
        piece
    }

    /// What is left, to take from and to give back at the end of the scope.
    pub fn scope(&mut self) -> Arena<'_> {
        Arena { rest: self.rest, gaps: self.gaps }
    }
}
