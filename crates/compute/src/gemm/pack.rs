//! Packs a strip of rows of a matrix into a panel, in which the strip's values of one k are
//! adjacent.
//!
//! The same code packs both operands: a panel of B's columns is a strip of rows of Bᵀ.

#[cfg(target_arch = "x86_64")]
mod avx512;

use std::cell::Cell;
use std::ops::Range;

use super::mat::Data;
use super::{Mat, with_scratch};
use crate::aligned::AlignedBuffer;
#[cfg(target_arch = "x86_64")]
use crate::blocks::BlockType;
use crate::blocks::half::{from_bf16, to_bf16};
use crate::cpu::vectorised;
#[cfg(target_arch = "x86_64")]
use crate::cpu::{Level, level};

thread_local! {
    static WIDE_SCRATCH: Cell<AlignedBuffer> = const { Cell::new(AlignedBuffer::EMPTY) };
}

/// Values of k that are widened at a time before the strip is transposed, so that it stays in the
/// L1 cache.
const WIDENED_K: usize = 128;
/// The same for a transposed matrix, where each k is a stored row and the columns of all strips are
/// widened.
const WIDENED_ROWS: usize = 8;

/// Values of the smallest blocks, and height of the panels into which blocks are packed by columns.
#[cfg(target_arch = "x86_64")]
const BLOCK: usize = 32;

/// Number of stored rows by which prefetching is ahead when a matrix is packed by columns.
const AHEAD: usize = 16;

/// The contents and order of a panel's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    /// f32, with the value rounded to bf16.
    Rounded,
    /// Two bf16 of consecutive k, the smaller k in the lower half. For processors that multiply
    /// them.
    Pairs,
    /// Pairs, ordered by block of 32 values of k, then by row: a row's 16 words are adjacent. AMX
    /// loads these as tiles of A.
    AmxTiles,
}

impl Format {
    /// Returns the number of values of k in a word.
    pub const fn per_word(self) -> usize {
        match self {
            Format::F32 | Format::Rounded => 1,
            Format::Pairs | Format::AmxTiles => 2,
        }
    }

    /// Returns the number of values of k after which a panel can be split, so that each part may be
    /// packed by itself.
    const fn granularity(self) -> usize {
        match self {
            Format::F32 | Format::Rounded => 1,
            Format::Pairs => 2,
            Format::AmxTiles => 32,
        }
    }
}

