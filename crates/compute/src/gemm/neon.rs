//! Kernels for 64-bit Arm: products of f32 by NEON's multiply-add, and of bf16 by `bfmmla`, which
//! adds the product of a 2 × 4 tile of A and a 4 × 2 tile of B, both bf16, to a 2 × 2 tile of C in
//! f32.
//!
//! `bfmmla` rounds in its own way: it adds two products of neighbouring k, and their sum to C's
//! element, and each of the two sums is rounded to odd (one that is not exact gets an odd last bit);
//! denormal numbers are zeros. So an element is one chain of additions of pairs over k, the same in
//! every kernel here.
//!
//! The intrinsic of `bfmmla` is not stable, so it is a line of assembly.

use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;

use super::kernel::{Kernel, STREAMED, STRIDED, Shape, Strides, Tile, check_strided, store_part};
use super::pack::Format;

/// Rows of every tile.
const MR: usize = 8;

macro_rules! kernel {
    ($name:literal, $vectors:literal, $format:ident, $run:ident) => {
        Kernel {
            #[cfg(test)]
            name: $name,
            mr: MR,
            nr: 4 * $vectors,
            a_format: Format::$format,
            b_format: Format::$format,
            step: 1,
            sizes: STREAMED,
            run: $run::<$vectors>,
        }
    };
}

/// Of 32 registers the wide one's sums take 24. For as few columns as a LoRA's rank, 8 or 16, a
/// multiple of 8 wastes none.
pub fn f32(shape: Shape) -> Kernel {
    match shape {
        Shape::Wide | Shape::Flat => kernel!("neon 8 × 12", 3, F32, f32_kernel),
        Shape::Tall => kernel!("neon 8 × 8", 2, F32, f32_kernel),
    }
}

/// For processors that have `bfmmla`.
pub fn bf16(shape: Shape) -> Kernel {
    match shape {
        Shape::Wide | Shape::Flat => kernel!("neon bf16 8 × 12", 3, Pairs, bf16_kernel),
        Shape::Tall => kernel!("neon bf16 8 × 8", 2, Pairs, bf16_kernel),
    }
}

/// A tile of `4 · NV` columns, as vectors.
type Sums<const NV: usize> = [[float32x4_t; NV]; MR];

/// # Safety
/// As `Kernel::run` asks.
unsafe fn f32_kernel<const NV: usize>(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
    assert!(a.len() >= depth * MR && b.len() >= depth * 4 * NV);
    // SAFETY: the caller's promise, and the panels' sizes.
    unsafe {
        let sums = f32_block::<NV>(depth, a.as_ptr(), Strides { row: 1, next: MR }, b.as_ptr(), 4 * NV);
        store(&sums, &tile);
    }
}

/// # Safety
/// As `Kernel::run` asks, and the processor has `bfmmla`.
unsafe fn bf16_kernel<const NV: usize>(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
    assert!(a.len() >= depth * MR && b.len() >= depth * 4 * NV);
    // SAFETY: the caller's promise, and the panels' sizes.
    unsafe {
        let sums = bf16_block::<NV>(depth, a.as_ptr(), Strides { row: 1, next: MR }, b.as_ptr(), 4 * NV);
        store(&sums, &tile);
    }
}

/// # Safety
/// The tile lies inside a matrix that no one else writes.
pub unsafe fn f32_strided(depth: usize, a: &[f32], strides: Strides, b: &[f32], tile: Tile) {
    check_strided(depth, a, strides, b);
    // SAFETY: the caller's promise, and the operands' sizes.
    unsafe { strided(&tile, |j| f32_block(depth, a.as_ptr(), strides, b.as_ptr().add(j), STRIDED[1])) }
}

/// # Safety
/// As of `f32_strided`, and the processor has `bfmmla`.
pub unsafe fn bf16_strided(depth: usize, a: &[f32], strides: Strides, b: &[f32], tile: Tile) {
    check_strided(depth, a, strides, b);
    // SAFETY: the caller's promise, and the operands' sizes.
    unsafe { strided(&tile, |j| bf16_block(depth, a.as_ptr(), strides, b.as_ptr().add(j), STRIDED[1])) }
}

/// A tile of `STRIDED` in parts that fit the registers; `block` has the sums of eight columns.
///
/// # Safety
/// The tile lies inside a matrix that no one else writes.
#[inline(always)]
unsafe fn strided(tile: &Tile, block: impl Fn(usize) -> Sums<2>) {
    const { assert!(STRIDED[0] == MR && STRIDED[1].is_multiple_of(8)) };
    let mut whole = [0.0; STRIDED[0] * STRIDED[1]];
    for j in (0..tile.cols).step_by(8) {
        write(&block(j), &mut whole[j..], STRIDED[1]);
    }
    // SAFETY: the caller's promise.
    unsafe { store_part(tile, &whole, STRIDED[1]) };
}

/// Writes rows of sums, `width` apart.
#[inline(always)]
fn write<const NV: usize>(sums: &Sums<NV>, out: &mut [f32], width: usize) {
    for (sums, out) in sums.iter().zip(out.chunks_mut(width)) {
        for (sum, out) in sums.iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: room for four values.
            unsafe { vst1q_f32(out.as_mut_ptr(), *sum) };
        }
    }
}

