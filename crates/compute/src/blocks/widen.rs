//! Widening: from the storage of a matrix to f32, exactly as ggml does it.
//!
//! The unit is a run of 16 values: whatever the type, a run has one scale, and its bits lie in 16 neighbouring bytes.

use std::ops::Range;

use super::BlockType;
use super::half::{from_bf16, from_f16};
use crate::cpu::vectorised;

/// Values of a run.
const RUN: usize = 16;

/// How blocks of one type are laid out. Bit patterns: https://github.com/ggml-org/ggml, `ggml-common.h`.
trait Layout {
    /// Values and bytes of a block.
    const VALUES: usize;
    const BYTES: usize;

    /// Run `run` of a block.
    fn run(block: &[u8], run: usize, out: &mut [f32; RUN]);
}

#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    from_f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

#[inline(always)]
fn run_at(block: &[u8], at: usize) -> &[u8; RUN] {
    block[at..at + RUN].try_into().expect("16 bytes")
}

#[inline(always)]
fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(block[at..at + 4].try_into().expect("4 bytes"))
}

struct Q4_0;

impl Layout for Q4_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn run(block: &[u8], run: usize, out: &mut [f32; RUN]) {
        let (d, low) = (f16_at(block, 0), run_at(block, 2));
        for (o, &q) in out.iter_mut().zip(low) {
            *o = d * (i32::from(q >> (4 * run) & 15) - 8) as f32;
        }
    }
}

struct Q4_1;

impl Layout for Q4_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 20;

    #[inline(always)]
    fn run(block: &[u8], run: usize, out: &mut [f32; RUN]) {
        let (d, min, low) = (f16_at(block, 0), f16_at(block, 2), run_at(block, 4));
        for (o, &q) in out.iter_mut().zip(low) {
            *o = d * i32::from(q >> (4 * run) & 15) as f32 + min;
        }
    }
}

struct Q5_0;

impl Layout for Q5_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 22;

    #[inline(always)]
    fn run(block: &[u8], run: usize, out: &mut [f32; RUN]) {
        let (d, high, low) = (f16_at(block, 0), u32_at(block, 2) >> (RUN * run), run_at(block, 6));
        for (i, (o, &q)) in out.iter_mut().zip(low).enumerate() {
            let q = u32::from(q) >> (4 * run) & 15 | (high >> i & 1) << 4;
            *o = d * (q as i32 - 16) as f32;
        }
    }
}

struct Q5_1;

impl Layout for Q5_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    fn run(block: &[u8], run: usize, out: &mut [f32; RUN]) {
        let (d, min) = (f16_at(block, 0), f16_at(block, 2));
        let (high, low) = (u32_at(block, 4) >> (RUN * run), run_at(block, 8));
        for (i, (o, &q)) in out.iter_mut().zip(low).enumerate() {
            let q = u32::from(q) >> (4 * run) & 15 | (high >> i & 1) << 4;
            *o = d * q as i32 as f32 + min;
        }
    }
}

struct Q8_0;

impl Layout for Q8_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    fn run(block: &[u8], run: usize, out: &mut [f32; RUN]) {
        let (d, q) = (f16_at(block, 0), run_at(block, 2 + RUN * run));
        for (o, &q) in out.iter_mut().zip(q) {
            *o = i32::from(q as i8) as f32 * d;
        }
    }
}

/// Scale and minimum of the 32 values `part` of a Q4_K or Q5_K block: six bits each, the last four pairs with their
/// upper two bits in the first eight bytes.
#[inline(always)]
fn scale_and_min(block: &[u8], part: usize) -> (f32, f32) {
    let packed = &block[4..16];
    let (scale, min) = if part < 4 {
        (packed[part] & 63, packed[part + 4] & 63)
    } else {
        (packed[part + 4] & 15 | packed[part - 4] >> 6 << 4, packed[part + 4] >> 4 | packed[part] >> 6 << 4)
    };
    (f16_at(block, 0) * i32::from(scale) as f32, f16_at(block, 2) * i32::from(min) as f32)
}

struct Q4K;

impl Layout for Q4K {
    const VALUES: usize = 256;
    const BYTES: usize = 144;

    #[inline(always)]
    fn run(block: &[u8], run: usize, out: &mut [f32; RUN]) {
        let part = run / 2;
        let (d, min) = scale_and_min(block, part);
        let low = run_at(block, 16 + 32 * (part / 2) + RUN * (run % 2));
        for (o, &q) in out.iter_mut().zip(low) {
            *o = d * i32::from(q >> (4 * (part % 2)) & 15) as f32 - min;
        }
    }
}

struct Q5K;

