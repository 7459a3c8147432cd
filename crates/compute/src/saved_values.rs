//! Values that are saved for the backward pass: as f32, or rounded to bf16 in half the memory, as
//! products in bf16 read them.

use crate::blocks::half::{from_bf16, to_bf16};
use crate::cpu::vectorised;

/// Saved values in the memory of a pass.
#[derive(Clone, Copy)]
pub enum SavedValues<'a> {
    Floats(&'a [f32]),
    /// The bits of bf16.
    Rounded(&'a [u16]),
}

/// Returns the first `count` bf16 in this memory.
pub(crate) fn halves(memory: &[f32], count: usize) -> &[u16] {
    let (start, len) = (memory.as_ptr().cast::<u16>(), 2 * memory.len());
    // SAFETY: an f32 has the size of two u16 and at least their alignment; any bits are a valid
    // u16.
    let halves = unsafe { std::slice::from_raw_parts(start, len) };
    &halves[..count]
}

/// Returns the first `count` bf16 in this memory, to be written.
pub(crate) fn halves_mut(memory: &mut [f32], count: usize) -> &mut [u16] {
    let (start, len) = (memory.as_mut_ptr().cast::<u16>(), 2 * memory.len());
    // SAFETY: as in `halves`; any bits are a valid f32.
    let halves = unsafe { std::slice::from_raw_parts_mut(start, len) };
    &mut halves[..count]
}

impl SavedValues<'_> {
    /// The number of values.
    pub fn len(&self) -> usize {
        match self {
            SavedValues::Floats(x) => x.len(),
            SavedValues::Rounded(x) => x.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            SavedValues::Floats(x) => size_of_val(*x),
            SavedValues::Rounded(x) => size_of_val(*x),
        }
    }

    /// Copies the values from `start` on to `out`.
    pub(crate) fn copy(&self, start: usize, out: &mut [f32]) {
        match self {
            SavedValues::Floats(x) => out.copy_from_slice(&x[start..][..out.len()]),
            SavedValues::Rounded(x) => widen(&x[start..][..out.len()], out),
        }
    }

    /// Returns the `len` values from `start` on in f32, converted into `buffer` if they are bf16.
    pub(crate) fn floats<'b>(&'b self, start: usize, len: usize, buffer: &'b mut Vec<f32>) -> &'b [f32] {
        if let SavedValues::Floats(x) = self {
            return &x[start..][..len];
        }
        buffer.resize(len, 0.0);
        self.copy(start, buffer);
        buffer
    }
}

vectorised! {
    fn widen(x: &[u16], out: &mut [f32]) {
        out.iter_mut().zip(x).for_each(|(out, &x)| *out = from_bf16(x));
    }
}

vectorised! {
    /// Rounds each value to the nearest bf16.
    pub(crate) fn round(x: &[f32], out: &mut [u16]) {
        out.iter_mut().zip(x).for_each(|(out, &x)| *out = to_bf16(x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::{Activation, gated_backward, gated_forward, gated_forward_in_place};

    const COUNT: usize = 20_077;

    fn numbers(seed: u32) -> Vec<f32> {
        (0..COUNT as u32).map(|i| ((i.wrapping_mul(2654435761) ^ seed) >> 8) as f32 / 4e6 - 2.0).collect()
    }

    /// Returns the nearest bf16 of each value.
    fn rounded(x: &[f32]) -> Vec<f32> {
        x.iter().map(|&x| from_bf16(to_bf16(x))).collect()
    }

    fn memory() -> Vec<f32> {
        vec![0.0; COUNT.div_ceil(2)]
    }

    #[test]
    fn outputs_use_the_exact_input_and_gradients_the_rounded_one() {
        let (x, dy) = (numbers(1), numbers(2));
        for f in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu] {
            let mut plain = vec![0.0; COUNT];
            f.forward(&SavedValues::Floats(&x), &mut plain);
            let mut y = x.clone();
            f.forward_in_place(&mut y, None);
            assert!(y == plain, "{f:?}");
            let (mut memory, mut y) = (memory(), x.clone());
            f.forward_in_place(&mut y, Some(halves_mut(&mut memory, COUNT)));
            assert!(y == plain, "{f:?}");
            let saved = SavedValues::Rounded(halves(&memory, COUNT));
            let (mut wanted, mut got) = (dy.clone(), dy.clone());
            f.backward(&SavedValues::Floats(&rounded(&x)), &mut wanted);
            f.backward(&saved, &mut got);
            assert!(got == wanted, "{f:?}");
            f.forward(&SavedValues::Floats(&rounded(&x)), &mut plain);
            f.forward(&saved, &mut y);
            assert!(y == plain, "{f:?}");
        }
    }

    #[test]
    fn gated_outputs_use_the_exact_inputs_and_gradients_the_rounded_ones() {
        let (gate, up, dy) = (numbers(1), numbers(2), numbers(3));
        let back = |gate: SavedValues, up: SavedValues| {
            let (mut again, mut dup, mut dgate) = (vec![0.0; COUNT], dy.clone(), vec![0.0; COUNT]);
            gated_forward(Activation::GeluTanh, &gate, &up, &mut again);
            gated_backward(Activation::GeluTanh, &gate, &up, &mut dup, &mut dgate);
            (again, dup, dgate)
        };
        let plain = back(SavedValues::Floats(&gate), SavedValues::Floats(&up));
        let (near_gate, near_up) = (rounded(&gate), rounded(&up));
        let near = back(SavedValues::Floats(&near_gate), SavedValues::Floats(&near_up));
        let mut y = gate.clone();
        gated_forward_in_place(Activation::GeluTanh, &mut y, &up, None);
        assert!(y == plain.0);
        let (mut one, mut two, mut y) = (memory(), memory(), gate.clone());
        let saved = [halves_mut(&mut one, COUNT), halves_mut(&mut two, COUNT)];
        gated_forward_in_place(Activation::GeluTanh, &mut y, &up, Some(saved));
        assert!(y == plain.0);
        let got = back(SavedValues::Rounded(halves(&one, COUNT)), SavedValues::Rounded(halves(&two, COUNT)));
        assert!(got == near);
    }
}
