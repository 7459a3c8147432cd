//! Dot products of a matrix's rows with a few vectors. Each run of a row is widened in registers
//! and used at once.
//!
//! A product is accumulated over the columns in 16 partial sums, which are then added in a fixed
//! order, whatever the number of vectors. The offset that all values of a run share (the minimum in
//! K-quants) is multiplied once, with the sum of the vector's run, so products of these types are
//! rounded differently from those of the widened matrix.

use std::cell::Cell;
use std::ops::Range;

use super::BlockType;
use super::layout::{F32, Layout, with_layout};
use crate::cpu::prefetch_line;
use crate::lanes::{LANES, Lanes, for_each_level};

/// Maximum number of vectors.
pub const MAX_VECTORS: usize = 8;
/// Values, over all vectors, that are multiplied with all rows before the next part: 24 KiB.
const CACHED_VALUES: usize = 6 << 10;

/// A few vectors of one length, in the order in which the kernels read them: the first 16 values of
/// each, the next 16 of each, and so on. Zeros pad the last run, and vectors of zeros pad the
/// number of vectors to a power of two.
pub struct Vectors {
    /// (runs, vectors, 16)
    values: Vec<[f32; LANES]>,
    /// The sum of each run, (runs / 16, vectors, 16); empty for types without offsets
    run_sums: Vec<[f32; LANES]>,
    /// 1, 2, 4 or 8
    count: usize,
}

impl Vectors {
    pub const fn new() -> Self {
        Vectors { values: Vec::new(), run_sums: Vec::new(), count: 1 }
    }

    /// Copies `count` vectors of `length` values that start `stride` apart, for products with rows
    /// of `kind` (None: f32).
    pub fn fill(
        &mut self,
        kind: Option<BlockType>,
        data: &[f32],
        count: usize,
        length: usize,
        stride: usize,
    ) {
        assert!((1..=MAX_VECTORS).contains(&count), "{count} vectors");
        self.count = count.next_power_of_two();
        self.values.clear();
        self.values.resize(length.div_ceil(LANES) * self.count, [0.0; LANES]);
        for vector in 0..count {
            let (runs, rest) = data[vector * stride..][..length].as_chunks();
            let mut places = self.values.iter_mut().skip(vector).step_by(self.count);
            for (run, place) in runs.iter().zip(places.by_ref()) {
                *place = *run;
            }
            if let Some(place) = places.next() {
                place[..rest.len()].copy_from_slice(rest);
            }
        }
        self.run_sums.clear();
        if !kind.is_some_and(|kind| with_layout!(kind, L => L::OFFSETS)) {
            return;
        }
        for runs in self.values.chunks(LANES * self.count) {
            let sum = |vector: usize, run: usize| {
                let values = runs.get(run * self.count + vector)?;
                Some(values.iter().sum())
            };
            self.run_sums.extend(
                (0..self.count).map(|vector| std::array::from_fn(|run| sum(vector, run).unwrap_or(0.0))),
            );
        }
    }

    /// Returns the number of vectors, including those of zeros.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl Default for Vectors {
    fn default() -> Self {
        Vectors::new()
    }
}

/// Rows of a matrix as they are stored; `kind` is None for f32.
#[derive(Clone, Copy)]
pub struct StoredRows<'a> {
    pub kind: Option<BlockType>,
    pub bytes: &'a [u8],
    /// Bytes from the start of a row to that of the next.
    pub stride: usize,
    /// Bytes of a row.
    pub row_bytes: usize,
}

impl<'a> StoredRows<'a> {
    #[inline(always)]
    fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..self.row_bytes]
    }
}

for_each_level! {
    /// Writes the products of the rows `rows` with each vector to `out`, (rows, vectors).
    pub fn dot(stored: StoredRows, rows: Range<usize>, x: &Vectors, out: &mut [f32]) = dots
}

