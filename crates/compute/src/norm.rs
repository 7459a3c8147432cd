//! Layer normalisation of a sum u = residual + dropout(x): y = γ · x̂ + β with
//! x̂ = (u − mean u) / √(var u + ε).
//!
//! Dropout, residual and norm are one pass, which reads and writes each row once.

use rayon::prelude::*;

use crate::cpu::vectorised;
use crate::math::{fused, sum_by, sum_by_2};
use crate::profile::{self, Work};
use crate::random::{Dropout, Key};
use crate::rows::{CHUNK, add_row, each_row, each_row_of_both, row, sum_columns};

/// The forward pass: normalises rows of width `gamma.len()`.
///
/// `x` and `residual`: (rows, width); `gamma` and `beta`: (width); `dropout` has one key per row.
pub struct Forward<'a> {
    pub x: &'a [f32],
    pub residual: Option<&'a [f32]>,
    pub dropout: Option<(Dropout, &'a [Key])>,
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub epsilon: f32,
}

impl Forward<'_> {
    /// Computes y, and saves `normed` (x̂) and `rstd` for the backward pass. y, normed: (rows,
    /// width); rstd: (rows).
    pub fn run(&self, y: &mut [f32], normed: &mut [f32], rstd: &mut [f32]) {
        let width = self.gamma.len();
        assert!(self.x.len() == y.len() && normed.len() == y.len() && rstd.len() * width == y.len());
        let slices = 3 + usize::from(self.residual.is_some());
        let _span = profile::operation("norm", || Work::floats(slices * y.len()));
        let chunks = y
            .par_chunks_mut(CHUNK * width)
            .zip(normed.par_chunks_mut(CHUNK * width))
            .zip(rstd.par_chunks_mut(CHUNK))
            .enumerate();
        chunks.for_each(|(chunk, ((y, normed), rstd))| {
            for (i, ((y, normed), rstd)) in
                y.chunks_exact_mut(width).zip(normed.chunks_exact_mut(width)).zip(rstd).enumerate()
            {
                let number = chunk * CHUNK + i;
                let x = row(self.x, number, width);
                let residual = self.residual.map(|residual| row(residual, number, width));
                let dropout = self.dropout.map(|(dropout, keys)| (dropout, keys[number]));
                *rstd = forward_row(x, residual, dropout, self.gamma, self.beta, self.epsilon, normed, y);
            }
        });
    }
}

/// The backward pass: from `dy`, (rows, width), to du, the gradient of u and of the residual, and
/// to dx = dropout(du). `normed`, (rows, width), and `rstd`, (rows), are the forward pass's.
pub struct Backward<'a> {
    pub dy: &'a [f32],
    pub normed: &'a [f32],
    pub rstd: &'a [f32],
    pub gamma: &'a [f32],
    pub dropout: Option<(Dropout, &'a [Key])>,
}

impl Backward<'_> {
    /// Overwrites du (rows, width), and dx if there was dropout (otherwise dx = du and `dx` is
    /// None); adds to `affine`, the gradients of γ and β, if given.
    pub fn run(&self, du: &mut [f32], dx: Option<&mut [f32]>, affine: Option<[&mut [f32]; 2]>) {
        let width = self.gamma.len();
        assert!(self.dy.len() == du.len() && self.normed.len() == du.len());
        let slices = 3 + 2 * usize::from(dx.is_some()) + 3 * usize::from(affine.is_some());
        let _span = profile::operation("norm backward", || Work::floats(slices * du.len()));
        if let Some([dgamma, dbeta]) = affine {
            sum_columns(width, self.rstd.len(), dgamma, |number, out| {
                multiply_add_row(row(self.dy, number, width), row(self.normed, number, width), out);
            });
            sum_columns(width, self.rstd.len(), dbeta, |number, out| {
                add_row(out, row(self.dy, number, width));
            });
        }
        let backward = |number: usize, du: &mut [f32]| {
            let (dy, normed) = (row(self.dy, number, width), row(self.normed, number, width));
            backward_row(dy, normed, self.rstd[number], self.gamma, du);
        };
        match (dx, self.dropout) {
            (Some(dx), Some((dropout, keys))) => {
                each_row_of_both([du, dx], [width; 2], |number, du, dx| {
                    backward(number, du);
                    dropped_row(du, dropout, keys[number], dx);
                });
            }
            (None, None) => each_row(du, width, backward),
            _ => panic!("dx is wanted exactly where there was dropout"),
        }
    }
}

