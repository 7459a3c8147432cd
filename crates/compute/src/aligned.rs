//! Buffers that start at a cache line, so that no vector of 64 bytes crosses one. Large buffers are
//! on huge pages.

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

    /// Returns a buffer of `len` zeros.
    pub fn new(len: usize) -> Self {
        let boundary = if size_of::<f32>() * len < HUGE_PAGE { LINE } else { HUGE_PAGE };
        let gap = boundary / size_of::<f32>();
        let floats = vec![0.0; len + gap];
        let first = floats.as_ptr().align_offset(boundary).min(gap);
        use_huge_pages(&floats[first..][..len]);
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

/// Bytes of a huge page on x86-64, and on Arm with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

/// Asks Linux to use huge pages for all whole ones inside this memory, which must not have been
/// used yet. A product then needs a few TLB entries instead of one per row.
pub fn use_huge_pages<T>(memory: &[T]) {
    #[cfg(target_os = "linux")]
    {
        let bytes = size_of_val(memory);
        let first = memory.as_ptr().cast::<u8>().align_offset(HUGE_PAGE);
        let whole = bytes.saturating_sub(first) / HUGE_PAGE * HUGE_PAGE;
        if whole > 0 {
            let start = memory.as_ptr().wrapping_byte_add(first);
            // SAFETY: `madvise` changes no contents. If it is refused, pages stay small.
            unsafe { libc::madvise(start.cast_mut().cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}
