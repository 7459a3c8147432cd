//! Softmax attention within packed sequences: O = dropout(softmax(scale · Q Kᵀ + bias)) V, head by head.
//!
//! Sequences lie end to end and never see each other. The probabilities are not kept: the backward pass
//! forms them again from the row's log-sum-exp, for a block of queries at a time, so memory grows with
//! the length and not with its square.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::cpu::vectorised;
use crate::gemm::{FEW_ROWS, Mat, MatMut, Precision, Start, add_rows, matmul_few_local, matmul_local};
use crate::math::{exp, fused, max, sum_by, sum_by_2};
use crate::norm::add_row;
use crate::profile::{self, Work};
use crate::random::{Dropout, Key};

/// Queries whose scores are held at once.
const QUERIES: usize = 128;

/// The fixed part of an attention: where sequences lie and how wide heads are.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Where sequences start, and the end of the last: (sequences + 1).
    pub offsets: &'a [usize],
    pub heads: usize,
    /// Heads of keys and values, which divides `heads`: each serves a group of query heads (grouped-query
    /// attention, Ainslie et al. 2023). As many as `heads` where every head has its own.
    pub kv_heads: usize,
    /// Width of one head.
    pub width: usize,
    /// Usually 1 / √width.
    pub scale: f32,
    /// Added to the scores by relative position.
    pub bias: Option<RelativeBias<'a>>,
    /// With one key per sequence; heads and rows are folded in.
    pub dropout: Option<(Dropout, &'a [Key])>,
    /// Which tokens ask.
    pub queries: Queries,
    /// Which tokens a query sees.
    pub sight: Sight,
    /// Of its products; probabilities and their gradients are formed in f32.
    pub precision: Precision,
}

/// The tokens of its sequence that a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    All,
    /// Itself and those before it; with a window, of these the last so many.
    Causal {
        window: Option<usize>,
    },
}

/// The tokens of each sequence that have a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    All,
    /// The first alone: all that a head on the first token needs of the last block.
    First,
    /// The last so many of each sequence: new tokens behind a cache, or 1 for a head on the last token.
    Last(usize),
}

/// A matrix of which attention reads columns: rows of `stride`, the first `heads * width` columns of each.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl<'a> Columns<'a> {
    /// The columns of a head from row `row` on.
    fn head(self, row: usize, head: usize, rows: usize, width: usize) -> Mat<'a> {
        Mat::strided(&self.data[row * self.stride + head * width..], rows, width, self.stride)
    }
}

/// A matrix of gradients, as `Columns`.
pub struct ColumnsMut<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
}

/// Queries (queries, heads * width), and keys and values (tokens, kv_heads * width).
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub q: Columns<'a>,
    pub k: Columns<'a>,
    pub v: Columns<'a>,
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
struct Shared {
    data: *mut f32,
    len: usize,
    stride: usize,
}
// SAFETY: see where it is used.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    fn new(x: &mut [f32], stride: usize) -> Self {
        Shared { data: x.as_mut_ptr(), len: x.len(), stride }
    }

    /// The columns of a head from row `row` on.
    ///
    /// # Safety
    /// No one else touches these columns of these rows meanwhile.
    unsafe fn head<'a>(self, row: usize, head: usize, rows: usize, width: usize) -> MatMut<'a> {
        let from = row * self.stride + head * width;
        assert!(rows > 0 && from + (rows - 1) * self.stride + width <= self.len);
        // SAFETY: inside the slice; the caller's promise.
        unsafe { MatMut::from_raw(self.data.add(from), rows, width, self.stride) }
    }

    /// The columns of a head of one row.
    ///
    /// # Safety
    /// No one else touches them meanwhile.
    unsafe fn row<'a>(self, row: usize, head: usize, width: usize) -> &'a mut [f32] {
        let from = row * self.stride + head * width;
        assert!(from + width <= self.len);
        // SAFETY: inside the slice; the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(from), width) }
    }

    /// # Safety
    /// No one else touches the element meanwhile.
    unsafe fn write(self, at: usize, value: f32) {
        assert!(at < self.len);
        // SAFETY: inside the slice; the caller's promise.
        unsafe { *self.data.add(at) = value }
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Most bytes that a thread keeps from call to call for sequences of at most so many tokens, with heads of this width: two
/// blocks of scores, and the packed panels of their products.
pub const fn scratch_bytes(longest: usize, width: usize) -> usize {
    size_of::<f32>() * longest * 2 * (QUERIES + width)
}

/// What a backward pass needs of the forward pass.
#[derive(Clone, Copy)]
pub struct Kept<'a> {
    pub inputs: Inputs<'a>,
    /// (queries, heads * width)
    pub out: &'a [f32],
    /// (queries, heads): each row's log-sum-exp
    pub lse: &'a [f32],
}