/// x = dropout(x), (rows, width), with one key per row. The same operation on a gradient is the
/// backward pass.
pub(crate) fn dropout_rows(x: &mut [f32], dropout: Dropout, keys: &[Key]) {
    let width = x.len() / keys.len().max(1);
    assert_eq!(width * keys.len(), x.len());
    let _span = profile::operation("dropout", || Work::floats(2 * x.len()));
    each_row(x, width, |number, x| drop_row(x, dropout, keys[number]));
}

vectorised! {
    fn drop_row(x: &mut [f32], dropout: Dropout, key: Key) {
        for (i, x) in x.iter_mut().enumerate() {
            *x *= dropout.factor(key, i as u32);
        }
    }
}

vectorised! {
    fn multiply_add_row(x: &[f32], y: &[f32], to: &mut [f32]) {
        for ((to, &x), &y) in to.iter_mut().zip(x).zip(y) {
            *to = fused::<FMA>(x, y, *to);
        }
    }
}

vectorised! {
    fn dropped_row(x: &[f32], dropout: Dropout, key: Key, out: &mut [f32]) {
        for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
            *out = x * dropout.factor(key, i as u32);
        }
    }
}

vectorised! {
    /// Computes u = residual + dropout(x), and x̂ and y from it; returns 1 / √(var u + ε).
    fn forward_row(
        x: &[f32],
        residual: Option<&[f32]>,
        dropout: Option<(Dropout, Key)>,
        gamma: &[f32],
        beta: &[f32],
        epsilon: f32,
        normed: &mut [f32],
        y: &mut [f32],
    ) -> f32 {
        match (residual, dropout) {
            (Some(residual), Some((dropout, key))) => {
                for (i, ((u, &x), &r)) in normed.iter_mut().zip(x).zip(residual).enumerate() {
                    *u = x * dropout.factor(key, i as u32) + r;
                }
            }
            (Some(residual), None) => {
                for ((u, &x), &r) in normed.iter_mut().zip(x).zip(residual) {
                    *u = x + r;
                }
            }
            (None, Some((dropout, key))) => {
                for (i, (u, &x)) in normed.iter_mut().zip(x).enumerate() {
                    *u = x * dropout.factor(key, i as u32);
                }
            }
            (None, None) => normed.copy_from_slice(x),
        }
        let n = normed.len() as f32;
        let mean = sum_by(normed, |x| x) / n;
        for x in normed.iter_mut() {
            *x -= mean;
        }
        let variance = sum_by(normed, |x| x * x) / n;
        let rstd = 1.0 / (variance + epsilon).sqrt();
        for (((y, x), &g), &b) in y.iter_mut().zip(normed).zip(gamma).zip(beta) {
            *x *= rstd;
            *y = fused::<FMA>(*x, g, b);
        }
        rstd
    }
}

vectorised! {
    /// du = rstd · (dx̂ − mean dx̂ − x̂ · mean(dx̂ · x̂)) with dx̂ = γ dy.
    fn backward_row(dy: &[f32], normed: &[f32], rstd: f32, gamma: &[f32], du: &mut [f32]) {
        for ((du, &dy), &g) in du.iter_mut().zip(dy).zip(gamma) {
            *du = dy * g;
        }
        let n = dy.len() as f32;
        let mean = sum_by(du, |x| x) / n;
        let mean_dot = sum_by_2(du, normed, |x, y| x * y) / n;
        for (du, &x) in du.iter_mut().zip(normed) {
            *du = rstd * (*du - fused::<FMA>(x, mean_dot, mean));
        }
    }
}

/// x *= factor, on all threads.
pub(crate) fn scale(x: &mut [f32], factor: f32) {
    let _span = profile::operation("scale", || Work::floats(2 * x.len()));
    x.par_chunks_mut(PART).for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
}

/// Elements that one task of `scale` or `add` takes.
const PART: usize = 8192;

/// to += x, element by element, on all threads.
pub fn add(to: &mut [f32], x: &[f32]) {
    assert_eq!(to.len(), x.len());
    let _span = profile::operation("add", || Work::floats(3 * x.len()));
    to.par_chunks_mut(PART).zip(x.par_chunks(PART)).for_each(|(to, x)| add_row(to, x));
}
