//! Widens a matrix from its storage to f32 in memory, exactly as ggml does.

use std::ops::Range;

use super::BlockType;
use super::half::{from_bf16, from_f16};
use super::layout::{Layout, RUN, with_layout};
use crate::cpu::vectorised;
use crate::lanes::{Lanes, for_each_level};

/// Returns the block of a row that contains run `run`.
#[inline(always)]
fn block_of<L: Layout>(row: &[u8], run: usize) -> &[u8] {
    &row[run / (L::VALUES / RUN) * L::BYTES..][..L::BYTES]
}

/// Widens a part of a run, after its first `skipped` values. Neither this function nor the next may
/// be a closure: a closure that is called twice is not inlined, and outside of the function with
/// the target features every vector instruction becomes a call.
#[inline(always)]
fn part_of_run<L: Layout, S: Lanes>(s: S, row: &[u8], run: usize, skipped: usize, out: &mut [f32]) {
    let (block, mut whole) = (block_of::<L>(row, run), [0.0; RUN]);
    s.store(L::run(s, block, &L::scales(s, block), run % (L::VALUES / RUN)), &mut whole);
    out.copy_from_slice(&whole[skipped..skipped + out.len()]);
}

/// Widens runs of one block, from run `run` of the row on.
#[inline(always)]
fn some_runs<L: Layout, S: Lanes>(s: S, row: &[u8], run: usize, out: &mut [[f32; RUN]]) {
    if !out.is_empty() {
        let block = block_of::<L>(row, run);
        let scales = L::scales(s, block);
        for (i, out) in out.iter_mut().enumerate() {
            s.store(L::run(s, block, &scales, run % (L::VALUES / RUN) + i), out);
        }
    }
}

/// Widens columns `cols` of a row.
#[inline(always)]
fn widen_row<L: Layout, S: Lanes>(s: S, row: &[u8], cols: Range<usize>, out: &mut [f32]) {
    let runs = L::VALUES / RUN;
    let (mut run, skipped) = (cols.start / RUN, cols.start % RUN);
    let mut out = out;
    if skipped != 0 {
        let first = out.split_off_mut(..(RUN - skipped).min(out.len())).expect("inside");
        part_of_run::<L, S>(s, row, run, skipped, first);
        run += 1;
    }
    let (out, last_part) = out.as_chunks_mut::<RUN>();
    let (first, out) = out.split_at_mut((run.next_multiple_of(runs) - run).min(out.len()));
    some_runs::<L, S>(s, row, run, first);
    run += first.len();
    let mut whole = out.chunks_exact_mut(runs);
    for (block, out) in row[run / runs * L::BYTES..].chunks_exact(L::BYTES).zip(&mut whole) {
        // The bit positions in a whole block are constants.
        let scales = L::scales(s, block);
        for (i, out) in out.iter_mut().enumerate() {
            s.store(L::run(s, block, &scales, i), out);
        }
        run += runs;
    }
    let last = whole.into_remainder();
    some_runs::<L, S>(s, row, run, last);
    if !last_part.is_empty() {
        part_of_run::<L, S>(s, row, run + last.len(), 0, last_part);
    }
}

/// A part of a matrix to be widened: columns `cols` of the rows `rows`, which are `row_bytes` long,
/// into rows of `out` that start `stride` apart. Neither range is empty.
pub struct MatrixPart<'a> {
    pub bytes: &'a [u8],
    pub row_bytes: usize,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
    pub out: &'a mut [f32],
    pub stride: usize,
}

impl MatrixPart<'_> {
    /// Calls `f` with each row's bytes, the columns, and the row's part of `out`.
    #[inline(always)]
    fn for_each_row(self, mut f: impl FnMut(&[u8], Range<usize>, &mut [f32])) {
        for (row, out) in self.rows.zip(self.out.chunks_mut(self.stride)) {
            let bytes = &self.bytes[row * self.row_bytes..][..self.row_bytes];
            f(bytes, self.cols.clone(), &mut out[..self.cols.len()]);
        }
    }
}

#[inline(always)]
fn widen_part<L: Layout, S: Lanes>(s: S, part: MatrixPart) {
    part.for_each_row(
        #[inline(always)]
        |row, cols, out| widen_row::<L, S>(s, row, cols, out),
    );
}

/// Widens a part that is stored as `kind`.
#[inline(always)]
fn blocks<S: Lanes>(s: S, kind: BlockType, part: MatrixPart) {
    if kind.values() == 1 {
        return widen_halves(kind, part);
    }
    with_layout!(kind, L => widen_part::<L, S>(s, part))
}

for_each_level! {
    /// Widens a part of a matrix.
    pub fn widen(kind: BlockType, part: MatrixPart) = blocks
}

vectorised! {
    fn widen_halves(kind: BlockType, part: MatrixPart) {
        part.for_each_row(#[inline(always)] |row, cols, out| {
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
        for kind in BlockType::ALL {
            let row_bytes = BlockMatrix::size(kind, 1, 512).unwrap();
            // Bytes below 64, so that all scales are finite.
            let bytes: Vec<u8> = (0..2 * row_bytes).map(|i| (i * 37 % 251) as u8 & 63).collect();
            let with = |widen: fn(BlockType, MatrixPart)| {
                let mut out = vec![0.0f32; 2 * 512];
                let part = MatrixPart {
                    bytes: &bytes,
                    row_bytes,
                    rows: 0..2,
                    cols: 21..501,
                    out: &mut out,
                    stride: 512,
                };
                widen(kind, part);
                out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            let best = with(widen);
            assert!(best == with(|kind, part| blocks(Portable, kind, part)), "{kind:?}");
            #[cfg(target_arch = "x86_64")]
            if crate::cpu::level() >= crate::cpu::Level::Avx2 {
                // SAFETY: the level has AVX2 and FMA.
                let avx2 = |kind, part: MatrixPart| blocks(unsafe { crate::lanes::Avx2::new() }, kind, part);
                assert!(best == with(avx2), "{kind:?}");
            }
        }
    }
}
