//! Products of operands that their owner packs, because it multiplies them more than once: in
//! attention, keys are multiplied with every query, and the gradients of scores are the left
//! operand of one product and the right operand of another.
//!
//! B is stored in panels of `WIDTH` columns, as `pack` writes them. A is stored in strips of
//! `WIDTH` rows: rows of words, or panels that are read as the rows of their transpose. For AMX
//! both are in `Format::AmxTiles`, and the last strip is padded with zeros.

use super::kernel::{PanelKernel, STRIDED, Strides, Tile};
use super::pack::{Format, pack, to_words};
use super::{Mat, MatMut, Precision, Start};
use crate::cpu::prefetch_l1;

/// Columns of a panel of B, and rows of a strip of A.
pub(crate) const WIDTH: usize = STRIDED[1];

/// Number of rows by which prefetching is ahead of packing.
const AHEAD: usize = 16;

/// Packs and multiplies operands in one precision on this machine.
#[derive(Clone, Copy)]
pub(crate) struct PanelGemm {
    kernel: PanelKernel,
}

/// The left operand. Word j of row i of a strip is at i · `strides.row` + j · `strides.k`; strips
/// are `strip` words apart.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    words: &'a [f32],
    strip: usize,
    strides: Strides,
}

impl<'a> Left<'a> {
    /// Rows of `depth` words each, as `pack_rows` and `strip_rows` write them.
    pub fn rows(words: &'a [f32], depth: usize) -> Self {
        Left { words, strip: WIDTH * depth, strides: Strides { row: depth, k: 1 } }
    }

    /// Rows that are the columns of panels `panel` words apart, as `pack_transposed` writes them.
    pub fn transposed(words: &'a [f32], panel: usize) -> Self {
        Left { words, strip: panel, strides: Strides { row: 1, k: WIDTH } }
    }
}

/// The right operand: panels that start `panel` words apart.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub words: &'a [f32],
    pub panel: usize,
}

impl PanelGemm {
    pub fn new(precision: Precision) -> Self {
        PanelGemm { kernel: PanelKernel::choose(precision) }
    }

    /// Returns the depth in words of `k` packed values.
    pub fn words(self, k: usize) -> usize {
        k.div_ceil(self.kernel.b_format.per_word()).next_multiple_of(self.kernel.step)
    }

    /// Returns the largest index up to `at` at which operands can be split without splitting a pair
    /// or a tile.
    pub fn cut(self, at: usize) -> usize {
        let whole = 2 * self.kernel.step;
        at / whole * whole
    }

    /// Returns the number of rows that a product reads of an A with `rows` rows.
    pub fn padded(self, rows: usize) -> usize {
        rows.next_multiple_of(self.kernel.rows)
    }

    /// Computes C = start + A B, `depth` words deep, on the calling thread. Panics if an operand is
    /// too small.
    pub fn multiply(self, c: MatMut, start: Start, a: Left, b: Right, depth: usize) {
        for (first_col, b) in (0..c.cols).step_by(WIDTH).zip(b.words.chunks(b.panel)) {
            for first_row in (0..c.rows).step_by(self.kernel.rows) {
                let tile = Tile {
                    c: c.data[first_row * c.row_stride + first_col..].as_mut_ptr(),
                    row_stride: c.row_stride,
                    rows: self.kernel.rows.min(c.rows - first_row),
                    cols: WIDTH.min(c.cols - first_col),
                    start,
                    streamed: None,
                };
                let a_words = &a.words[first_row / WIDTH * a.strip + first_row % WIDTH * a.strides.row..];
                // SAFETY: the kernel was chosen for this machine; the tile is inside C, which is
                // borrowed mutably.
                unsafe { (self.kernel.run)(depth, a_words, a.strides, b, tile) };
            }
        }
    }

    /// Packs the rows of a matrix as rows of A.
    pub fn pack_rows(self, rows: Mat, out: &mut [f32]) {
        if self.kernel.a_format == Format::AmxTiles {
            let strips = rows.rows.div_ceil(WIDTH) * WIDTH * self.words(rows.cols);
            pack(rows, 0..rows.rows, 0..rows.cols, 1.0, WIDTH, Format::AmxTiles, &mut out[..strips]);
            return;
        }
        let depth = self.words(rows.cols);
        let (data, stride) = rows.stored_rows().expect("stored by rows");
        for (i, out) in out.chunks_exact_mut(depth).take(rows.rows).enumerate() {
            if i + AHEAD < rows.rows {
                prefetch_l1(&data[(i + AHEAD) * stride..][..rows.cols]);
            }
            to_words(&data[i * stride..][..rows.cols], self.kernel.a_format, out);
        }
    }

    /// Packs the columns of a matrix as rows of A, for `Left::transposed`.
    pub fn pack_transposed(self, m: Mat, out: &mut [f32]) {
        pack(m.t(), 0..m.cols, 0..m.rows, 1.0, WIDTH, self.kernel.a_format, out);
    }