/// Adds a whole tile to the part of it that C has.
///
/// # Safety
/// The tile lies inside a matrix that no one else writes.
#[inline(always)]
unsafe fn store<const NV: usize>(sums: &Sums<NV>, tile: &Tile) {
    let mut whole = [0.0; MR * 12];
    write(sums, &mut whole, 4 * NV);
    // SAFETY: the caller's promise.
    unsafe { store_part(tile, &whole, 4 * NV) };
}

/// Eight rows of A times `4 · NV` columns of B, whose rows are `width` apart.
///
/// # Safety
/// A and B are that large.
unsafe fn f32_block<const NV: usize>(
    depth: usize,
    mut a: *const f32,
    strides: Strides,
    mut b: *const f32,
    width: usize,
) -> Sums<NV> {
    // SAFETY: NEON; within the operands, by the caller's promise.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); NV]; MR];
        for _ in 0..depth {
            let row: [_; NV] = from_fn(|v| vld1q_f32(b.add(4 * v)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = *a.add(i * strides.row);
                for (sum, row) in sums.iter_mut().zip(row) {
                    *sum = vfmaq_n_f32(*sum, row, x);
                }
            }
            (a, b) = (a.wrapping_add(strides.next), b.wrapping_add(width));
        }
        sums
    }
}

/// The same of pairs: a word is two bf16 of neighbouring k.
///
/// # Safety
/// A and B are that large; the processor has `bfmmla`.
#[target_feature(enable = "bf16")]
unsafe fn bf16_block<const NV: usize>(
    depth: usize,
    mut a: *const f32,
    strides: Strides,
    mut b: *const f32,
    width: usize,
) -> Sums<NV> {
    // SAFETY: NEON and `bfmmla`; within the operands, by the caller's promise.
    unsafe {
        let mut sums = [[[vdupq_n_f32(0.0); 2]; NV]; MR / 2];
        for _ in 0..depth / 2 {
            add_words::<true, NV>(&mut sums, a, strides, b, width);
            (a, b) = (a.wrapping_add(2 * strides.next), b.wrapping_add(2 * width));
        }
        if depth % 2 == 1 {
            add_words::<false, NV>(&mut sums, a, strides, b, width);
        }
        from_fn(|i| {
            sums[i / 2].map(|sums| {
                let [left, right] = sums.map(|sum| vreinterpretq_f64_f32(sum));
                vreinterpretq_f32_f64(match i % 2 {
                    0 => vzip1q_f64(left, right),
                    _ => vzip2q_f64(left, right),
                })
            })
        })
    }
}

/// Adds the products of two words of each row and column, or where they are not TWO of one. A sum
/// is of two rows and two columns: c₀₀, c₀₁, c₁₀, c₁₁.
///
/// # Safety
/// As of `bf16_block`, which this is a part of.
#[inline(always)]
unsafe fn add_words<const TWO: bool, const NV: usize>(
    sums: &mut [[[float32x4_t; 2]; NV]; MR / 2],
    a: *const f32,
    strides: Strides,
    b: *const f32,
    width: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let columns: [_; NV] = from_fn(|v| {
            let at = b.add(4 * v);
            let (words, next) =
                (vld1q_f32(at), if TWO { vld1q_f32(at.add(width)) } else { vdupq_n_f32(0.0) });
            [vzip1q_f32(words, next), vzip2q_f32(words, next)]
        });
        for (i, sums) in sums.iter_mut().enumerate() {
            let rows = two_rows::<TWO>(a.add(2 * i * strides.row), strides);
            for (sum, columns) in sums.as_flattened_mut().iter_mut().zip(columns.as_flattened()) {
                *sum = bfmmla(*sum, rows, *columns);
            }
        }
    }
}

/// Two words, or one and zeros, of each of two rows of A.
///
/// # Safety
/// They are inside A.
#[inline(always)]
unsafe fn two_rows<const TWO: bool>(a: *const f32, strides: Strides) -> float32x4_t {
    // SAFETY: the caller's.
    unsafe {
        if TWO && strides.row == 1 {
            let (words, next) = (vld1_f32(a), vld1_f32(a.add(strides.next)));
            return vcombine_f32(vzip1_f32(words, next), vzip2_f32(words, next));
        }
        let row = |a: *const f32| match TWO {
            true if strides.next == 1 => vld1_f32(a),
            true => vld1_lane_f32::<1>(a.add(strides.next), vld1_dup_f32(a)),
            false => vld1_lane_f32::<0>(a, vdup_n_f32(0.0)),
        };
        vcombine_f32(row(a), row(a.add(strides.row)))
    }
}

/// sum + A B, with A (2, 4) by rows and B (4, 2) by columns, both bf16.
///
/// # Safety
/// The processor has the instruction, and the function that this becomes a part of is compiled for
/// it.
#[inline(always)]
unsafe fn bfmmla(mut sum: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: computes with registers alone. Not `pure`, so that the order stays in which each pair of
    // rows is needed once: the sums and the columns leave two registers.
    unsafe {
        asm!(
            "bfmmla {sum:v}.4s, {a:v}.8h, {b:v}.8h",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(nomem, nostack, preserves_flags),
        )
    };
    sum
}
