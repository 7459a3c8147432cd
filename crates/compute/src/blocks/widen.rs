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

    /// Run `run` of a block.
    fn run<S: Lanes>(s: S, block: &[u8], run: usize) -> S::F;
}

#[inline(always)]
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    from_f16(u16_at(block, at))
}

#[inline(always)]
fn run_at(block: &[u8], at: usize) -> &[u8; RUN] {
    block[at..at + RUN].try_into().expect("16 bytes")
}

struct Q4_0;

impl Layout for Q4_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], run: usize) -> S::F {
        let d = s.splat(f16_at(block, 0));
        let q = s.field(run_at(block, 2), 4 * run, 15);
        s.mul(d, s.sub(s.float(q), s.splat(8.0)))
    }
}

struct Q4_1;

impl Layout for Q4_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 20;

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], run: usize) -> S::F {
        let (d, min) = (s.splat(f16_at(block, 0)), s.splat(f16_at(block, 2)));
        let q = s.field(run_at(block, 4), 4 * run, 15);
        s.add(s.mul(d, s.float(q)), min)
    }
}

struct Q5_0;

impl Layout for Q5_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 22;

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], run: usize) -> S::F {
        let d = s.splat(f16_at(block, 0));
        let q = s.join(s.field(run_at(block, 6), 4 * run, 15), s.bits(u16_at(block, 2 + 2 * run)));
        s.mul(d, s.sub(s.float(q), s.splat(16.0)))
    }
}

struct Q5_1;

impl Layout for Q5_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], run: usize) -> S::F {
        let (d, min) = (s.splat(f16_at(block, 0)), s.splat(f16_at(block, 2)));
        let q = s.join(s.field(run_at(block, 8), 4 * run, 15), s.bits(u16_at(block, 4 + 2 * run)));
        s.add(s.mul(d, s.float(q)), min)
    }
}

struct Q8_0;

impl Layout for Q8_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], run: usize) -> S::F {
        let d = s.splat(f16_at(block, 0));
        s.mul(s.float(s.signed(run_at(block, 2 + RUN * run))), d)
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
    fn run<S: Lanes>(s: S, block: &[u8], run: usize) -> S::F {
        let part = run / 2;
        let (d, min) = scale_and_min(block, part);
        let q = s.field(run_at(block, 16 + 32 * (part / 2) + RUN * (run % 2)), 4 * (part % 2), 15);
        s.sub(s.mul(s.splat(d), s.float(q)), s.splat(min))
    }
}

struct Q5K;

impl Layout for Q5K {
    const VALUES: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], run: usize) -> S::F {
        let part = run / 2;
        let (d, min) = scale_and_min(block, part);
        let low = s.field(run_at(block, 48 + 32 * (part / 2) + RUN * (run % 2)), 4 * (part % 2), 15);
        let high = s.field(run_at(block, 16 + RUN * (run % 2)), part, 1);
        s.sub(s.mul(s.splat(d), s.float(s.join(low, high))), s.splat(min))
    }
}

struct Q6K;

impl Layout for Q6K {
    const VALUES: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], run: usize) -> S::F {
        // Each half of the block has 64 bytes of low bits and 32 of high bits for its four quarters.
        let (half, quarter, part) = (run / 8, run % 8 / 2, run % 2);
        let d = f16_at(block, 208) * i32::from(block[192 + run] as i8) as f32;
        let low = s.field(run_at(block, 64 * half + 32 * (quarter % 2) + RUN * part), 4 * (quarter / 2), 15);
        let high = s.field(run_at(block, 128 + 32 * half + RUN * part), 2 * quarter, 3);
        s.mul(s.splat(d), s.sub(s.float(s.join(low, high)), s.splat(32.0)))
    }
}

/// Values `cols` of a row of blocks.
#[inline(always)]
fn widen_row<L: Layout, S: Lanes>(s: S, row: &[u8], cols: Range<usize>, out: &mut [f32]) {
    let runs = L::VALUES / RUN;
    let block = |run: usize| &row[run / runs * L::BYTES..][..L::BYTES];
    let (mut run, skipped) = (cols.start / RUN, cols.start % RUN);
    let mut out = out;
    if skipped != 0 {
        let count = (RUN - skipped).min(out.len());
        let (part, rest) = out.split_at_mut(count);
        let mut whole = [0.0; RUN];
        s.store(L::run(s, block(run), run % runs), &mut whole);
        part.copy_from_slice(&whole[skipped..skipped + count]);
        (out, run) = (rest, run + 1);
    }
    let (mut whole, part) = out.as_chunks_mut::<RUN>();
    while !whole.is_empty() {
        let first = run % runs;
        let block = block(run);
        if first == 0 && whole.len() >= runs {
            // A whole block: its scales are read once, and the places of its bits are constants.
            let (these, rest) = whole.split_at_mut(runs);
            for (i, out) in these.iter_mut().enumerate() {
                s.store(L::run(s, block, i), out);
            }
            (whole, run) = (rest, run + runs);
        } else {
            s.store(L::run(s, block, first), &mut whole[0]);
            (whole, run) = (&mut whole[1..], run + 1);
        }
    }
    if !part.is_empty() {
        let mut whole = [0.0; RUN];
        s.store(L::run(s, block(run), run % runs), &mut whole);
        let count = part.len();
        part.copy_from_slice(&whole[..count]);
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
