//! Packs a frozen matrix once for both directions of a linear layer, instead of for each product.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::kernel::Kernel;
use super::{KBlock, Mat, Precision, Side, pack_jobs};
use crate::Tensor;
use crate::aligned::AlignedBuffer;
use crate::magnitude::squares_of;

/// The weight W (out, in) of a linear layer, packed as panels of B: of Wᵀ for the forward product,
/// and of W for the input gradient. Cloning is cheap (the panels are shared).
#[derive(Clone)]
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    /// Panels of Wᵀ, for y = x Wᵀ.
    forward: Arc<PackedPanels>,
    /// Panels of W, for dx = dy W.
    input_gradient: Arc<PackedPanels>,
    /// Σ w² of each row of W, (out): panels give no access to rows.
    squares: Arc<[f32]>,
}

/// All panels of a matrix as B, ordered by block of k, then by strip.
struct PackedPanels {
    side: Side,
    /// Depth of the blocks of k, in values.
    block: usize,
    words: AlignedBuffer,
}

impl PackedMatrix {
    /// Packs a matrix (out, in) as f32 or rounded to bf16, depending on `precision`. Products are
    /// bit-identical to those of the unpacked matrix. Releases the pages of a mapped file.
    ///
    /// # Panics
    /// The tensor is not a matrix.
    pub fn new(precision: Precision, tensor: &Tensor) -> Self {
        let squares = squares_of(tensor, precision).into();
        let packed = Self::for_kernels(|n| Kernel::choose(precision, usize::MAX, n), tensor);
        tensor.release(0..tensor.len());
        PackedMatrix { squares, ..packed }
    }

    /// Returns the bytes of all panels of a matrix (rows, cols).
    pub fn bytes_for(precision: Precision, rows: usize, cols: usize) -> usize {
        let words = |k: usize, n: usize| {
            PackedPanels::words(Side::columns(&Kernel::choose(precision, usize::MAX, n), n), k)
        };
        size_of::<f32>() * (words(cols, rows) + words(rows, cols))
    }

    /// Packs a matrix for `kernel(n)`, the kernel that multiplies a B of n columns.
    pub(super) fn for_kernels(kernel: impl Fn(usize) -> Kernel, tensor: &Tensor) -> Self {
        let &[rows, cols] = tensor.shape() else { panic!("{tensor:?} is no matrix") };
        let mat = Mat::new(tensor, rows, cols);
        let panels = |b: Mat| Arc::new(PackedPanels::new(Side::columns(&kernel(b.cols()), b.cols()), b));
        PackedMatrix {
            rows,
            cols,
            forward: panels(mat.t()),
            input_gradient: panels(mat),
            squares: Arc::default(),
        }
    }

    /// Number of rows of W.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns of W.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns Σ w² of each row of W, with w rounded as in the panels.
    pub(crate) fn squares(&self) -> &[f32] {
        &self.squares
    }

    /// Returns the bytes of both directions' panels.
    pub fn bytes(&self) -> usize {
        self.bytes_of(false) + self.bytes_of(true)
    }

    /// Returns the bytes of the panels of W, or of Wᵀ if `transposed`.
    pub(super) fn bytes_of(&self, transposed: bool) -> usize {
        size_of_val(&self.of(transposed).words[..])
    }

    /// Returns the panels of these strips of B in a block of k, where B is W, or Wᵀ if
    /// `transposed`.
    pub(super) fn panels(
        &self,
        transposed: bool,
        side: Side,
        block: &KBlock,
        strips: Range<usize>,
    ) -> &[f32] {
        self.of(transposed).of(side, block, strips)
    }

    fn of(&self, transposed: bool) -> &PackedPanels {
        if transposed { &self.forward } else { &self.input_gradient }
    }
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "PackedMatrix(({}, {}), {:?})", self.rows, self.cols, self.forward.side.format)
    }
}

impl PackedPanels {
    fn new(side: Side, b: Mat) -> Self {
        let k = b.rows();
        let mut panels = PackedPanels {
            side,
            block: side.block_depth(k),
            words: AlignedBuffer::new(Self::words(side, k)),
        };
        let mut jobs = Vec::new();
        let mut rest = &mut *panels.words;
        for from in (0..k).step_by(panels.block) {
            let k = from..(from + panels.block).min(k);
            let panel = side.words(k.len()) * side.height;
            let (out, tail) = rest.split_at_mut(panel * side.strips());
            rest = tail;
            let of_block = pack_jobs(0..side.strips(), panel, out);
            jobs.extend(of_block.map(|(strips, out)| (k.clone(), strips, out)));
        }
        jobs.into_par_iter().for_each(|(k, strips, out)| {
            let depth = side.words(k.len());
            side.pack(&KBlock { a: b, b, k, depth }, strips, 1.0, out);
        });
        panels
    }

    /// Returns the words of all panels of a matrix with k rows.
    fn words(side: Side, k: usize) -> usize {
        let block = side.block_depth(k);
        let words: usize = (0..k).step_by(block).map(|from| side.words(block.min(k - from))).sum();
        words * side.height * side.strips()
    }

    fn of(&self, side: Side, block: &KBlock, strips: Range<usize>) -> &[f32] {
        assert!(side == self.side && block.k.start.is_multiple_of(self.block), "packed for another kernel");
        let before = block.k.start / self.block * side.words(self.block) * side.height * side.strips();
        let panel = side.panel(block);
        &self.words[before + strips.start * panel..before + strips.end * panel]
    }
}
