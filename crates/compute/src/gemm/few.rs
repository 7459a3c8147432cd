//! Products of few rows: x Wᵀ when text is generated, one row a sequence. W is read once, row by row, and nothing is
//! packed.
//!
//! The one rule that is not obvious: every element of C is 16 chains of additions over k and their sum in a fixed
//! order, so it depends neither on the threads nor on how many rows there are. It is not rounded as `matmul` rounds it.

use std::cell::Cell;

use rayon::prelude::*;

use super::{Data, Mat, MatMut, SMALL, SharedC, Start, Term, with_scratch};
use crate::cpu::vectorised;
use crate::lanes::{LANES, Lanes, for_each_level};
use crate::math::fused;

/// The most rows that `matmul_few` takes.
pub const FEW_ROWS: usize = 8;
/// Rows of W that are read side by side: as many streams of memory, and each value of x is loaded once for them.
const SIDE: usize = 4;
/// Values of a row of W that are widened at a time: SIDE pieces take 8 KiB of the first-level cache.
const PIECE: usize = 512;

thread_local! {
    static WIDE_SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// C = start + x Wᵀ + z B for at most `FEW_ROWS` rows, on all threads. `wide` is (x, Wᵀ) with x (m, k) and W (n, k)
/// stored by rows; `thin` is (z, B), a LoRA's small product, stored by rows as well. Panics at other shapes.
pub fn matmul_few(c: MatMut, start: Start, wide: Term, thin: Option<Term>) {
    let (m, n) = (c.rows, c.cols);
    let (x, w) = (wide.0, wide.1.t());
    assert!(m <= FEW_ROWS, "{m} rows are not few");
    for (a, b) in [Some(wide), thin].into_iter().flatten() {
        assert!(a.rows == m && b.cols == n && a.cols == b.rows, "shapes of a product do not fit");
    }
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), n, "bias");
    }
    if m == 0 || n == 0 {
        return;
    }
    let k = x.cols;
    let (x, x_stride) = x.stored_rows().expect("x is stored by rows");
    let thin = thin.map(|(z, b)| {
        let parts = (z.stored_rows(), b.stored_rows());
        let (Some((z_data, z_stride)), Some((b_data, b_stride))) = parts else {
            panic!("the thin product is stored by rows")
        };
        let z_row = move |row: usize| &z_data[row * z_stride..][..z.cols];
        let b_row = move |r: usize| &b_data[r * b_stride..][..n];
        (z_row, b_row)
    });

    let threads = if n.saturating_mul(m * k) > SMALL { rayon::current_num_threads() } else { 1 };
    let tasks = if threads > 1 { 4 * threads } else { 1 };
    let each = n.div_ceil(tasks).next_multiple_of(SIDE);
    let (shared, stride) = (SharedC(c.data), c.row_stride);
    let task = |task: usize| {
        let outputs = (task * each).min(n)..((task + 1) * each).min(n);
        // SAFETY: columns `outputs` of a row of C, which we borrowed mutably; no other task has them.
        let c_row = |row: usize| unsafe {
            std::slice::from_raw_parts_mut(shared.at(row * stride + outputs.start), outputs.len())
        };
        with_scratch(&WIDE_SCRATCH, SIDE * PIECE, |scratch| {
            for first in outputs.clone().step_by(SIDE) {
                let count = SIDE.min(outputs.end - first);
                let mut sums = [[[0.0; LANES]; SIDE]; FEW_ROWS];
                for from in (0..k).step_by(PIECE) {
                    let piece = from..(from + PIECE).min(k);
                    let rows = match w.data {
                        Data::Floats { data, row_stride, col_stride } => {
                            assert!(col_stride == 1 || k == 1, "W is stored by rows");
                            // Of fewer rows, the last one is read again and its sums are not used.
                            std::array::from_fn(|i| {
                                &data[(first + i.min(count - 1)) * row_stride + from..][..piece.len()]
                            })
                        }
                        Data::Blocks { matrix, transposed } => {
                            assert!(!transposed, "W is stored by rows");
                            matrix.widen(first..first + count, piece.clone(), scratch, PIECE);
                            std::array::from_fn(|i| &scratch[i * PIECE..][..piece.len()])
                        }
                    };
                    for (row, sums) in sums[..m].iter_mut().enumerate() {
                        add_products(rows, &x[row * x_stride + from..][..piece.len()], sums);
                    }
                }
                for (row, sums) in sums[..m].iter().enumerate() {
                    let at = first - outputs.start;
                    for (i, (c, sums)) in c_row(row)[at..at + count].iter_mut().zip(sums).enumerate() {
                        let before = match start {
                            Start::Zero => 0.0,
                            Start::Bias(bias) => bias[first + i],
                            Start::Keep => *c,
                        };
                        *c = before + sum(*sums);
                    }
                }
            }
        });
        if let Some((z_row, b_row)) = &thin {
            for row in 0..m {
                for (r, &z) in z_row(row).iter().enumerate() {
                    add_scaled(c_row(row), z, &b_row(r)[outputs.clone()]);
                }
            }
        }
    };
    if tasks > 1 {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    } else {
        task(0);
    }
}

