//! Softmax attention within packed sequences: O = dropout(softmax(scale · Q Kᵀ + bias)) V, head by
//! head.
//!
//! Sequences are concatenated and do not attend to each other. Probabilities are not saved: the
//! backward pass recomputes them from each row's log-sum-exp, for one strip of queries at a time,
//! so memory is linear in the sequence length.

mod columns;
mod strip;
#[cfg(test)]
mod tests;
mod unpacked;

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::arena::Arena;
use crate::gemm::panels::WIDTH;
use crate::gemm::{Mat, Precision, nth_part};
use crate::output_slice::OutputSlice;
use crate::profile::{self, Work};
use crate::random::{Dropout, Key};
use columns::{PerQuery, QUERIES};

/// The configuration of an attention: sequences, heads, and the mask.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// The starts of sequences, and the end of the last: (sequences + 1).
    pub offsets: &'a [usize],
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values, which divides `heads`: each serves a group of query heads
    /// (grouped-query attention, Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Width of one head.
    pub width: usize,
    /// Usually 1 / √width.
    pub scale: f32,
    /// Added to the scores by relative position.
    pub bias: Option<RelativeBias<'a>>,
    /// Dropout of the probabilities, with one key per sequence; heads and rows are folded in.
    pub dropout: Option<(Dropout, &'a [Key])>,
    /// Which tokens have a query.
    pub queries: Queries,
    /// Which keys a query attends to.
    pub mask: Mask,
    /// The precision of its products; probabilities and their gradients are f32.
    pub precision: Precision,
}

/// The keys of its sequence that a query attends to; all others are masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Those of all tokens.
    Bidirectional,
    /// Those of its own and of earlier tokens.
    Causal {
        /// Only the last of these, if given.
        window: Option<usize>,
    },
}

/// The tokens of each sequence that have a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    /// All tokens.
    All,
    /// The first token: enough for a head that reads only its output of the last block.
    First,
    /// This number of last tokens: new ones after a cache, or 1 for a head on the last token.
    Last(usize),
}

/// A row-major matrix with rows `stride` values apart. Attention reads the first `heads * width`
/// columns of each row.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl<'a> Columns<'a> {
    /// Returns the columns of a head in `rows` rows from row `row` on, (rows, width).
    fn head(self, row: usize, head: usize, rows: usize, width: usize) -> Mat<'a> {
        Mat::strided(&self.data[row * self.stride + head * width..], rows, width, self.stride)
    }
}

/// A matrix of gradients, like [`Columns`].
pub struct ColumnsMut<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
}

/// The operands of attention: queries q, (queries, heads * width); keys k and values v, (tokens,
/// kv_heads * width) each.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub q: Columns<'a>,
    pub k: Columns<'a>,
    pub v: Columns<'a>,
}

/// A bias on scores for each head and each distance key − query in −(reach − 1) ..= reach − 1.
#[derive(Clone, Copy)]
pub struct RelativeBias<'a> {
    /// (heads, 2 · reach − 1), from the distance −(reach − 1) on.
    pub table: &'a [f32],
    /// At least the number of tokens of the longest sequence.
    pub reach: usize,
}

impl<'a> RelativeBias<'a> {
    fn of_head(&self, head: usize) -> &'a [f32] {
        let each = 2 * self.reach - 1;
        &self.table[head * each..][..each]
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Upper bound in bytes on the memory that a thread keeps between calls, for sequences of at most
/// `longest` tokens with heads of this width: packed operands, a strip of scores, and the sums of
/// the gradients of keys and values.
pub fn scratch_bytes(longest: usize, width: usize) -> usize {
    let sums = Arena::room(2 * longest * width.next_multiple_of(WIDTH));
    size_of::<f32>() * (Arena::room(strip::scratch(longest, width).max(unpacked::scratch(longest))) + sums)
}

/// What a backward pass needs from the forward pass.
#[derive(Clone, Copy)]
pub struct SavedForward<'a> {
    pub inputs: Inputs<'a>,
    /// The output, (queries, heads * width).
    pub out: &'a [f32],
    /// The log-sum-exp of each row of scores, (queries, heads).
    pub lse: &'a [f32],
}

