//! Kernels for 64-bit Arm: products of f32 by NEON's multiply-add, and of bf16 by `bfmmla`, which
//! adds the product of a 2 × 4 tile of A and a 4 × 2 tile of B, both bf16, to a 2 × 2 tile of C in
//! f32.
//!
//! `bfmmla` has its own rounding. It adds the products of two consecutive k, and then their sum to
//! an element of C; both additions round to odd (an inexact result gets an odd last bit), and
//! denormals are zeros. An element is therefore one chain of additions of pairs over k, the same in
//! every kernel here.
//!
//! The intrinsic of `bfmmla` is unstable, so it is one line of assembly.

use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;

use super::kernel::{DEFAULT_SIZES, Kernel, STRIDED, Shape, Strides, Tile, check_strided, store_part};
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
            sizes: DEFAULT_SIZES,
            run: $run::<$vectors>,
        }
    };
}

/// The sums of the wide kernel take 24 of the 32 registers. The tall kernel's 8 columns divide a
/// LoRA's usual ranks of 8 and 16, so none are wasted.
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

/// The sums of a tile of `4 · NV` columns, as vectors.
type Sums<const NV: usize> = [[float32x4_t; NV]; MR];

/// # Safety
/// As for `Kernel::run`.
unsafe fn f32_kernel<const NV: usize>(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
    assert!(a.len() >= depth * MR && b.len() >= depth * 4 * NV);
    // SAFETY: the caller's promise; the assertion checked the panels' sizes.
    unsafe {
        let sums = f32_block::<NV>(depth, a.as_ptr(), Strides { row: 1, k: MR }, b.as_ptr(), 4 * NV);
        store(&sums, &tile);
    }
}

/// # Safety
/// As for `Kernel::run`; the processor has `bfmmla`.
unsafe fn bf16_kernel<const NV: usize>(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
    assert!(a.len() >= depth * MR && b.len() >= depth * 4 * NV);
    // SAFETY: the caller's promise; the assertion checked the panels' sizes.
    unsafe {
        let sums = bf16_block::<NV>(depth, a.as_ptr(), Strides { row: 1, k: MR }, b.as_ptr(), 4 * NV);
        store(&sums, &tile);
    }
}

/// # Safety
/// The tile is inside a matrix, and no one else accesses its elements.
pub unsafe fn f32_strided(depth: usize, a: &[f32], strides: Strides, b: &[f32], tile: Tile) {
    check_strided(depth, a, strides, b);
    // SAFETY: the caller's promise; the operands' sizes were checked above.
    unsafe { strided(&tile, |j| f32_block(depth, a.as_ptr(), strides, b.as_ptr().add(j), STRIDED[1])) }
}

/// # Safety
/// As for `f32_strided`; the processor has `bfmmla`.
pub unsafe fn bf16_strided(depth: usize, a: &[f32], strides: Strides, b: &[f32], tile: Tile) {
    check_strided(depth, a, strides, b);
    // SAFETY: the caller's promise; the operands' sizes were checked above.
    unsafe { strided(&tile, |j| bf16_block(depth, a.as_ptr(), strides, b.as_ptr().add(j), STRIDED[1])) }
}

/// Computes a tile of size `STRIDED` in parts that fit the registers; `block(j)` returns the sums
/// of the eight columns from j on.
///
/// # Safety
/// The tile is inside a matrix, and no one else accesses its elements.
#[inline(always)]
unsafe fn strided(tile: &Tile, block: impl Fn(usize) -> Sums<2>) {
    const { assert!(STRIDED[0] == MR && STRIDED[1].is_multiple_of(8)) };
    let mut whole = [0.0; STRIDED[0] * STRIDED[1]];
    for j in (0..tile.cols).step_by(8) {
        write(&block(j), &mut whole[j..], STRIDED[1]);
    }
    // SAFETY: the caller promises that the tile is inside C.
    unsafe { store_part(tile, &whole, STRIDED[1]) };
}

