//! Activations of the feed-forward part and of the heads.

use rayon::prelude::*;

use crate::cpu::vectorised;
use crate::math::{erf, exp, fused, tanh};
use crate::profile::{self, Work};

/// The activations that encoder configurations name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x Φ(x) with the exact Φ: `gelu`.
    Gelu,
    /// The tanh approximation: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    Relu,
    /// x σ(x): `silu`, `swish`.
    Silu,
    Tanh,
}

/// Elements that one task takes.
const CHUNK: usize = 8192;

impl Activation {
    /// y = f(x), element by element.
    pub fn forward(self, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len());
        let _span = profile::operation("activation", || Work::floats(2 * x.len()));
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| forward(self, x, y));
    }

    /// dy becomes dx = f′(x) · dy.
    pub fn backward(self, x: &[f32], dy: &mut [f32]) {
        assert_eq!(x.len(), dy.len());
        let _span = profile::operation("activation backward", || Work::floats(3 * x.len()));
        dy.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(dy, x)| backward(self, x, dy));
    }
}

/// The gated feed-forward part (Shazeer 2020): y = SiLU(gate) · up, element by element.
pub fn gated_forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert!(gate.len() == y.len() && up.len() == y.len());
    let _span = profile::operation("activation", || Work::floats(3 * y.len()));
    y.par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(|((y, gate), up)| gated_rows(gate, up, y));
}

/// From dy to the gradients of gate and up; dy becomes dup.
pub fn gated_backward(gate: &[f32], up: &[f32], dy: &mut [f32], dgate: &mut [f32]) {
    assert!(gate.len() == dy.len() && up.len() == dy.len() && dgate.len() == dy.len());
    let _span = profile::operation("activation backward", || Work::floats(5 * dy.len()));
    dy.par_chunks_mut(CHUNK)
        .zip(dgate.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(|(((dy, dgate), gate), up)| gated_backward_rows(gate, up, dy, dgate));
}

vectorised! {
    fn gated_rows(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
            *y = g / (1.0 + exp::<FMA>(-g)) * u;
        }
    }
}

vectorised! {
    fn gated_backward_rows(gate: &[f32], up: &[f32], dy: &mut [f32], dgate: &mut [f32]) {
        for (((dy, dgate), &g), &u) in dy.iter_mut().zip(dgate).zip(gate).zip(up) {
            let s = 1.0 / (1.0 + exp::<FMA>(-g));
            *dgate = *dy * u * (s * fused::<FMA>(g, 1.0 - s, 1.0));
            *dy *= g * s;
        }
    }
}

const FRAC_1_SQRT_TAU: f32 = 0.398_942_3; // 1 / √(2π)
const GELU_TANH_SCALE: f32 = 0.797_884_6; // √(2/π)
const GELU_TANH_CUBE: f32 = 0.044_715;

vectorised! {
    fn forward(f: Activation, x: &[f32], y: &mut [f32]) {
        let each = x.iter().zip(y.iter_mut());
        match f {
            Activation::Gelu => each.for_each(|(&x, y)| {
                *y = 0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2));
            }),
            Activation::GeluTanh => each.for_each(|(&x, y)| {
                let inner = GELU_TANH_SCALE * x * fused::<FMA>(GELU_TANH_CUBE * x, x, 1.0);
                *y = 0.5 * x * (1.0 + tanh::<FMA>(inner));
            }),
            Activation::Relu => each.for_each(|(&x, y)| *y = x.max(0.0)),
            Activation::Silu => each.for_each(|(&x, y)| *y = x / (1.0 + exp::<FMA>(-x))),
            Activation::Tanh => each.for_each(|(&x, y)| *y = tanh::<FMA>(x)),
        }
    }
}

vectorised! {
    fn backward(f: Activation, x: &[f32], dy: &mut [f32]) {
        let each = x.iter().zip(dy.iter_mut());
        match f {
            Activation::Gelu => each.for_each(|(&x, dy)| {
                let phi = FRAC_1_SQRT_TAU * exp::<FMA>(-0.5 * x * x);
                let cumulative = 0.5 * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2));
                *dy *= fused::<FMA>(x, phi, cumulative);
            }),
            Activation::GeluTanh => each.for_each(|(&x, dy)| {
                let inner = GELU_TANH_SCALE * x * fused::<FMA>(GELU_TANH_CUBE * x, x, 1.0);
                let t = tanh::<FMA>(inner);
                let slope = GELU_TANH_SCALE * fused::<FMA>(3.0 * GELU_TANH_CUBE * x, x, 1.0);
                *dy *= 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope;
            }),
            Activation::Relu => each.for_each(|(&x, dy)| *dy = if x > 0.0 { *dy } else { 0.0 }),
            Activation::Silu => each.for_each(|(&x, dy)| {
                let s = 1.0 / (1.0 + exp::<FMA>(-x));
                *dy *= s * (1.0 + x * (1.0 - s));
            }),
            Activation::Tanh => each.for_each(|(&x, dy)| {
                let t = tanh::<FMA>(x);
                *dy *= 1.0 - t * t;
            }),
        }
    }
}
