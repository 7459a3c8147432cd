//! Widening: from the storage of a matrix to f32, exactly as ggml does it.
//!
//! The unit is a run of 16 values: whatever the type, a run has one scale, and its bits lie in 16 neighbouring bytes.

use std::ops::Range;

use super::BlockType;
use super::half::{from_bf16, from_f16};
use crate::cpu::vectorised;
use crate::lanes::{LANES, Lanes, for_each_level};

/// Values of a run.
const RUN: usize = LANES;

/// How blocks of one type are laid out. Bit patterns: https://github.com/ggml-org/ggml, `ggml-common.h`.
trait Layout {
    /// Values and bytes of a block.
    const VALUES: usize;
    const BYTES: usize;
    /// What a block's scales are widened to before its runs.
    type Scales;

    fn scales<S: Lanes>(s: S, block: &[u8]) -> Self::Scales;

    /// Run `run` of a block.
    fn run<S: Lanes>(s: S, block: &[u8], scales: &Self::Scales, run: usize) -> S::F;
}

#[inline(always)]
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline(always)]
fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(block[at..at + 4].try_into().expect("4 bytes"))
}

#[inline(always)]
fn run_at(block: &[u8], at: usize) -> &[u8; RUN] {
    block[at..at + RUN].try_into().expect("16 bytes")
}

/// The types of 32 values with one scale: (q − zero) · d, and those with a minimum: q · d + min.
macro_rules! small_layout {
    ($name:ident, $bytes:literal, |$s:ident, $block:ident, $run:ident| $q:expr, zero $zero:expr) => {
        struct $name;

        impl Layout for $name {
            const VALUES: usize = 32;
            const BYTES: usize = $bytes;
            type Scales = f32;

            #[inline(always)]
            fn scales<S: Lanes>(s: S, block: &[u8]) -> f32 {
                s.half(u16_at(block, 0))
            }

            #[inline(always)]
            fn run<S: Lanes>($s: S, $block: &[u8], d: &f32, $run: usize) -> S::F {
                $s.mul($s.splat(*d), $s.sub($s.float($q), $s.splat($zero)))
            }
        }
    };
    ($name:ident, $bytes:literal, |$s:ident, $block:ident, $run:ident| $q:expr, min) => {
        struct $name;

        impl Layout for $name {
            const VALUES: usize = 32;
            const BYTES: usize = $bytes;
            type Scales = (f32, f32);

            #[inline(always)]
            fn scales<S: Lanes>(s: S, block: &[u8]) -> (f32, f32) {
                (s.half(u16_at(block, 0)), s.half(u16_at(block, 2)))
            }

            #[inline(always)]
            fn run<S: Lanes>($s: S, $block: &[u8], &(d, min): &(f32, f32), $run: usize) -> S::F {
                $s.add($s.mul($s.splat(d), $s.float($q)), $s.splat(min))
            }
        }
    };
}

small_layout!(Q4_0, 18, |s, block, run| s.field(run_at(block, 2), 4 * run, 15), zero 8.0);
small_layout!(Q4_1, 20, |s, block, run| s.field(run_at(block, 4), 4 * run, 15), min);
small_layout!(Q5_0, 22, |s, block, run| {
    s.join(s.field(run_at(block, 6), 4 * run, 15), s.bits(u16_at(block, 2 + 2 * run)))
}, zero 16.0);
small_layout!(
    Q5_1,
    24,
    |s, block, run| s.join(s.field(run_at(block, 8), 4 * run, 15), s.bits(u16_at(block, 4 + 2 * run))),
    min
);
small_layout!(Q8_0, 34, |s, block, run| s.signed(run_at(block, 2 + RUN * run)), zero 0.0);

/// Scales and minima of a Q4_K or Q5_K block, eight each and in this order. They have six bits; the last four of
/// each keep their upper two in the upper bits of the first four.
#[inline(always)]
fn scales_and_minima<S: Lanes>(s: S, block: &[u8]) -> [f32; 16] {
    let [scale, min, last] = [4, 8, 12].map(|at| u32_at(block, at));
    let parts = [
        scale & 0x3f3f3f3f,
        last & 0x0f0f0f0f | (scale >> 6 & 0x03030303) << 4,
        min & 0x3f3f3f3f,
        last >> 4 & 0x0f0f0f0f | (min >> 6 & 0x03030303) << 4,
    ];
    let bytes = parts.map(u32::to_le_bytes);
    let bytes = bytes.as_flattened().try_into().expect("16 bytes");
    let (d, min) = (s.half(u16_at(block, 0)), s.half(u16_at(block, 2)));
    let mut out = [d, d, d, d, d, d, d, d, min, min, min, min, min, min, min, min];
    s.store(s.mul(s.load(&out), s.float(s.signed(bytes))), &mut out);
    out
}

