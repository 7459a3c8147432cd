//! Activations of the feed-forward part and of the heads.

use rayon::prelude::*;

use crate::blocks::half::{from_bf16, to_bf16};
use crate::cpu::vectorised;
use crate::kept_values::KeptValues;
use crate::math::{erf, exp, fused, tanh};
use crate::profile::{self, Work};

/// The activations that configurations name.
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

/// The gated feed-forward part (Shazeer 2020): y = f(gate) · up, element by element, with gate in y
/// before. Where there is room, gate and up are kept rounded to bf16.
pub fn gated_forward_in_place(f: Activation, y: &mut [f32], up: &[f32], kept: Option<[&mut [u16]; 2]>) {
    assert_eq!(up.len(), y.len());
    let Some([gate, kept_up]) = kept else {
        let _span = profile::operation("activation", || Work::floats(3 * y.len()));
        y.par_chunks_mut(CHUNK).zip(up.par_chunks(CHUNK)).for_each(|(y, up)| gated_over(f, up, y));
        return;
    };
    assert!(gate.len() == y.len() && kept_up.len() == y.len());
    let _span = profile::operation("activation", || moved(3 * y.len(), 2 * size_of_val(gate)));
    y.par_chunks_mut(CHUNK)
        .zip(up.par_chunks(CHUNK))
        .zip(gate.par_chunks_mut(CHUNK))
        .zip(kept_up.par_chunks_mut(CHUNK))
        .for_each(|(((y, up), gate), kept_up)| gated_rounding(f, up, y, gate, kept_up));
}

/// The same of gate and up that were kept.
pub fn gated_forward_again(f: Activation, gate: &KeptValues, up: &KeptValues, y: &mut [f32]) {
    assert!(gate.len() == y.len() && up.len() == y.len());
    let _span = profile::operation("activation", || moved(y.len(), gate.bytes() + up.bytes()));
    let y = y.par_chunks_mut(CHUNK);
    match (gate, up) {
        (KeptValues::Floats(gate), KeptValues::Floats(up)) => {
            let each = y.zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
            each.for_each(|((y, gate), up)| gated(f, gate, up, y));
        }
        (KeptValues::Rounded(gate), KeptValues::Rounded(up)) => {
            let each = y.zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
            each.for_each(|((y, gate), up)| gated_rounded(f, gate, up, y));
        }
        _ => panic!("gate and up are kept alike"),
    }
}

/// From dy to the gradients of gate and up; dy becomes dup.
pub fn gated_backward(f: Activation, gate: &KeptValues, up: &KeptValues, dy: &mut [f32], dgate: &mut [f32]) {
    assert!(gate.len() == dy.len() && up.len() == dy.len() && dgate.len() == dy.len());
    let _span = profile::operation("activation backward", || moved(3 * dy.len(), gate.bytes() + up.bytes()));
    let both = dy.par_chunks_mut(CHUNK).zip(dgate.par_chunks_mut(CHUNK));
    match (gate, up) {
        (KeptValues::Floats(gate), KeptValues::Floats(up)) => {
            let each = both.zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
            each.for_each(|(((dy, dgate), gate), up)| gated_back(f, gate, up, dy, dgate));
        }
        (KeptValues::Rounded(gate), KeptValues::Rounded(up)) => {
            let each = both.zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
            each.for_each(|(((dy, dgate), gate), up)| gated_back_rounded(f, gate, up, dy, dgate));
        }
        _ => panic!("gate and up are kept alike"),
    }
}

/// So many f32 read or written, and bytes of what is kept.
fn moved(floats: usize, kept: usize) -> Work {
    Work { operations: 0, bytes: (4 * floats + kept) as u64 }
}

/// One of the functions, for loops that are compiled for each.
trait Function {
    fn value<const FMA: bool>(x: f32) -> f32;
    /// f(x) and f′(x).
    fn both<const FMA: bool>(x: f32) -> (f32, f32);
}

struct Gelu;
struct GeluTanh;
struct Relu;
struct Silu;
struct Tanh;

const FRAC_1_SQRT_TAU: f32 = 0.398_942_3; // 1 / √(2π)
const GELU_TANH_SCALE: f32 = 0.797_884_6; // √(2/π)
const GELU_TANH_CUBE: f32 = 0.044_715;

impl Function for Gelu {
    #[inline(always)]
    fn value<const FMA: bool>(x: f32) -> f32 {
        0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2))
    }

    #[inline(always)]
    fn both<const FMA: bool>(x: f32) -> (f32, f32) {
        let phi = FRAC_1_SQRT_TAU * exp::<FMA>(-0.5 * x * x);
        let cumulative = 0.5 * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2));
        (x * cumulative, fused::<FMA>(x, phi, cumulative))
    }
}

impl Function for GeluTanh {
    #[inline(always)]
    fn value<const FMA: bool>(x: f32) -> f32 {
        let inner = GELU_TANH_SCALE * x * fused::<FMA>(GELU_TANH_CUBE * x, x, 1.0);
        0.5 * x * (1.0 + tanh::<FMA>(inner))
    }

    #[inline(always)]
    fn both<const FMA: bool>(x: f32) -> (f32, f32) {
        let inner = GELU_TANH_SCALE * x * fused::<FMA>(GELU_TANH_CUBE * x, x, 1.0);
        let t = tanh::<FMA>(inner);
        let slope = GELU_TANH_SCALE * fused::<FMA>(3.0 * GELU_TANH_CUBE * x, x, 1.0);
        (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
    }
}

impl Function for Relu {
    #[inline(always)]
    fn value<const FMA: bool>(x: f32) -> f32 {
        x.max(0.0)
    }

