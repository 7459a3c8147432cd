//! AdamW (Loshchilov and Hutter 2019), as `torch.optim.AdamW` computes it.

use rayon::prelude::*;

use crate::cpu::vectorised;
use crate::profile::{self, Work};

/// The constants of one update of one tensor. They are f64, as in PyTorch, and so is what is
/// computed from them alone; f32 would make 1 − β₂ wrong in the fifth digit.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    pub learning_rate: f64,
    /// Decoupled: w −= learning_rate · weight_decay · w.
    pub weight_decay: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Steps made, including this one: corrects the moments' start at zero.
    pub step: i32,
    /// Factor on the gradient (norm clipping).
    pub gradient_scale: f32,
}

const CHUNK: usize = 16384;

/// Updates values, and their first and second moments, from gradients; all of one length.
pub fn update(u: Update, values: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32]) {
    assert!(values.len() == gradients.len() && first.len() == values.len() && second.len() == values.len());
    // Gradients are read; the other three are read and written.
    let _span = profile::operation("AdamW", || Work::floats(7 * values.len()));
    values
        .par_chunks_mut(CHUNK)
        .zip(gradients.par_chunks(CHUNK))
        .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)))
        .for_each(|((w, g), (m, v))| update_chunk(u, w, g, m, v));
}

vectorised! {
    fn update_chunk(u: Update, values: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32]) {
        let steps = f64::from(u.step);
        let step = (u.learning_rate / (1.0 - u.beta1.powf(steps))) as f32;
        let correction = (1.0 - u.beta2.powf(steps)).sqrt() as f32;
        let keep = (1.0 - u.learning_rate * u.weight_decay) as f32;
        let (new1, beta2, new2) = ((1.0 - u.beta1) as f32, u.beta2 as f32, (1.0 - u.beta2) as f32);
        let epsilon = u.epsilon as f32;
        for (((w, &g), m), v) in values.iter_mut().zip(gradients).zip(first).zip(second) {
            let g = g * u.gradient_scale;
            *m += new1 * (g - *m);
            *v = beta2 * *v + new2 * g * g;
            *w = *w * keep - step * *m / (v.sqrt() / correction + epsilon);
        }
    }
}

/// √Σg², summed in f64 over parts of fixed length.
pub fn norm(gradients: &[f32]) -> f64 {
    let _span = profile::operation("gradient norm", || Work::floats(gradients.len()));
    let parts: Vec<f64> =
        gradients.par_chunks(CHUNK).map(|g| g.iter().map(|&g| g as f64 * g as f64).sum()).collect();
    parts.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares a thousand steps with the same formulas in f64: they differ only by rounding.
    /// Constants in f32 would put the second moment off by 5e-5 after the first step.
    #[test]
    fn constants_are_not_rounded_before_they_are_used() {
        let constants = |step| Update {
            learning_rate: 1e-3,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            step,
            gradient_scale: 1.0,
        };
        let (mut w, mut m, mut v) = ([1.0f32], [0.0], [0.0]);
        let (mut exact_w, mut exact_m, mut exact_v) = (1.0f64, 0.0f64, 0.0f64);
        for step in 1..=1000 {
            let gradient = ((step * step) as f32).sin() + 0.3;
            update(constants(step), &mut w, &[gradient], &mut m, &mut v);
            let g = f64::from(gradient);
            exact_w *= 1.0 - 1e-3 * 0.01;
            exact_m = 0.9 * exact_m + 0.1 * g;
            exact_v = 0.999 * exact_v + 0.001 * g * g;
            let (one, two) = (1.0 - 0.9f64.powi(step), 1.0 - 0.999f64.powi(step));
            exact_w -= 1e-3 * (exact_m / one) / ((exact_v / two).sqrt() + 1e-8);
            let away = |got: f32, exact: f64| (f64::from(got) - exact).abs();
            assert!(away(v[0], exact_v) < 1e-5 * exact_v, "step {step}: {} {exact_v}", v[0]);
            assert!(away(m[0], exact_m) < 1e-6, "step {step}: {} {exact_m}", m[0]);
            assert!(away(w[0], exact_w) < 2e-5, "step {step}: {} {exact_w}", w[0]);
        }
    }
}
