//! Packing with AVX-512: strips are transposed in registers, as f32 or as pairs of bf16.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::kernel::{MAX_MR, MAX_NR};
use super::{BLOCK, Format, Strip};
use crate::blocks::BlockMatrix;
use crate::blocks::layout::{Layout, RUN, with_layout};
use crate::lanes::Avx512;

impl Strip {
    /// Prefetches the value `prefetch_bytes` after `at`; neither address need be valid.
    #[inline(always)]
    fn prefetch_ahead<const HINT: i32>(&self, at: *const impl Sized) {
        if self.prefetch_bytes > 0 {
            // SAFETY: any address may be prefetched.
            unsafe { _mm_prefetch::<HINT>(at.wrapping_byte_add(self.prefetch_bytes).cast()) };
        }
    }
}

/// Maximum number of rows of a strip.
const MAX_HEIGHT: usize = if MAX_MR > MAX_NR { MAX_MR } else { MAX_NR };

/// Returns the mask of the first `count` of 16 lanes; all if `count` is larger.
fn lanes(count: usize) -> u16 {
    ((1u32 << count.min(16)) - 1) as u16
}

/// # Safety
/// The processor has AVX-512F; the strip is inside `data`; `out` has `depth` · height words.
#[target_feature(enable = "avx512f")]
pub unsafe fn rows(strip: &Strip, data: &[f32], stride: usize, depth: usize, out: &mut [f32]) {
    let scale = _mm512_set1_ps(strip.scale);
    for j in (0..depth).step_by(16) {
        let mask = lanes(depth - j);
        let load = |row: usize| {
            let at = data.as_ptr().wrapping_add(row * stride + j);
            // SAFETY: the loads are masked to the row's values.
            let x = unsafe {
                strip.prefetch_ahead::<_MM_HINT_T1>(at);
                _mm512_maskz_loadu_ps(mask, at)
            };
            _mm512_mul_ps(x, scale)
        };
        // SAFETY: `out` has the words of all k from j on; the caller promises AVX-512F.
        unsafe { transpose_words(strip, load, (depth - j).min(16), &mut out[j * strip.height..]) };
    }
}

/// # Safety
/// As for `rows`, with BF16 and half as many words.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn pair_rows(strip: &Strip, data: &[f32], stride: usize, depth: usize, out: &mut [f32]) {
    let scale = _mm512_set1_ps(strip.scale);
    for j in (0..depth).step_by(32) {
        let (mask, upper_mask) = (lanes(depth - j), lanes((depth - j).saturating_sub(16)));
        let load = |row: usize| {
            let at = data.as_ptr().wrapping_add(row * stride + j);
            // SAFETY: the loads are masked to the row's values.
            let (x, upper) = unsafe {
                strip.prefetch_ahead::<_MM_HINT_T1>(at);
                strip.prefetch_ahead::<_MM_HINT_T1>(at.wrapping_add(16));
                (_mm512_maskz_loadu_ps(mask, at), _mm512_maskz_loadu_ps(upper_mask, at.wrapping_add(16)))
            };
            let pairs = _mm512_cvtne2ps_pbh(_mm512_mul_ps(upper, scale), _mm512_mul_ps(x, scale));
            // SAFETY: the types have the same 64 bytes.
            unsafe { std::mem::transmute::<__m512bh, __m512>(pairs) }
        };
        let words = (depth - j).min(32).div_ceil(2);
        // SAFETY: `out` has the words of all k from j on; the caller promises AVX-512F.
        unsafe { transpose_words(strip, load, words, &mut out[j / 2 * strip.height..]) };
    }
}