impl<'a> Mat<'a> {
    /// The data and its stride, where rows are stored as f32 without gaps between columns.
    fn stored_rows(&self) -> Option<(&'a [f32], usize)> {
        match self.data {
            Data::Floats { data, row_stride, col_stride } if col_stride == 1 || self.cols == 1 => {
                Some((data, row_stride))
            }
            _ => None,
        }
    }
}

for_each_level! {
    /// Adds the products of x with each row to the row's lanes.
    fn add_products(rows: [&[f32]; SIDE], x: &[f32], sums: &mut [[f32; LANES]; SIDE]) = products
}

#[inline(always)]
fn products<S: Lanes>(s: S, rows: [&[f32]; SIDE], x: &[f32], sums: &mut [[f32; LANES]; SIDE]) {
    let (x, x_rest) = x.as_chunks::<LANES>();
    let [a, b, c, d] = [0, 1, 2, 3].map(|i: usize| &rows[i].as_chunks::<LANES>().0[..x.len()]);
    let [p, q, r, t] = &mut *sums;
    let mut lanes = [s.load(p), s.load(q), s.load(r), s.load(t)];
    for ((((x, a), b), c), d) in x.iter().zip(a).zip(b).zip(c).zip(d) {
        let x = s.load(x);
        lanes[0] = s.mul_add(s.load(a), x, lanes[0]);
        lanes[1] = s.mul_add(s.load(b), x, lanes[1]);
        lanes[2] = s.mul_add(s.load(c), x, lanes[2]);
        lanes[3] = s.mul_add(s.load(d), x, lanes[3]);
    }
    if !x_rest.is_empty() {
        // Zeros behind the end change no sum.
        let x_rest = s.load(&padded(x_rest));
        for (lanes, row) in lanes.iter_mut().zip(rows) {
            *lanes = s.mul_add(s.load(&padded(row.as_chunks::<LANES>().1)), x_rest, *lanes);
        }
    }
    for (sums, lanes) in sums.iter_mut().zip(lanes) {
        s.store(lanes, sums);
    }
}

/// Fewer than `LANES` values, and zeros.
#[inline(always)]
fn padded(x: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..x.len()].copy_from_slice(x);
    lanes
}

vectorised! {
    /// c += z · b
    fn add_scaled(c: &mut [f32], z: f32, b: &[f32]) {
        for (c, &b) in c.iter_mut().zip(b) {
            *c = fused::<FMA>(z, b, *c);
        }
    }
}

/// The sum of the lanes: halves are added to halves.
fn sum(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::Portable;

    #[test]
    fn every_level_adds_the_same_products() {
        for n in [0, 1, 15, 16, 100] {
            let row =
                |seed: usize| (0..n).map(|i| ((i * 7 + seed * 5) % 11) as f32 - 5.0).collect::<Vec<_>>();
            let (x, rows) = (row(9), [row(1), row(2), row(3), row(4)]);
            let rows = [0, 1, 2, 3].map(|i: usize| &rows[i][..]);
            // Small integers: exact, with or without fused products.
            let start = [[1.0; LANES]; SIDE];
            let want = rows.map(|row| 16.0 + row.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>());
            let (mut best, mut portable) = (start, start);
            add_products(rows, &x, &mut best);
            products(Portable, rows, &x, &mut portable);
            assert_eq!((best.map(sum), portable.map(sum)), (want, want));
            #[cfg(target_arch = "x86_64")]
            if crate::cpu::level() >= crate::cpu::Level::Avx2 {
                // SAFETY: the level has AVX2 and FMA.
                let (avx2, mut sums) = (unsafe { crate::lanes::Avx2::new() }, start);
                products(avx2, rows, &x, &mut sums);
                assert_eq!(sums.map(sum), want);
            }
        }
    }
}
