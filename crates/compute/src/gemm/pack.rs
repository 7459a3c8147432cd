//! Packing: a strip of rows of a matrix becomes a panel in which the strip's values of one k lie together.
//!
//! Both operands are packed by the same code: B's panel of columns is a strip of rows of its transpose.

use std::cell::Cell;
use std::ops::Range;

use super::mat::Data;
use super::{Mat, with_scratch};
use crate::cpu::{Level, level};

thread_local! {
    static ROWS_SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Values of a row of blocks that are widened at a time, before the strip is turned: it then stays in the first-level
/// cache.
const PIECE: usize = 128;

/// Value (k - k₀) · height + i of `out` = scale · m at (rows.start + i, k), zero where the strip has fewer than `height` rows.
pub fn pack(m: Mat, rows: Range<usize>, k: Range<usize>, scale: f32, height: usize, out: &mut [f32]) {
    debug_assert!(rows.len() <= height && out.len() == k.len() * height);
    assert!(rows.end <= m.rows && k.end <= m.cols);
    let strip = rows.len();
    match m.data {
        Data::Floats { data, row_stride, col_stride: 1 } if row_stride != 1 => {
            let data = &data[rows.start * row_stride + k.start..];
            pack_rows(data, row_stride, strip, k.len(), scale, height, out);
        }
        Data::Floats { data, row_stride, col_stride } => {
            assert_eq!(row_stride, 1, "rows or columns without gaps");
            // Values of one k already lie together.
            let data = &data[rows.start + k.start * col_stride..];
            for (j, out) in out.chunks_exact_mut(height).enumerate() {
                for (o, &x) in out.iter_mut().zip(&data[j * col_stride..][..strip]) {
                    *o = scale * x;
                }
                out[strip..].fill(0.0);
            }
        }
        Data::Blocks { matrix, transposed: true } => {
            matrix.widen(k, rows, out, height);
            for out in out.chunks_exact_mut(height) {
                if scale != 1.0 {
                    out[..strip].iter_mut().for_each(|x| *x *= scale);
                }
                out[strip..].fill(0.0);
            }
        }
        Data::Blocks { matrix, transposed: false } => {
            with_scratch(&ROWS_SCRATCH, strip * PIECE, |wide| {
                for (out, from) in out.chunks_mut(PIECE * height).zip(k.clone().step_by(PIECE)) {
                    let k = from..(from + PIECE).min(k.end);
                    matrix.widen(rows.clone(), k.clone(), wide, PIECE);
                    pack_rows(wide, PIECE, strip, k.len(), scale, height, out);
                }
            });
        }
    }
}

/// The same of `strip` rows of `depth` values, `stride` apart in `data`.
fn pack_rows(
    data: &[f32],
    stride: usize,
    strip: usize,
    depth: usize,
    scale: f32,
    height: usize,
    out: &mut [f32],
) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        assert!(strip == 0 || (strip - 1) * stride + depth <= data.len());
        assert!(depth * height <= out.len());
        // SAFETY: AVX-512 is there, and the strip lies inside data by the check above.
        done = unsafe { avx512::transpose(data, stride, strip, depth, scale, height, out) };
    }
    let _ = (Level::Portable, level); // other processors use the plain loop alone
    for (j, out) in out.chunks_exact_mut(height).enumerate().skip(done) {
        for (i, o) in out.iter_mut().enumerate() {
            *o = if i < strip { scale * data[i * stride + j] } else { 0.0 };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    /// Packs as many whole groups of 16 values of k as there are and returns how many values that is.
    ///
    /// # Safety
    /// AVX-512F must be present; `strip` rows of `depth` values, `stride` apart, must lie in `data`.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn transpose(
        data: &[f32],
        stride: usize,
        strip: usize,
        depth: usize,
        scale: f32,
        height: usize,
        out: &mut [f32],
    ) -> usize {
        let scale = _mm512_set1_ps(scale);
        let whole = depth / 16 * 16;
        for j in (0..whole).step_by(16) {
            for first in (0..height).step_by(16) {
                let mut block = [_mm512_setzero_ps(); 16];
                for (i, row) in block.iter_mut().enumerate() {
                    if first + i < strip {
                        // SAFETY: row first + i < strip, and j + 16 <= depth.
                        let x = unsafe { _mm512_loadu_ps(data.as_ptr().add((first + i) * stride + j)) };
                        *row = _mm512_mul_ps(x, scale);
                    }
                }
                let columns = transpose_16(block);
                let lanes = (height - first).min(16);
                let mask = ((1u32 << lanes) - 1) as u16;
                for (i, column) in columns.iter().enumerate() {
                    // SAFETY: (j + i) · height + first + lanes <= depth · height = out.len().
                    unsafe {
                        _mm512_mask_storeu_ps(out.as_mut_ptr().add((j + i) * height + first), mask, *column)
                    };
                }
            }
        }
        whole
    }

    /// The transpose of a 16 × 16 block held in registers: pairs, quads, then 128-bit lanes change places.
    #[target_feature(enable = "avx512f")]
    fn transpose_16(r: [__m512; 16]) -> [__m512; 16] {
        let mut t = r;
        for i in (0..16).step_by(2) {
            t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
        }
        let mut q = t;
        for i in (0..16).step_by(4) {
            let [a, b, c, d] = [t[i], t[i + 1], t[i + 2], t[i + 3]].map(|x| _mm512_castps_pd(x));
            q[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
            q[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
            q[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
            q[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
        }
        // q[4g + c] now holds, in lane l, column 4l + c of rows 4g..4g+4.
        let mut out = q;
        for c in 0..4 {
            let low = _mm512_shuffle_f32x4::<0x44>(q[c], q[4 + c]); // lanes 0 1 of groups 0 1
            let low2 = _mm512_shuffle_f32x4::<0x44>(q[8 + c], q[12 + c]);
            let high = _mm512_shuffle_f32x4::<0xee>(q[c], q[4 + c]); // lanes 2 3
            let high2 = _mm512_shuffle_f32x4::<0xee>(q[8 + c], q[12 + c]);
            out[c] = _mm512_shuffle_f32x4::<0x88>(low, low2);
            out[4 + c] = _mm512_shuffle_f32x4::<0xdd>(low, low2);
            out[8 + c] = _mm512_shuffle_f32x4::<0x88>(high, high2);
            out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(high, high2);
        }
        out
    }
}
