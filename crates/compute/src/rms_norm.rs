//! Root mean square normalisation (Zhang and Sennrich 2019): y = g · x̂ with x̂ = x / √(mean x² +
//! ε), where g is γ or 1 + γ.
//!
//! The backward pass recomputes x̂ from x, so only one number per row is saved.

use crate::cpu::vectorised;
use crate::math::{fused, sum_by, sum_by_2};
use crate::profile::{self, Work};
use crate::rows::{each_row, each_row_of_both, row, sum_columns};

/// The gain g of a row, `offset` + γ, (width).
#[derive(Clone, Copy)]
pub struct Gain<'a> {
    pub gamma: &'a [f32],
    pub offset: f32,
}

/// Computes y, and rstd = 1 / √(mean x² + ε) for the backward pass. x, y: (rows, width), where
/// width is `gain.gamma.len()`; rstd: (rows).
pub fn forward(x: &[f32], gain: Gain, epsilon: f32, y: &mut [f32], rstd: &mut [f32]) {
    let width = gain.gamma.len();
    assert!(x.len() == y.len() && rstd.len() * width == y.len());
    let _span = profile::operation("norm", || Work::floats(2 * x.len()));
    each_row_of_both([y, rstd], [width, 1], |number, y, rstd| {
        let x = row(x, number, width);
        rstd[0] = inverse_deviation(x, epsilon);
        scale_row(x, rstd[0], gain, y);
    });
}

/// Recomputes y from x and the rstd that `forward` saved.
pub fn recompute(x: &[f32], gain: Gain, rstd: &[f32], y: &mut [f32]) {
    let width = gain.gamma.len();
    assert!(x.len() == y.len() && rstd.len() * width == y.len());
    let _span = profile::operation("norm", || Work::floats(2 * x.len()));
    each_row(y, width, |number, y| scale_row(row(x, number, width), rstd[number], gain, y));
}

/// dx (rows, width) += the gradient of x; dγ (width) += the gradient of γ, if it trains.
pub fn backward(dy: &[f32], x: &[f32], gain: Gain, rstd: &[f32], dx: &mut [f32], dgamma: Option<&mut [f32]>) {
    let width = gain.gamma.len();
    assert!(dy.len() == x.len() && dx.len() == x.len() && rstd.len() * width == x.len());
    let slices = 4 + 2 * usize::from(dgamma.is_some());
    let _span = profile::operation("norm backward", || Work::floats(slices * x.len()));
    if let Some(dgamma) = dgamma {
        sum_columns(width, rstd.len(), dgamma, |number, out| {
            gamma_row(row(dy, number, width), row(x, number, width), rstd[number], out);
        });
    }
    each_row(dx, width, |number, dx| {
        backward_row(row(dy, number, width), row(x, number, width), gain, rstd[number], dx);
    });
}

vectorised! {
    fn inverse_deviation(x: &[f32], epsilon: f32) -> f32 {
        1.0 / (sum_by(x, |x| x * x) / x.len() as f32 + epsilon).sqrt()
    }
}

vectorised! {
    fn scale_row(x: &[f32], rstd: f32, gain: Gain, y: &mut [f32]) {
        for ((y, &x), &g) in y.iter_mut().zip(x).zip(gain.gamma) {
            *y = (gain.offset + g) * (x * rstd);
        }
    }
}

vectorised! {
    fn gamma_row(dy: &[f32], x: &[f32], rstd: f32, out: &mut [f32]) {
        for ((out, &x), &dy) in out.iter_mut().zip(x).zip(dy) {
            *out = fused::<FMA>(dy, x * rstd, *out);
        }
    }
}

/// Values of a row that the backward pass multiplies by the gain at a time, before it sums their
/// products with x.
const CHUNK: usize = 256;

vectorised! {
    /// dx += rstd · (g dy − x̂ · mean(g dy · x̂))
    fn backward_row(dy: &[f32], x: &[f32], gain: Gain, rstd: f32, dx: &mut [f32]) {
        let mut dot = 0.0;
        let mut scaled = [0.0; CHUNK];
        for ((dy, x), gamma) in dy.chunks(CHUNK).zip(x.chunks(CHUNK)).zip(gain.gamma.chunks(CHUNK)) {
            for ((s, &dy), &g) in scaled.iter_mut().zip(dy).zip(gamma) {
                *s = dy * (gain.offset + g);
            }
            dot += sum_by_2(&scaled[..x.len()], x, |s, x| s * x);
        }
        let factor = rstd * rstd * dot / x.len() as f32;
        for (((dx, &dy), &x), &g) in dx.iter_mut().zip(dy).zip(x).zip(gain.gamma) {
            *dx += rstd * fused::<FMA>(-x, factor, dy * (gain.offset + g));
        }
    }
}
