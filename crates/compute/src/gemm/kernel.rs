//! The innermost loops: a tile of C from a packed panel of A and one of B.
//!
//! A kernel of MR × NR keeps its whole tile in registers. Per step of k it loads one row of the B panel,
//! broadcasts MR values of the A panel and does MR · NR multiply-adds.

use super::Start;
use crate::cpu::{Level, level};

/// The largest tile of any kernel.
pub const MAX_MR: usize = 14;
pub const MAX_NR: usize = 32;

/// Where a kernel writes: a tile of C of at most the kernel's size.
pub struct Tile<'a> {
    pub c: *mut f32,
    pub row_stride: usize,
    pub rows: usize,
    pub cols: usize,
    pub start: Start<'a>,
}

/// A kernel and the size of its tile.
#[derive(Clone, Copy)]
pub struct Kernel {
    #[cfg(test)]
    pub name: &'static str,
    pub mr: usize,
    pub nr: usize,
    /// (depth, A panel of depth · mr, B panel of depth · nr, tile)
    pub run: unsafe fn(usize, &[f32], &[f32], Tile),
}

impl Kernel {
    /// The kernel for C of m rows and n columns: thin ones where a wide one would mostly multiply padding.
    pub fn choose(m: usize, n: usize) -> Kernel {
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if n <= 16 => avx512::TALL,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if m <= 8 || m == 16 => avx512::FLAT,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::WIDE,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::WIDE,
            _ => PORTABLE,
        }
    }
}

/// All kernels that this machine can run.
#[cfg(test)]
pub fn available() -> Vec<Kernel> {
    let mut all = vec![PORTABLE];
    #[cfg(target_arch = "x86_64")]
    {
        if level() >= Level::Avx2 {
            all.push(avx2::WIDE);
        }
        if level() >= Level::Avx512 {
            all.extend([avx512::WIDE, avx512::FLAT, avx512::TALL]);
        }
    }
    all
}

/// Without vector instructions of its own: whatever the compiler makes of it.
const PORTABLE: Kernel = Kernel {
    #[cfg(test)]
    name: "portable 4 × 16",
    mr: 4,
    nr: 16,
    run: portable,
};

