//! Weights by magnitude and direction (DoRA, Liu et al. 2024, eq. 5): the norms of an adapted
//! weight's rows, and outputs scaled by them, forward and backward.

use rayon::prelude::*;

use crate::Tensor;
use crate::blocks::BlockMatrix;
use crate::blocks::half::{from_bf16, to_bf16};
use crate::cpu::vectorised;
use crate::gemm::{Mat, MatMut, Precision, Start, matmul};
use crate::math::sum_by;
use crate::profile::{self, Work};
use crate::rows::{CHUNK, add_row, each_row, row, sum_columns};

/// The low-rank update scale · B A of a weight: A (rank, in) and Bᵀ (rank, out).
pub struct LowRank<'a> {
    pub a: &'a [f32],
    pub b_t: &'a [f32],
    pub rank: usize,
    pub scale: f32,
}

/// The rows of a weight (out, in), for their sums of squares.
pub enum Rows<'a> {
    Floats(&'a [f32]),
    Blocks(&'a BlockMatrix),
}

/// Writes Σ w² of each row of a weight (out, width) to `out`, (out), with w rounded as products in
/// `precision` round it.
pub fn squares(rows: Rows, width: usize, precision: Precision, out: &mut [f32]) {
    let _span = profile::operation("row norms", || Work::floats(width * out.len()));
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
        let mut row = vec![0.0; width];
        for (i, out) in out.iter_mut().enumerate() {
            let number = chunk * CHUNK + i;
            match &rows {
                Rows::Floats(values) => row.copy_from_slice(&values[number * width..][..width]),
                Rows::Blocks(matrix) => matrix.widen_row_range(number, 0..width, &mut row),
            }
            if precision == Precision::Bf16 {
                row.iter_mut().for_each(|x| *x = from_bf16(to_bf16(*x)));
            }
            *out = sum_of_squares(&row);
        }
    });
}

/// Returns Σ w² of each row of a tensor.
pub(crate) fn squares_of(tensor: &Tensor, precision: Precision) -> Vec<f32> {
    let mut squares = vec![0.0; tensor.shape()[0]];
    self::squares(Rows::Floats(tensor), tensor.shape()[1], precision, &mut squares);
    squares
}

/// Computes the norms of the rows of W + scale · B A, for W (out, in). On entry, `norms`, (out),
/// holds Σ w² of each row of W; on return, the norms.
///
/// By row, ‖w + s Σ b_r a_r‖² = ‖w‖² + 2 s b·(A w) + s² bᵀ(A Aᵀ)b. So W + s B A is never computed,
/// and W is read by a product like any other.
pub fn norms(weight: Mat, precision: Precision, plus: Option<LowRank>, norms: &mut [f32]) {
    let (output, input) = (weight.rows(), weight.cols());
    if let Some(LowRank { a, b_t, rank, scale }) = plus {
        let _span = profile::operation("row norms", || Work {
            operations: 2 * (rank * input * output) as u64,
            ..Work::floats(rank * (input + 2 * output))
        });
        let (a, b) = (Mat::new(a, rank, input), Mat::new(b_t, rank, output));
        let [mut aw, mut aab, mut aa] = [rank * output, rank * output, rank * rank].map(|len| vec![0.0; len]);
        matmul(precision, MatMut::new(&mut aw, rank, output), Start::Zero, 2.0 * scale, &[(a, weight.t())]);
        matmul(Precision::F32, MatMut::new(&mut aa, rank, rank), Start::Zero, scale * scale, &[(a, a.t())]);
        let aa = Mat::new(&aa, rank, rank);
        matmul(Precision::F32, MatMut::new(&mut aab, rank, output), Start::Zero, 1.0, &[(aa, b)]);
        let rows = aw.chunks_exact(output).zip(aab.chunks_exact(output)).zip(b_t.chunks_exact(output));
        rows.for_each(|((aw, aab), b)| add_products(norms, b, aw, aab));
    }
    // Rounding may make the square of a norm near zero negative.
    norms.iter_mut().for_each(|norm| *norm = norm.max(0.0).sqrt());
}

/// Returns magnitude / norm − less for each column. A zero row of W has no direction; its magnitude
/// / norm is 0.
pub fn factors(magnitude: &[f32], norms: &[f32], less: f32) -> Vec<f32> {
    magnitude.iter().zip(norms).map(|(&m, &norm)| per_norm(m, norm) - less).collect()
}

/// y = start + factor · u by columns; u: (rows, width), or None if it is in y.
pub fn forward(u: Option<&[f32]>, factors: &[f32], start: Start, y: &mut [f32]) {
    let width = factors.len();
    let _span = profile::operation("magnitude", || Work::floats(2 * y.len()));
    each_row(y, width, |number, y| {
        match (u.map(|u| row(u, number, width)), start) {
            (Some(u), Start::Keep) => add_products(y, u, factors, &[]),
            (Some(u), _) => {
                y.copy_from_slice(u);
                scale_row(y, factors);
            }
            (None, _) => scale_row(y, factors),
        }
        if let Start::Bias(bias) = start {
            add_row(y, bias);
        }
    });
}

/// du = factor · dy by columns; the magnitude's gradient (width) += Σ over rows of dy · u / norm.
pub fn backward([dy, u]: [&[f32]; 2], factors: &[f32], norms: &[f32], du: &mut [f32], gradient: &mut [f32]) {
    let width = factors.len();
    let _span = profile::operation("magnitude backward", || Work::floats(3 * dy.len()));
    each_row(du, width, |number, du| {
        du.copy_from_slice(row(dy, number, width));
        scale_row(du, factors);
    });
    let mut sum = vec![0.0; width];
    sum_columns(width, dy.len() / width, &mut sum, |number, out| {
        add_products(out, row(dy, number, width), row(u, number, width), &[]);
    });
    for ((gradient, sum), &norm) in gradient.iter_mut().zip(sum).zip(norms) {
        *gradient += per_norm(sum, norm);
    }
}

fn per_norm(x: f32, norm: f32) -> f32 {
    if norm > 0.0 { x / norm } else { 0.0 }
}

vectorised! {
    fn sum_of_squares(x: &[f32]) -> f32 {
        sum_by(x, |x| x * x)
    }
}

vectorised! {
    fn scale_row(x: &mut [f32], factors: &[f32]) {
        for (x, &factor) in x.iter_mut().zip(factors) {
            *x *= factor;
        }
    }
}

vectorised! {
    /// to += x · (y + z), where z may be empty.
    fn add_products(to: &mut [f32], x: &[f32], y: &[f32], z: &[f32]) {
        if z.is_empty() {
            for ((to, &x), &y) in to.iter_mut().zip(x).zip(y) {
                *to += x * y;
            }
            return;
        }
        for (((to, &x), &y), &z) in to.iter_mut().zip(x).zip(y).zip(z) {
            *to += x * (y + z);
        }
    }
}
