//! Attention for one strip of queries at a time. Keys and values are packed once for all heads and
//! queries that use them.
//!
//! Scores are computed transposed, Sᵀ = K Qᵀ: one row per key, one lane per query. The softmax then
//! sums lane by lane, and Pᵀ and dSᵀ serve without a transposition both as a panel of queries (for
//! Vᵀ Pᵀ and Kᵀ dSᵀ) and as rows of keys (for Pᵀ dO and dSᵀ Q). O and dQ are computed transposed as
//! well, one row per column of the head. The forward pass holds the scores of one strip, length ·
//! `QUERIES`; the backward pass holds those of `KEYS` keys at a time.

use std::ops::Range;

use super::columns::{self, PerQuery, QUERIES, RowKeys};
use super::unpacked::dot_row;
use super::{Attention, GroupGradients, HeadGroup, SavedForward, row_key};
use crate::arena::Arena;
use crate::cpu::prefetch_l1;
use crate::gemm::panels::{Left, PanelGemm, Right, WIDTH, transpose};
use crate::gemm::{Mat, MatMut, Precision, Start};
use crate::output_slice::OutputSlice;

/// Keys that the backward pass processes at a time: their scores and the gradients of these take 32
/// KiB.
const KEYS: usize = 128;

/// The sizes of packed operands, in words.
#[derive(Clone, Copy)]
struct Sizes {
    panels: PanelGemm,
    length: usize,
    width: usize,
}

impl Sizes {
    fn words(self, k: usize) -> usize {
        self.panels.words(k)
    }

    /// Returns the words of a head's rows, one per key, and of the rows that a product may read
    /// past the last key.
    fn rows(self) -> usize {
        (self.length + WIDTH) * self.words(self.width)
    }

    /// Returns the words of panels of the head's columns, `k` values deep.
    fn columns(self, k: usize) -> usize {
        self.words(k) * self.width.next_multiple_of(WIDTH)
    }

    /// Returns the words of a panel with queries as columns, `k` values deep.
    fn panel(self, k: usize) -> usize {
        self.words(k) * QUERIES
    }

    /// Returns the words of a strip's part of Oᵀ or dQᵀ, (width, `QUERIES`), and of its transpose.
    fn transposed(self) -> usize {
        2 * self.width * QUERIES
    }

    fn forward(self) -> usize {
        let length = self.length;
        let packed = self.rows() + self.columns(length) + self.panel(self.width);
        packed + QUERIES * length + self.panel(length) + self.transposed()
    }

    fn backward(self) -> usize {
        let packed = 2 * self.rows() + self.columns(self.length);
        let of_queries = 2 * self.panel(self.width) + 2 * self.columns(QUERIES);
        let of_keys = 2 * QUERIES * KEYS + 2 * KEYS * self.words(QUERIES) + self.panel(KEYS);
        packed + of_queries + of_keys + self.transposed()
    }
}

/// Upper bound on the floats of scratch memory that `forward` and `backward` take for heads of this
/// width and sequences of this length.
pub fn scratch(length: usize, width: usize) -> usize {
    let sizes = |precision| Sizes { panels: PanelGemm::new(precision), length, width };
    let both = [Precision::F32, Precision::Bf16].map(sizes);
    both.map(|sizes| sizes.forward().max(sizes.backward())).into_iter().max().unwrap_or(0)
}

/// Returns the number of strips of a head with this number of queries.
pub fn strips(queries: usize) -> usize {
    queries.div_ceil(QUERIES)
}

/// A strip of one head's queries.
struct QueryStrip {
    head: usize,
    /// First query, and number of queries.
    first: usize,
    queries: usize,
}

impl QueryStrip {
    /// Returns the strip with this number among all strips of a group's heads.
    fn numbered(group: &HeadGroup, number: usize) -> QueryStrip {
        let each = strips(group.span.queries);
        let first = number % each * QUERIES;
        let head = group.heads.start + number / each;
        QueryStrip { head, first, queries: QUERIES.min(group.span.queries - first) }
    }

    fn rows(&self) -> Range<usize> {
        self.first..self.first + self.queries
    }

    fn row_keys(&self, attention: &Attention, group: &HeadGroup) -> Option<RowKeys> {
        let (_, keys) = attention.dropout?;
        Some(RowKeys::new(self.rows().map(|row| row_key(keys[group.sequence], self.head, row))))
    }

    /// Prepares scores for exp, from the products of queries with the keys from `first_key` on:
    /// adds the bias, and sets those of masked keys to −∞. Returns the scale that is still to be
    /// applied.
    fn finish_scores(
        &self,
        attention: &Attention,
        group: &HeadGroup,
        first_key: usize,
        scores: &mut [PerQuery],
    ) -> f32 {
        let mut scale = attention.scale;
        if let Some(bias) = attention.bias {
            let table = bias.of_head(self.head);
            columns::add_bias(scores, scale, table, bias.reach - 1 + first_key - self.first, self.queries);
            scale = 1.0;
        }
        attention.mask_scores(&group.span, self.first, first_key, scores);
        scale
    }
}

