//! Sums over rows, in an order that does not depend on the threads.

use rayon::prelude::*;

use crate::norm::add_row;

/// Rows that one task of an element-wise operation takes.
pub const CHUNK: usize = 16;
/// Rows whose sum is formed by one task, before the sums are added in order.
const PART: usize = 128;

/// `total` += Σ over rows of what `add(row, out)` adds to `out`.
pub fn sum_columns(width: usize, rows: usize, total: &mut [f32], add: impl Fn(usize, &mut [f32]) + Sync) {
    assert_eq!(total.len(), width);
    let parts: Vec<Vec<f32>> = (0..rows.div_ceil(PART))
        .into_par_iter()
        .map(|part| {
            let mut sum = vec![0.0; width];
            for row in part * PART..((part + 1) * PART).min(rows) {
                add(row, &mut sum);
            }
            sum
        })
        .collect();
    for part in &parts {
        add_row(total, part);
    }
}
