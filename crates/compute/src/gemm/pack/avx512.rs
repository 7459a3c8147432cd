//! Packing by AVX-512: strips turned in registers, into f32 and into pairs of bf16.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::kernel::{MAX_MR, MAX_NR};
use super::{BLOCK, Format, Strip};
use crate::blocks::BlockMatrix;
use crate::blocks::layout::{Layout, RUN, with_layout};
use crate::lanes::Avx512;

impl Strip {
    /// Asks for what lies `next` after this address, for any address may be asked for.
    #[inline(always)]
    fn fetch_ahead<const HINT: i32>(&self, at: *const impl Sized) {
        if self.next > 0 {
            // SAFETY: a hint.
            unsafe { _mm_prefetch::<HINT>(at.wrapping_byte_add(self.next).cast()) };
        }
    }
}

/// The most rows of a strip.
const MAX_HEIGHT: usize = if MAX_MR > MAX_NR { MAX_MR } else { MAX_NR };

/// The first `count` lanes of 16; all where there are more.
fn lanes(count: usize) -> u16 {
    ((1u32 << count.min(16)) - 1) as u16
}

/// # Safety
/// AVX-512F; the strip lies in `data`, and `out` has `depth` · height words.
#[target_feature(enable = "avx512f")]
pub unsafe fn rows(strip: &Strip, data: &[f32], stride: usize, depth: usize, out: &mut [f32]) {
    let scale = _mm512_set1_ps(strip.scale);
    for j in (0..depth).step_by(16) {
        let mask = lanes(depth - j);
        let load = |row: usize| {
            let at = data.as_ptr().wrapping_add(row * stride + j);
            // SAFETY: masked to the row's values.
            let x = unsafe {
                strip.fetch_ahead::<_MM_HINT_T1>(at);
                _mm512_maskz_loadu_ps(mask, at)
            };
            _mm512_mul_ps(x, scale)
        };
        // SAFETY: the words of k from j on are there.
        unsafe { turn(strip, load, (depth - j).min(16), &mut out[j * strip.height..]) };
    }
}

/// # Safety
/// As of `rows`, with BF16 and half as many words.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn pair_rows(strip: &Strip, data: &[f32], stride: usize, depth: usize, out: &mut [f32]) {
    let scale = _mm512_set1_ps(strip.scale);
    for j in (0..depth).step_by(32) {
        let (mask, upper_mask) = (lanes(depth - j), lanes((depth - j).saturating_sub(16)));
        let load = |row: usize| {
            let at = data.as_ptr().wrapping_add(row * stride + j);
            // SAFETY: masked to the row's values.
            let (x, upper) = unsafe {
                strip.fetch_ahead::<_MM_HINT_T1>(at);
                strip.fetch_ahead::<_MM_HINT_T1>(at.wrapping_add(16));
                (_mm512_maskz_loadu_ps(mask, at), _mm512_maskz_loadu_ps(upper_mask, at.wrapping_add(16)))
            };
            let pairs = _mm512_cvtne2ps_pbh(_mm512_mul_ps(upper, scale), _mm512_mul_ps(x, scale));
            // SAFETY: the same 64 bytes.
            unsafe { std::mem::transmute::<__m512bh, __m512>(pairs) }
        };
        let words = (depth - j).min(32).div_ceil(2);
        // SAFETY: the words of k from j on are there.
        unsafe { turn(strip, load, words, &mut out[j / 2 * strip.height..]) };
    }
}

/// # Safety
/// AVX-512F and BF16; `out` has a word for two values.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn pairs(x: &[f32], out: &mut [f32]) {
    for j in (0..x.len()).step_by(32) {
        let left = x.len() - j;
        let (mask, upper_mask) = (lanes(left), lanes(left.saturating_sub(16)));
        let at = x.as_ptr().wrapping_add(j);
        // SAFETY: masked to the values, and to the words that they have; the types are the same 64
        // bytes.
        unsafe {
            let lower = _mm512_maskz_loadu_ps(mask, at);
            let upper = _mm512_maskz_loadu_ps(upper_mask, at.wrapping_add(16));
            let pairs = _mm512_cvtne2ps_pbh(upper, lower);
            let pairs = std::mem::transmute::<__m512bh, __m512>(pairs);
            _mm512_mask_storeu_ps(out.as_mut_ptr().add(j / 2), lanes(left.div_ceil(2)), pairs);
        }
    }
}