/// # Safety
/// The processor has AVX-512F and BF16; `out` has a word for each two values.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn pairs(x: &[f32], out: &mut [f32]) {
    for j in (0..x.len()).step_by(32) {
        let left = x.len() - j;
        let (mask, upper_mask) = (lanes(left), lanes(left.saturating_sub(16)));
        let at = x.as_ptr().wrapping_add(j);
        // SAFETY: the loads are masked to the values, the store to their words; the types have the
        // same 64 bytes.
        unsafe {
            let lower = _mm512_maskz_loadu_ps(mask, at);
            let upper = _mm512_maskz_loadu_ps(upper_mask, at.wrapping_add(16));
            let pairs = _mm512_cvtne2ps_pbh(upper, lower);
            let pairs = std::mem::transmute::<__m512bh, __m512>(pairs);
            _mm512_mask_storeu_ps(out.as_mut_ptr().add(j / 2), lanes(left.div_ceil(2)), pairs);
        }
    }
}

/// Packs rows of bf16 as they are stored. Unlike packing of f32, this keeps denormals; the kernel
/// treats them as zeros.
///
/// # Safety
/// The processor has AVX-512 F and BW; `out` has a word for each two values.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn halves_by_rows(
    strip: &Strip,
    values: &[[u8; 2]],
    stride: usize,
    depth: usize,
    out: &mut [f32],
) {
    assert!(strip.rows == 0 || (strip.rows - 1) * stride + depth <= values.len());
    for j in (0..depth).step_by(32) {
        let left = (depth - j).min(32);
        let mask = u32::MAX >> (32 - left);
        let load = |row: usize| {
            let at = values.as_ptr().wrapping_add(row * stride + j);
            strip.prefetch_ahead::<_MM_HINT_T1>(at);
            // SAFETY: the load is masked to the row's values, which are inside the slice by the
            // assertion.
            _mm512_castsi512_ps(unsafe { _mm512_maskz_loadu_epi16(mask, at.cast()) })
        };
        // SAFETY: `out` has the words of all k from j on; the caller promises AVX-512F.
        unsafe { transpose_words(strip, load, left.div_ceil(2), &mut out[j / 2 * strip.height..]) };
    }
}

/// Packs the strip of rows from row `first` of the matrix on, columns `k`. `k` starts and ends at
/// multiples of 32; the strip's scale is 1.
///
/// # Safety
/// The processor has AVX-512 F, BW, DQ and VL, and BF16; `out` has a word for each two values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")]
pub unsafe fn pair_blocks(
    strip: &Strip,
    matrix: &BlockMatrix,
    first: usize,
    k: Range<usize>,
    out: &mut [f32],
) {
    assert!(matrix.kind().values() > 1, "types without blocks are widened before");
    // SAFETY: this function's contract is the callee's, and `L` is the layout of the matrix.
    unsafe { with_layout!(matrix.kind(), L => pair_layout::<L>(strip, matrix, first, k, out)) }
}

/// # Safety
/// As for `pair_blocks`, for a matrix with this layout.
#[inline(always)]
unsafe fn pair_layout<L: Layout>(
    strip: &Strip,
    matrix: &BlockMatrix,
    first: usize,
    k: Range<usize>,
    out: &mut [f32],
) {
    assert!(k.start.is_multiple_of(BLOCK) && k.end.is_multiple_of(BLOCK), "blocks stay whole");
    assert!(strip.scale == 1.0 && (1..=MAX_HEIGHT).contains(&strip.rows));
    let (bytes, row_bytes) = (matrix.bytes(), matrix.row_bytes());
    // SAFETY: the caller promises AVX-512; `out` has 16 words per row for every 32 values.
    unsafe {
        let s = Avx512::new();
        for in_block in k.start / L::VALUES..k.end.div_ceil(L::VALUES) {
            let block = |row: usize| &bytes[(first + row) * row_bytes + in_block * L::BYTES..][..L::BYTES];
            let starts = (in_block * L::VALUES).max(k.start)..((in_block + 1) * L::VALUES).min(k.end);
            if L::VALUES == BLOCK {
                transpose_words(
                    strip,
                    #[inline(always)]
                    |row| pair_runs::<L>(s, block(row), &L::scales(s, block(row)), 0),
                    16,
                    &mut out[(starts.start - k.start) / 2 * strip.height..],
                );
                continue;
            }
            // The scales of a large block are widened once for all its parts of 32 values.
            let mut scales = [L::scales(s, block(0)); MAX_HEIGHT];
            for (row, scales) in scales.iter_mut().enumerate().take(strip.rows).skip(1) {
                *scales = L::scales(s, block(row));
            }
            for start in starts.step_by(BLOCK) {
                let run = start % L::VALUES / RUN;
                transpose_words(
                    strip,
                    #[inline(always)]
                    |row| pair_runs::<L>(s, block(row), &scales[row], run),
                    16,
                    &mut out[(start - k.start) / 2 * strip.height..],
                );
            }
        }
    }
}