impl Attention<'_> {
    /// out: (queries, heads * width); lse: (queries, heads), each row's log-sum-exp, for the backward pass.
    pub fn forward(&self, inputs: Inputs, out: &mut [f32], lse: &mut [f32]) {
        self.check(out.len(), lse.len());
        // Reads Q, K and V; writes O.
        let _span = profile::operation("attention", || self.work(2, [2, 2], lse.len()));
        let hidden = self.heads * self.width;
        let (out, lse) = (Shared::new(out, hidden), Shared::new(lse, self.heads));
        self.each(self.heads, |sequence, head| {
            let span = self.span(sequence);
            let mut scratch = SCRATCH.take();
            for first in (0..span.queries).step_by(QUERIES) {
                let rows = QUERIES.min(span.queries - first);
                let seen = self.seen_by(&span, first..first + rows);
                let (token, length) = (span.token + seen.start, seen.len());
                let keys = inputs.k.head(token, self.kv_head(head), length, self.width);
                let values = inputs.v.head(token, self.kv_head(head), length, self.width);
                if scratch.len() < rows * length {
                    scratch.resize(rows * length, 0.0);
                }
                let scores = &mut scratch[..rows * length];
                let q = inputs.q.head(span.query + first, head, rows, self.width);
                // Few queries read keys and values where they lie: packing them would cost as much as their products.
                let few = rows <= FEW_ROWS && self.precision == Precision::F32;
                if few {
                    matmul_few_local(MatMut::new(scores, rows, length), Start::Zero, (q, keys.t()), None);
                    scores.iter_mut().for_each(|x| *x *= self.scale);
                } else {
                    matmul_local(
                        self.precision,
                        MatMut::new(scores, rows, length),
                        Start::Zero,
                        self.scale,
                        &[(q, keys.t())],
                    );
                }
                for (i, scores) in scores.chunks_exact_mut(length).enumerate() {
                    let row = first + i;
                    if let Some(bias) = self.bias_row(head, row, length) {
                        add_row(scores, bias);
                    }
                    let scores = only_seen(scores, &seen, self.seen_by(&span, row..row + 1));
                    let sum = softmax_row(scores);
                    // SAFETY: only this task writes the row's entry of this head.
                    unsafe { lse.write((span.query + row) * self.heads + head, sum) };
                    if let Some((dropout, keys)) = self.dropout {
                        drop_row(scores, dropout, row_key(keys[sequence], head, row));
                    }
                }
                if few {
                    let values = &inputs.v.data[token * inputs.v.stride + self.kv_head(head) * self.width..];
                    for (i, p) in scores.chunks_exact(length).enumerate() {
                        // SAFETY: this row and this head's columns are written by this task alone.
                        let out = unsafe { out.row(span.query + first + i, head, self.width) };
                        out.fill(0.0);
                        add_rows(out, p, values, inputs.v.stride);
                    }
                } else {
                    // SAFETY: these rows and this head's columns are written by this task alone.
                    let out = unsafe { out.head(span.query + first, head, rows, self.width) };
                    let p = Mat::new(scores, rows, length);
                    matmul_local(self.precision, out, Start::Zero, 1.0, &[(p, values)]);
                }
            }
            SCRATCH.set(scratch);
        });
    }

    /// Overwrites the gradients of q, k and v; adds to dbias (as the bias's table) where it trains.
    ///
    /// With P the probabilities and D = Σ dO·O by row: dV = dropout(P)ᵀ dO, dS = P (dropout(dO Vᵀ) − D),
    /// dQ = scale · dS K, dK = scale · dSᵀ Q, dbias = Σ dS along diagonals.
    pub fn backward(&self, kept: Kept, dout: &[f32], dqkv: [ColumnsMut; 3], dbias: Option<&mut [f32]>) {
        self.check(kept.out.len(), kept.lse.len());
        assert_eq!(dout.len(), kept.out.len());
        // Reads Q, O, dO, K and V; writes dQ, dK and dV.
        let _span = profile::operation("attention backward", || self.work(5, [4, 4], kept.lse.len()));
        let dqkv = dqkv.map(|d| Shared::new(d.data, d.stride));
        let span = self.bias.map_or(0, |b| 2 * b.reach - 1);
        let group = self.heads / self.kv_heads;
        match dbias {
            // A head's diagonals are summed over its sequences in order, by one task.
            Some(dbias) => dbias.par_chunks_mut(group * span).enumerate().for_each(|(kv_head, dbias)| {
                for sequence in 0..self.offsets.len() - 1 {
                    for (head, dbias) in (kv_head * group..).zip(dbias.chunks_exact_mut(span)) {
                        self.backward_head(sequence, head, kept, dout, dqkv, Some(dbias));
                    }
                }
            }),
            // A group's heads add to the same keys and values, so one task takes them in order.
            None => self.each(self.kv_heads, |sequence, kv_head| {
                for head in kv_head * group..(kv_head + 1) * group {
                    self.backward_head(sequence, head, kept, dout, dqkv, None);
                }
            }),
        }
    }

    fn backward_head(
        &self,
        sequence: usize,
        head: usize,
        kept: Kept,
        dout: &[f32],
        [dq, dk, dv]: [Shared; 3],
        mut dbias: Option<&mut [f32]>,
    ) {
        let hidden = self.heads * self.width;
        let span = self.span(sequence);
        let kv_head = self.kv_head(head);
        let mut scratch = SCRATCH.take();
        if head.is_multiple_of(self.heads / self.kv_heads) {
            // SAFETY: this sequence's rows and this head's columns are this task's alone.
            let (mut dk, mut dv) = unsafe {
                (
                    dk.head(span.token, kv_head, span.length, self.width),
                    dv.head(span.token, kv_head, span.length, self.width),
                )
            };
            dk.fill(0.0);
            dv.fill(0.0);
        }
        for first in (0..span.queries).step_by(QUERIES) {
            let rows = QUERIES.min(span.queries - first);
            let seen = self.seen_by(&span, first..first + rows);
            let (token, length) = (span.token + seen.start, seen.len());
            let keys = kept.inputs.k.head(token, kv_head, length, self.width);
            let values = kept.inputs.v.head(token, kv_head, length, self.width);
            if scratch.len() < 2 * rows * length {
                scratch.resize(2 * rows * length, 0.0);
            }
            let (p, ds) = scratch[..2 * rows * length].split_at_mut(rows * length);
            let q = kept.inputs.q.head(span.query + first, head, rows, self.width);
            let at = (span.query + first) * hidden + head * self.width;
            let dout_rows = Mat::strided(&dout[at..], rows, self.width, hidden);
            matmul_local(
                self.precision,
                MatMut::new(p, rows, length),
                Start::Zero,
                self.scale,
                &[(q, keys.t())],
            );
            matmul_local(
                self.precision,
                MatMut::new(ds, rows, length),
                Start::Zero,
                1.0,
                &[(dout_rows, values.t())],
            );
            for (i, (p, ds)) in p.chunks_exact_mut(length).zip(ds.chunks_exact_mut(length)).enumerate() {
                let row = first + i;
                if let Some(bias) = self.bias_row(head, row, length) {
                    add_row(p, bias);
                }
                let own = self.seen_by(&span, row..row + 1);
                let p = only_seen(p, &seen, own.clone());
                let ds = only_seen(ds, &seen, own);
                probabilities_row(p, kept.lse[(span.query + row) * self.heads + head]);
                let at = at + i * hidden..at + i * hidden + self.width;
                let along = dot_row(&kept.out[at.clone()], &dout[at]);
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
            let (p, ds) = (Mat::new(p, rows, length), Mat::new(ds, rows, length));
            // SAFETY: as above.
            let (dq, dk, dv) = unsafe {
                (
                    dq.head(span.query + first, head, rows, self.width),
                    dk.head(token, kv_head, length, self.width),
                    dv.head(token, kv_head, length, self.width),
                )
            };
            matmul_local(self.precision, dq, Start::Zero, self.scale, &[(ds, keys)]);
            matmul_local(self.precision, dk, Start::Keep, self.scale, &[(ds.t(), q)]);
            matmul_local(self.precision, dv, Start::Keep, 1.0, &[(p.t(), dout_rows)]);
        }
        SCRATCH.set(scratch);
    }

    /// Runs a task for every sequence and head of `heads`.
    fn each(&self, heads: usize, task: impl Fn(usize, usize) + Sync) {
        let sequences = self.offsets.len() - 1;
        (0..sequences * heads).into_par_iter().with_max_len(4).for_each(|i| task(i / heads, i % heads));
    }

    /// The head of keys and values that serves a query head.
    fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    /// The tokens, from the sequence's start, that some of these queries of it see.
    fn seen_by(&self, span: &Span, queries: Range<usize>) -> Range<usize> {
        match self.sight {
            Sight::All => 0..span.length,
            Sight::Causal { window } => {
                // Queries are the sequence's last tokens.
                let before = span.length - span.queries;
                let first = window.map_or(0, |window| (before + queries.start + 1).saturating_sub(window));
                first..before + queries.end
            }
        }
    }

    fn span(&self, sequence: usize) -> Span {
        let (token, end) = (self.offsets[sequence], self.offsets[sequence + 1]);
        match self.queries {
            Queries::All => Span { token, length: end - token, query: token, queries: end - token },
            Queries::First => Span { token, length: end - token, query: sequence, queries: 1 },
            Queries::Last(n) => Span { token, length: end - token, query: sequence * n, queries: n },
        }
    }

    /// What `products` products of queries and keys compute, and what `matrices` matrices of queries and of keys hold; `lse`
    /// numbers are of the log-sum-exps. Scores stay in the caches.
    fn work(&self, products: usize, matrices: [usize; 2], lse: usize) -> Work {
        let sequences = self.offsets.len() - 1;
        let multiplied: usize = (0..sequences)
            .map(|sequence| {
                let span = self.span(sequence);
                let rows = |first: usize| first..(first + QUERIES).min(span.queries);
                let blocks = (0..span.queries).step_by(QUERIES).map(rows);
                blocks.map(|rows| rows.len() * self.seen_by(&span, rows).len()).sum::<usize>()
            })
            .sum();
        let tokens = self.offsets[sequences] - self.offsets[0];
        let [of_queries, of_keys] = matrices;
        let floats = lse * (of_queries * self.width + 1) + of_keys * tokens * self.kv_heads * self.width;
        let operations = 2 * products * multiplied * self.heads * self.width;
        Work { operations: operations as u64, ..Work::floats(floats) }
    }

    fn check(&self, out: usize, lse: usize) {
        let sequences = self.offsets.len() - 1;
        let queries = match self.queries {
            Queries::All => self.offsets[sequences],
            Queries::First => sequences,
            Queries::Last(n) => n * sequences,
        };
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "heads of keys");
        assert!(
            self.queries != Queries::First || self.sight == Sight::All,
            "a first token sees itself alone"
        );
        if let Queries::Last(n) = self.queries {
            assert!(self.offsets.windows(2).all(|w| w[1] - w[0] >= n), "more queries than tokens");
        }
        assert!(out == queries * self.heads * self.width && lse == queries * self.heads);
        assert!(self.offsets.windows(2).all(|w| w[0] < w[1]), "an empty sequence");
        if let Some(bias) = self.bias {
            assert!(self.sight == Sight::All, "a relative bias goes with full sight");
            assert_eq!(bias.table.len(), self.heads * (2 * bias.reach - 1));
            assert!(self.offsets.windows(2).all(|w| w[1] - w[0] <= bias.reach));
        }
    }

    fn bias_row(&self, head: usize, query: usize, length: usize) -> Option<&[f32]> {
        let bias = self.bias.as_ref()?;
        let start = head * (2 * bias.reach - 1) + bias.reach - 1 - query;
        Some(&bias.table[start..start + length])
    }
}

/// A sequence's first token and length, and its first query and their number.
struct Span {
    token: usize,
    length: usize,
    query: usize,
    queries: usize,
}

/// Zeroes what a query does not see of its row of scores, which begins at `all.start`; returns what it sees.
fn only_seen<'a>(row: &'a mut [f32], all: &Range<usize>, seen: Range<usize>) -> &'a mut [f32] {
    let (from, to) = (seen.start - all.start, seen.end - all.start);
    row[..from].fill(0.0);
    row[to..].fill(0.0);
    &mut row[from..to]
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
    fn dot_row(x: &[f32], y: &[f32]) -> f32 {
        let _ = FMA;
        sum_by_2(x, y, |x, y| x * y)
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
