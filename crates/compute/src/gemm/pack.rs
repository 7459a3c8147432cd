//! Packing: a strip of rows of a matrix becomes a panel in which the strip's values of one k lie together.
//!
//! Both operands are packed by the same code: B's panel of columns is a strip of rows of its transpose.

use std::cell::Cell;
use std::ops::Range;

use super::mat::Data;
use super::{Mat, with_scratch};
#[cfg(target_arch = "x86_64")]
use crate::blocks::BlockType;
use crate::blocks::half::{from_bf16, to_bf16};
use crate::cpu::{Level, level, vectorised};
use crate::lines::Lines;

thread_local! {
    static WIDE_SCRATCH: Cell<Lines> = const { Cell::new(Lines::EMPTY) };
}

/// Values of k that are widened at a time, before the strip is turned: it then stays in the first-level cache.
const PIECE: usize = 128;
/// The same where every k is a row of the matrix, of which all columns are widened.
const FEW: usize = 8;

/// Rows of a matrix packed by columns that are asked for before they are needed.
const AHEAD: usize = 16;

/// What the words of a panel are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    /// f32, rounded to the nearest bf16.
    Rounded,
    /// Two bf16: the lower half is that of the smaller k. For processors that multiply them, with AVX-512.
    Pairs,
    /// Pairs of which 16, those of 32 values of k, lie together row by row: what AMX loads as tiles of A.
    Rows,
}

impl Format {
    /// Values of k in a word.
    pub const fn per_word(self) -> usize {
        match self {
            Format::F32 | Format::Rounded => 1,
            Format::Pairs | Format::Rows => 2,
        }
    }

    /// Values of k of which nothing lies between others in a panel, so that each part may be packed by itself.
    const fn apart(self) -> usize {
        match self {
            Format::F32 | Format::Rounded => 1,
            Format::Pairs => 2,
            Format::Rows => 32,
        }
    }
}