    /// Packs a matrix as panels of B.
    pub fn pack_right(self, m: Mat, out: &mut [f32]) {
        pack(m.t(), 0..m.cols, 0..m.rows, 1.0, WIDTH, self.kernel.b_format, out);
    }

    /// Returns a strip (rows, `WIDTH`) as rows of A: the strip itself if it needs no conversion,
    /// otherwise `out`.
    pub fn strip_rows<'a>(self, strip: &'a [f32], out: &'a mut [f32]) -> &'a [f32] {
        if self.kernel.a_format == Format::F32 {
            return strip;
        }
        let out = &mut out[..strip.len() / self.kernel.a_format.per_word()];
        to_words(strip, self.kernel.a_format, out);
        out
    }

    /// Returns whether the result of `strip_rows` is also a panel of B.
    pub fn rows_are_panels(self) -> bool {
        self.kernel.b_format.per_word() == 1
    }

    /// Returns a strip (k, `WIDTH`) as a panel of B: the strip itself if it needs no conversion,
    /// otherwise `out`.
    pub fn strip_panel<'a>(self, strip: &'a [f32], out: &'a mut [f32]) -> &'a [f32] {
        if self.rows_are_panels() {
            return self.strip_rows(strip, out);
        }
        let k = strip.len() / WIDTH;
        let out = &mut out[..self.words(k) * WIDTH];
        self.pack_right(Mat::new(strip, k, WIDTH), out);
        out
    }
}

/// Writes the transpose of a matrix, (cols, rows), to `out`.
pub(crate) fn transpose(m: Mat, out: &mut [f32]) {
    pack(m, 0..m.rows, 0..m.cols, 1.0, m.rows, Format::F32, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::half::{from_bf16, to_bf16};
    use crate::random::Key;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        (0..n as u64).map(|i| Key::new(seed).normal(i) as f32).collect()
    }

    #[test]
    fn every_kernel_multiplies_rows_and_transposed_panels() {
        for (kernel, (m, n, k)) in PanelKernel::available().into_iter().flat_map(|kernel| {
            [(1, 1, 1), (8, 32, 16), (13, 45, 37), (32, 64, 128)].map(|shape| (kernel, shape))
        }) {
            let panels = PanelGemm { kernel };
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let factor = |x: f32| match kernel.b_format {
                Format::F32 => x as f64,
                _ => from_bf16(to_bf16(x)) as f64,
            };
            let want = |i: usize, j: usize| -> f64 {
                (0..k).map(|k_| factor(a[i * k + k_]) * factor(b[k_ * n + j])).sum()
            };
            let depth = panels.words(k);
            let [mut rows, mut transposed] = [(); 2].map(|()| vec![0.0; m.next_multiple_of(WIDTH) * depth]);
            let mut columns = vec![0.0; n.next_multiple_of(WIDTH) * depth];
            panels.pack_right(Mat::new(&b, k, n), &mut columns);
            panels.pack_rows(Mat::new(&a, m, k), &mut rows);
            panels.pack_transposed(Mat::new(&a, m, k).t(), &mut transposed);
            let right = Right { words: &columns, panel: WIDTH * depth };
            for left in [Left::rows(&rows, depth), Left::transposed(&transposed, WIDTH * depth)] {
                for start in [Start::Zero, Start::Keep] {
                    // The gap after each row must stay unchanged.
                    let mut c = vec![3.0; m * (n + 5)];
                    panels.multiply(MatMut::strided(&mut c, m, n, n + 5), start, left, right, depth);
                    let before = if let Start::Keep = start { 3.0 } else { 0.0 };
                    for (i, j) in (0..m).flat_map(|i| (0..n + 5).map(move |j| (i, j))) {
                        let want = if j < n { before + want(i, j) } else { 3.0 };
                        let got = c[i * (n + 5) + j] as f64;
                        let case = format!("{:?}, ({m}, {n}, {k}), ({i}, {j})", kernel.b_format);
                        assert!((got - want).abs() < 1e-4, "{case}: {got} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn strips_are_rows_and_panels() {
        for kernel in PanelKernel::available() {
            let panels = PanelGemm { kernel };
            for k in [1, 2, 31, 64, 100] {
                let strip = numbers(k * WIDTH, 3);
                let mut wanted = vec![9.0; panels.words(k) * WIDTH];
                panels.pack_right(Mat::new(&strip, k, WIDTH), &mut wanted);
                let mut out = vec![7.0; wanted.len()];
                assert!(panels.strip_panel(&strip, &mut out) == wanted, "{:?}, {k}", kernel.b_format);
                let rows = panels.padded(k);
                let padded: Vec<f32> = [&strip[..], &vec![0.0; (rows - k) * WIDTH]].concat();
                let mut wanted = vec![9.0; rows.next_multiple_of(WIDTH) * panels.words(WIDTH)];
                panels.pack_rows(Mat::new(&padded, rows, WIDTH), &mut wanted);
                let mut out = vec![7.0; wanted.len()];
                let got = panels.strip_rows(&padded, &mut out);
                assert!(got == &wanted[..got.len()], "{:?}, {k}", kernel.a_format);
            }
        }
    }
}
