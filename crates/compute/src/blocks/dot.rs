//! Products of a matrix' rows with a few vectors: each run of a row is widened in registers and used at once.
//!
//! The one rule that is not obvious: a product is 16 chains of additions over the columns, and their sum in a fixed
//! order, whatever the number of vectors.

use std::ops::Range;

use super::BlockType;
use super::layout::*;
use crate::lanes::{LANES, Lanes, for_each_level};

/// The most vectors.
pub const MOST: usize = 8;

/// A few vectors of one length, as the kernels read them: the first 16 values of each, the next 16 of each, and so on,
/// with zeros behind the end and vectors of zeros up to a power of two.
pub struct Vectors {
    /// (runs, vectors, 16)
    values: Vec<[f32; LANES]>,
    /// 1, 2, 4 or 8
    count: usize,
}

impl Vectors {
    pub const fn new() -> Self {
        Vectors { values: Vec::new(), count: 1 }
    }

    /// Takes `count` vectors of `length` values that start `stride` apart.
    pub fn fill(&mut self, data: &[f32], count: usize, length: usize, stride: usize) {
        assert!((1..=MOST).contains(&count), "{count} vectors");
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
    }

    /// How many there are, those of zeros among them.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl Default for Vectors {
    fn default() -> Self {
        Vectors::new()
    }
}

/// Rows of a matrix as they lie in memory; `kind` None is f32.
#[derive(Clone, Copy)]
pub struct StoredRows<'a> {
    pub kind: Option<BlockType>,
    pub bytes: &'a [u8],
    /// From a row's start to the next one's.
    pub stride: usize,
    /// Of a row.
    pub row_bytes: usize,
}

impl<'a> StoredRows<'a> {
    #[inline(always)]
    fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..self.row_bytes]
    }
}

for_each_level! {
    /// The products of the rows `rows` with each vector, to `out` (rows, vectors).
    pub fn dot(stored: StoredRows, rows: Range<usize>, x: &Vectors, out: &mut [f32]) = dots
}

#[inline(always)]
fn dots<S: Lanes>(s: S, stored: StoredRows, rows: Range<usize>, x: &Vectors, out: &mut [f32]) {
    match stored.kind {
        None => of_layout::<F32, S>(s, stored, rows, x, out),
        Some(BlockType::F16) => of_layout::<F16, S>(s, stored, rows, x, out),
        Some(BlockType::Bf16) => of_layout::<Bf16, S>(s, stored, rows, x, out),
        Some(BlockType::Q4_0) => of_layout::<Q4_0, S>(s, stored, rows, x, out),
        Some(BlockType::Q4_1) => of_layout::<Q4_1, S>(s, stored, rows, x, out),
        Some(BlockType::Q5_0) => of_layout::<Q5_0, S>(s, stored, rows, x, out),
        Some(BlockType::Q5_1) => of_layout::<Q5_1, S>(s, stored, rows, x, out),
        Some(BlockType::Q8_0) => of_layout::<Q8_0, S>(s, stored, rows, x, out),
        Some(BlockType::Q4K) => of_layout::<Q4K, S>(s, stored, rows, x, out),
        Some(BlockType::Q5K) => of_layout::<Q5K, S>(s, stored, rows, x, out),
        Some(BlockType::Q6K) => of_layout::<Q6K, S>(s, stored, rows, x, out),
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
    // Rows side by side: each value of x is loaded once for them, and their sums stay in registers.
    match x.count {
        1 => some_vectors::<L, S, 1, 4>(s, stored, rows, &x.values, out),
        2 => some_vectors::<L, S, 2, 4>(s, stored, rows, &x.values, out),
        4 => some_vectors::<L, S, 4, 4>(s, stored, rows, &x.values, out),
        _ => some_vectors::<L, S, 8, 2>(s, stored, rows, &x.values, out),
    }
}

#[inline(always)]
fn some_vectors<L: Layout, S: Lanes, const M: usize, const R: usize>(
    s: S,
    stored: StoredRows,
    rows: Range<usize>,
    x: &[[f32; LANES]],
    out: &mut [f32],
) {
    let mut out = out.as_chunks_mut::<M>().0.chunks_mut(R);
    for first in rows.clone().step_by(R) {
        let mut side = [stored.row(first); R];
        for (i, row) in side.iter_mut().enumerate() {
            // Of fewer rows the last one is read again, and its products are not used.
            *row = stored.row((first + i).min(rows.end - 1));
        }
        let mut sums = [[s.splat(0.0); M]; R];
        let whole = stored.row_bytes / L::BYTES;
        let runs = L::VALUES / LANES;
        for (block, x) in (0..whole).zip(x.chunks_exact(runs * M)) {
            let block = block * L::BYTES;
            add_block::<L, S, M, R>(s, side, block, x, &mut sums);
        }
        let rest = stored.row_bytes % L::BYTES;
        if rest > 0 {
            // Types without blocks alone have a rest. All bits zero are zeros in them.
            let mut padded = [[0; 64]; R];
            let mut last = [&[][..]; R];
            for (padded, row) in padded.iter_mut().zip(side) {
                padded[..rest].copy_from_slice(&row[whole * L::BYTES..]);
            }
            for (last, padded) in last.iter_mut().zip(&padded) {
                *last = padded;
            }
            add_block::<L, S, M, R>(s, last, 0, &x[whole * M..], &mut sums);
        }
        let out = out.next().expect("as many as rows");
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, lanes) in out.iter_mut().zip(sums) {
                let mut stored = [0.0; LANES];
                s.store(lanes, &mut stored);
                *out = sum(stored);
            }
        }
    }
}

/// Adds the products of one block of each row, `at` bytes into it.
#[inline(always)]
fn add_block<L: Layout, S: Lanes, const M: usize, const R: usize>(
    s: S,
    rows: [&[u8]; R],
    at: usize,
    x: &[[f32; LANES]],
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
    for (run, x) in x.as_chunks::<M>().0[..L::VALUES / LANES].iter().enumerate() {
        let mut wide = [s.splat(0.0); R];
        for i in 0..R {
            wide[i] = L::run(s, blocks[i], &scales[i], run);
        }
        for (vector, x) in x.iter().enumerate() {
            let x = s.load(x);
            for i in 0..R {
                sums[i][vector] = s.mul_add(wide[i], x, sums[i][vector]);
            }
        }
    }
}

/// The sum of the lanes: halves are added to halves.
#[inline(always)]
fn sum(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::BlockMatrix;
    use crate::lanes::Portable;

    #[test]
    fn every_level_adds_the_same_products() {
        use BlockType::*;
        let kinds = [F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K].map(Some);
        for kind in kinds.into_iter().chain([None]) {
            let row_bytes = kind.map_or(4 * 256, |kind| BlockMatrix::size(kind, 1, 256).unwrap());
            // Bytes below 64, so that all scales are finite.
            let bytes: Vec<u8> = (0..7 * row_bytes).map(|i| (i * 37 % 251) as u8 & 63).collect();
            let stored = StoredRows { kind, bytes: &bytes, stride: row_bytes, row_bytes };
            let data: Vec<f32> = (0..5 * 256).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
            for count in [1, 2, 3, 5] {
                let mut x = Vectors::new();
                x.fill(&data, count, 256, 256);
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
                    // The same fused products in the same order.
                    assert_eq!(avx2, best, "{kind:?}, {count}");
                }
            }
        }
    }
}
