//! Activations of the feed-forward part and of the heads.

use rayon::prelude::*;

use crate::blocks::half::{from_bf16, to_bf16};
use crate::cpu::vectorised;
use crate::kept_values::KeptValues;
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

    /// y = f(y), and what y was rounded to bf16 where there is room for it.
    pub fn forward_in_place(self, y: &mut [f32], kept: Option<&mut [u16]>) {
        let Some(kept) = kept else {
            let _span = profile::operation("activation", || Work::floats(2 * y.len()));
            y.par_chunks_mut(CHUNK).for_each(|y| forward_over(self, y));
            return;
        };
        assert_eq!(kept.len(), y.len());
        let _span = profile::operation("activation", || moved(2 * y.len(), size_of_val(kept)));
        let chunks = y.par_chunks_mut(CHUNK).zip(kept.par_chunks_mut(CHUNK));
        chunks.for_each(|(y, kept)| forward_rounding(self, y, kept));
    }

    /// The same once more, of what was kept.
    pub fn forward_again(self, x: &KeptValues, y: &mut [f32]) {
        let kept = match x {
            KeptValues::Floats(x) => return self.forward(x, y),
            KeptValues::Rounded(kept) => kept,
        };
        assert_eq!(kept.len(), y.len());
        let _span = profile::operation("activation", || moved(y.len(), size_of_val(*kept)));
        let chunks = y.par_chunks_mut(CHUNK).zip(kept.par_chunks(CHUNK));
        chunks.for_each(|(y, kept)| forward_rounded(self, kept, y));
    }

    /// dy becomes dx = f′(x) · dy, of x that was kept.
    pub fn backward(self, x: &KeptValues, dy: &mut [f32]) {
        assert_eq!(x.len(), dy.len());
        let _span = profile::operation("activation backward", || moved(2 * dy.len(), x.bytes()));
        let dy = dy.par_chunks_mut(CHUNK);
        match x {
            KeptValues::Floats(x) => {
                dy.zip(x.par_chunks(CHUNK)).for_each(|(dy, x)| backward(self, x, dy));
            }
            KeptValues::Rounded(x) => {
                dy.zip(x.par_chunks(CHUNK)).for_each(|(dy, x)| backward_rounded(self, x, dy));
            }
        }
    }
}

/// The gated feed-forward part (Shazeer 2020): y = SiLU(gate) · up, element by element, with gate in y before. Where there is
/// room, gate and up are kept rounded to bf16.
pub fn gated_forward_in_place(y: &mut [f32], up: &[f32], kept: Option<[&mut [u16]; 2]>) {
    assert_eq!(up.len(), y.len());
    let Some([gate, kept_up]) = kept else {
        let _span = profile::operation("activation", || Work::floats(3 * y.len()));
        y.par_chunks_mut(CHUNK).zip(up.par_chunks(CHUNK)).for_each(|(y, up)| gated_over(up, y));
        return;
    };
    assert!(gate.len() == y.len() && kept_up.len() == y.len());
    let _span = profile::operation("activation", || moved(3 * y.len(), 2 * size_of_val(gate)));
    y.par_chunks_mut(CHUNK)
        .zip(up.par_chunks(CHUNK))
        .zip(gate.par_chunks_mut(CHUNK))
        .zip(kept_up.par_chunks_mut(CHUNK))
        .for_each(|(((y, up), gate), kept_up)| gated_rounding(up, y, gate, kept_up));
}

/// The same of gate and up that were kept.
pub fn gated_forward_again(gate: &KeptValues, up: &KeptValues, y: &mut [f32]) {
    assert!(gate.len() == y.len() && up.len() == y.len());
    let _span = profile::operation("activation", || moved(y.len(), gate.bytes() + up.bytes()));
    let y = y.par_chunks_mut(CHUNK);
    match (gate, up) {
        (KeptValues::Floats(gate), KeptValues::Floats(up)) => {
            let each = y.zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
            each.for_each(|((y, gate), up)| gated(gate, up, y));
        }
        (KeptValues::Rounded(gate), KeptValues::Rounded(up)) => {
            let each = y.zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
            each.for_each(|((y, gate), up)| gated_rounded(gate, up, y));
        }
        _ => panic!("gate and up are kept alike"),
    }
}

