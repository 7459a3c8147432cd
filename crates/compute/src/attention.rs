//! Softmax attention within packed sequences: O = dropout(softmax(scale · Q Kᵀ + bias)) V, head by head.
//!
//! Sequences lie end to end and never see each other. The probabilities are not kept: the backward pass
//! forms them again from the row's log-sum-exp, for a block of queries at a time, so memory grows with
//! the length and not with its square.

use std::cell::Cell;

use rayon::prelude::*;

use crate::cpu::vectorised;
use crate::gemm::{Mat, MatMut, Start, matmul_local};
use crate::math::{exp, fused, max, sum_by};
use crate::norm::add_row;
use crate::random::{Dropout, Key};

/// Queries whose scores are held at once.
const QUERIES: usize = 64;

/// The fixed part of an attention: where sequences lie and how wide heads are.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Where sequences start, and the end of the last: (sequences + 1).
    pub offsets: &'a [usize],
    pub heads: usize,
    /// Width of one head.
    pub width: usize,
    /// Usually 1 / √width.
    pub scale: f32,
    /// Added to the scores by relative position.
    pub bias: Option<RelativeBias<'a>>,
    /// With one key per sequence; heads and rows are folded in.
    pub dropout: Option<(Dropout, &'a [Key])>,
}

/// A bias for each head and each distance key − query in −(reach − 1) ..= reach − 1.
#[derive(Clone, Copy)]
pub struct RelativeBias<'a> {
    /// (heads, 2 · reach − 1), the distance −(reach − 1) first
    pub table: &'a [f32],
    /// At least the longest sequence.
    pub reach: usize,
}