impl Attention<'_> {
    /// Computes `out`, (queries, heads * width), and `lse`, (queries, heads), the log-sum-exp of
    /// each row of scores, for the backward pass.
    pub fn forward(&self, inputs: Inputs, out: &mut [f32], lse: &mut [f32]) {
        self.check(out.len(), lse.len());
        // Reads Q, K and V; writes O.
        let _span = profile::operation("attention", || self.work(2, [2, 2], lse.len()));
        let to = [OutputSlice::new(out, self.heads * self.width), OutputSlice::new(lse, self.heads)];
        // A task takes some heads of a group, or strips of them, and packs the group's keys and
        // values for itself. A group is therefore split into no more parts than give work to all
        // threads.
        let groups = (self.offsets.len() - 1) * self.kv_heads;
        let parts = (4 * rayon::current_num_threads()).div_ceil(groups);
        (0..groups * parts).into_par_iter().with_max_len(1).for_each(|task| {
            let group = self.group(task / parts, inputs);
            let (part, unpacked) = (task % parts, unpacked::applies_to(group.span.queries));
            let each = if unpacked { 1 } else { strip::strips(group.span.queries) };
            let all = group.heads.len() * each;
            let numbers = nth_part(all, part, parts);
            if numbers.is_empty() {
                return;
            }
            let mut scratch = SCRATCH.take();
            // SAFETY: no other task accesses these heads' columns and entries of these queries.
            unsafe {
                if unpacked {
                    for number in numbers {
                        unpacked::forward(self, &group, group.heads.start + number, to, &mut scratch);
                    }
                } else {
                    strip::forward(self, &group, numbers, to, &mut scratch);
                }
            }
            SCRATCH.set(scratch);
        });
    }

    /// Overwrites the gradients of q, k and v; adds to `dbias`, in the shape of the bias's table,
    /// if given.
    ///
    /// With P the probabilities and delta = Σ dO·O by row (D in FlashAttention, Dao et al. 2022):
    /// dV = dropout(P)ᵀ dO, dS = P (dropout(dO Vᵀ) − delta), dQ = scale · dS K, dK = scale · dSᵀ Q,
    /// dbias = Σ dS along diagonals.
    pub fn backward(
        &self,
        saved: SavedForward,
        dout: &[f32],
        dqkv: [ColumnsMut; 3],
        dbias: Option<&mut [f32]>,
    ) {
        self.check(saved.out.len(), saved.lse.len());
        assert_eq!(dout.len(), saved.out.len());
        // Reads Q, O, dO, K and V; writes dQ, dK and dV.
        let _span = profile::operation("attention backward", || self.work(5, [4, 4], saved.lse.len()));
        let dqkv = dqkv.map(|d| OutputSlice::new(d.data, d.stride));
        let span = self.bias.map_or(0, |b| 2 * b.reach - 1);
        let group = self.heads / self.kv_heads;
        match dbias {
            // One task sums the diagonals of a group's heads over all sequences, in order.
            Some(dbias) => dbias.par_chunks_mut(group * span).enumerate().for_each(|(kv_head, dbias)| {
                for sequence in 0..self.offsets.len() - 1 {
                    let number = sequence * self.kv_heads + kv_head;
                    self.backward_group(number, saved, dout, dqkv, Some(&mut *dbias));
                }
            }),
            // A group's heads add to the gradients of the same keys and values, so one task takes
            // them in order.
            None => {
                let groups = (self.offsets.len() - 1) * self.kv_heads;
                let task = |number| self.backward_group(number, saved, dout, dqkv, None);
                (0..groups).into_par_iter().with_max_len(1).for_each(task);
            }
        }
    }

    fn backward_group(
        &self,
        number: usize,
        saved: SavedForward,
        dout: &[f32],
        [dq, dk, dv]: [OutputSlice; 3],
        tables: Option<&mut [f32]>,
    ) {
        let group = self.group(number, saved.inputs);
        let (length, width) = (group.span.length, self.width);
        let (mut scratch, mut buffer) = (SCRATCH.take(), SUMS.take());
        let stride = width.next_multiple_of(WIDTH);
        let mut arena = Arena::new(&mut buffer, 2 * length * stride);
        let [of_keys, of_values] = [(); 2].map(|()| arena.take(length * stride));
        of_keys.fill(0.0);
        of_values.fill(0.0);
        let mut sums =
            GroupGradients { dk: of_keys, dv: of_values, stride, tables, heads: group.heads.clone() };
        // SAFETY: no other task accesses this sequence's rows of these heads' columns.
        unsafe {
            if unpacked::applies_to(group.span.queries) {
                for head in group.heads.clone() {
                    unpacked::backward(self, (&group, head), saved, dout, dq, &mut sums, &mut scratch);
                }
            } else {
                strip::backward(self, &group, saved, dout, dq, &mut sums, &mut scratch);
            }
            for (i, (of_key, of_value)) in
                of_keys.chunks_exact(stride).zip(of_values.chunks_exact(stride)).enumerate()
            {
                let row = group.span.token + i;
                let [dk, dv] = [dk, dv].map(|d| d.columns(row, group.kv_head * width, width));
                columns::scale(dk, of_key, self.scale);
                dv.copy_from_slice(&of_value[..width]);
            }
        }
        SCRATCH.set(scratch);
        SUMS.set(buffer);
    }

    /// Returns the group with this number: a sequence and one of its heads of keys and values.
    fn group<'a>(&self, number: usize, inputs: Inputs<'a>) -> HeadGroup<'a> {
        let (sequence, kv_head) = (number / self.kv_heads, number % self.kv_heads);
        let each = self.heads / self.kv_heads;
        HeadGroup {
            sequence,
            kv_head,
            heads: kv_head * each..(kv_head + 1) * each,
            span: self.span(sequence),
            width: self.width,
            all_heads: self.heads,
            inputs,
        }
    }

    /// Returns the keys, counted from the sequence's start, that at least one of these queries
    /// attends to.
    fn visible_keys(&self, span: &Span, queries: Range<usize>) -> Range<usize> {
        match self.mask {
            Mask::Bidirectional => 0..span.length,
            Mask::Causal { window } => {
                // Queries are the sequence's last tokens.
                let before = span.length - span.queries;
                let first = window.map_or(0, |window| (before + queries.start + 1).saturating_sub(window));
                first..before + queries.end
            }
        }
    }

    /// Sets the scores of keys that are masked for a query to −∞. Rows of `scores` are keys from
    /// `first_key` on, lanes are queries from `first_query` on.
    fn mask_scores(&self, span: &Span, first_query: usize, first_key: usize, scores: &mut [PerQuery]) {
        let Mask::Causal { window } = self.mask else { return };
        // The token of the first lane's query. Its key is the last one that the query attends to.
        let first = span.length - span.queries + first_query;
        for (key, row) in (first_key..).zip(scores.iter_mut()).skip((first + 1).saturating_sub(first_key)) {
            row[..(key - first).min(QUERIES)].fill(f32::NEG_INFINITY);
        }
        if let Some(window) = window {
            let masked = (first + QUERIES).saturating_sub(window).saturating_sub(first_key);
            for (key, row) in (first_key..).zip(scores.iter_mut()).take(masked) {
                row[(key + window).saturating_sub(first).min(QUERIES)..].fill(f32::NEG_INFINITY);
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

    /// Returns the work of `products` products of queries with keys. `matrices` counts the matrices
    /// of the size of the queries and of the keys that are read or written, `lse` the log-sum-exps.
    /// Scores stay in the caches and are not counted.
    fn work(&self, products: usize, matrices: [usize; 2], lse: usize) -> Work {
        let sequences = self.offsets.len() - 1;
        let multiplied: usize = (0..sequences)
            .map(|sequence| {
                let span = self.span(sequence);
                let rows = |first: usize| first..(first + QUERIES).min(span.queries);
                let blocks = (0..span.queries).step_by(QUERIES).map(rows);
                blocks.map(|rows| rows.len() * self.visible_keys(&span, rows).len()).sum::<usize>()
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
        assert!(self.scale > 0.0, "the scale must be positive");
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "heads of keys");
        assert!(
            self.queries != Queries::First || self.mask == Mask::Bidirectional,
            "queries of first tokens need a bidirectional mask"
        );
        if let Queries::Last(n) = self.queries {
            assert!(self.offsets.windows(2).all(|w| w[1] - w[0] >= n), "more queries than tokens");
        }
        assert!(out == queries * self.heads * self.width && lse == queries * self.heads);
        assert!(self.offsets.windows(2).all(|w| w[0] < w[1]), "an empty sequence");
        if let Some(bias) = self.bias {
            assert!(self.mask == Mask::Bidirectional, "a relative bias needs a bidirectional mask");
            assert_eq!(bias.table.len(), self.heads * (2 * bias.reach - 1));
            assert!(self.offsets.windows(2).all(|w| w[1] - w[0] <= bias.reach));
        }
    }

    fn bias_row(&self, head: usize, query: usize, length: usize) -> Option<&[f32]> {
        let bias = self.bias.as_ref()?;
        Some(&bias.of_head(head)[bias.reach - 1 - query..][..length])
    }
}

/// A sequence's first token and length, and its first query and number of queries.
struct Span {
    token: usize,
    length: usize,
    query: usize,
    queries: usize,
}

/// The heads of a sequence that share keys and values.
struct HeadGroup<'a> {
    sequence: usize,
    span: Span,
    kv_head: usize,
    heads: Range<usize>,
    width: usize,
    all_heads: usize,
    inputs: Inputs<'a>,
}

impl<'a> HeadGroup<'a> {
    /// (length, width)
    fn keys(&self) -> Mat<'a> {
        self.inputs.k.head(self.span.token, self.kv_head, self.span.length, self.width)
    }

    /// (length, width)
    fn values(&self) -> Mat<'a> {
        self.inputs.v.head(self.span.token, self.kv_head, self.span.length, self.width)
    }

    /// Returns the queries `rows` of one head, (rows, width).
    fn queries(&self, head: usize, rows: Range<usize>) -> Mat<'a> {
        self.inputs.q.head(self.span.query + rows.start, head, rows.len(), self.width)
    }

    /// Returns the same rows and columns of another matrix (queries, heads * width).
    fn of_queries<'b>(&self, x: &'b [f32], head: usize, rows: Range<usize>) -> Mat<'b> {
        let hidden = self.all_heads * self.width;
        Columns { data: x, stride: hidden }.head(self.span.query + rows.start, head, rows.len(), self.width)
    }

    /// Returns the indices of a query's columns of one head in a matrix (queries, heads * width).
    fn columns(&self, head: usize, row: usize) -> Range<usize> {
        let from = ((self.span.query + row) * self.all_heads + head) * self.width;
        from..from + self.width
    }

    /// Returns the index of a query's entry of one head in a matrix (queries, heads).
    fn entry(&self, head: usize, row: usize) -> usize {
        (self.span.query + row) * self.all_heads + head
    }
}

/// Gradients summed over the heads of a group.
struct GroupGradients<'a> {
    /// Gradient of the keys without the factor `scale`, (length, stride); the first `width` columns
    /// are used.
    dk: &'a mut [f32],
    /// Gradient of the values, in the same shape.
    dv: &'a mut [f32],
    stride: usize,
    /// Gradients of these heads' bias tables, one after the other, if the bias trains.
    tables: Option<&'a mut [f32]>,
    heads: Range<usize>,
}

impl GroupGradients<'_> {
    fn table_of(&mut self, head: usize) -> Option<&mut [f32]> {
        let tables = self.tables.as_deref_mut()?;
        let each = tables.len() / self.heads.len();
        Some(&mut tables[(head - self.heads.start) * each..][..each])
    }
}

fn row_key(sequence: Key, head: usize, row: usize) -> Key {
    sequence.fold((head as u64) << 32 | row as u64)
}