struct Q4K;

impl Layout for Q4K {
    const VALUES: usize = 256;
    const BYTES: usize = 144;
    type Scales = [f32; 16];

    #[inline(always)]
    fn scales<S: Lanes>(s: S, block: &[u8]) -> [f32; 16] {
        scales_and_minima(s, block)
    }

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], scales: &[f32; 16], run: usize) -> S::F {
        let part = run / 2;
        let q = s.field(run_at(block, 16 + 32 * (part / 2) + RUN * (run % 2)), 4 * (part % 2), 15);
        s.sub(s.mul(s.splat(scales[part]), s.float(q)), s.splat(scales[8 + part]))
    }
}

struct Q5K;

impl Layout for Q5K {
    const VALUES: usize = 256;
    const BYTES: usize = 176;
    type Scales = [f32; 16];

    #[inline(always)]
    fn scales<S: Lanes>(s: S, block: &[u8]) -> [f32; 16] {
        scales_and_minima(s, block)
    }

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], scales: &[f32; 16], run: usize) -> S::F {
        let part = run / 2;
        let low = s.field(run_at(block, 48 + 32 * (part / 2) + RUN * (run % 2)), 4 * (part % 2), 15);
        let high = s.field(run_at(block, 16 + RUN * (run % 2)), part, 1);
        let q = s.float(s.join(low, high));
        s.sub(s.mul(s.splat(scales[part]), q), s.splat(scales[8 + part]))
    }
}

struct Q6K;

impl Layout for Q6K {
    const VALUES: usize = 256;
    const BYTES: usize = 210;
    /// One a run.
    type Scales = [f32; 16];

    #[inline(always)]
    fn scales<S: Lanes>(s: S, block: &[u8]) -> [f32; 16] {
        let d = s.splat(s.half(u16_at(block, 208)));
        let mut out = [0.0; 16];
        s.store(s.mul(d, s.float(s.signed(run_at(block, 192)))), &mut out);
        out
    }

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], scales: &[f32; 16], run: usize) -> S::F {
        // Each half of the block has 64 bytes of low bits and 32 of high bits for its four quarters.
        let (half, quarter, part) = (run / 8, run % 8 / 2, run % 2);
        let low = s.field(run_at(block, 64 * half + 32 * (quarter % 2) + RUN * part), 4 * (quarter / 2), 15);
        let high = s.field(run_at(block, 128 + 32 * half + RUN * part), 2 * quarter, 3);
        s.mul(s.splat(scales[run]), s.sub(s.float(s.join(low, high)), s.splat(32.0)))
    }
}

/// Values `cols` of a row of blocks.
#[inline(always)]
fn widen_row<L: Layout, S: Lanes>(s: S, row: &[u8], cols: Range<usize>, out: &mut [f32]) {
    let runs = L::VALUES / RUN;
    let block = |run: usize| &row[run / runs * L::BYTES..][..L::BYTES];
    // A part of a run, at either end, and some runs of a block.
    let part = |run: usize, skipped: usize, out: &mut [f32]| {
        let (block, mut whole) = (block(run), [0.0; RUN]);
        s.store(L::run(s, block, &L::scales(s, block), run % runs), &mut whole);
        out.copy_from_slice(&whole[skipped..skipped + out.len()]);
    };
    let some = |run: usize, out: &mut [[f32; RUN]]| {
        if !out.is_empty() {
            let block = block(run);
            let scales = L::scales(s, block);
            for (i, out) in out.iter_mut().enumerate() {
                s.store(L::run(s, block, &scales, run % runs + i), out);
            }
        }
    };
    let (mut run, skipped) = (cols.start / RUN, cols.start % RUN);
    let mut out = out;
    if skipped != 0 {
        let first = out.split_off_mut(..(RUN - skipped).min(out.len())).expect("inside");
        part(run, skipped, first);
        run += 1;
    }
    let (out, last_part) = out.as_chunks_mut::<RUN>();
    let (first, out) = out.split_at_mut((run.next_multiple_of(runs) - run).min(out.len()));
    some(run, first);
    run += first.len();
    let mut whole = out.chunks_exact_mut(runs);
    for (block, out) in row[run / runs * L::BYTES..].chunks_exact(L::BYTES).zip(&mut whole) {
        // The places of a whole block's bits are constants.
        let scales = L::scales(s, block);
        for (i, out) in out.iter_mut().enumerate() {
            s.store(L::run(s, block, &scales, i), out);
        }
        run += runs;
    }
    let last = whole.into_remainder();
    some(run, last);
    if !last_part.is_empty() {
        part(run + last.len(), 0, last_part);
    }
}

