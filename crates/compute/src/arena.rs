//! Scratch memory in one buffer that is allocated once and reused.

use crate::aligned::use_huge_pages;
use crate::cpu::LINE;

/// Extra floats, so that at least a thousand pieces can start at cache lines.
const GAPS: usize = 1024 * LINE / size_of::<f32>();

/// Hands out disjoint pieces of a buffer. Their contents are undefined: every operation overwrites
/// its output.
pub struct Arena<'a> {
    rest: &'a mut [f32],
    /// Floats that may still be skipped.
    gaps: usize,
}

impl<'a> Arena<'a> {
    /// Returns the length of the buffer for an arena of `len` floats.
    pub const fn room(len: usize) -> usize {
        len + GAPS
    }

    /// An arena of `len` floats over `buffer`, which grows if it is too small and never shrinks.
    pub fn new(buffer: &'a mut Vec<f32>, len: usize) -> Self {
        let all = Arena::room(len);
        if buffer.len() < all {
            // Not resize: the old contents need not be copied.
            *buffer = vec![0.0; all];
            use_huge_pages(buffer);
        }
        Arena { rest: &mut buffer[..all], gaps: GAPS }
    }

    /// Returns the next `len` floats. Panics if the arena is too small: a bug in the program, not
    /// in its input.
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
}
