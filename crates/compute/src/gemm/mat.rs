//! Views of matrices as operands and results of products.

use super::PackedMatrix;
use crate::blocks::BlockMatrix;

/// A read-only matrix: f32 in a slice, or blocks.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub(super) data: Data<'a>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

#[derive(Clone, Copy)]
pub(super) enum Data<'a> {
    /// Strides are in elements.
    Floats { data: &'a [f32], row_stride: usize, col_stride: usize },
    /// Widened as they are packed; `transposed` if the `Mat` is the transpose of the stored matrix.
    Blocks { matrix: &'a BlockMatrix, transposed: bool },
    /// Multiplied without further packing, and only as B.
    Packed { matrix: &'a PackedMatrix, transposed: bool },
}

impl<'a> Mat<'a> {
    /// Row-major (rows, cols), without gaps.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Mat::strided(data, rows, cols, cols)
    }

    /// Row-major (rows, cols) with rows `row_stride` elements apart.
    ///
    /// # Panics
    /// The slice is too short.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check_extent(data.len(), rows, cols, row_stride);
        Mat { data: Data::Floats { data, row_stride, col_stride: 1 }, rows, cols }
    }

    /// A matrix of blocks. [`matmul`](super::matmul) gives the same bits as with the widened
    /// matrix.
    pub fn blocks(matrix: &'a BlockMatrix) -> Self {
        let data = Data::Blocks { matrix, transposed: false };
        Mat { data, rows: matrix.rows(), cols: matrix.cols() }
    }

    /// A matrix that is packed already; products accept it only as their B.
    pub fn packed(matrix: &'a PackedMatrix) -> Self {
        let data = Data::Packed { matrix, transposed: false };
        Mat { data, rows: matrix.rows(), cols: matrix.cols() }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the values and their row stride if rows are stored as f32 without gaps between
    /// columns.
    pub(crate) fn stored_rows(&self) -> Option<(&'a [f32], usize)> {
        match self.data {
            Data::Floats { data, row_stride, col_stride } if col_stride == 1 || self.cols == 1 => {
                Some((data, row_stride))
            }
            _ => None,
        }
    }

    /// The transposed matrix.
    pub fn t(self) -> Self {
        let data = match self.data {
            Data::Floats { data, row_stride, col_stride } => {
                Data::Floats { data, row_stride: col_stride, col_stride: row_stride }
            }
            Data::Blocks { matrix, transposed } => Data::Blocks { matrix, transposed: !transposed },
            Data::Packed { matrix, transposed } => Data::Packed { matrix, transposed: !transposed },
        };
        Mat { data, rows: self.cols, cols: self.rows }
    }
}

/// A matrix to write: row-major with rows `row_stride` elements apart.
pub struct MatMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// Row-major (rows, cols), without gaps.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        MatMut::strided(data, rows, cols, cols)
    }

    /// Row-major (rows, cols) with rows `row_stride` elements apart.
    ///
    /// # Panics
    /// The slice is too short, or rows would overlap.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check_extent(data.len(), rows, cols, row_stride);
        MatMut { data, rows, cols, row_stride }
    }
}

fn check_extent(len: usize, rows: usize, cols: usize, row_stride: usize) {
    assert!(row_stride >= cols, "rows overlap: stride {row_stride}, {cols} columns");
    assert!(rows == 0 || (rows - 1) * row_stride + cols <= len, "({rows}, {cols}) does not fit into {len}");
}