/// Returns the pairs of run `run` and the next one, 16 words.
///
/// # Safety
/// The processor has AVX-512F and BF16.
#[inline(always)]
unsafe fn pair_runs<L: Layout>(s: Avx512, block: &[u8], scales: &L::Scales<Avx512>, run: usize) -> __m512 {
    let (x, upper) = (L::run(s, block, scales, run), L::run(s, block, scales, run + 1));
    // SAFETY: the caller promises the instructions; the types have the same 64 bytes.
    unsafe { std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(upper, x)) }
}

/// Packs rows `k` of the matrix into panels of adjacent columns. Panels are full and `BLOCK`
/// columns wide; their scale is 1.
///
/// # Safety
/// As for `pair_blocks`, for each panel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")]
pub unsafe fn pair_block_columns(
    panels: &mut [(Strip, Range<usize>, &mut [f32])],
    matrix: &BlockMatrix,
    k: Range<usize>,
) {
    // SAFETY: this function's contract is the callee's, and `L` is the layout of the matrix.
    unsafe { with_layout!(matrix.kind(), L => pair_layout_columns::<L>(panels, matrix, k)) }
}

/// # Safety
/// As for `pair_block_columns`, for a matrix with this layout.
#[inline(always)]
unsafe fn pair_layout_columns<L: Layout>(
    panels: &mut [(Strip, Range<usize>, &mut [f32])],
    matrix: &BlockMatrix,
    k: Range<usize>,
) {
    assert!(panels.iter().all(|(strip, columns, _)| {
        let whole = strip.height == BLOCK && strip.rows == BLOCK;
        whole && strip.scale == 1.0 && columns.start.is_multiple_of(BLOCK)
    }));
    let (bytes, row_bytes) = (matrix.bytes(), matrix.row_bytes());
    // A few rows of the matrix stay in the L1 cache while all panels take their columns.
    for from in k.clone().step_by(BLOCK) {
        let rows = from..(from + BLOCK).min(k.end);
        for panels in panels.chunk_by_mut(|a, b| a.1.start / L::VALUES == b.1.start / L::VALUES) {
            let first = panels[0].1.start;
            let at = first / L::VALUES * L::BYTES;
            let block = |row: usize| &bytes[row * row_bytes + at..][..L::BYTES];
            let columns = first / L::VALUES * L::VALUES..(first / L::VALUES + 1) * L::VALUES;
            matrix.prefetch(rows.end..rows.end + BLOCK, columns);
            // SAFETY: the caller promises AVX-512; stores are to slices of `RUN` words.
            unsafe {
                let (s, order) = (Avx512::new(), pair_order());
                for row in rows.clone().step_by(2) {
                    // The last row is paired with zeros if the number of rows is odd.
                    let upper = (row + 1 < k.end).then(|| (block(row + 1), L::scales(s, block(row + 1))));
                    let scales = L::scales(s, block(row));
                    for (number, (_, _, out)) in panels.iter_mut().enumerate() {
                        let run = first % L::VALUES / RUN + 2 * number;
                        let out = &mut out[(row - k.start) / 2 * BLOCK..][..BLOCK];
                        for (i, out) in out.chunks_exact_mut(RUN).enumerate() {
                            let x = L::run(s, block(row), &scales, run + i);
                            let upper = match &upper {
                                Some((block, scales)) => L::run(s, block, scales, run + i),
                                None => _mm512_setzero_ps(),
                            };
                            let both = _mm512_cvtne2ps_pbh(upper, x);
                            let both = std::mem::transmute::<__m512bh, __m512i>(both);
                            let word = _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, both));
                            _mm512_storeu_ps(out.as_mut_ptr(), word);
                        }
                    }
                }
            }
        }
    }
}