/// Computes the columns of `out` and the entries of `lse` of the strips `numbers` of a group's
/// heads.
///
/// # Safety
/// No one else accesses them during the call.
pub unsafe fn forward(
    attention: &Attention,
    group: &HeadGroup,
    numbers: Range<usize>,
    [out, lse]: [OutputSlice; 2],
    scratch: &mut Vec<f32>,
) {
    let (length, width) = (group.span.length, attention.width);
    let panels = PanelGemm::new(attention.precision);
    let sizes = Sizes { panels, length, width };
    let mut arena = Arena::new(scratch, sizes.forward());
    let key_rows = arena.take(sizes.rows());
    panels.pack_rows(group.keys(), key_rows);
    let value_columns = arena.take(sizes.columns(length));
    panels.pack_transposed(group.values(), value_columns);
    let query_panel = arena.take(sizes.panel(width));
    let scores = arena.take(QUERIES * length);
    let panel = arena.take(sizes.panel(length));
    let [transposed, of_queries] = [(); 2].map(|()| arena.take(width * QUERIES));
    let depth = sizes.words(width);

    for number in numbers {
        let strip = QueryStrip::numbered(group, number);
        let visible = attention.visible_keys(&group.span, strip.rows());
        let first_key = panels.cut(visible.start);
        let count = visible.end - first_key;
        panels.pack_right(group.queries(strip.head, strip.rows()).t(), query_panel);
        let scores = &mut scores[..QUERIES * count];
        panels.multiply(
            MatMut::new(scores, count, QUERIES),
            Start::Zero,
            Left::rows(&key_rows[first_key * depth..], depth),
            Right { words: query_panel, panel: query_panel.len() },
            depth,
        );
        let rows = scores.as_chunks_mut().0;
        let scale = strip.finish_scores(attention, group, first_key, rows);
        let (mut top, mut sum) = ([0.0; QUERIES], [0.0; QUERIES]);
        columns::largest(rows, &mut top);
        columns::exponentials(rows, scale, &top, &mut sum);
        if let (Some((dropout, _)), Some(keys)) = (attention.dropout, strip.row_keys(attention, group)) {
            columns::drop(rows, first_key, dropout, &keys);
        }
        let panel = panels.strip_panel(scores, panel);
        panels.multiply(
            MatMut::new(transposed, width, QUERIES),
            Start::Zero,
            Left::transposed(&value_columns[sizes.words(first_key) * WIDTH..], sizes.words(length) * WIDTH),
            Right { words: panel, panel: panel.len() },
            sizes.words(count),
        );
        transpose(Mat::new(transposed, width, QUERIES), of_queries);
        for (i, values) in of_queries.chunks_exact(width).take(strip.queries).enumerate() {
            let row = strip.first + i;
            // SAFETY: the caller promises exclusive access to these entries and columns.
            let to = unsafe {
                lse.columns(group.span.query + row, strip.head, 1)[0] = scale * top[i] + sum[i].ln();
                out.columns(group.span.query + row, strip.head * width, width)
            };
            columns::scale(to, values, 1.0 / sum[i]);
        }
    }
}