/// # Safety
/// As `Kernel::run` asks: panels of this kernel's sizes, a tile inside a matrix that no one else writes.
unsafe fn portable(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
    let mut sum = [[0.0f32; 16]; 4];
    for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(16)).take(depth) {
        for (sum, &a) in sum.iter_mut().zip(a) {
            for (s, &b) in sum.iter_mut().zip(b) {
                *s += a * b;
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { store_part(&tile, sum.as_flattened(), 16) };
}

/// Adds a tile that was computed in full, row after row of `width`, to the part of it that C has.
///
/// # Safety
/// The tile lies inside a matrix that no one else writes.
unsafe fn store_part(tile: &Tile, sum: &[f32], width: usize) {
    for i in 0..tile.rows {
        for j in 0..tile.cols {
            // SAFETY: inside the tile.
            let c = unsafe { &mut *tile.c.add(i * tile.row_stride + j) };
            let from = match tile.start {
                Start::Zero => 0.0,
                Start::Bias(bias) => bias[j],
                Start::Keep => *c,
            };
            *c = from + sum[i * width + j];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Kernel, Start, Tile};
    use std::arch::x86_64::*;

    /// 28 accumulators, 2 loads and 14 broadcasts a step: bound by arithmetic.
    pub const WIDE: Kernel = Kernel {
        #[cfg(test)]
        name: "avx512 14 × 32",
        mr: 14,
        nr: 32,
        run: run::<14, 2>,
    };
    /// For gradients of A and B: as many rows as the rank.
    pub const FLAT: Kernel = Kernel {
        #[cfg(test)]
        name: "avx512 8 × 32",
        mr: 8,
        nr: 32,
        run: run::<8, 2>,
    };
    /// For x Aᵀ: as many columns as the rank.
    pub const TALL: Kernel = Kernel {
        #[cfg(test)]
        name: "avx512 14 × 16",
        mr: 14,
        nr: 16,
        run: run::<14, 1>,
    };

    /// # Safety
    /// As `Kernel::run` asks, and AVX-512F must be present.
    unsafe fn run<const MR: usize, const NV: usize>(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe { kernel::<MR, NV>(depth, a, b, tile) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn kernel<const MR: usize, const NV: usize>(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
        assert!(a.len() >= depth * MR && b.len() >= depth * NV * 16);
        // C is needed only after the loop, but it may have to come from afar.
        for i in 0..tile.rows {
            for v in 0..NV {
                _mm_prefetch::<_MM_HINT_T0>(tile.c.wrapping_add(i * tile.row_stride + 16 * v).cast());
            }
        }
        let mut sum = [[_mm512_setzero_ps(); NV]; MR];
        let (mut a, mut b) = (a.as_ptr(), b.as_ptr());
        for _ in 0..depth {
            // SAFETY: within the panels, by the assertion.
            unsafe {
                let mut row = [_mm512_setzero_ps(); NV];
                for (v, row) in row.iter_mut().enumerate() {
                    *row = _mm512_loadu_ps(b.add(16 * v));
                }
                for (i, sum) in sum.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*a.add(i));
                    for (sum, row) in sum.iter_mut().zip(row) {
                        *sum = _mm512_fmadd_ps(x, row, *sum);
                    }
                }
                a = a.add(MR);
                b = b.add(16 * NV);
            }
        }
        let mut from = [_mm512_setzero_ps(); NV];
        let masks: [u16; NV] = std::array::from_fn(|v| {
            let lanes = tile.cols.saturating_sub(16 * v).min(16);
            ((1u32 << lanes) - 1) as u16
        });
        if let Start::Bias(bias) = tile.start {
            for v in 0..NV {
                // SAFETY: masked to the columns that the bias has.
                from[v] =
                    unsafe { _mm512_maskz_loadu_ps(masks[v], bias.as_ptr().add((16 * v).min(bias.len()))) };
            }
        }
        let keep = matches!(tile.start, Start::Keep);
        for (i, sum) in sum.iter().enumerate() {
            if i >= tile.rows {
                break;
            }
            for v in 0..NV {
                if masks[v] == 0 {
                    continue;
                }
                // SAFETY: inside the tile, the last vector masked to its columns.
                unsafe {
                    let c = tile.c.add(i * tile.row_stride + 16 * v);
                    let before = if keep { _mm512_maskz_loadu_ps(masks[v], c) } else { from[v] };
                    _mm512_mask_storeu_ps(c, masks[v], _mm512_add_ps(before, sum[v]));
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Kernel, Tile, store_part};
    use std::arch::x86_64::*;

    /// 12 accumulators of 8 lanes.
    pub const WIDE: Kernel = Kernel {
        #[cfg(test)]
        name: "avx2 6 × 16",
        mr: 6,
        nr: 16,
        run,
    };

    /// # Safety
    /// As `Kernel::run` asks, and AVX2 and FMA must be present.
    unsafe fn run(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe { kernel(depth, a, b, tile) }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn kernel(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
        assert!(a.len() >= depth * 6 && b.len() >= depth * 16);
        let mut sum = [[_mm256_setzero_ps(); 2]; 6];
        let (mut a, mut b) = (a.as_ptr(), b.as_ptr());
        for _ in 0..depth {
            // SAFETY: within the panels, by the assertion.
            unsafe {
                let row = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
                for (i, sum) in sum.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*a.add(i));
                    sum[0] = _mm256_fmadd_ps(x, row[0], sum[0]);
                    sum[1] = _mm256_fmadd_ps(x, row[1], sum[1]);
                }
                a = a.add(6);
                b = b.add(16);
            }
        }
        let mut whole = [0.0f32; 6 * 16];
        for (out, sum) in whole.chunks_exact_mut(16).zip(sum) {
            // SAFETY: out has 16 values.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), sum[0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), sum[1]);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { store_part(&tile, &whole, 16) };
    }
}