/// From dy to the gradients of gate and up; dy becomes dup.
pub fn gated_backward(gate: &KeptValues, up: &KeptValues, dy: &mut [f32], dgate: &mut [f32]) {
    assert!(gate.len() == dy.len() && up.len() == dy.len() && dgate.len() == dy.len());
    let _span = profile::operation("activation backward", || moved(3 * dy.len(), gate.bytes() + up.bytes()));
    let both = dy.par_chunks_mut(CHUNK).zip(dgate.par_chunks_mut(CHUNK));
    match (gate, up) {
        (KeptValues::Floats(gate), KeptValues::Floats(up)) => {
            let each = both.zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
            each.for_each(|(((dy, dgate), gate), up)| gated_back(gate, up, dy, dgate));
        }
        (KeptValues::Rounded(gate), KeptValues::Rounded(up)) => {
            let each = both.zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
            each.for_each(|(((dy, dgate), gate), up)| gated_back_rounded(gate, up, dy, dgate));
        }
        _ => panic!("gate and up are kept alike"),
    }
}

/// So many f32 read or written, and bytes of what is kept.
fn moved(floats: usize, kept: usize) -> Work {
    Work { operations: 0, bytes: (4 * floats + kept) as u64 }
}

#[inline(always)]
fn gated_each<'a, const FMA: bool>(each: impl Iterator<Item = (f32, f32, &'a mut f32)>) {
    for (g, u, y) in each {
        *y = g / (1.0 + exp::<FMA>(-g)) * u;
    }
}

vectorised! {
    fn gated(gate: &[f32], up: &[f32], y: &mut [f32]) {
        gated_each::<FMA>(y.iter_mut().zip(gate).zip(up).map(|((y, &g), &u)| (g, u, y)));
    }
}

vectorised! {
    fn gated_over(up: &[f32], y: &mut [f32]) {
        gated_each::<FMA>(y.iter_mut().zip(up).map(|(y, &u)| (*y, u, y)));
    }
}

vectorised! {
    fn gated_rounded(gate: &[u16], up: &[u16], y: &mut [f32]) {
        let each = y.iter_mut().zip(gate).zip(up);
        gated_each::<FMA>(each.map(|((y, &g), &u)| (from_bf16(g), from_bf16(u), y)));
    }
}

vectorised! {
    fn gated_rounding(plain_up: &[f32], y: &mut [f32], gate: &mut [u16], up: &mut [u16]) {
        let each = y.iter_mut().zip(plain_up).zip(gate).zip(up);
        gated_each::<FMA>(each.map(|(((y, &u), gate), up)| {
            (*gate, *up) = (to_bf16(*y), to_bf16(u));
            (*y, u, y)
        }));
    }
}

#[inline(always)]
fn gated_back_each<'a, const FMA: bool>(each: impl Iterator<Item = (f32, f32, &'a mut f32, &'a mut f32)>) {
    for (g, u, dy, dgate) in each {
        let s = 1.0 / (1.0 + exp::<FMA>(-g));
        *dgate = *dy * u * (s * fused::<FMA>(g, 1.0 - s, 1.0));
        *dy *= g * s;
    }
}

vectorised! {
    fn gated_back(gate: &[f32], up: &[f32], dy: &mut [f32], dgate: &mut [f32]) {
        let each = dy.iter_mut().zip(dgate).zip(gate).zip(up);
        gated_back_each::<FMA>(each.map(|(((dy, dgate), &g), &u)| (g, u, dy, dgate)));
    }
}

vectorised! {
    fn gated_back_rounded(gate: &[u16], up: &[u16], dy: &mut [f32], dgate: &mut [f32]) {
        let each = dy.iter_mut().zip(dgate).zip(gate).zip(up);
        gated_back_each::<FMA>(each.map(|(((dy, dgate), &g), &u)| (from_bf16(g), from_bf16(u), dy, dgate)));
    }
}