/// Packs columns `k` of scale · m, in strips of `height` of its rows `rows`, into consecutive
/// panels; the last strip may have fewer rows. With r₀ the first row of a strip and k₀ the first k,
/// a panel is:
///
/// - f32 or rounded: word (k − k₀) · height + i is the value at (r₀ + i, k)
/// - pairs: word (k − k₀) / 2 · height + i has the values at k and k + 1 of row r₀ + i
/// - AMX tiles: word (n · height + i) · 16 + p is pair p of the n-th 32 values of k of row r₀ + i
///
/// Rows that a strip lacks, and values after the last k, are zero. The length of `out` determines
/// the depth of the panels.
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
    let words = k.len().next_multiple_of(format.granularity()) / format.per_word() * height;
    assert!(out.len() == strips * panel && panel.is_multiple_of(height) && words <= panel);
    let panels = out.chunks_exact_mut(panel).zip(rows.clone().step_by(height)).map(|(out, first)| {
        let rows = first..(first + height).min(rows.end);
        let (out, padding) = out.split_at_mut(words);
        padding.fill(0.0);
        (Strip { rows: rows.len(), scale, height, format, prefetch_bytes: 0 }, rows, out)
    });
    match m.data {
        Data::Floats { data, row_stride, col_stride: 1 } if row_stride != 1 => {
            for (strip, rows, out) in panels {
                let strip = Strip { prefetch_bytes: size_of::<f32>() * height * row_stride, ..strip };
                strip.pack_rows(&data[rows.start * row_stride + k.start..], row_stride, k.len(), out);
            }
        }
        Data::Floats { data, row_stride, col_stride } => {
            assert_eq!(row_stride, 1, "rows or columns without gaps");
            for (strip, rows, out) in panels {
                let strip = Strip { prefetch_bytes: size_of::<f32>() * AHEAD * col_stride, ..strip };
                strip.pack_columns(&data[rows.start + k.start * col_stride..], col_stride, k.len(), out);
            }
        }
        // The stored values are the halves of words already.
        #[cfg(target_arch = "x86_64")]
        Data::Blocks { matrix, transposed }
            if format.per_word() == 2 && scale == 1.0 && matrix.kind() == BlockType::Bf16 =>
        {
            let (values, stride) = (matrix.bytes().as_chunks::<2>().0, matrix.cols());
            for (strip, rows, out) in panels {
                let ahead = if transposed { AHEAD } else { height };
                let strip = Strip { prefetch_bytes: size_of::<u16>() * ahead * stride, ..strip };
                // SAFETY: pairs are used only on processors with AVX-512 and BF16.
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
            if format.per_word() == 2 && scale == 1.0 && matrix.kind().values() > 1 =>
        {
            for (strip, rows, out) in panels {
                matrix.prefetch(rows.end..rows.end + height, k.clone());
                // SAFETY: pairs are used only on processors with AVX-512 and BF16.
                unsafe { avx512::pair_blocks(&strip, matrix, rows.start, k.clone(), out) };
            }
        }
        #[cfg(target_arch = "x86_64")]
        Data::Blocks { matrix, transposed: true }
            if format == Format::Pairs
                && scale == 1.0
                && matrix.kind().values() > 1
                && height == BLOCK
                && [rows.start, rows.len()].iter().all(|n| n.is_multiple_of(BLOCK)) =>
        {
            // SAFETY: pairs are used only on processors with AVX-512 and BF16.
            unsafe { avx512::pair_block_columns(&mut panels.collect::<Vec<_>>(), matrix, k) };
        }
        Data::Blocks { matrix, transposed: false } => {
            with_scratch(&WIDE_SCRATCH, height * WIDENED_K, |wide| {
                for (strip, rows, out) in panels {
                    matrix.prefetch(rows.end..rows.end + height, k.clone());
                    let pieces = out.chunks_mut(WIDENED_K / format.per_word() * height);
                    for (out, from) in pieces.zip(k.clone().step_by(WIDENED_K)) {
                        let k = from..(from + WIDENED_K).min(k.end);
                        matrix.widen(rows.clone(), k.clone(), wide, WIDENED_K);
                        strip.pack_rows(wide, WIDENED_K, k.len(), out);
                    }
                }
            })
        }
        Data::Packed { .. } => panic!("a matrix that is packed already is B of a product and nothing else"),
        // Each stored row belongs to all panels, so the matrix is widened row by row, in the order
        // of its storage.
        Data::Blocks { matrix, transposed: true } => {
            let each = WIDENED_ROWS.max(format.granularity());
            with_scratch(&WIDE_SCRATCH, each * rows.len(), |wide| {
                let mut panels: Vec<_> = panels.collect();
                for (number, from) in k.clone().step_by(each).enumerate() {
                    let k = from..(from + each).min(k.end);
                    matrix.widen(k.clone(), rows.clone(), wide, rows.len());
                    for (strip, part, out) in &mut panels {
                        let mut parts = out.chunks_mut(each / format.per_word() * height);
                        let out = parts.nth(number).expect("a part for each of its k");
                        strip.pack_columns(&wide[part.start - rows.start..], rows.len(), k.len(), out);
                    }
                }
            })
        }
    }
}

/// Writes adjacent values as words. If their number is odd, the upper half of the last pair is
/// zero.
pub fn to_words(x: &[f32], format: Format, out: &mut [f32]) {
    assert_eq!(out.len(), x.len().div_ceil(format.per_word()));
    match format {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: pairs are used only on processors with AVX-512 and BF16; `out` has a word for
        // each two values.
        Format::Pairs | Format::AmxTiles => unsafe { avx512::pairs(x, out) },
        #[cfg(not(target_arch = "x86_64"))]
        Format::Pairs | Format::AmxTiles => pairs(x, out),
        Format::F32 => out.copy_from_slice(x),
        Format::Rounded => {
            out.copy_from_slice(x);
            round_to_bf16(out);
        }
    }
}

/// How a strip is packed, apart from where its values are stored.
struct Strip {
    rows: usize,
    scale: f32,
    height: usize,
    format: Format,
    /// Prefetch distance in bytes: rows are far apart, on separate pages, across which the
    /// processor does not prefetch by itself. 0 for values that are in the cache already.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for AVX-512"))]
    prefetch_bytes: usize,
}

impl Strip {
    /// Packs rows of `depth` values that start `stride` apart in `data`.
    fn pack_rows(&self, data: &[f32], stride: usize, depth: usize, out: &mut [f32]) {
        assert!(self.rows == 0 || (self.rows - 1) * stride + depth <= data.len());
        #[cfg(target_arch = "x86_64")]
        if level() == Level::Avx512 {
            // SAFETY: the processor has AVX-512, and BF16 if the format has pairs; the strip is
            // inside `data` by the assertion.
            unsafe {
                match self.format {
                    Format::Pairs | Format::AmxTiles => avx512::pair_rows(self, data, stride, depth, out),
                    _ => avx512::rows(self, data, stride, depth, out),
                }
            }
            return self.round(out);
        }
        if self.format.per_word() == 2 {
            return self.pack_pairs(|i, j| data[i * stride + j], depth, out);
        }
        for (j, out) in out.chunks_exact_mut(self.height).enumerate() {
            for (i, o) in out.iter_mut().enumerate() {
                *o = if i < self.rows { self.scale * data[i * stride + j] } else { 0.0 };
            }
        }
        self.round(out);
    }

    /// Packs `depth` columns that start `stride` apart in `data`.
    fn pack_columns(&self, data: &[f32], stride: usize, depth: usize, out: &mut [f32]) {
        assert!(depth == 0 || (depth - 1) * stride + self.rows <= data.len());
        #[cfg(target_arch = "x86_64")]
        if level() == Level::Avx512 {
            // SAFETY: as in `pack_rows`.
            unsafe {
                match self.format {
                    Format::Pairs | Format::AmxTiles => avx512::pair_columns(self, data, stride, depth, out),
                    _ => avx512::columns(self, data, stride, depth, out),
                }
            }
            return self.round(out);
        }
        if self.format.per_word() == 2 {
            return self.pack_pairs(|i, j| data[j * stride + i], depth, out);
        }
        for (j, out) in out.chunks_exact_mut(self.height).enumerate() {
            for (o, &x) in out.iter_mut().zip(&data[j * stride..][..self.rows]) {
                *o = self.scale * x;
            }
            out[self.rows..].fill(0.0);
        }
        self.round(out);
    }

    /// Packs `depth` columns as pairs; `value` returns the element (row, column).
    fn pack_pairs(&self, value: impl Fn(usize, usize) -> f32, depth: usize, out: &mut [f32]) {
        for (j, out) in (0..depth).step_by(2).zip(out.chunks_exact_mut(self.height)) {
            let (out, padding) = out.split_at_mut(self.rows);
            for (i, o) in out.iter_mut().enumerate() {
                let next = if j + 1 < depth { self.scale * value(i, j + 1) } else { 0.0 };
                *o = pair(self.scale * value(i, j), next);
            }
            padding.fill(0.0);
        }
    }

    fn round(&self, out: &mut [f32]) {
        if self.format == Format::Rounded {
            round_to_bf16(out);
        }
    }
}

/// Returns a word of two values rounded to bf16.
#[inline(always)]
fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(u32::from(to_bf16(low)) | u32::from(to_bf16(high)) << 16)
}

