//! Embeddings: sums of rows of one or several tables.

use rayon::prelude::*;

use crate::blocks::BlockMatrix;
use crate::output_slice::OutputSlice;
use crate::profile::{self, Work};
use crate::rows::{add_row, each_row, row};

/// Row i of `out`, (rows, width), is the sum over `tables` (table, index) of row `index[i]` of the
/// table, (entries, width).
///
/// # Panics
/// An index is not below its table's number of entries.
pub fn forward(tables: &[(&[f32], &[u32])], width: usize, out: &mut [f32]) {
    let _span = profile::operation("embedding", || Work::floats((tables.len() + 1) * out.len()));
    each_row(out, width, |token, out| {
        out.fill(0.0);
        for (table, index) in tables {
            add_row(out, row(table, index[token] as usize, width));
        }
    });
}

/// Row i of `out`, (rows, cols), is row `index[i]` of a table in blocks, as f32.
pub fn widen(table: &BlockMatrix, index: &[u32], out: &mut [f32]) {
    let _span = profile::operation("embedding", || Work::floats(2 * out.len()));
    let width = table.cols();
    for (row, &id) in out.chunks_exact_mut(width).zip(index) {
        table.widen_row_range(id as usize, 0..width, row);
    }
}

/// Row `index[i]` of dtable += row i of dout, (rows, width), in the order of rows. Each task has
/// separate columns, so no two write the same value.
pub fn backward(dout: &[f32], index: &[u32], width: usize, dtable: &mut [f32]) {
    assert_eq!(dout.len(), index.len() * width);
    let _span = profile::operation("embedding backward", || Work::floats(3 * dout.len()));
    const COLUMNS: usize = 64;
    let entries = dtable.len() / width.max(1);
    let dtable = OutputSlice::new(dtable, width);
    (0..width.div_ceil(COLUMNS)).into_par_iter().for_each(|part| {
        let columns = part * COLUMNS..((part + 1) * COLUMNS).min(width);
        for (row, &entry) in dout.chunks_exact(width).zip(index) {
            let entry = entry as usize;
            assert!(entry < entries, "entry {entry} of an embedding");
            // SAFETY: the table is borrowed mutably, and these columns are this task's alone.
            let to = unsafe { dtable.columns(entry, columns.start, columns.len()) };
            add_row(to, &row[columns.clone()]);
        }
    });
}
