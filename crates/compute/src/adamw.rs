//! AdamW (Loshchilov and Hutter 2019), as `torch.optim.AdamW` computes it.

use rayon::prelude::*;

use crate::cpu::vectorised;
use crate::profile::{self, Work};

/// Constants of one update of one tensor.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    pub learning_rate: f32,
    /// Decoupled: w −= learning_rate · weight_decay · w.
    pub weight_decay: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    /// Steps made, this one counted: corrects the moments' start at zero.
    pub step: i32,
    /// Factor on the gradient (norm clipping).
    pub gradient_scale: f32,
}

const CHUNK: usize = 16384;

/// Updates values (and first and second moments) from gradients, all of one length.
pub fn update(u: Update, values: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32]) {
    assert!(values.len() == gradients.len() && first.len() == values.len() && second.len() == values.len());
    // Gradients are read, the three others read and written.
    let _span = profile::operation("AdamW", || Work::floats(7 * values.len()));
    values
        .par_chunks_mut(CHUNK)
        .zip(gradients.par_chunks(CHUNK))
        .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)))
        .for_each(|((w, g), (m, v))| update_chunk(u, w, g, m, v));
}

vectorised! {
    fn update_chunk(u: Update, values: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32]) {
        let step = u.learning_rate / (1.0 - u.beta1.powi(u.step));
        let correction = 1.0 / (1.0 - u.beta2.powi(u.step)).sqrt();
        let keep = 1.0 - u.learning_rate * u.weight_decay;
        for (((w, &g), m), v) in values.iter_mut().zip(gradients).zip(first).zip(second) {
            let g = g * u.gradient_scale;
            *m += (1.0 - u.beta1) * (g - *m);
            *v = u.beta2 * *v + (1.0 - u.beta2) * g * g;
            *w = *w * keep - step * *m / (v.sqrt() * correction + u.epsilon);
            let _ = FMA;
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
