//! Values that the way back reads again: as they are, or rounded to bf16 in half the memory, as products in bf16 read them.

use crate::gemm::Precision;

/// Values in memory of the arena.
pub enum KeptValues<'a> {
    Floats(&'a mut [f32]),
    /// The nearest bf16.
    Rounded(&'a mut [u16]),
}

impl<'a> KeptValues<'a> {
    /// Floats of memory that so many values take beside products of this precision.
    pub fn floats(precision: Precision, count: usize) -> usize {
        (precision.bytes() * count).div_ceil(size_of::<f32>())
    }

    /// So many values in that memory.
    pub fn new(precision: Precision, count: usize, memory: &'a mut [f32]) -> Self {
        assert_eq!(memory.len(), KeptValues::floats(precision, count));
        match precision {
            Precision::F32 => KeptValues::Floats(memory),
            Precision::Bf16 => {
                let (start, len) = (memory.as_mut_ptr().cast::<u16>(), 2 * memory.len());
                // SAFETY: an f32 has the room of two u16 and is aligned for them; any bits are an u16, and an f32.
                let halves = unsafe { std::slice::from_raw_parts_mut(start, len) };
                KeptValues::Rounded(&mut halves[..count])
            }
        }
    }

    pub fn len(&self) -> usize {
        match self {
            KeptValues::Floats(x) => x.len(),
            KeptValues::Rounded(x) => x.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            KeptValues::Floats(x) => size_of_val(*x),
            KeptValues::Rounded(x) => size_of_val(*x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::{Activation, gated_backward, gated_forward, gated_forward_again};
    use crate::blocks::half::{from_bf16, to_bf16};

    const COUNT: usize = 20_077;

    fn numbers(seed: u32) -> Vec<f32> {
        (0..COUNT as u32).map(|i| ((i.wrapping_mul(2654435761) ^ seed) >> 8) as f32 / 4e6 - 2.0).collect()
    }

    /// The nearest bf16 of each.
    fn rounded(x: &[f32]) -> Vec<f32> {
        x.iter().map(|&x| from_bf16(to_bf16(x))).collect()
    }

    #[test]
    fn an_activation_of_a_rounded_input_goes_on_with_the_plain_one_and_back_from_the_rounded() {
        let (x, dy) = (numbers(1), numbers(2));
        for f in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu] {
            let mut plain = vec![0.0; COUNT];
            f.forward(&x, &mut plain);
            let mut memory = vec![0.0; KeptValues::floats(Precision::Bf16, COUNT)];
            let mut kept = KeptValues::new(Precision::Bf16, COUNT, &mut memory);
            let mut y = x.clone();
            f.forward_kept(&mut kept, &mut y);
            assert!(y == plain, "{f:?}");
            let (mut wanted, mut got) = (dy.clone(), dy.clone());
            f.backward(&rounded(&x), &mut wanted);
            f.backward_kept(&kept, &mut got);
            assert!(got == wanted, "{f:?}");
            f.forward(&rounded(&x), &mut plain);
            f.forward_again(&kept, &mut y);
            assert!(y == plain, "{f:?}");
        }
    }

    #[test]
    fn the_gated_part_likewise() {
        let (gate, up, dy) = (numbers(1), numbers(2), numbers(3));
        let keep = |precision: Precision, gate: &[f32], up: &[f32]| {
            let size = KeptValues::floats(precision, COUNT);
            let (mut one, mut two) = (vec![0.0; size], vec![0.0; size]);
            let (mut y, mut again) = (gate.to_vec(), vec![0.0; COUNT]);
            if precision == Precision::F32 {
                one.copy_from_slice(gate);
                two.copy_from_slice(up);
            }
            let (mut gate, mut kept_up) =
                (KeptValues::new(precision, COUNT, &mut one), KeptValues::new(precision, COUNT, &mut two));
            gated_forward(&mut gate, &mut kept_up, up, &mut y);
            gated_forward_again(&gate, &kept_up, &mut again);
            let (mut dup, mut dgate) = (dy.clone(), vec![0.0; COUNT]);
            gated_backward(&gate, &kept_up, &mut dup, &mut dgate);
            (y, again, dup, dgate)
        };
        let plain = keep(Precision::F32, &gate, &up);
        let from_rounded = keep(Precision::F32, &rounded(&gate), &rounded(&up));
        let got = keep(Precision::Bf16, &gate, &up);
        assert!(plain.0 == plain.1 && got.0 == plain.0);
        assert!(got.1 == from_rounded.1 && got.2 == from_rounded.2 && got.3 == from_rounded.3);
    }
}