/// Of bf16 as they are stored. Packing f32 makes zeros of denormal numbers, this does not; the
/// kernel takes them for zeros.
///
/// # Safety
/// AVX-512 (F and BW); `out` has a word for two values.
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
            strip.fetch_ahead::<_MM_HINT_T1>(at);
            // SAFETY: masked to the row's values, by the assertion inside the slice.
            _mm512_castsi512_ps(unsafe { _mm512_maskz_loadu_epi16(mask, at.cast()) })
        };
        // SAFETY: the words of k from j on are there.
        unsafe { turn(strip, load, left.div_ceil(2), &mut out[j / 2 * strip.height..]) };
    }
}

/// The rows of the strip from row `first` of the matrix on, columns `k`, which start and end where
/// blocks of 32 do. The strip's scale is 1.
///
/// # Safety
/// AVX-512 (F, BW, DQ and VL) and BF16; `out` has a word for two values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")]
pub unsafe fn pair_blocks(
    strip: &Strip,
    matrix: &BlockMatrix,
    first: usize,
    k: Range<usize>,
    out: &mut [f32],
) {
    assert!(matrix.kind().values() > 1, "types without blocks are widened before");
    // SAFETY: the caller's promise.
    unsafe { with_layout!(matrix.kind(), L => pair_layout::<L>(strip, matrix, first, k, out)) }
}