const FRAC_1_SQRT_TAU: f32 = 0.398_942_3; // 1 / √(2π)
const GELU_TANH_SCALE: f32 = 0.797_884_6; // √(2/π)
const GELU_TANH_CUBE: f32 = 0.044_715;

#[inline(always)]
fn forward_each<'a, const FMA: bool>(f: Activation, each: impl Iterator<Item = (f32, &'a mut f32)>) {
    match f {
        Activation::Gelu => each.for_each(|(x, y)| {
            *y = 0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2));
        }),
        Activation::GeluTanh => each.for_each(|(x, y)| {
            let inner = GELU_TANH_SCALE * x * fused::<FMA>(GELU_TANH_CUBE * x, x, 1.0);
            *y = 0.5 * x * (1.0 + tanh::<FMA>(inner));
        }),
        Activation::Relu => each.for_each(|(x, y)| *y = x.max(0.0)),
        Activation::Silu => each.for_each(|(x, y)| *y = x / (1.0 + exp::<FMA>(-x))),
        Activation::Tanh => each.for_each(|(x, y)| *y = tanh::<FMA>(x)),
    }
}

vectorised! {
    fn forward(f: Activation, x: &[f32], y: &mut [f32]) {
        forward_each::<FMA>(f, x.iter().copied().zip(y));
    }
}

vectorised! {
    fn forward_over(f: Activation, y: &mut [f32]) {
        forward_each::<FMA>(f, y.iter_mut().map(|y| (*y, y)));
    }
}

vectorised! {
    fn forward_rounded(f: Activation, x: &[u16], y: &mut [f32]) {
        forward_each::<FMA>(f, x.iter().map(|&x| from_bf16(x)).zip(y));
    }
}

vectorised! {
    fn forward_rounding(f: Activation, y: &mut [f32], kept: &mut [u16]) {
        forward_each::<FMA>(f, y.iter_mut().zip(kept).map(|(y, kept)| {
            *kept = to_bf16(*y);
            (*y, y)
        }));
    }
}

#[inline(always)]
fn backward_each<'a, const FMA: bool>(f: Activation, each: impl Iterator<Item = (f32, &'a mut f32)>) {
    match f {
        Activation::Gelu => each.for_each(|(x, dy)| {
            let phi = FRAC_1_SQRT_TAU * exp::<FMA>(-0.5 * x * x);
            let cumulative = 0.5 * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2));
            *dy *= fused::<FMA>(x, phi, cumulative);
        }),
        Activation::GeluTanh => each.for_each(|(x, dy)| {
            let inner = GELU_TANH_SCALE * x * fused::<FMA>(GELU_TANH_CUBE * x, x, 1.0);
            let t = tanh::<FMA>(inner);
            let slope = GELU_TANH_SCALE * fused::<FMA>(3.0 * GELU_TANH_CUBE * x, x, 1.0);
            *dy *= 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope;
        }),
        Activation::Relu => each.for_each(|(x, dy)| *dy = if x > 0.0 { *dy } else { 0.0 }),
        Activation::Silu => each.for_each(|(x, dy)| {
            let s = 1.0 / (1.0 + exp::<FMA>(-x));
            *dy *= s * (1.0 + x * (1.0 - s));
        }),
        Activation::Tanh => each.for_each(|(x, dy)| {
            let t = tanh::<FMA>(x);
            *dy *= 1.0 - t * t;
        }),
    }
}

vectorised! {
    fn backward(f: Activation, x: &[f32], dy: &mut [f32]) {
        backward_each::<FMA>(f, x.iter().copied().zip(dy));
    }
}

vectorised! {
    fn backward_rounded(f: Activation, x: &[u16], dy: &mut [f32]) {
        backward_each::<FMA>(f, x.iter().map(|&x| from_bf16(x)).zip(dy));
    }
}
