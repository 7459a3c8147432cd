//! Products of operands that are packed by their owner, who multiplies them more than once: attention's keys meet every
//! query, and its probabilities are rows of one product and columns of another.
//!
//! B is panels as `pack` makes them, `WIDTH` columns each. A is words at any strides: rows of words as `to_words` makes
//! them, or a panel of B, read as the rows of its transpose.

use super::kernel::{STRIDED, Strides, Tile, strided};
pub(crate) use super::pack::{Format, pack, to_words};
use super::{Mat, MatMut, Precision, Start};
use crate::cpu::{has_amx, has_bf16};

/// Rows of A that are multiplied at a time: its words are there for a multiple of them.
pub(crate) const HEIGHT: usize = STRIDED[0];
/// Columns of a panel of B.
pub(crate) const WIDTH: usize = STRIDED[1];

/// What operands are packed to.
pub(crate) fn format(precision: Precision) -> Format {
    match precision {
        Precision::F32 => Format::F32,
        // Where there is a matrix unit, which these kernels do not use, the processor's products of pairs are slower than
        // those of f32.
        Precision::Bf16 if has_bf16() && !has_amx() => Format::Pairs,
        Precision::Bf16 => Format::Rounded,
    }
}

/// The left operand: word (row i, k) is at i · `row` + k · `next`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub words: &'a [f32],
    pub row: usize,
    pub next: usize,
}

impl<'a> Left<'a> {
    /// Rows of `depth` words.
    pub fn rows(words: &'a [f32], depth: usize) -> Self {
        Left { words, row: depth, next: 1 }
    }

    /// The columns of a panel of B as rows.
    pub fn turned(words: &'a [f32]) -> Self {
        Left { words, row: 1, next: WIDTH }
    }
}

/// The right operand: panels that start `panel` words apart.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub words: &'a [f32],
    pub panel: usize,
}

/// C = start + A B, `depth` words deep, on the calling thread. Panics where an operand is too small.
pub(crate) fn multiply(format: Format, c: MatMut, start: Start, a: Left, b: Right, depth: usize) {
    let kernel = strided(format);
    for (first_col, b) in (0..c.cols).step_by(WIDTH).zip(b.words.chunks(b.panel)) {
        for first_row in (0..c.rows).step_by(HEIGHT) {
            let tile = Tile {
                // SAFETY: an element of C.
                c: unsafe { c.data.add(first_row * c.row_stride + first_col) },
                row_stride: c.row_stride,
                rows: HEIGHT.min(c.rows - first_row),
                cols: WIDTH.min(c.cols - first_col),
                start,
            };
            let strides = Strides { row: a.row, next: a.next };
            // SAFETY: the kernel is this machine's, and the tile lies inside C, which we have for ourselves.
            unsafe { kernel(depth, &a.words[first_row * a.row..], strides, b, tile) };
        }
    }
}

/// Packs the rows of `m`, at most `WIDTH`, as the columns of a panel.
pub(crate) fn pack_columns(format: Format, m: Mat, out: &mut [f32]) {
    pack(m, 0..m.rows, 0..m.cols, 1.0, WIDTH, format, out);
}