    #[inline(always)]
    fn both<const FMA: bool>(x: f32) -> (f32, f32) {
        (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 })
    }
}

impl Function for Silu {
    #[inline(always)]
    fn value<const FMA: bool>(x: f32) -> f32 {
        x / (1.0 + exp::<FMA>(-x))
    }

    #[inline(always)]
    fn both<const FMA: bool>(x: f32) -> (f32, f32) {
        let s = 1.0 / (1.0 + exp::<FMA>(-x));
        (x * s, s * fused::<FMA>(x, 1.0 - s, 1.0))
    }
}

impl Function for Tanh {
    #[inline(always)]
    fn value<const FMA: bool>(x: f32) -> f32 {
        tanh::<FMA>(x)
    }

    #[inline(always)]
    fn both<const FMA: bool>(x: f32) -> (f32, f32) {
        let t = tanh::<FMA>(x);
        (t, 1.0 - t * t)
    }
}

/// An expression for the function that `f` is, under the name `F`.
macro_rules! with {
    ($f:expr, $body:expr) => {
        match $f {
            Activation::Gelu => {
                type F = Gelu;
                $body
            }
            Activation::GeluTanh => {
                type F = GeluTanh;
                $body
            }
            Activation::Relu => {
                type F = Relu;
                $body
            }
            Activation::Silu => {
                type F = Silu;
                $body
            }
            Activation::Tanh => {
                type F = Tanh;
                $body
            }
        }
    };
}

vectorised! {
    fn forward(f: Activation, x: &[f32], y: &mut [f32]) {
        with!(f, y.iter_mut().zip(x).for_each(|(y, &x)| *y = F::value::<FMA>(x)));
    }
}

vectorised! {
    fn forward_over(f: Activation, y: &mut [f32]) {
        with!(f, y.iter_mut().for_each(|y| *y = F::value::<FMA>(*y)));
    }
}

vectorised! {
    fn forward_rounded(f: Activation, x: &[u16], y: &mut [f32]) {
        with!(f, y.iter_mut().zip(x).for_each(|(y, &x)| *y = F::value::<FMA>(from_bf16(x))));
    }
}

vectorised! {
    fn forward_rounding(f: Activation, y: &mut [f32], kept: &mut [u16]) {
        with!(f, y.iter_mut().zip(kept).for_each(|(y, kept)| {
            *kept = to_bf16(*y);
            *y = F::value::<FMA>(*y);
        }));
    }
}

vectorised! {
    fn backward(f: Activation, x: &[f32], dy: &mut [f32]) {
        with!(f, dy.iter_mut().zip(x).for_each(|(dy, &x)| *dy *= F::both::<FMA>(x).1));
    }
}

vectorised! {
    fn backward_rounded(f: Activation, x: &[u16], dy: &mut [f32]) {
        with!(f, dy.iter_mut().zip(x).for_each(|(dy, &x)| *dy *= F::both::<FMA>(from_bf16(x)).1));
    }
}

vectorised! {
    fn gated(f: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
        with!(f, y.iter_mut().zip(gate).zip(up).for_each(|((y, &g), &u)| *y = F::value::<FMA>(g) * u));
    }
}

vectorised! {
    fn gated_over(f: Activation, up: &[f32], y: &mut [f32]) {
        with!(f, y.iter_mut().zip(up).for_each(|(y, &u)| *y = F::value::<FMA>(*y) * u));
    }
}

vectorised! {
    fn gated_rounded(f: Activation, gate: &[u16], up: &[u16], y: &mut [f32]) {
        with!(f, y.iter_mut().zip(gate).zip(up).for_each(|((y, &g), &u)| {
            *y = F::value::<FMA>(from_bf16(g)) * from_bf16(u);
        }));
    }
}

vectorised! {
    fn gated_rounding(f: Activation, plain_up: &[f32], y: &mut [f32], gate: &mut [u16], up: &mut [u16]) {
        with!(f, y.iter_mut().zip(plain_up).zip(gate).zip(up).for_each(|(((y, &u), gate), up)| {
            (*gate, *up) = (to_bf16(*y), to_bf16(u));
            *y = F::value::<FMA>(*y) * u;
        }));
    }
}

/// From dy to the gradients of gate and up, which takes dy's place.
#[inline(always)]
fn gate_back<F: Function, const FMA: bool>(g: f32, u: f32, dy: &mut f32, dgate: &mut f32) {
    let (value, slope) = F::both::<FMA>(g);
    *dgate = *dy * u * slope;
    *dy *= value;
}

vectorised! {
    fn gated_back(f: Activation, gate: &[f32], up: &[f32], dy: &mut [f32], dgate: &mut [f32]) {
        with!(f, dy.iter_mut().zip(dgate).zip(gate).zip(up).for_each(|(((dy, dgate), &g), &u)| {
            gate_back::<F, FMA>(g, u, dy, dgate);
        }));
    }
}

vectorised! {
    fn gated_back_rounded(f: Activation, gate: &[u16], up: &[u16], dy: &mut [f32], dgate: &mut [f32]) {
        with!(f, dy.iter_mut().zip(dgate).zip(gate).zip(up).for_each(|(((dy, dgate), &g), &u)| {
            gate_back::<F, FMA>(from_bf16(g), from_bf16(u), dy, dgate);
        }));
    }
}
