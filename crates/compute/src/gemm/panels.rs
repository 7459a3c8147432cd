//! Products of operands that are packed by their owner, who multiplies them more than once:
//! attention's keys meet every query, and its probabilities are rows of one product and columns of
//! another.
//!
//! B is panels as `pack` makes them, `WIDTH` columns each. A is words at any strides: rows of words
//! as `to_words` makes them, or a panel of B, read as the rows of its transpose.

use super::kernel::{STRIDED, StridedKernel, Strides, Tile, strided};
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
        // Where there is a matrix unit, which these kernels do not use, the processor's products of
        // pairs are slower than those of f32.
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

/// C = start + A B, `depth` words deep, on the calling thread. Panics where an operand is too
/// small.
pub(crate) fn multiply(format: Format, c: MatMut, start: Start, a: Left, b: Right, depth: usize) {
    run(strided(format), c, start, a, b, depth);
}

fn run(kernel: StridedKernel, c: MatMut, start: Start, a: Left, b: Right, depth: usize) {
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
            // SAFETY: the kernel is this machine's, and the tile lies inside C, which we have for
            // ourselves.
            unsafe { kernel(depth, &a.words[first_row * a.row..], strides, b, tile) };
        }
    }
}

/// Packs the rows of `m`, at most `WIDTH`, as the columns of a panel.
pub(crate) fn pack_columns(format: Format, m: Mat, out: &mut [f32]) {
    pack(m, 0..m.rows, 0..m.cols, 1.0, WIDTH, format, out);
}

#[cfg(test)]
mod tests {
    use super::super::kernel::strided_available;
    use super::*;
    use crate::blocks::half::{from_bf16, to_bf16};
    use crate::random::Key;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        (0..n as u64).map(|i| Key::new(seed).normal(i) as f32).collect()
    }

    #[test]
    fn every_kernel_multiplies_rows_and_turned_panels() {
        for ((format, kernel), (m, n, k)) in strided_available().into_iter().flat_map(|kernel| {
            [(1, 1, 1), (8, 32, 16), (13, 45, 37), (32, 64, 128)].map(|shape| (kernel, shape))
        }) {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let factor = |x: f32| match format {
                Format::Pairs => from_bf16(to_bf16(x)) as f64,
                _ => x as f64,
            };
            let want = |i: usize, j: usize| -> f64 {
                (0..k).map(|k_| factor(a[i * k + k_]) * factor(b[k_ * n + j])).sum()
            };
            let depth = k.div_ceil(format.per_word());
            let mut columns = vec![0.0; n.div_ceil(WIDTH) * WIDTH * depth];
            pack(Mat::new(&b, k, n).t(), 0..n, 0..k, 1.0, WIDTH, format, &mut columns);
            let right = Right { words: &columns, panel: WIDTH * depth };
            let mut rows = vec![0.0; m.next_multiple_of(HEIGHT) * depth];
            for (row, out) in a.chunks(k).zip(rows.chunks_mut(depth)) {
                to_words(row, format, out);
            }
            let mut panel = vec![0.0; WIDTH * depth];
            pack_columns(format, Mat::new(&a, m, k), &mut panel);
            for left in [Left::rows(&rows, depth), Left::turned(&panel)] {
                for start in [Start::Zero, Start::Keep] {
                    // The gap after each row belongs to somebody else.
                    let mut c = vec![3.0; m * (n + 5)];
                    run(kernel, MatMut::strided(&mut c, m, n, n + 5), start, left, right, depth);
                    let before = if let Start::Keep = start { 3.0 } else { 0.0 };
                    for (i, j) in (0..m).flat_map(|i| (0..n + 5).map(move |j| (i, j))) {
                        let want = if j < n { before + want(i, j) } else { 3.0 };
                        let got = c[i * (n + 5) + j] as f64;
                        let case = format!("{format:?}, ({m}, {n}, {k}), ({i}, {j})");
                        assert!((got - want).abs() < 1e-4, "{case}: {got} for {want}");
                    }
                }
            }
        }
    }
}