/// Transposes at most 16 words of each row of the strip, which `load` returns, into `out`. For
/// `Format::AmxTiles`, stores the rows as they are.
///
/// # Safety
/// The processor has AVX-512F; `out` has `words` · height words, or 16 · height for
/// `Format::AmxTiles`.
#[inline(always)]
unsafe fn transpose_words(strip: &Strip, load: impl Fn(usize) -> __m512, words: usize, out: &mut [f32]) {
    if strip.format == Format::AmxTiles {
        assert!(16 * strip.height <= out.len());
        for i in 0..strip.height {
            // SAFETY: the caller promises AVX-512F; `out` has 16 words for each row.
            unsafe {
                let row = if i < strip.rows { load(i) } else { _mm512_setzero_ps() };
                _mm512_storeu_ps(out.as_mut_ptr().add(16 * i), row);
            }
        }
        return;
    }
    assert!(words * strip.height <= out.len());
    for first in (0..strip.height).step_by(16) {
        // SAFETY: the caller promises AVX-512F.
        let mut block = [unsafe { _mm512_setzero_ps() }; 16];
        let there = strip.rows.saturating_sub(first);
        for (i, row) in block.iter_mut().enumerate().take(there) {
            *row = load(first + i);
        }
        let mask = lanes(strip.height - first);
        // SAFETY: the caller promises AVX-512F; the lanes of the mask from word · height + first on
        // are inside `out`.
        unsafe {
            for (word, column) in transpose_16(block).iter().enumerate().take(words) {
                _mm512_mask_storeu_ps(out.as_mut_ptr().add(word * strip.height + first), mask, *column);
            }
        }
    }
}

/// # Safety
/// The processor has AVX-512F; the strip is inside `data`; `out` has `depth` · height words.
#[target_feature(enable = "avx512f")]
pub unsafe fn columns(strip: &Strip, data: &[f32], stride: usize, depth: usize, out: &mut [f32]) {
    assert!(depth * strip.height <= out.len());
    let scale = _mm512_set1_ps(strip.scale);
    for j in 0..depth {
        for first in (0..strip.height).step_by(16) {
            let (mask, all) = (lanes(strip.rows.saturating_sub(first)), lanes(strip.height - first));
            let at = data.as_ptr().wrapping_add(j * stride + first);
            // SAFETY: the load is masked to the strip's rows, the store to the panel's.
            unsafe {
                strip.prefetch_ahead::<_MM_HINT_T0>(at);
                let x = _mm512_maskz_loadu_ps(mask, at);
                let to = out.as_mut_ptr().add(j * strip.height + first);
                _mm512_mask_storeu_ps(to, all, _mm512_mul_ps(x, scale));
            }
        }
    }
}

/// # Safety
/// As for `columns`, with BF16 and half as many words; for `Format::AmxTiles`, as many as for
/// `depth` rounded up to a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn pair_columns(strip: &Strip, data: &[f32], stride: usize, depth: usize, out: &mut [f32]) {
    let scale = _mm512_set1_ps(strip.scale);
    let load = |at: usize, mask: u16, upper_mask: u16| {
        let at = data.as_ptr().wrapping_add(at);
        // SAFETY: the loads are masked to the strip's values; the types have the same 64 bytes.
        unsafe {
            strip.prefetch_ahead::<_MM_HINT_T0>(at);
            strip.prefetch_ahead::<_MM_HINT_T0>(at.wrapping_add(stride));
            let lower = _mm512_maskz_loadu_ps(mask, at);
            let upper = _mm512_maskz_loadu_ps(upper_mask, at.wrapping_add(stride));
            let both = _mm512_cvtne2ps_pbh(_mm512_mul_ps(upper, scale), _mm512_mul_ps(lower, scale));
            std::mem::transmute::<__m512bh, __m512i>(both)
        }
    };
    // SAFETY: the caller promises the instructions that `interleave` requires.
    unsafe { interleave(strip, load, stride, depth, out) }
}

