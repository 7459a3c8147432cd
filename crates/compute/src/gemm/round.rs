//! Rounds a frozen matrix to bf16 once, instead of each time that it is packed.

use rayon::prelude::*;

use crate::Tensor;
use crate::aligned::use_huge_pages;
use crate::blocks::half::to_bf16;
use crate::blocks::{BlockMatrix, BlockType};
use crate::cpu::{LINE, vectorised};

/// Values that a task rounds at a time: 256 KiB of f32, whose pages are released afterwards.
const PIECE: usize = 1 << 16;

/// Returns the matrix (rows, cols) in bf16, with the bits that packing for `Precision::Bf16` gives
/// it on this machine: products in that precision are bit-identical. Releases the pages of a mapped
/// file.
///
/// # Panics
/// The tensor is not a matrix.
pub fn round(tensor: &Tensor) -> BlockMatrix {
    let &[rows, cols] = tensor.shape() else { panic!("{tensor:?} is no matrix") };
    // Values start at a cache line.
    let size = size_of::<u16>() * tensor.len();
    let mut halves = vec![0u8; size + LINE];
    let from = halves.as_ptr().align_offset(LINE).min(LINE);
    halves.truncate(from + size);
    use_huge_pages(&halves);
    let pieces = halves[from..].par_chunks_mut(size_of::<u16>() * PIECE).zip(tensor.par_chunks(PIECE));
    pieces.enumerate().for_each(|(number, (out, values))| {
        round_piece(values, out.as_chunks_mut::<2>().0);
        tensor.release(number * PIECE..number * PIECE + values.len());
    });
    // A page that two pieces share may have been read again after it was released.
    tensor.release(0..tensor.len());
    BlockMatrix::owned(BlockType::Bf16, rows, cols, halves, from).expect("two bytes a value")
}

fn round_piece(values: &[f32], out: &mut [[u8; 2]]) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::has_bf16() {
        // SAFETY: the processor has AVX-512 and BF16.
        return unsafe { avx512(values, out) };
    }
    portable(values, out);
}

vectorised! {
    fn portable(values: &[f32], out: &mut [[u8; 2]]) {
        for (out, &x) in out.iter_mut().zip(values) {
            *out = to_bf16(x).to_le_bytes();
        }
    }
}

/// Rounds with the instruction that packs pairs, because it treats denormals as zeros.
///
/// # Safety
/// The processor has AVX-512F, BW and BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn avx512(values: &[f32], out: &mut [[u8; 2]]) {
    use std::arch::x86_64::*;
    assert_eq!(values.len(), out.len());
    for (values, out) in values.chunks(32).zip(out.chunks_mut(32)) {
        let mask = u32::MAX >> (32 - values.len());
        let at = values.as_ptr();
        // SAFETY: the loads and the store are masked to the values and their places in `out`; the
        // types have the same 64 bytes.
        unsafe {
            let lower = _mm512_maskz_loadu_ps(mask as u16, at);
            let upper = _mm512_maskz_loadu_ps((mask >> 16) as u16, at.wrapping_add(16));
            let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(upper, lower));
            _mm512_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, halves);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_differs_between_processors_only_for_denormals() {
        let lower = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        let bits = (0..=u16::MAX).flat_map(|upper| lower.map(|lower| u32::from(upper) << 16 | lower));
        let values: Vec<f32> = bits.map(f32::from_bits).collect();
        let (mut here, mut anywhere) = (vec![[0; 2]; values.len()], vec![[0; 2]; values.len()]);
        round_piece(&values, &mut here);
        portable(&values, &mut anywhere);
        for ((x, here), anywhere) in values.iter().zip(here).zip(anywhere) {
            let zero = (if x.is_sign_negative() { 0x8000u16 } else { 0 }).to_le_bytes();
            assert!(here == anywhere || x.is_subnormal() && here == zero, "{:#x}", x.to_bits());
        }
    }
}
