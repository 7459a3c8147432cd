//! Activations of the feed-forward part and of the heads.

use rayon::prelude::*;

use crate::cpu::vectorised;
use crate::math::{erf, exp, fused, tanh};
use crate::profile::{self, Work};
use crate::saved_values::{SavedValues, round};

/// The activations that configurations name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x Φ(x) with the exact Φ: `gelu`.
    Gelu,
    /// The tanh approximation: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// max(x, 0): `relu`.
    Relu,
    /// x σ(x): `silu`, `swish`.
    Silu,
    Tanh,
}

/// Elements per task: a chunk stays in the L1 cache between the loops over it.
const CHUNK: usize = 2048;

impl Activation {
    /// y = f(x), element by element; both of one length.
    pub fn forward(self, x: &SavedValues, y: &mut [f32]) {
        assert_eq!(x.len(), y.len());
        let _span = profile::operation("activation", || work(y.len(), x.bytes()));
        y.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, y)| {
            x.copy(chunk * CHUNK, y);
            forward(self, y);
        });
    }

    /// y = f(y), element by element; the old y is saved in `saved`, if given, rounded to bf16.
    pub(crate) fn forward_in_place(self, y: &mut [f32], saved: Option<&mut [u16]>) {
        let bytes = saved.as_deref().map_or(0, size_of_val);
        let _span = profile::operation("activation", || work(2 * y.len(), bytes));
        let Some(saved) = saved else {
            return y.par_chunks_mut(CHUNK).for_each(|y| forward(self, y));
        };
        assert_eq!(saved.len(), y.len());
        y.par_chunks_mut(CHUNK).zip(saved.par_chunks_mut(CHUNK)).for_each(|(y, saved)| {
            round(y, saved);
            forward(self, y);
        });
    }

    /// dy becomes dx = f′(x) · dy, element by element; both of one length.
    pub fn backward(self, x: &SavedValues, dy: &mut [f32]) {
        assert_eq!(x.len(), dy.len());
        let _span = profile::operation("activation backward", || work(2 * dy.len(), x.bytes()));
        dy.par_chunks_mut(CHUNK).enumerate().for_each_init(Vec::new, |buffer, (chunk, dy)| {
            backward(self, x.floats(chunk * CHUNK, dy.len(), buffer), dy);
        });
    }
}

/// The gated feed-forward part (Shazeer 2020): y = f(gate) · up, element by element.
pub(crate) fn gated_forward(f: Activation, gate: &SavedValues, up: &SavedValues, y: &mut [f32]) {
    assert!(gate.len() == y.len() && up.len() == y.len());
    let _span = profile::operation("activation", || work(y.len(), gate.bytes() + up.bytes()));
    y.par_chunks_mut(CHUNK).enumerate().for_each_init(Vec::new, |buffer, (chunk, y)| {
        gate.copy(chunk * CHUNK, y);
        gated(f, up.floats(chunk * CHUNK, y.len(), buffer), y);
    });
}

/// As `gated_forward`, with the gate in y; gate and up are saved in `saved`, if given, rounded to
/// bf16.
pub(crate) fn gated_forward_in_place(
    f: Activation,
    y: &mut [f32],
    up: &[f32],
    saved: Option<[&mut [u16]; 2]>,
) {
    assert_eq!(up.len(), y.len());
    let bytes = saved.as_ref().map_or(0, |[gate, up]| size_of_val(*gate) + size_of_val(*up));
    let _span = profile::operation("activation", || work(3 * y.len(), bytes));
    let both = y.par_chunks_mut(CHUNK).zip(up.par_chunks(CHUNK));
    let Some([saved_gate, saved_up]) = saved else {
        return both.for_each(|(y, up)| gated(f, up, y));
    };
    assert!(saved_gate.len() == up.len() && saved_up.len() == up.len());
    both.zip(saved_gate.par_chunks_mut(CHUNK).zip(saved_up.par_chunks_mut(CHUNK))).for_each(
        |((y, up), (saved_gate, saved_up))| {
            round(y, saved_gate);
            round(up, saved_up);
            gated(f, up, y);
        },
    );
}

/// The backward pass of the gated part: dy becomes the gradient of up, and `dgate` is overwritten
/// with the gradient of the gate.
pub(crate) fn gated_backward(
    f: Activation,
    gate: &SavedValues,
    up: &SavedValues,
    dy: &mut [f32],
    dgate: &mut [f32],
) {
    assert!(gate.len() == dy.len() && up.len() == dy.len() && dgate.len() == dy.len());
    let _span = profile::operation("activation backward", || work(3 * dy.len(), gate.bytes() + up.bytes()));
    let both = dy.par_chunks_mut(CHUNK).zip(dgate.par_chunks_mut(CHUNK)).enumerate();
    both.for_each_init(<[Vec<f32>; 2]>::default, |[gates, ups], (chunk, (dy, dgate))| {
        let [gate, up] =
            [(gate, gates), (up, ups)].map(|(x, buffer)| x.floats(chunk * CHUNK, dy.len(), buffer));
        gated_backward_chunk(f, gate, up, dy, dgate);
    });
}

/// Returns the work of reading or writing `floats` f32 and `saved` bytes of saved values.
fn work(floats: usize, saved: usize) -> Work {
    Work { operations: 0, bytes: (4 * floats + saved) as u64 }
}

/// An activation as a type, so that loops are compiled for each.
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

/// Evaluates an expression in which `F` is the type of the activation `f`.
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
    fn forward(f: Activation, y: &mut [f32]) {
        with!(f, y.iter_mut().for_each(|y| *y = F::value::<FMA>(*y)));
    }
}

vectorised! {
    fn backward(f: Activation, x: &[f32], dy: &mut [f32]) {
        with!(f, dy.iter_mut().zip(x).for_each(|(dy, &x)| *dy *= F::both::<FMA>(x).1));
    }
}

vectorised! {
    /// y = f(y) · up
    fn gated(f: Activation, up: &[f32], y: &mut [f32]) {
        with!(f, y.iter_mut().zip(up).for_each(|(y, &u)| *y = F::value::<FMA>(*y) * u));
    }
}

vectorised! {
    fn gated_backward_chunk(f: Activation, gate: &[f32], up: &[f32], dy: &mut [f32], dgate: &mut [f32]) {
        with!(f, dy.iter_mut().zip(dgate).zip(gate).zip(up).for_each(|(((dy, dgate), &g), &u)| {
            let (value, slope) = F::both::<FMA>(g);
            *dgate = *dy * u * slope;
            *dy *= value;
        }));
    }
}