#[inline(always)]
fn dots<S: Lanes>(s: S, stored: StoredRows, rows: Range<usize>, x: &Vectors, out: &mut [f32]) {
    match stored.kind {
        None => of_layout::<F32, S>(s, stored, rows, x, out),
        Some(kind) => with_layout!(kind, L => of_layout::<L, S>(s, stored, rows, x, out)),
    }
}

#[inline(always)]
fn of_layout<L: Layout, S: Lanes>(
    s: S,
    stored: StoredRows,
    rows: Range<usize>,
    x: &Vectors,
    out: &mut [f32],
) {
    // R rows at a time: each value of x is loaded once for all of them, and their sums stay in
    // registers.
    match x.count {
        1 => some_vectors::<L, S, 1, 4>(s, stored, rows, x, out),
        2 => some_vectors::<L, S, 2, 4>(s, stored, rows, x, out),
        4 => some_vectors::<L, S, 4, 4>(s, stored, rows, x, out),
        _ => some_vectors::<L, S, 8, 2>(s, stored, rows, x, out),
    }
}

/// Partial sums between one part of the columns and the next, (rows, vectors, 16).
type Sums = Vec<[f32; LANES]>;

thread_local! {
    static SUMS: Cell<Sums> = const { Cell::new(Vec::new()) };
}

#[inline(always)]
fn some_vectors<L: Layout, S: Lanes, const M: usize, const R: usize>(
    s: S,
    stored: StoredRows,
    rows: Range<usize>,
    x: &Vectors,
    out: &mut [f32],
) {
    let blocks = stored.row_bytes.div_ceil(L::BYTES);
    // Number of blocks in a part of the columns: the values of all vectors in a part stay in the L1
    // cache while the rows pass.
    let part = (CACHED_VALUES / (L::VALUES * M)).max(1);
    let mut sums = SUMS.take();
    let mut partial_sums = (blocks > part).then(|| {
        sums.clear();
        sums.resize(rows.len().next_multiple_of(R) * M, [0.0; LANES]);
        &mut sums
    });
    // At least one iteration, so that rows without columns have products of zero.
    for from in (0..blocks.max(1)).step_by(part) {
        let blocks = from..(from + part).min(blocks);
        some_columns::<L, S, M, R>(s, stored, rows.clone(), blocks, x, partial_sums.as_deref_mut(), out);
    }
    SUMS.set(sums);
}