/// Writes the rows of sums to `out`, `width` apart.
#[inline(always)]
fn write<const NV: usize>(sums: &Sums<NV>, out: &mut [f32], width: usize) {
    for (sums, out) in sums.iter().zip(out.chunks_mut(width)) {
        for (sum, out) in sums.iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: `out` has room for four values.
            unsafe { vst1q_f32(out.as_mut_ptr(), *sum) };
        }
    }
}

/// Writes C = start + sums to the part of a tile that is inside C.
///
/// # Safety
/// The tile is inside a matrix, and no one else accesses its elements.
#[inline(always)]
unsafe fn store<const NV: usize>(sums: &Sums<NV>, tile: &Tile) {
    let mut whole = [0.0; MR * 12];
    write(sums, &mut whole, 4 * NV);
    // SAFETY: the caller promises that the tile is inside C.
    unsafe { store_part(tile, &whole, 4 * NV) };
}

/// Returns eight rows of A times `4 · NV` columns of B, whose rows are `width` apart.
///
/// # Safety
/// A and B have these sizes.
unsafe fn f32_block<const NV: usize>(
    depth: usize,
    mut a: *const f32,
    strides: Strides,
    mut b: *const f32,
    width: usize,
) -> Sums<NV> {
    // SAFETY: NEON is always present; reads within the operands, whose sizes the caller promises.
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
            (a, b) = (a.wrapping_add(strides.k), b.wrapping_add(width));
        }
        sums
    }
}

/// As `f32_block`, for pairs: a word is two bf16 of consecutive k.
///
/// # Safety
/// A and B have these sizes; the processor has `bfmmla`.
#[target_feature(enable = "bf16")]
unsafe fn bf16_block<const NV: usize>(
    depth: usize,
    mut a: *const f32,
    strides: Strides,
    mut b: *const f32,
    width: usize,
) -> Sums<NV> {
    // SAFETY: the caller promises `bfmmla`, and the sizes of the operands, within which this reads.
    unsafe {
        let mut sums = [[[vdupq_n_f32(0.0); 2]; NV]; MR / 2];
        for _ in 0..depth / 2 {
            add_words::<true, NV>(&mut sums, a, strides, b, width);
            (a, b) = (a.wrapping_add(2 * strides.k), b.wrapping_add(2 * width));
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

/// Adds the products of two words of each row and column, or without TWO of one word. A vector of
/// sums has two rows and two columns: c₀₀, c₀₁, c₁₀, c₁₁.
///
/// # Safety
/// As for `bf16_block`, which calls this.
#[inline(always)]
unsafe fn add_words<const TWO: bool, const NV: usize>(
    sums: &mut [[[float32x4_t; 2]; NV]; MR / 2],
    a: *const f32,
    strides: Strides,
    b: *const f32,
    width: usize,
) {
    // SAFETY: the caller promises the sizes of the operands and `bfmmla`.
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

/// Returns two words of each of two rows of A, or without TWO one word and zeros.
///
/// # Safety
/// The words are inside A.
#[inline(always)]
unsafe fn two_rows<const TWO: bool>(a: *const f32, strides: Strides) -> float32x4_t {
    // SAFETY: the caller promises that the words are inside A.
    unsafe {
        if TWO && strides.row == 1 {
            let (words, next) = (vld1_f32(a), vld1_f32(a.add(strides.k)));
            return vcombine_f32(vzip1_f32(words, next), vzip2_f32(words, next));
        }
        let row = |a: *const f32| match TWO {
            true if strides.k == 1 => vld1_f32(a),
            true => vld1_lane_f32::<1>(a.add(strides.k), vld1_dup_f32(a)),
            false => vld1_lane_f32::<0>(a, vdup_n_f32(0.0)),
        };
        vcombine_f32(row(a), row(a.add(strides.row)))
    }
}

/// Returns sum + A B, with A (2, 4) row-major and B (4, 2) column-major, both bf16.
///
/// # Safety
/// The processor has `bfmmla`, and the function into which this is inlined is compiled for it.
#[inline(always)]
unsafe fn bfmmla(mut sum: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: only registers are accessed. Not `pure`, to keep the order in which each pair of rows
    // is needed only once: the sums and the columns leave two registers.
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