/// Computes dq of the group's heads, and adds their gradients of keys, values and bias to `sums`.
///
/// # Safety
/// No one else accesses these columns of dq during the call.
pub unsafe fn backward(
    attention: &Attention,
    group: &HeadGroup,
    saved: SavedForward,
    dout: &[f32],
    dq: OutputSlice,
    sums: &mut GroupGradients,
    scratch: &mut Vec<f32>,
) {
    let (length, width) = (group.span.length, attention.width);
    let panels = PanelGemm::new(attention.precision);
    let sizes = Sizes { panels, length, width };
    let mut arena = Arena::new(scratch, sizes.backward());
    let [key_rows, value_rows] = [(); 2].map(|()| arena.take(sizes.rows()));
    panels.pack_rows(group.keys(), key_rows);
    panels.pack_rows(group.values(), value_rows);
    let key_columns = arena.take(sizes.columns(length));
    panels.pack_transposed(group.keys(), key_columns);
    let [query_panel, dout_panel] = [(); 2].map(|()| arena.take(sizes.panel(width)));
    let [query_columns, dout_columns] = [(); 2].map(|()| arena.take(sizes.columns(QUERIES)));
    let [p, ds] = [(); 2].map(|()| arena.take(QUERIES * KEYS));
    let [p_words, ds_words] = [(); 2].map(|()| arena.take(KEYS * sizes.words(QUERIES)));
    let ds_panel = arena.take(sizes.panel(KEYS));
    let [transposed, of_queries] = [(); 2].map(|()| arena.take(width * QUERIES));
    let depth = sizes.words(width);

    for number in 0..group.heads.len() * strips(group.span.queries) {
        let strip = QueryStrip::numbered(group, number);
        for row in strip.rows() {
            prefetch_l1(&saved.out[group.columns(strip.head, row)]);
        }
        let queries = group.queries(strip.head, strip.rows());
        let dout_rows = group.of_queries(dout, strip.head, strip.rows());
        let query_columns = &mut query_columns[..sizes.columns(strip.queries)];
        let dout_columns = &mut dout_columns[..sizes.columns(strip.queries)];
        for (rows, panel, columns) in [
            (queries, &mut *query_panel, &mut *query_columns),
            (dout_rows, &mut *dout_panel, &mut *dout_columns),
        ] {
            panels.pack_right(rows.t(), panel);
            panels.pack_right(rows, columns);
        }
        let (mut lse, mut delta) = ([0.0; QUERIES], [0.0; QUERIES]);
        for (i, row) in strip.rows().enumerate() {
            lse[i] = saved.lse[group.entry(strip.head, row)];
            let columns = group.columns(strip.head, row);
            delta[i] = dot_row(&saved.out[columns.clone()], &dout[columns]);
        }
        let row_keys = strip.row_keys(attention, group);
        let visible = attention.visible_keys(&group.span, strip.rows());
        for (number, first_key) in (panels.cut(visible.start)..visible.end).step_by(KEYS).enumerate() {
            let count = KEYS.min(visible.end - first_key);
            // Products may read rows past the last key, whose results are not stored.
            let whole = QUERIES * panels.padded(count);
            let (p, ds) = (&mut p[..whole], &mut ds[..whole]);
            for (to, rows, panel) in
                [(&mut *p, &*key_rows, &*query_panel), (&mut *ds, &*value_rows, &*dout_panel)]
            {
                panels.multiply(
                    MatMut::new(&mut to[..QUERIES * count], count, QUERIES),
                    Start::Zero,
                    Left::rows(&rows[first_key * depth..], depth),
                    Right { words: panel, panel: panel.len() },
                    depth,
                );
            }
            {
                let [p, ds] = [&mut *p, &mut *ds].map(|x| x[..QUERIES * count].as_chunks_mut().0);
                let scale = strip.finish_scores(attention, group, first_key, p);
                match (attention.dropout, &row_keys) {
                    (Some((dropout, _)), Some(keys)) => {
                        columns::gradients_dropped(p, ds, scale, &lse, &delta, first_key, dropout, keys)
                    }
                    _ => columns::gradients(p, ds, scale, &lse, &delta),
                }
                if let Some(table) = sums.table_of(strip.head) {
                    let zero = table.len() / 2 + first_key - strip.first;
                    columns::add_bias_gradient(table, ds, zero, strip.queries);
                }
            }
            let [p_rows, ds_rows] =
                [(&*p, &mut *p_words), (&*ds, &mut *ds_words)].map(|(x, words)| panels.strip_rows(x, words));
            for (to, rows, columns) in
                [(&mut *sums.dv, p_rows, &*dout_columns), (&mut *sums.dk, ds_rows, &*query_columns)]
            {
                let to = &mut to[first_key * sums.stride..][..count * sums.stride];
                let panel = sizes.words(strip.queries) * WIDTH;
                panels.multiply(
                    MatMut::strided(to, count, width, sums.stride),
                    Start::Keep,
                    Left::rows(rows, sizes.words(QUERIES)),
                    Right { words: columns, panel },
                    sizes.words(strip.queries),
                );
            }
            let ds_panel = if panels.rows_are_panels() {
                ds_rows
            } else {
                panels.strip_panel(&ds[..QUERIES * count], ds_panel)
            };
            panels.multiply(
                MatMut::new(transposed, width, QUERIES),
                if number == 0 { Start::Zero } else { Start::Keep },
                Left::transposed(&key_columns[sizes.words(first_key) * WIDTH..], sizes.words(length) * WIDTH),
                Right { words: ds_panel, panel: ds_panel.len() },
                sizes.words(count),
            );
        }
        transpose(Mat::new(transposed, width, QUERIES), of_queries);
        for (row, values) in strip.rows().zip(of_queries.chunks_exact(width)) {
            // SAFETY: the caller promises exclusive access to these columns of dq.
            let dq = unsafe { dq.columns(group.span.query + row, strip.head * width, width) };
            columns::scale(dq, values, attention.scale);
        }
    }
}
