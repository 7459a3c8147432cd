//! Operations on rows: sums in an order that does not depend on the threads, and copies.

use rayon::prelude::*;

use crate::cpu::vectorised;
use crate::profile::{self, Work};

/// Rows that one task of an element-wise operation takes.
pub(crate) const CHUNK: usize = 16;
/// Rows that one task sums, before the sums are added in order.
const PART: usize = 128;

/// Row `number` of x, (rows, width).
#[inline(always)]
pub(crate) fn row(x: &[f32], number: usize, width: usize) -> &[f32] {
    &x[number * width..][..width]
}

/// Calls `f` on all threads with each row of `out`, (rows, width), and its number.
pub(crate) fn each_row(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    out.par_chunks_mut((CHUNK * width).max(1)).enumerate().for_each(|(chunk, out)| {
        out.chunks_exact_mut(width).enumerate().for_each(|(i, out)| f(chunk * CHUNK + i, out));
    });
}

/// As `each_row`, with the rows of two matrices of these widths.
pub(crate) fn each_row_of_both(
    [a, b]: [&mut [f32]; 2],
    widths: [usize; 2],
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let [a, b] = [(a, widths[0]), (b, widths[1])].map(|(x, width)| x.par_chunks_mut(CHUNK * width));
    a.zip(b).enumerate().for_each(|(chunk, (a, b))| {
        let rows = a.chunks_exact_mut(widths[0]).zip(b.chunks_exact_mut(widths[1]));
        rows.enumerate().for_each(|(i, (a, b))| f(chunk * CHUNK + i, a, b));
    });
}

vectorised! {
    pub(crate) fn add_row(to: &mut [f32], x: &[f32]) {
        for (to, x) in to.iter_mut().zip(x) {
            *to += x;
        }
    }
}

/// `total` += Σ over rows of what `add(row, out)` adds to `out`.
pub(crate) fn sum_columns(
    width: usize,
    rows: usize,
    total: &mut [f32],
    add: impl Fn(usize, &mut [f32]) + Sync,
) {
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

/// `total` (width) += Σ over the rows of x, (rows, width).
pub(crate) fn sum_rows(x: &[f32], total: &mut [f32]) {
    let width = total.len();
    let _span = profile::operation("linear, bias gradient", || Work::floats(x.len()));
    sum_columns(width, x.len() / width, total, |number, out| add_row(out, row(x, number, width)));
}

/// Row i of y, (rows, width), is row `rows[i]` of x.
pub(crate) fn gather(x: &[f32], rows: &[usize], y: &mut [f32], width: usize) {
    for (y, row) in y.chunks_exact_mut(width).zip(rows) {
        y.copy_from_slice(self::row(x, *row, width));
    }
}

/// Row `rows[i]` of x becomes row i of y, (rows, width), or with `add` row i of y is added to it.
pub(crate) fn scatter(y: &[f32], rows: &[usize], x: &mut [f32], add: bool) {
    let width = y.len() / rows.len().max(1);
    for (y, row) in y.chunks_exact(width).zip(rows) {
        let x = &mut x[row * width..(row + 1) * width];
        if add { add_row(x, y) } else { x.copy_from_slice(y) }
    }
}

/// total (width, width) += Σ z zᵀ over the rows of z, (rows, width), in f64.
pub fn second_moment(width: usize, z: &[f32], total: &mut [f64]) {
    assert!(total.len() == width * width && z.len().is_multiple_of(width));
    let _span = profile::operation("second moments", || Work {
        operations: 2 * (z.len() * width) as u64,
        ..Work::floats(z.len())
    });
    let parts: Vec<Vec<f64>> = z
        .par_chunks(PART * width)
        .map(|z| {
            let mut sum = vec![0.0; width * width];
            add_outer(&mut sum, z, width);
            sum
        })
        .collect();
    for part in &parts {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
    }
}

vectorised! {
    fn add_outer(sum: &mut [f64], z: &[f32], width: usize) {
        for z in z.chunks_exact(width) {
            for (sum, &a) in sum.chunks_exact_mut(width).zip(z) {
                for (sum, &b) in sum.iter_mut().zip(z) {
                    *sum += a as f64 * b as f64;
                }
            }
        }
    }
}