impl Layout for Q5K {
    const VALUES: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    fn run(block: &[u8], run: usize, out: &mut [f32; RUN]) {
        let part = run / 2;
        let (d, min) = scale_and_min(block, part);
        let high = run_at(block, 16 + RUN * (run % 2));
        let low = run_at(block, 48 + 32 * (part / 2) + RUN * (run % 2));
        for ((o, &q), &h) in out.iter_mut().zip(low).zip(high) {
            let q = q >> (4 * (part % 2)) & 15 | (h >> part & 1) << 4;
            *o = d * i32::from(q) as f32 - min;
        }
    }
}

struct Q6K;

impl Layout for Q6K {
    const VALUES: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    fn run(block: &[u8], run: usize, out: &mut [f32; RUN]) {
        // Each half of the block has 64 bytes of low bits and 32 of high bits for its four quarters.
        let (half, quarter, part) = (run / 8, run % 8 / 2, run % 2);
        let d = f16_at(block, 208) * i32::from(block[192 + run] as i8) as f32;
        let low = run_at(block, 64 * half + 32 * (quarter % 2) + RUN * part);
        let high = run_at(block, 128 + 32 * half + RUN * part);
        for ((o, &q), &h) in out.iter_mut().zip(low).zip(high) {
            let q = q >> (4 * (quarter / 2)) & 15 | (h >> (2 * quarter) & 3) << 4;
            *o = d * (i32::from(q) - 32) as f32;
        }
    }
}

/// Values `cols` of a row of blocks.
#[inline(always)]
fn widen_blocks<L: Layout>(row: &[u8], cols: Range<usize>, out: &mut [f32]) {
    let runs = L::VALUES / RUN;
    let block = |run: usize| &row[run / runs * L::BYTES..][..L::BYTES];
    let (mut run, skipped) = (cols.start / RUN, cols.start % RUN);
    let mut out = out;
    if skipped != 0 {
        let count = (RUN - skipped).min(out.len());
        let (part, rest) = out.split_at_mut(count);
        let mut whole = [0.0; RUN];
        L::run(block(run), run % runs, &mut whole);
        part.copy_from_slice(&whole[skipped..skipped + count]);
        (out, run) = (rest, run + 1);
    }
    let (mut whole, part) = out.as_chunks_mut::<RUN>();
    while !whole.is_empty() {
        let first = run % runs;
        if first == 0 && whole.len() >= runs {
            // A whole block: its scales are read once, and the places of its bits are constants.
            let (these, rest) = whole.split_at_mut(runs);
            let block = block(run);
            for (i, out) in these.iter_mut().enumerate() {
                L::run(block, i, out);
            }
            (whole, run) = (rest, run + runs);
        } else {
            L::run(block(run), first, &mut whole[0]);
            (whole, run) = (&mut whole[1..], run + 1);
        }
    }
    if !part.is_empty() {
        let mut whole = [0.0; RUN];
        L::run(block(run), run % runs, &mut whole);
        let count = part.len();
        part.copy_from_slice(&whole[..count]);
    }
}

/// Values `cols` of a row of half-precision values.
#[inline(always)]
fn widen_halves(row: &[u8], cols: Range<usize>, out: &mut [f32], widen: impl Fn(u16) -> f32) {
    let (halves, _) = row[2 * cols.start..2 * cols.end].as_chunks::<2>();
    for (o, &half) in out.iter_mut().zip(halves) {
        *o = widen(u16::from_le_bytes(half));
    }
}

vectorised! {
    /// Values `cols` of the rows `rows` of a matrix whose rows are `row_bytes` long, into rows of `out` that start
    /// `stride` apart.
    pub fn widen(
        kind: BlockType, bytes: &[u8], row_bytes: usize, rows: Range<usize>, cols: Range<usize>, out: &mut [f32],
        stride: usize,
    ) {
        let width = cols.len();
        if width == 0 {
            return;
        }
        for (row, out) in rows.zip(out.chunks_mut(stride)) {
            let (row, out, cols) = (&bytes[row * row_bytes..][..row_bytes], &mut out[..width], cols.clone());
            match kind {
                BlockType::F16 => widen_halves(row, cols, out, #[inline(always)] |half| from_f16(half)),
                BlockType::Bf16 => widen_halves(row, cols, out, #[inline(always)] |half| from_bf16(half)),
                BlockType::Q4_0 => widen_blocks::<Q4_0>(row, cols, out),
                BlockType::Q4_1 => widen_blocks::<Q4_1>(row, cols, out),
                BlockType::Q5_0 => widen_blocks::<Q5_0>(row, cols, out),
                BlockType::Q5_1 => widen_blocks::<Q5_1>(row, cols, out),
                BlockType::Q8_0 => widen_blocks::<Q8_0>(row, cols, out),
                BlockType::Q4K => widen_blocks::<Q4K>(row, cols, out),
                BlockType::Q5K => widen_blocks::<Q5K>(row, cols, out),
                BlockType::Q6K => widen_blocks::<Q6K>(row, cols, out),
            }
        }
    }
}