/// Packs strips of `height` rows, the last with what is left, into panels one behind the other. Value
/// (k - k₀) · height + i of a panel = scale · m at (first row + i, k), zero where the strip has fewer rows; of pairs, word
/// (k - k₀) / 2 · height + i is that of k and k + 1, the last one's upper half zero where k is odd; of rows, word p of row i
/// of the n-th 32 values of k is (n · height + i) · 16 + p. `out` says how deep the panels are; behind the last k is zero.
pub fn pack(
    m: Mat,
    rows: Range<usize>,
    k: Range<usize>,
    scale: f32,
    height: usize,
    format: Format,
    out: &mut [f32],
) {
    assert!(rows.end <= m.rows && k.end <= m.cols);
    if out.is_empty() {
        return;
    }
    let strips = rows.len().div_ceil(height);
    let panel = out.len() / strips;
    let words = k.len().next_multiple_of(format.apart()) / format.per_word() * height;
    assert!(out.len() == strips * panel && panel.is_multiple_of(height) && words <= panel);
    let panels = out.chunks_exact_mut(panel).zip(rows.clone().step_by(height)).map(|(out, first)| {
        let rows = first..(first + height).min(rows.end);
        let (out, behind) = out.split_at_mut(words);
        behind.fill(0.0);
        (Strip { rows: rows.len(), scale, height, format, next: 0 }, rows, out)
    });
    match m.data {
        Data::Floats { data, row_stride, col_stride: 1 } if row_stride != 1 => {
            for (strip, rows, out) in panels {
                let strip = Strip { next: size_of::<f32>() * height * row_stride, ..strip };
                strip.pack_rows(&data[rows.start * row_stride + k.start..], row_stride, k.len(), out);
            }
        }
        Data::Floats { data, row_stride, col_stride } => {
            assert_eq!(row_stride, 1, "rows or columns without gaps");
            for (strip, rows, out) in panels {
                let strip = Strip { next: size_of::<f32>() * AHEAD * col_stride, ..strip };
                strip.pack_columns(&data[rows.start + k.start * col_stride..], col_stride, k.len(), out);
            }
        }
        // Its values are the halves of words already.
        #[cfg(target_arch = "x86_64")]
        Data::Blocks { matrix, transposed }
            if format.per_word() == 2 && scale == 1.0 && matrix.kind() == BlockType::Bf16 =>
        {
            let (values, stride) = (matrix.bytes().as_chunks::<2>().0, matrix.cols());
            for (strip, rows, out) in panels {
                let ahead = if transposed { AHEAD } else { height };
                let strip = Strip { next: size_of::<u16>() * ahead * stride, ..strip };
                // SAFETY: pairs are for processors that have AVX-512 and BF16.
                unsafe {
                    match transposed {
                        false => avx512::halves_by_rows(
                            &strip,
                            &values[rows.start * stride + k.start..],
                            stride,
                            k.len(),
                            out,
                        ),
                        true => avx512::halves_by_columns(
                            &strip,
                            &values[k.start * stride + rows.start..],
                            stride,
                            k.len(),
                            out,
                        ),
                    }
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        Data::Blocks { matrix, transposed: false }
            if format.per_word() == 2 && matrix.kind().values() > 1 =>
        {
            for (strip, rows, out) in panels {
                matrix.prefetch(rows.end..rows.end + height, k.clone());
                // SAFETY: pairs are for processors that have AVX-512 and BF16.
                unsafe { avx512::pair_blocks(&strip, matrix, rows.start, k.clone(), out) };
            }
        }
        Data::Blocks { matrix, transposed: false } => with_scratch(&WIDE_SCRATCH, height * PIECE, |wide| {
            for (strip, rows, out) in panels {
                matrix.prefetch(rows.end..rows.end + height, k.clone());
                let pieces = out.chunks_mut(PIECE / format.per_word() * height);
                for (out, from) in pieces.zip(k.clone().step_by(PIECE)) {
                    let k = from..(from + PIECE).min(k.end);
                    matrix.widen(rows.clone(), k.clone(), wide, PIECE);
                    strip.pack_rows(wide, PIECE, k.len(), out);
                }
            }
        }),
        Data::Packed { .. } => panic!("a matrix that is packed already is B of a product and nothing else"),
        // Its rows go over all panels: it is read from one end to the other.
        Data::Blocks { matrix, transposed: true } => {
            let few = FEW.max(format.apart());
            with_scratch(&WIDE_SCRATCH, few * rows.len(), |wide| {
                let mut panels: Vec<_> = panels.collect();
                for (number, from) in k.clone().step_by(few).enumerate() {
                    let k = from..(from + few).min(k.end);
                    matrix.widen(k.clone(), rows.clone(), wide, rows.len());
                    for (strip, part, out) in &mut panels {
                        let mut parts = out.chunks_mut(few / format.per_word() * height);
                        let out = parts.nth(number).expect("a part for each of its k");
                        strip.pack_columns(&wide[part.start - rows.start..], rows.len(), k.len(), out);
                    }
                }
            })
        }
    }
}

/// The words of values that lie one behind the other; the last one's upper half is zero where their number is odd.
pub fn to_words(x: &[f32], format: Format, out: &mut [f32]) {
    assert_eq!(out.len(), x.len().div_ceil(format.per_word()));
    match format {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: pairs are for processors that have AVX-512 and BF16; there is a word for two values.
        Format::Pairs | Format::Rows => unsafe { avx512::pairs(x, out) },
        #[cfg(not(target_arch = "x86_64"))]
        Format::Pairs | Format::Rows => unreachable!("pairs are for AVX-512"),
        Format::F32 => out.copy_from_slice(x),
        Format::Rounded => {
            out.copy_from_slice(x);
            round_to_bf16(out);
        }
    }
}

/// A strip, however its values lie.
struct Strip {
    rows: usize,
    scale: f32,
    height: usize,
    format: Format,
    /// How many bytes behind a value lies one that is needed soon, to be asked for early: rows lie far apart, on pages of
    /// their own, where the processor does not look ahead by itself. 0 for values that are near already.
    next: usize,
}

impl Strip {
    /// Of rows of `depth` values, `stride` apart in `data`.
    fn pack_rows(&self, data: &[f32], stride: usize, depth: usize, out: &mut [f32]) {
        assert!(self.rows == 0 || (self.rows - 1) * stride + depth <= data.len());
        #[cfg(target_arch = "x86_64")]
        if level() == Level::Avx512 {
            // SAFETY: AVX-512 is there, and BF16 where pairs are asked for; the strip lies inside data.
            unsafe {
                match self.format {
                    Format::Pairs | Format::Rows => avx512::pair_rows(self, data, stride, depth, out),
                    _ => avx512::rows(self, data, stride, depth, out),
                }
            }
            return self.round(out);
        }
        for (j, out) in out.chunks_exact_mut(self.height).enumerate() {
            for (i, o) in out.iter_mut().enumerate() {
                *o = if i < self.rows { self.scale * data[i * stride + j] } else { 0.0 };
            }
        }
        self.round(out);
    }

    /// Of `depth` columns, `stride` apart in `data`.
    fn pack_columns(&self, data: &[f32], stride: usize, depth: usize, out: &mut [f32]) {
        assert!(depth == 0 || (depth - 1) * stride + self.rows <= data.len());
        #[cfg(target_arch = "x86_64")]
        if level() == Level::Avx512 {
            // SAFETY: as above.
            unsafe {
                match self.format {
                    Format::Pairs | Format::Rows => avx512::pair_columns(self, data, stride, depth, out),
                    _ => avx512::columns(self, data, stride, depth, out),
                }
            }
            return self.round(out);
        }
        for (j, out) in out.chunks_exact_mut(self.height).enumerate() {
            for (o, &x) in out.iter_mut().zip(&data[j * stride..][..self.rows]) {
                *o = self.scale * x;
            }
            out[self.rows..].fill(0.0);
        }
        self.round(out);
    }

    fn round(&self, out: &mut [f32]) {
        if self.format == Format::Rounded {
            round_to_bf16(out);
        }
    }
}

vectorised! {
    fn round_to_bf16(out: &mut [f32]) {
        for x in out {
            *x = from_bf16(to_bf16(*x));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::{Format, Strip};
    use crate::blocks::layout::{self, Layout, RUN};
    use crate::blocks::{BlockMatrix, BlockType};
    use crate::lanes::Avx512;

    impl Strip {
        /// Asks for what lies `next` behind this address, for any address may be asked for.
        #[inline(always)]
        fn fetch_ahead<const HINT: i32>(&self, at: *const impl Sized) {
            if self.next > 0 {
                // SAFETY: a hint.
                unsafe { _mm_prefetch::<HINT>(at.wrapping_byte_add(self.next).cast()) };
            }
        }
    }

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
            // SAFETY: masked to the values, and to the words that they have; the types are the same 64 bytes.
            unsafe {
                let lower = _mm512_maskz_loadu_ps(mask, at);
                let upper = _mm512_maskz_loadu_ps(upper_mask, at.wrapping_add(16));
                let pairs = _mm512_cvtne2ps_pbh(upper, lower);
                let pairs = std::mem::transmute::<__m512bh, __m512>(pairs);
                _mm512_mask_storeu_ps(out.as_mut_ptr().add(j / 2), lanes(left.div_ceil(2)), pairs);
            }
        }
    }

    /// Of bf16 as they are stored. Packing f32 makes zeros of denormal numbers, this does not; the kernel takes them for
    /// zeros.
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

    /// The rows of the strip from row `first` of the matrix on, columns `k`, which start and end where blocks of 32 do.
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
        use BlockType::*;
        // SAFETY: the caller's promise.
        unsafe {
            match matrix.kind() {
                F16 | Bf16 => unreachable!("types without blocks are widened before"),
                Q4_0 => pair_layout::<layout::Q4_0>(strip, matrix, first, k, out),
                Q4_1 => pair_layout::<layout::Q4_1>(strip, matrix, first, k, out),
                Q5_0 => pair_layout::<layout::Q5_0>(strip, matrix, first, k, out),
                Q5_1 => pair_layout::<layout::Q5_1>(strip, matrix, first, k, out),
                Q8_0 => pair_layout::<layout::Q8_0>(strip, matrix, first, k, out),
                Q4K => pair_layout::<layout::Q4K>(strip, matrix, first, k, out),
                Q5K => pair_layout::<layout::Q5K>(strip, matrix, first, k, out),
                Q6K => pair_layout::<layout::Q6K>(strip, matrix, first, k, out),
            }
        }
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
        assert!(k.start.is_multiple_of(32) && k.end.is_multiple_of(32), "blocks stay whole");
        // SAFETY: the caller's promise of AVX-512; out has 16 words a row for every 32 values.
        unsafe {
            let (s, scale) = (Avx512::new(), _mm512_set1_ps(strip.scale));
            let (bytes, row_bytes) = (matrix.bytes(), matrix.row_bytes());
            for (number, at) in k.step_by(32).enumerate() {
                let (block, run) = (at / L::VALUES * L::BYTES, at % L::VALUES / RUN);
                let load = |row: usize| {
                    let block = &bytes[(first + row) * row_bytes + block..][..L::BYTES];
                    let scales = L::scales(s, block);
                    let x = L::run(s, block, &scales, run);
                    let upper = L::run(s, block, &scales, run + 1);
                    let pairs = _mm512_cvtne2ps_pbh(_mm512_mul_ps(upper, scale), _mm512_mul_ps(x, scale));
                    std::mem::transmute::<__m512bh, __m512>(pairs)
                };
                turn(strip, load, 16, &mut out[16 * number * strip.height..]);
            }
        }
    }

    /// Turns at most 16 words of each row of the strip, as `load` gives them; where rows are to stay rows, stores them as
    /// they are.
    ///
    /// # Safety
    /// AVX-512F; `out` has `words` · height words, or 16 · height for rows.
    #[inline(always)]
    unsafe fn turn(strip: &Strip, load: impl Fn(usize) -> __m512, words: usize, out: &mut [f32]) {
        let stay = strip.format == Format::Rows;
        assert!(if stay { 16 } else { words } * strip.height <= out.len());
        for first in (0..strip.height).step_by(16) {
            // SAFETY: AVX-512F.
            let mut block = [unsafe { _mm512_setzero_ps() }; 16];
            let there = strip.rows.saturating_sub(first);
            for (i, row) in block.iter_mut().enumerate().take(there) {
                *row = load(first + i);
            }
            if stay {
                for (row, out) in block.into_iter().zip(out[16 * first..].chunks_exact_mut(16)) {
                    // SAFETY: AVX-512F; 16 words.
                    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), row) };
                }
                continue;
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
    /// As of `columns`, with BF16 and half as many words; as many as for whole 32 values of k where the format is rows.
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

    /// Pairs of two neighbouring columns. `load` gives 16 bf16 of the lower one and behind them as many of the upper one, from
    /// a place in the lower one on, with masks of those that are there.
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
        // Lane 2i of a pair of columns is lane i of the lower one, lane 2i + 1 that of the upper one.
        let order: [u16; 32] = std::array::from_fn(|i| (i / 2 + 16 * (i % 2)) as u16);
        // SAFETY: 64 bytes.
        let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
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
                    for (row, out) in rows.into_iter().zip(out.chunks_exact_mut(16)) {
                        // SAFETY: 16 words.
                        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), row) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{BlockMatrix, BlockType};
    use crate::cpu::has_bf16;

    /// As the documentation of `pack` says it, as bits.
    fn defined(
        at: impl Fn(usize, usize) -> f32,
        rows: Range<usize>,
        k: Range<usize>,
        height: usize,
        format: Format,
        depth: usize,
    ) -> Vec<u32> {
        let value = |i: usize, k_: usize| if i < rows.end && k_ < k.end { at(i, k_) } else { 0.0 };
        let pair =
            |i: usize, k_: usize| to_bf16(value(i, k_)) as u32 | (to_bf16(value(i, k_ + 1)) as u32) << 16;
        let mut words = Vec::new();
        for first in rows.clone().step_by(height) {
            words.extend((0..depth * height).map(|word| match format {
                Format::F32 => value(first + word % height, k.start + word / height).to_bits(),
                Format::Rounded => {
                    from_bf16(to_bf16(value(first + word % height, k.start + word / height))).to_bits()
                }
                Format::Pairs => pair(first + word % height, k.start + word / height * 2),
                Format::Rows => {
                    let (row, p) = (word / 16, word % 16);
                    pair(first + row % height, k.start + row / height * 32 + 2 * p)
                }
            }));
        }
        words
    }

    #[test]
    fn panels_are_as_defined_in_every_format_and_storage() {
        let (m, n) = (96, 352);
        let size = BlockMatrix::size(BlockType::Q8_0, m, n).unwrap();
        let bytes = (0..size).map(|i| if i % 34 < 2 { [0, 0x2c][i % 34] } else { (i * 37 % 251) as u8 });
        let blocks = BlockMatrix::new(BlockType::Q8_0, m, n, bytes.collect()).unwrap();
        let mut data = vec![0.0; m * n];
        blocks.widen(0..m, 0..n, &mut data, n);
        let stored = [Mat::new(&data, m, n), Mat::blocks(&blocks)];
        let formats = [
            (Format::F32, 14, 1),
            (Format::Rounded, 6, 1),
            (Format::Pairs, 14, 1),
            (Format::Pairs, 32, 16),
            (Format::Rows, 32, 16),
            (Format::Rows, 16, 16),
        ];
        let formats = formats.into_iter().filter(|f| f.0.per_word() == 1 || has_bf16());
        for ((format, height, step), mat) in formats.flat_map(|f| stored.map(|mat| (f, mat))) {
            // Of blocks, k that ends in the middle of one is that of the transposed ones.
            for (mat, rows, k) in [
                (mat, 5..90, 32..288),
                (mat, 0..14, 0..352),
                (mat.t(), 32..300, 3..80),
                (mat.t(), 0..352, 0..95),
            ] {
                let at =
                    |i: usize, k: usize| 0.5 * if mat.rows == m { data[i * n + k] } else { data[k * n + i] };
                let depth = k.len().div_ceil(format.per_word()).next_multiple_of(step);
                let mut out = vec![9.0; rows.len().div_ceil(height) * depth * height];
                pack(mat, rows.clone(), k.clone(), 0.5, height, format, &mut out);
                let out: Vec<u32> = out.into_iter().map(f32::to_bits).collect();
                let want = defined(at, rows.clone(), k.clone(), height, format, depth);
                assert!(out == want, "{format:?}, height {height}, rows {rows:?}, k {k:?}");
            }
        }
    }
}
