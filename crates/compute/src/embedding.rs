//! Embeddings: rows of one or several tables, added up.

use rayon::prelude::*;

use crate::blocks::BlockMatrix;
use crate::profile::{self, Work};
use crate::rows::{add_row, each_row, row};

/// Row i of `out` is Σ over tables of row `index[i]`; a table is (entries, width), an index (rows).
/// Panics on an index beyond its table: callers check their input.
pub fn forward(tables: &[(&[f32], &[u32])], width: usize, out: &mut [f32]) {
    let _span = profile::operation("embedding", || Work::floats((tables.len() + 1) * out.len()));
    each_row(out, width, |token, out| {
        out.fill(0.0);
        for (table, index) in tables {
            add_row(out, row(table, index[token] as usize, width));
        }
    });
}

/// Row i of `out` is row `index[i]` of a table in blocks, in f32.
pub fn widen(table: &BlockMatrix, index: &[u32], out: &mut [f32]) {
    let _span = profile::operation("embedding", || Work::floats(2 * out.len()));
    let width = table.cols();
    for (row, &id) in out.chunks_exact_mut(width).zip(index) {
        table.widen_row_range(id as usize, 0..width, row);
    }
}

/// Row `index[i]` of dtable += row i of dout, tokens in order. Each task has its own columns, so no
/// two write the same value.
pub fn backward(dout: &[f32], index: &[u32], width: usize, dtable: &mut [f32]) {
    assert_eq!(dout.len(), index.len() * width);
    let _span = profile::operation("embedding backward", || Work::floats(3 * dout.len()));
    const COLUMNS: usize = 64;
    struct OutputSlice(*mut f32, usize);
    // SAFETY: each task writes its own columns.
    unsafe impl Sync for OutputSlice {}
    let shared = OutputSlice(dtable.as_mut_ptr(), dtable.len());
    let shared = &shared;
    (0..width.div_ceil(COLUMNS)).into_par_iter().for_each(|part| {
        let columns = part * COLUMNS..((part + 1) * COLUMNS).min(width);
        for (row, &entry) in dout.chunks_exact(width).zip(index) {
            let at = entry as usize * width + columns.start;
            assert!(at + columns.len() <= shared.1, "entry {entry} of an embedding");
            // SAFETY: inside the table, and these columns are this task's alone.
            let to = unsafe { std::slice::from_raw_parts_mut(shared.0.add(at), columns.len()) };
            add_row(to, &row[columns.clone()]);
        }
    });
}