/// # Safety
/// As of `pair_blocks`, of a matrix with this layout.
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
    // SAFETY: the caller's promise of AVX-512; out has 16 words a row for every 32 values.
    unsafe {
        let s = Avx512::new();
        for in_block in k.start / L::VALUES..k.end.div_ceil(L::VALUES) {
            let block = |row: usize| &bytes[(first + row) * row_bytes + in_block * L::BYTES..][..L::BYTES];
            let starts = (in_block * L::VALUES).max(k.start)..((in_block + 1) * L::VALUES).min(k.end);
            if L::VALUES == BLOCK {
                turn(
                    strip,
                    #[inline(always)]
                    |row| pair_runs::<L>(s, block(row), &L::scales(s, block(row)), 0),
                    16,
                    &mut out[(starts.start - k.start) / 2 * strip.height..],
                );
                continue;
            }
            // The scales of a large block are for several parts of it.
            let mut scales = [L::scales(s, block(0)); MAX_HEIGHT];
            for (row, scales) in scales.iter_mut().enumerate().take(strip.rows).skip(1) {
                *scales = L::scales(s, block(row));
            }
            for start in starts.step_by(BLOCK) {
                let run = start % L::VALUES / RUN;
                turn(
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

/// The pairs of a run and the next one.
///
/// # Safety
/// AVX-512F and BF16.
#[inline(always)]
unsafe fn pair_runs<L: Layout>(s: Avx512, block: &[u8], scales: &L::Scales<Avx512>, run: usize) -> __m512 {
    let (x, upper) = (L::run(s, block, scales, run), L::run(s, block, scales, run + 1));
    // SAFETY: the caller's promise; the types are the same 64 bytes.
    unsafe { std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(upper, x)) }
}

/// The columns of neighbouring panels, rows `k`. Panels are whole and as wide as `BLOCK`; their scale
/// is 1.
///
/// # Safety
/// As of `pair_blocks`, for each panel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")]
pub unsafe fn pair_block_columns(
    panels: &mut [(Strip, Range<usize>, &mut [f32])],
    matrix: &BlockMatrix,
    k: Range<usize>,
) {
    // SAFETY: the caller's promise.
    unsafe { with_layout!(matrix.kind(), L => pair_layout_columns::<L>(panels, matrix, k)) }
}

/// # Safety
/// As of `pair_block_columns`, of a matrix with this layout.
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
    // Some rows of the matrix stay in the first-level cache while the panels take their columns.
    for from in k.clone().step_by(BLOCK) {
        let rows = from..(from + BLOCK).min(k.end);
        for panels in panels.chunk_by_mut(|a, b| a.1.start / L::VALUES == b.1.start / L::VALUES) {
            let first = panels[0].1.start;
            let at = first / L::VALUES * L::BYTES;
            let block = |row: usize| &bytes[row * row_bytes + at..][..L::BYTES];
            let columns = first / L::VALUES * L::VALUES..(first / L::VALUES + 1) * L::VALUES;
            matrix.prefetch(rows.end..rows.end + BLOCK, columns);
            // SAFETY: the caller's promise of AVX-512.
            unsafe {
                let (s, order) = (Avx512::new(), pair_order());
                for row in rows.clone().step_by(2) {
                    // After the last row are zeros.
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

/// Turns at most 16 words of each row of the strip, as `load` gives them; where rows are to stay
/// rows, stores them as they are.
///
/// # Safety
/// AVX-512F; `out` has `words` · height words, or 16 · height for rows.
#[inline(always)]
unsafe fn turn(strip: &Strip, load: impl Fn(usize) -> __m512, words: usize, out: &mut [f32]) {
    if strip.format == Format::Rows {
        assert!(16 * strip.height <= out.len());
        for i in 0..strip.height {
            // SAFETY: AVX-512F; 16 words for each row.
            unsafe {
                let row = if i < strip.rows { load(i) } else { _mm512_setzero_ps() };
                _mm512_storeu_ps(out.as_mut_ptr().add(16 * i), row);
            }
        }
        return;
    }
    assert!(words * strip.height <= out.len());
    for first in (0..strip.height).step_by(16) {
        // SAFETY: AVX-512F.
        let mut block = [unsafe { _mm512_setzero_ps() }; 16];
        let there = strip.rows.saturating_sub(first);
        for (i, row) in block.iter_mut().enumerate().take(there) {
            *row = load(first + i);
        }
        let mask = lanes(strip.height - first);
        // SAFETY: AVX-512F; word · height + first and the lanes of the mask are inside out.
        unsafe {
            for (word, column) in transpose_16(block).iter().enumerate().take(words) {
                _mm512_mask_storeu_ps(out.as_mut_ptr().add(word * strip.height + first), mask, *column);
            }
        }
    }
}

/// # Safety
/// AVX-512F; the strip lies in `data`, and `out` has `depth` · height words.
#[target_feature(enable = "avx512f")]
pub unsafe fn columns(strip: &Strip, data: &[f32], stride: usize, depth: usize, out: &mut [f32]) {
    assert!(depth * strip.height <= out.len());
    let scale = _mm512_set1_ps(strip.scale);
    for j in 0..depth {
        for first in (0..strip.height).step_by(16) {
            let (mask, all) = (lanes(strip.rows.saturating_sub(first)), lanes(strip.height - first));
            let at = data.as_ptr().wrapping_add(j * stride + first);
            // SAFETY: masked to the strip's rows, and to the panel's.
            unsafe {
                strip.fetch_ahead::<_MM_HINT_T0>(at);
                let x = _mm512_maskz_loadu_ps(mask, at);
                let to = out.as_mut_ptr().add(j * strip.height + first);
                _mm512_mask_storeu_ps(to, all, _mm512_mul_ps(x, scale));
            }
        }
    }
}

/// # Safety
/// As of `columns`, with BF16 and half as many words; as many as for whole 32 values of k where the
/// format is rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn pair_columns(strip: &Strip, data: &[f32], stride: usize, depth: usize, out: &mut [f32]) {
    let scale = _mm512_set1_ps(strip.scale);
    let load = |at: usize, mask: u16, upper_mask: u16| {
        let at = data.as_ptr().wrapping_add(at);
        // SAFETY: masked to the strip's values; the types are the same 64 bytes.
        unsafe {
            strip.fetch_ahead::<_MM_HINT_T0>(at);
            strip.fetch_ahead::<_MM_HINT_T0>(at.wrapping_add(stride));
            let lower = _mm512_maskz_loadu_ps(mask, at);
            let upper = _mm512_maskz_loadu_ps(upper_mask, at.wrapping_add(stride));
            let both = _mm512_cvtne2ps_pbh(_mm512_mul_ps(upper, scale), _mm512_mul_ps(lower, scale));
            std::mem::transmute::<__m512bh, __m512i>(both)
        }
    };
    // SAFETY: the caller's promise.
    unsafe { interleave(strip, load, stride, depth, out) }
}

/// As `halves_by_rows`, of `depth` columns.
///
/// # Safety
/// As of `halves_by_rows`, and AVX-512 VL.
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
        // SAFETY: masked to the strip's values, by the assertion inside the slice.
        unsafe {
            strip.fetch_ahead::<_MM_HINT_T0>(at);
            strip.fetch_ahead::<_MM_HINT_T0>(at.wrapping_add(stride));
            let lower = _mm256_maskz_loadu_epi16(mask, at.cast());
            let upper = _mm256_maskz_loadu_epi16(upper_mask, at.wrapping_add(stride).cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(lower), upper)
        }
    };
    // SAFETY: the caller's promise.
    unsafe { interleave(strip, load, stride, depth, out) }
}

/// Where the halves of 16 pairs come from: that of the lower k is lane i of the first 16 bf16, that
/// of the upper one lane i of the last.
#[inline]
#[target_feature(enable = "avx512f")]
fn pair_order() -> __m512i {
    let order: [u16; 32] = std::array::from_fn(|i| (i / 2 + 16 * (i % 2)) as u16);
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(order.as_ptr().cast()) }
}

/// Pairs of two neighbouring columns. `load` gives 16 bf16 of the lower one and after them as many
/// of the upper one, from a place in the lower one on, with masks of those that are there.
///
/// # Safety
/// AVX-512 (F and BW).
#[inline(always)]
unsafe fn interleave(
    strip: &Strip,
    load: impl Fn(usize, u16, u16) -> __m512i,
    stride: usize,
    depth: usize,
    out: &mut [f32],
) {
    // SAFETY: AVX-512F.
    let order = unsafe { pair_order() };
    // Columns j and j + 1 of 16 rows.
    let pair = |j: usize, first: usize| {
        let mask = lanes(strip.rows.saturating_sub(first));
        let upper_mask = if j + 1 < depth { mask } else { 0 };
        let both = load(j * stride + first, mask, upper_mask);
        // SAFETY: AVX-512 BW.
        unsafe { _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, both)) }
    };
    if strip.format == Format::Rows {
        for (number, j) in (0..depth).step_by(32).enumerate() {
            let out = &mut out[16 * number * strip.height..][..16 * strip.height];
            for (first, out) in (0..strip.height).step_by(16).zip(out.chunks_exact_mut(16 * 16)) {
                // SAFETY: AVX-512F.
                let mut block = [unsafe { _mm512_setzero_ps() }; 16];
                for (word, j) in block.iter_mut().zip((j..depth).step_by(2)) {
                    *word = pair(j, first);
                }
                // SAFETY: AVX-512F.
                let rows = unsafe { transpose_16(block) };
                for (row, out) in rows.iter().zip(out.chunks_exact_mut(16)) {
                    // SAFETY: 16 words.
                    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *row) };
                }
            }
        }
        return;
    }
    assert!(depth.div_ceil(2) * strip.height <= out.len());
    for j in (0..depth).step_by(2) {
        for first in (0..strip.height).step_by(16) {
            // SAFETY: masked to the panel's rows.
            unsafe {
                let to = out.as_mut_ptr().add(j / 2 * strip.height + first);
                _mm512_mask_storeu_ps(to, lanes(strip.height - first), pair(j, first));
            }
        }
    }
}

/// The transpose of a 16 × 16 block held in registers: pairs, quads, then 128-bit lanes change
/// places.
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