/// Adds the products of the columns of `blocks` to `partial_sums`, or to zeros if that is None.
/// After the last column, writes the totals of the sums to `out`.
#[inline(always)]
fn some_columns<L: Layout, S: Lanes, const M: usize, const R: usize>(
    s: S,
    stored: StoredRows,
    rows: Range<usize>,
    blocks: Range<usize>,
    x: &Vectors,
    mut partial_sums: Option<&mut Sums>,
    out: &mut [f32],
) {
    let runs = L::VALUES / LANES;
    let whole = blocks.start..(stored.row_bytes / L::BYTES).min(blocks.end);
    let rest = blocks.end > whole.end;
    let (x, run_sums) = (&x.values[blocks.start * runs * M..], &x.run_sums);
    let last = blocks.end * L::BYTES >= stored.row_bytes;
    let mut out = out.as_chunks_mut::<M>().0.chunks_mut(R);
    for (group, first) in rows.clone().step_by(R).enumerate() {
        let mut side = [stored.row(first); R];
        let mut ahead = [stored.bytes.as_ptr(); R];
        for i in 0..R {
            // If fewer than R rows are left, the last one is read again and its products are not
            // used.
            side[i] = stored.row((first + i).min(rows.end - 1));
            ahead[i] = ahead[i].wrapping_add((first + R + i) * stored.stride);
        }
        let mut sums = [[s.splat(0.0); M]; R];
        if let Some(partial_sums) = &partial_sums {
            let partial_sums = &partial_sums[group * R * M..];
            for i in 0..R {
                for vector in 0..M {
                    sums[i][vector] = s.load(&partial_sums[i * M + vector]);
                }
            }
        }
        for (block, x) in whole.clone().zip(x.chunks_exact(runs * M)) {
            let at = block * L::BYTES;
            for ahead in ahead {
                // Short rows end before the processor has recognised the access pattern.
                for line in (0..L::BYTES).step_by(64) {
                    prefetch_line::<1>(ahead.wrapping_add(at + line));
                }
            }
            // In types with offsets, a block is the sixteen runs of one entry of `run_sums`.
            let x_sums = if L::OFFSETS { &run_sums[block * M..] } else { &[] };
            add_block::<L, S, M, R>(s, side, at, x, x_sums, &mut sums);
        }
        // Only types without blocks have a remainder. Zero bytes are zeros in these types.
        if L::VALUES == LANES && rest {
            let mut padded = [[0; 64]; R];
            let mut last = [&[][..]; R];
            for (padded, row) in padded.iter_mut().zip(side) {
                let row = &row[whole.end * L::BYTES..];
                padded[..row.len()].copy_from_slice(row);
            }
            for (last, padded) in last.iter_mut().zip(&padded) {
                *last = padded;
            }
            add_block::<L, S, M, R>(s, last, 0, &x[whole.len() * runs * M..], &[], &mut sums);
        }
        if let Some(partial_sums) = &mut partial_sums {
            let partial_sums = &mut partial_sums[group * R * M..];
            for i in 0..R {
                for vector in 0..M {
                    s.store(sums[i][vector], &mut partial_sums[i * M + vector]);
                }
            }
        }
        let out = out.next().expect("as many as rows");
        if last {
            for (out, sums) in out.iter_mut().zip(sums) {
                for (out, lanes) in out.iter_mut().zip(sums) {
                    *out = s.sum(lanes);
                }
            }
        }
    }
}

/// Adds the products of one block of each row, which starts at byte `at`. `x_sums` has the sums of
/// x's runs, for types with offsets.
#[inline(always)]
fn add_block<L: Layout, S: Lanes, const M: usize, const R: usize>(
    s: S,
    rows: [&[u8]; R],
    at: usize,
    x: &[[f32; LANES]],
    x_sums: &[[f32; LANES]],
    sums: &mut [[S::F; M]; R],
) {
    let mut blocks = [&[][..]; R];
    let mut scales = [L::scales(s, &rows[0][at..][..L::BYTES]); R];
    for i in 0..R {
        blocks[i] = &rows[i][at..][..L::BYTES];
        if i > 0 {
            scales[i] = L::scales(s, blocks[i]);
        }
    }
    if L::OFFSETS {
        for i in 0..R {
            let offsets = s.load(&L::offsets(s, &scales[i]));
            for (sum, x_sums) in sums[i].iter_mut().zip(&x_sums[..M]) {
                *sum = s.mul_add(offsets, s.load(x_sums), *sum);
            }
        }
    }
    let x = &x.as_chunks::<M>().0[..L::VALUES / LANES];
    // Unrolled, so that the bit positions of each run are constants.
    for first in (0..x.len()).step_by(8) {
        add_run::<L, S, M, R>(s, blocks, &scales, first, x, sums);
        if L::VALUES >= 2 * LANES {
            add_run::<L, S, M, R>(s, blocks, &scales, first + 1, x, sums);
        }
        if L::VALUES >= 8 * LANES {
            add_run::<L, S, M, R>(s, blocks, &scales, first + 2, x, sums);
            add_run::<L, S, M, R>(s, blocks, &scales, first + 3, x, sums);
            add_run::<L, S, M, R>(s, blocks, &scales, first + 4, x, sums);
            add_run::<L, S, M, R>(s, blocks, &scales, first + 5, x, sums);
            add_run::<L, S, M, R>(s, blocks, &scales, first + 6, x, sums);
            add_run::<L, S, M, R>(s, blocks, &scales, first + 7, x, sums);
        }
    }
}