/// Packs `depth` columns of bf16, as `halves_by_rows` packs rows.
///
/// # Safety
/// As for `halves_by_rows`; the processor has AVX-512 VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn halves_by_columns(
    strip: &Strip,
    values: &[[u8; 2]],
    stride: usize,
    depth: usize,
    out: &mut [f32],
) {
    assert!(depth == 0 || (depth - 1) * stride + strip.rows <= values.len());
    let load = |at: usize, mask: u16, upper_mask: u16| {
        let at = values.as_ptr().wrapping_add(at);
        // SAFETY: the loads are masked to the strip's values, which are inside the slice by the
        // assertion.
        unsafe {
            strip.prefetch_ahead::<_MM_HINT_T0>(at);
            strip.prefetch_ahead::<_MM_HINT_T0>(at.wrapping_add(stride));
            let lower = _mm256_maskz_loadu_epi16(mask, at.cast());
            let upper = _mm256_maskz_loadu_epi16(upper_mask, at.wrapping_add(stride).cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(lower), upper)
        }
    };
    // SAFETY: the caller promises the instructions that `interleave` requires.
    unsafe { interleave(strip, load, stride, depth, out) }
}

/// Returns the permutation of 32 bf16 that makes 16 pairs: pair i gets its lower half from lane i,
/// its upper half from lane 16 + i.
#[inline]
#[target_feature(enable = "avx512f")]
fn pair_order() -> __m512i {
    let order: [u16; 32] = std::array::from_fn(|i| (i / 2 + 16 * (i % 2)) as u16);
    // SAFETY: `order` has 64 bytes.
    unsafe { _mm512_loadu_si512(order.as_ptr().cast()) }
}

/// Packs pairs of two adjacent columns. `load(at, mask, upper_mask)` returns 16 bf16 of the lower
/// column from index `at` on, then 16 of the upper column; the masks say which of them exist.
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[inline(always)]
unsafe fn interleave(
    strip: &Strip,
    load: impl Fn(usize, u16, u16) -> __m512i,
    stride: usize,
    depth: usize,
    out: &mut [f32],
) {
    // SAFETY: the caller promises AVX-512F.
    let order = unsafe { pair_order() };
    // Pairs of columns j and j + 1, for 16 rows from `first` on.
    let pair = |j: usize, first: usize| {
        let mask = lanes(strip.rows.saturating_sub(first));
        let upper_mask = if j + 1 < depth { mask } else { 0 };
        let both = load(j * stride + first, mask, upper_mask);
        // SAFETY: the caller promises AVX-512 BW.
        unsafe { _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, both)) }
    };
    if strip.format == Format::AmxTiles {
        for (number, j) in (0..depth).step_by(32).enumerate() {
            let out = &mut out[16 * number * strip.height..][..16 * strip.height];
            for (first, out) in (0..strip.height).step_by(16).zip(out.chunks_exact_mut(16 * 16)) {
                // SAFETY: the caller promises AVX-512F.
                let mut block = [unsafe { _mm512_setzero_ps() }; 16];
                for (word, j) in block.iter_mut().zip((j..depth).step_by(2)) {
                    *word = pair(j, first);
                }
                // SAFETY: the caller promises AVX-512F.
                let rows = unsafe { transpose_16(block) };
                for (row, out) in rows.iter().zip(out.chunks_exact_mut(16)) {
                    // SAFETY: `out` has 16 words.
                    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *row) };
                }
            }
        }
        return;
    }
    assert!(depth.div_ceil(2) * strip.height <= out.len());
    for j in (0..depth).step_by(2) {
        for first in (0..strip.height).step_by(16) {
            // SAFETY: the store is masked to the panel's rows, which the assertion found inside
            // `out`.
            unsafe {
                let to = out.as_mut_ptr().add(j / 2 * strip.height + first);
                _mm512_mask_storeu_ps(to, lanes(strip.height - first), pair(j, first));
            }
        }
    }
}

/// Transposes a 16 × 16 block in registers: exchanges single words, then pairs of words, then
/// 128-bit lanes.
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