/// A piece of a matrix: the columns `cols` of the rows `rows`, which are `row_bytes` long, and where they go in f32,
/// with the starts of rows `stride` apart. Neither is empty.
pub struct Piece<'a> {
    pub bytes: &'a [u8],
    pub row_bytes: usize,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
    pub out: &'a mut [f32],
    pub stride: usize,
}

impl Piece<'_> {
    /// Hands `f` each row's bytes and its place in `out`.
    #[inline(always)]
    fn for_each_row(self, mut f: impl FnMut(&[u8], Range<usize>, &mut [f32])) {
        for (row, out) in self.rows.zip(self.out.chunks_mut(self.stride)) {
            let bytes = &self.bytes[row * self.row_bytes..][..self.row_bytes];
            f(bytes, self.cols.clone(), &mut out[..self.cols.len()]);
        }
    }
}

#[inline(always)]
fn widen_piece<L: Layout, S: Lanes>(s: S, piece: Piece) {
    piece.for_each_row(
        #[inline(always)]
        |row, cols, out| widen_row::<L, S>(s, row, cols, out),
    );
}

/// Blocks of `kind`.
#[inline(always)]
fn blocks<S: Lanes>(s: S, kind: BlockType, piece: Piece) {
    match kind {
        BlockType::F16 | BlockType::Bf16 => widen_halves(kind, piece),
        BlockType::Q4_0 => widen_piece::<Q4_0, S>(s, piece),
        BlockType::Q4_1 => widen_piece::<Q4_1, S>(s, piece),
        BlockType::Q5_0 => widen_piece::<Q5_0, S>(s, piece),
        BlockType::Q5_1 => widen_piece::<Q5_1, S>(s, piece),
        BlockType::Q8_0 => widen_piece::<Q8_0, S>(s, piece),
        BlockType::Q4K => widen_piece::<Q4K, S>(s, piece),
        BlockType::Q5K => widen_piece::<Q5K, S>(s, piece),
        BlockType::Q6K => widen_piece::<Q6K, S>(s, piece),
    }
}

for_each_level! {
    /// Widens a piece of a matrix.
    pub fn widen(kind: BlockType, piece: Piece) = blocks
}

vectorised! {
    fn widen_halves(kind: BlockType, piece: Piece) {
        piece.for_each_row(#[inline(always)] |row, cols, out| {
            let halves = row[2 * cols.start..2 * cols.end].as_chunks::<2>().0;
            for (o, &half) in out.iter_mut().zip(halves) {
                let half = u16::from_le_bytes(half);
                *o = if kind == BlockType::F16 { from_f16(half) } else { from_bf16(half) };
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::BlockMatrix;
    use crate::lanes::Portable;

    #[test]
    fn every_level_widens_to_the_same_bits() {
        use BlockType::*;
        for kind in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K] {
            let row_bytes = BlockMatrix::size(kind, 1, 512).unwrap();
            // Bytes below 64, so that all scales are finite.
            let bytes: Vec<u8> = (0..2 * row_bytes).map(|i| (i * 37 % 251) as u8 & 63).collect();
            let with = |widen: fn(BlockType, Piece)| {
                let mut out = vec![0.0f32; 2 * 512];
                let piece =
                    Piece { bytes: &bytes, row_bytes, rows: 0..2, cols: 21..501, out: &mut out, stride: 512 };
                widen(kind, piece);
                out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            let best = with(widen);
            assert!(best == with(|kind, piece| blocks(Portable, kind, piece)), "{kind:?}");
            #[cfg(target_arch = "x86_64")]
            if crate::cpu::level() >= crate::cpu::Level::Avx2 {
                // SAFETY: the level has AVX2 and FMA.
                let avx2 = |kind, piece: Piece| blocks(unsafe { crate::lanes::Avx2::new() }, kind, piece);
                assert!(best == with(avx2), "{kind:?}");
            }
        }
    }
}
