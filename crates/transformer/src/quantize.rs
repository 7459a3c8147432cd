//! Quantization of frozen matrices while they are loaded.

use std::ops::Range;

use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use lora_drop_compute::device::Storage;

use crate::weights::Stored;

/// Returns a matrix in its file's storage or, if it is f32 or half precision and its rows are whole
/// blocks, quantized to `quantize`.
pub fn quantize_if_asked(stored: Stored, quantize: Option<BlockType>) -> Storage {
    let quantized = quantize.and_then(|kind| match &stored {
        Stored::F32(tensor) => {
            let &[rows, cols] = tensor.shape() else { return None };
            quantize_in_parts(kind, rows, cols, |rows| {
                let values = rows.start * cols..rows.end * cols;
                let part = BlockMatrix::quantize(kind, rows.len(), cols, &tensor[values.clone()]);
                tensor.release(values);
                part.ok()
            })
        }
        Stored::Blocks(matrix) if matrix.kind().values() == 1 => {
            let (all, cols) = (matrix.rows(), matrix.cols());
            quantize_in_parts(kind, all, cols, |rows| {
                let mut values = vec![0.0; rows.len() * cols];
                for (row, out) in rows.clone().zip(values.chunks_exact_mut(cols)) {
                    matrix.widen_row_range(row, 0..cols, out);
                }
                matrix.release(rows.clone());
                BlockMatrix::quantize(kind, rows.len(), cols, &values).ok()
            })
        }
        Stored::Blocks(_) => None,
    });
    match (quantized, stored) {
        (Some(matrix), _) | (None, Stored::Blocks(matrix)) => Storage::Blocks(matrix),
        (None, Stored::F32(tensor)) => Storage::F32(tensor),
    }
}

/// Quantizes a matrix in parts, so that it never exists in f32 as a whole. `part` quantizes a range
/// of rows.
fn quantize_in_parts(
    kind: BlockType,
    rows: usize,
    cols: usize,
    mut part: impl FnMut(Range<usize>) -> Option<BlockMatrix>,
) -> Option<BlockMatrix> {
    /// Number of values that are quantized at a time: 4 MiB of f32.
    const PIECE: usize = 1 << 20;
    let each = (PIECE / cols.max(1)).max(1);
    let mut bytes = Vec::with_capacity(BlockMatrix::size(kind, rows, cols)?);
    for from in (0..rows).step_by(each) {
        bytes.extend_from_slice(part(from..(from + each).min(rows))?.bytes());
    }
    BlockMatrix::new(kind, rows, cols, bytes)
}