#[cfg(not(target_arch = "x86_64"))]
vectorised! {
    /// Writes words of two values each. If their number is odd, the upper half of the last word is
    /// zero.
    fn pairs(x: &[f32], out: &mut [f32]) {
        let (whole, last) = x.as_chunks();
        for (out, &[low, high]) in out.iter_mut().zip(whole) {
            *out = pair(low, high);
        }
        if let (Some(out), &[x]) = (out.get_mut(whole.len()), last) {
            *out = pair(x, 0.0);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{BlockMatrix, BlockType};
    use crate::cpu::has_bf16;

    /// Computes the bits of the panels that the documentation of `pack` defines.
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
                Format::AmxTiles => {
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
            (Format::AmxTiles, 32, 16),
            (Format::AmxTiles, 16, 16),
        ];
        // `Format::AmxTiles` is for AMX; packing it needs AVX-512.
        let is_there = |format: Format| match format {
            Format::F32 | Format::Rounded => true,
            Format::Pairs => has_bf16(),
            Format::AmxTiles => has_bf16() && cfg!(target_arch = "x86_64"),
        };
        let formats = formats.into_iter().filter(|f| is_there(f.0));
        for ((format, height, step), mat) in formats.flat_map(|f| stored.map(|mat| (f, mat))) {
            // Only transposed matrices have a k that ends within a block.
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