/// A raw pointer that tasks share, each writing its own sequence's rows and head's columns.
#[derive(Clone, Copy)]
struct Shared(*mut f32, usize);
// SAFETY: see where it is used.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    fn new(x: &mut [f32]) -> Self {
        Shared(x.as_mut_ptr(), x.len())
    }

    /// Rows of a matrix inside, from element `from` on.
    ///
    /// # Safety
    /// No one else touches the rows' columns meanwhile.
    unsafe fn rows<'a>(self, from: usize, rows: usize, cols: usize, stride: usize) -> MatMut<'a> {
        assert!(rows > 0 && from + (rows - 1) * stride + cols <= self.1);
        // SAFETY: inside the slice; the caller's promise.
        unsafe { MatMut::from_raw(self.0.add(from), rows, cols, stride) }
    }

    /// # Safety
    /// No one else touches the element meanwhile.
    unsafe fn write(self, at: usize, value: f32) {
        assert!(at < self.1);
        // SAFETY: inside the slice; the caller's promise.
        unsafe { *self.0.add(at) = value }
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl Attention<'_> {
    /// qkv: (tokens, 3 · heads · width), queries first, then keys, values; out: (tokens, heads · width);
    /// lse: (tokens, heads), each row's log-sum-exp, for the backward pass.
    pub fn forward(&self, qkv: &[f32], out: &mut [f32], lse: &mut [f32]) {
        let hidden = self.heads * self.width;
        let tokens = self.check(qkv.len());
        assert!(out.len() == tokens * hidden && lse.len() == tokens * self.heads);
        let (out, lse) = (Shared::new(out), Shared::new(lse));
        self.each(|sequence, head| {
            let (from, to) = (self.offsets[sequence], self.offsets[sequence + 1]);
            let length = to - from;
            let [q, k, v] = self.qkv(qkv, from, to, head);
            for first in (0..length).step_by(QUERIES) {
                let rows = QUERIES.min(length - first);
                let mut scratch = SCRATCH.take();
                if scratch.len() < rows * length {
                    scratch.resize(rows * length, 0.0);
                }
                let scores = &mut scratch[..rows * length];
                let q_rows = Mat::strided(&q[first * 3 * hidden..], rows, self.width, 3 * hidden);
                let keys = Mat::strided(k, length, self.width, 3 * hidden);
                matmul_local(
                    MatMut::new(scores, rows, length),
                    Start::Zero,
                    self.scale,
                    &[(q_rows, keys.t())],
                );
                for (i, scores) in scores.chunks_exact_mut(length).enumerate() {
                    let row = first + i;
                    if let Some(bias) = self.bias_row(head, row, length) {
                        add_row(scores, bias);
                    }
                    let sum = softmax_row(scores);
                    // SAFETY: only this task writes the row's entry of this head.
                    unsafe { lse.write((from + row) * self.heads + head, sum) };
                    if let Some((dropout, keys)) = self.dropout {
                        drop_row(scores, dropout, row_key(keys[sequence], head, row));
                    }
                }
                // SAFETY: these rows and this head's columns are written by this task alone.
                let out = unsafe {
                    out.rows((from + first) * hidden + head * self.width, rows, self.width, hidden)
                };
                let values = Mat::strided(v, length, self.width, 3 * hidden);
                matmul_local(out, Start::Zero, 1.0, &[(Mat::new(scores, rows, length), values)]);
                SCRATCH.set(scratch);
            }
        });
    }

    /// Overwrites dqkv (as qkv); adds to dbias (as the bias's table) where it trains.
    ///
    /// With P the probabilities and D = Σ dO·O by row: dV = dropout(P)ᵀ dO, dS = P (dropout(dO Vᵀ) − D),
    /// dQ = scale · dS K, dK = scale · dSᵀ Q, dbias = Σ dS along diagonals.
    pub fn backward(
        &self,
        qkv: &[f32],
        out: &[f32],
        lse: &[f32],
        dout: &[f32],
        dqkv: &mut [f32],
        dbias: Option<&mut [f32]>,
    ) {
        let hidden = self.heads * self.width;
        let tokens = self.check(qkv.len());
        assert!(out.len() == tokens * hidden && dout.len() == out.len() && dqkv.len() == qkv.len());
        let dqkv = Shared::new(dqkv);
        let span = self.bias.map_or(0, |b| 2 * b.reach - 1);
        let task = |sequence: usize, head: usize, dbias: Option<&mut [f32]>| {
            let (from, to) = (self.offsets[sequence], self.offsets[sequence + 1]);
            let mut scratch = SCRATCH.take();
            let blocks = QUERIES.min(to - from) * (to - from);
            if scratch.len() < 2 * blocks {
                scratch.resize(2 * blocks, 0.0);
            }
            let (p, ds) = scratch[..2 * blocks].split_at_mut(blocks);
            self.backward_head(sequence, head, qkv, out, lse, dout, dqkv, dbias, p, ds);
            SCRATCH.set(scratch);
        };
        match dbias {
            // A head's diagonals are summed over its sequences in order, by one task.
            Some(dbias) => dbias.par_chunks_mut(span).enumerate().for_each(|(head, dbias)| {
                for sequence in 0..self.offsets.len() - 1 {
                    task(sequence, head, Some(dbias));
                }
            }),
            None => self.each(|sequence, head| task(sequence, head, None)),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_head(
        &self,
        sequence: usize,
        head: usize,
        qkv: &[f32],
        out: &[f32],
        lse: &[f32],
        dout: &[f32],
        dqkv: Shared,
        mut dbias: Option<&mut [f32]>,
        p: &mut [f32],
        ds: &mut [f32],
    ) {
        let hidden = self.heads * self.width;
        let (from, to) = (self.offsets[sequence], self.offsets[sequence + 1]);
        let length = to - from;
        let [q, k, v] = self.qkv(qkv, from, to, head);
        let keys = Mat::strided(k, length, self.width, 3 * hidden);
        let values = Mat::strided(v, length, self.width, 3 * hidden);
        for first in (0..length).step_by(QUERIES) {
            let rows = QUERIES.min(length - first);
            let (p, ds) = (&mut p[..rows * length], &mut ds[..rows * length]);
            let at = (from + first) * hidden + head * self.width;
            let q_rows = Mat::strided(&q[first * 3 * hidden..], rows, self.width, 3 * hidden);
            let dout_rows = Mat::strided(&dout[at..], rows, self.width, hidden);
            matmul_local(MatMut::new(p, rows, length), Start::Zero, self.scale, &[(q_rows, keys.t())]);
            matmul_local(MatMut::new(ds, rows, length), Start::Zero, 1.0, &[(dout_rows, values.t())]);
            for (i, (p, ds)) in p.chunks_exact_mut(length).zip(ds.chunks_exact_mut(length)).enumerate() {
                let row = first + i;
                if let Some(bias) = self.bias_row(head, row, length) {
                    add_row(p, bias);
                }
                probabilities_row(p, lse[(from + row) * self.heads + head]);
                let at = at + i * hidden;
                let along: f32 =
                    out[at..at + self.width].iter().zip(&dout[at..at + self.width]).map(|(o, d)| o * d).sum();
                match self.dropout {
                    Some((dropout, keys)) => {
                        let key = row_key(keys[sequence], head, row);
                        scores_row_dropped(p, ds, along, dropout, key);
                    }
                    None => scores_row(p, ds, along),
                }
                if let (Some(dbias), Some(bias)) = (dbias.as_deref_mut(), self.bias) {
                    add_row(&mut dbias[bias.reach - 1 - row..][..length], ds);
                }
            }
            let start = if first == 0 { Start::Zero } else { Start::Keep };
            let (p, ds) = (Mat::new(p, rows, length), Mat::new(ds, rows, length));
            let part = |third: usize, row: usize, rows: usize| {
                let from = (from + row) * 3 * hidden + third * hidden + head * self.width;
                // SAFETY: this sequence's rows and this head's columns of this third are this task's alone.
                unsafe { dqkv.rows(from, rows, self.width, 3 * hidden) }
            };
            matmul_local(part(0, first, rows), Start::Zero, self.scale, &[(ds, keys)]);
            matmul_local(part(1, 0, length), start, self.scale, &[(ds.t(), q_rows)]);
            matmul_local(part(2, 0, length), start, 1.0, &[(p.t(), dout_rows)]);
        }
    }

    /// Runs a task for every sequence and head.
    fn each(&self, task: impl Fn(usize, usize) + Sync) {
        let sequences = self.offsets.len() - 1;
        (0..sequences * self.heads)
            .into_par_iter()
            .with_max_len(4)
            .for_each(|i| task(i / self.heads, i % self.heads));
    }

    fn check(&self, qkv: usize) -> usize {
        let tokens = *self.offsets.last().expect("offsets hold at least the end");
        assert_eq!(qkv, tokens * 3 * self.heads * self.width);
        assert!(self.offsets.is_sorted());
        if let Some(bias) = self.bias {
            assert_eq!(bias.table.len(), self.heads * (2 * bias.reach - 1));
            assert!(self.offsets.windows(2).all(|w| w[1] - w[0] <= bias.reach));
        }
        tokens
    }

    /// This head's queries, keys and values of the tokens from..to, in rows 3 · hidden apart.
    fn qkv<'a>(&self, qkv: &'a [f32], from: usize, to: usize, head: usize) -> [&'a [f32]; 3] {
        let hidden = self.heads * self.width;
        [0, 1, 2].map(|third| &qkv[from * 3 * hidden + third * hidden + head * self.width..to * 3 * hidden])
    }

    fn bias_row(&self, head: usize, query: usize, length: usize) -> Option<&[f32]> {
        let bias = self.bias.as_ref()?;
        let start = head * (2 * bias.reach - 1) + bias.reach - 1 - query;
        Some(&bias.table[start..start + length])
    }
}

fn row_key(sequence: Key, head: usize, row: usize) -> Key {
    sequence.fold((head as u64) << 32 | row as u64)
}

vectorised! {
    /// Scores → probabilities in place; returns the log-sum-exp.
    fn softmax_row(x: &mut [f32]) -> f32 {
        let top = max(x);
        for x in x.iter_mut() {
            *x = exp::<FMA>(*x - top);
        }
        let sum = sum_by(x, |x| x);
        let factor = 1.0 / sum;
        for x in x.iter_mut() {
            *x *= factor;
        }
        top + sum.ln()
    }
}

vectorised! {
    fn probabilities_row(x: &mut [f32], lse: f32) {
        for x in x.iter_mut() {
            *x = exp::<FMA>(*x - lse);
        }
    }
}

vectorised! {
    fn drop_row(x: &mut [f32], dropout: Dropout, key: Key) {
        for (i, x) in x.iter_mut().enumerate() {
            *x *= dropout.factor(key, i as u32);
        }
    }
}

vectorised! {
    /// ds = p · (ds − along)
    fn scores_row(p: &mut [f32], ds: &mut [f32], along: f32) {
        for (p, ds) in p.iter().zip(ds) {
            *ds = *p * (*ds - along);
        }
        let _ = FMA;
    }
}

vectorised! {
    /// ds = p · (factor · ds − along); p = factor · p
    fn scores_row_dropped(p: &mut [f32], ds: &mut [f32], along: f32, dropout: Dropout, key: Key) {
        for (i, (p, ds)) in p.iter_mut().zip(ds).enumerate() {
            let factor = dropout.factor(key, i as u32);
            *ds = *p * fused::<FMA>(factor, *ds, -along);
            *p *= factor;
        }
    }
}