/// Adds the products of one run of the blocks.
#[inline(always)]
fn add_run<L: Layout, S: Lanes, const M: usize, const R: usize>(
    s: S,
    blocks: [&[u8]; R],
    scales: &[L::Scales<S>; R],
    run: usize,
    x: &[[[f32; LANES]; M]],
    sums: &mut [[S::F; M]; R],
) {
    let mut wide = [s.splat(0.0); R];
    for i in 0..R {
        wide[i] = L::scaled(s, blocks[i], &scales[i], run);
    }
    for (vector, x) in x[run].iter().enumerate() {
        let x = s.load(x);
        for i in 0..R {
            sums[i][vector] = s.mul_add(wide[i], x, sums[i][vector]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::BlockMatrix;
    use crate::lanes::Portable;

    #[test]
    fn every_level_adds_the_same_products() {
        for kind in BlockType::ALL.map(Some).into_iter().chain([None]) {
            let row_bytes = kind.map_or(4 * 256, |kind| BlockMatrix::size(kind, 1, 256).unwrap());
            // Bytes below 64, so that all scales are finite.
            let bytes: Vec<u8> = (0..7 * row_bytes).map(|i| (i * 37 % 251) as u8 & 63).collect();
            let stored = StoredRows { kind, bytes: &bytes, stride: row_bytes, row_bytes };
            let data: Vec<f32> = (0..5 * 256).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
            for count in [1, 2, 3, 5] {
                let mut x = Vectors::new();
                x.fill(kind, &data, count, 256, 256);
                let with = |f: fn(StoredRows, Range<usize>, &Vectors, &mut [f32])| {
                    let mut out = vec![0.0; 7 * x.count()];
                    f(stored, 0..7, &x, &mut out);
                    out
                };
                let best = with(dot);
                let near = |other: Vec<f32>| {
                    let size = best.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                    size > 0.0 && best.iter().zip(other).all(|(a, b)| (a - b).abs() <= 1e-5 * size)
                };
                assert!(near(with(|w, r, x, o| dots(Portable, w, r, x, o))), "{kind:?}, {count}");
                #[cfg(target_arch = "x86_64")]
                if crate::cpu::level() >= crate::cpu::Level::Avx2 {
                    // SAFETY: the level has AVX2 and FMA.
                    let avx2 = with(|w, r, x, o| dots(unsafe { crate::lanes::Avx2::new() }, w, r, x, o));
                    // AVX2 has the same fused multiply-adds in the same order.
                    assert_eq!(avx2, best, "{kind:?}, {count}");
                }
            }
        }
    }

    #[test]
    fn a_vector_s_products_do_not_depend_on_the_others() {
        // Long rows are multiplied in parts, which are shorter for more vectors.
        let (cols, rows) = (2 * CACHED_VALUES + 256, 5);
        for kind in [Some(BlockType::Q4_1), Some(BlockType::Q4K), Some(BlockType::F16), None] {
            let row_bytes = kind.map_or(4 * cols, |kind| BlockMatrix::size(kind, 1, cols).unwrap());
            let bytes: Vec<u8> = (0..rows * row_bytes).map(|i| (i * 37 % 251) as u8 & 63).collect();
            let stored = StoredRows { kind, bytes: &bytes, stride: row_bytes, row_bytes };
            let data: Vec<f32> = (0..MAX_VECTORS * cols).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
            let products = |data: &[f32], count: usize| {
                let mut x = Vectors::new();
                x.fill(kind, data, count, cols, cols);
                let mut out = vec![0.0; rows * count];
                dot(stored, 0..rows, &x, &mut out);
                out
            };
            let together = products(&data, MAX_VECTORS);
            for (vector, data) in data.chunks_exact(cols).enumerate() {
                let alone: Vec<f32> = together.iter().copied().skip(vector).step_by(MAX_VECTORS).collect();
                assert_eq!(products(data, 1), alone, "{kind:?}, vector {vector}");
            }
        }
    }
}
