//! Buffers that start at a cache line, so that no vector of 64 bytes crosses one.

use std::ops::{Deref, DerefMut};

use crate::cpu::LINE;

/// A buffer of f32 that starts at a cache line.
pub struct AlignedBuffer {
    floats: Vec<f32>,
    first: usize,
    len: usize,
}

impl Default for AlignedBuffer {
    fn default() -> Self {
        AlignedBuffer::EMPTY
    }
}

impl AlignedBuffer {
    pub const EMPTY: AlignedBuffer = AlignedBuffer { floats: Vec::new(), first: 0, len: 0 };

    /// Zeros.
    pub fn new(len: usize) -> Self {
        let line = LINE / size_of::<f32>();
        let floats = vec![0.0; len + line];
        let first = floats.as_ptr().align_offset(LINE).min(line);
        AlignedBuffer { floats, first, len }
    }
}

impl Deref for AlignedBuffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.floats[self.first..][..self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.floats[self.first..][..self.len]
    }
}
