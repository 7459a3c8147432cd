//! Attention of a strip of queries at a time, keys and values packed once for all heads and queries
//! that meet them.
//!
//! Scores are formed turned: a row for each key, a lane for each query. So a softmax sums lane by
//! lane, and the probabilities are, without being moved, both a panel of queries (for P V and dS K)
//! and rows of keys (for Pᵀ dO and dSᵀ Q). Forward holds the scores of one strip, length · `LANES`
//! of them; the backward pass holds `KEYS` keys of a strip.

use std::ops::Range;

use super::columns::{self, LANES, Row, RowKeys};
use super::few::dot_row;
use super::{Attention, Group, Kept, OutputSlice, Sums, row_key};
use crate::arena::Arena;
use crate::cpu::fetch;
use crate::gemm::panels::{self, Format, HEIGHT, Left, Right, WIDTH, multiply, pack, pack_columns, to_words};
use crate::gemm::{Mat, MatMut, Start};

/// Keys of a strip that the backward pass takes at a time: their scores and the scores' gradients
/// are 32 KiB.
const KEYS: usize = 128;

/// Rows that are asked for before they are packed.
const AHEAD: usize = 16;

/// The sizes of packed operands, in words.
#[derive(Clone, Copy)]
struct Sizes {
    format: Format,
    length: usize,
    width: usize,
}

impl Sizes {
    fn words(self, k: usize) -> usize {
        k.div_ceil(self.format.per_word())
    }

    /// Rows of a head's values, one for each key, and a few that a product may read from the last
    /// one on.
    fn rows(self) -> usize {
        (self.length + HEIGHT) * self.words(self.width)
    }

    /// Panels with the head's values as columns, `k` of them deep.
    fn columns(self, k: usize) -> usize {
        self.words(k) * self.width.next_multiple_of(WIDTH)
    }

    /// A panel with queries as columns, `k` deep.
    fn panel(self, k: usize) -> usize {
        self.words(k) * LANES
    }

    fn forward(self) -> usize {
        let (length, width) = (self.length, self.width);
        self.rows() + self.columns(length) + self.panel(width) + LANES * length + self.panel(length)
    }

    fn backward(self) -> usize {
        let packed = 2 * self.rows() + self.columns(self.length);
        let of_queries = 2 * self.panel(self.width) + 2 * self.columns(LANES);
        packed + of_queries + 2 * LANES * KEYS + 2 * KEYS * self.words(LANES) + self.panel(KEYS)
    }
}

/// Floats that `forward` and `backward` take for heads of this width and sequences of this length,
/// at most.
pub fn scratch(length: usize, width: usize) -> usize {
    let sizes = Sizes { format: Format::F32, length, width };
    sizes.forward().max(sizes.backward())
}

/// How many strips a head of the sequence has.
pub fn strips(queries: usize) -> usize {
    queries.div_ceil(LANES)
}

/// A strip of one head's queries.
struct Strip {
    head: usize,
    /// Its first query, and their number.
    first: usize,
    queries: usize,
}

impl Strip {
    /// Of all strips of a group's heads the one with this number.
    fn numbered(group: &Group, number: usize) -> Strip {
        let each = strips(group.span.queries);
        let first = number % each * LANES;
        let head = group.heads.start + number / each;
        Strip { head, first, queries: LANES.min(group.span.queries - first) }
    }

    fn rows(&self) -> Range<usize> {
        self.first..self.first + self.queries
    }

    fn row_keys(&self, attention: &Attention, group: &Group) -> Option<RowKeys> {
        let (_, keys) = attention.dropout?;
        Some(RowKeys::new(self.rows().map(|row| row_key(keys[group.sequence], self.head, row))))
    }

    /// Products of queries and of the keys from `first_key` on, made ready for exp: with the bias,
    /// and −∞ where a query does not see a key. Returns what is left to scale them by.
    fn finish_scores(
        &self,
        attention: &Attention,
        group: &Group,
        first_key: usize,
        scores: &mut [Row],
    ) -> f32 {
        let mut scale = attention.scale;
        if let Some(bias) = attention.bias {
            let table = bias.of_head(self.head);
            columns::add_bias(scores, scale, table, bias.reach - 1 + first_key - self.first, self.queries);
            scale = 1.0;
        }
        attention.hide(&group.span, self.first, first_key, scores);
        scale
    }
}

/// Writes the columns of `out` and the entries of `lse` of some strips of the group's heads.
///
/// # Safety
/// No one else touches them meanwhile.
pub unsafe fn forward(
    attention: &Attention,
    group: &Group,
    numbers: Range<usize>,
    [out, lse]: [OutputSlice; 2],
    scratch: &mut Vec<f32>,
) {
    let (length, width) = (group.span.length, attention.width);
    let format = panels::format(attention.precision);
    let sizes = Sizes { format, length, width };
    let mut arena = Arena::new(scratch, sizes.forward());
    let key_rows = arena.take(sizes.rows());
    pack_rows(format, group.keys(), key_rows);
    let value_columns = arena.take(sizes.columns(length));
    pack(group.values().t(), 0..width, 0..length, 1.0, WIDTH, format, value_columns);
    let query_panel = arena.take(sizes.panel(width));
    let scores = arena.take(LANES * length);
    let panel = arena.take(sizes.panel(length));

    for number in numbers {
        let strip = Strip::numbered(group, number);
        let seen = attention.seen_by(&group.span, strip.rows());
        // Pairs stay whole.
        let first_key = seen.start & !1;
        let count = seen.end - first_key;
        pack_columns(format, group.queries(strip.head, strip.rows()), query_panel);
        let scores = &mut scores[..LANES * count];
        let depth = sizes.words(width);
        multiply(
            format,
            MatMut::new(scores, count, LANES),
            Start::Zero,
            Left::rows(&key_rows[first_key * depth..], depth),
            Right { words: query_panel, panel: query_panel.len() },
            depth,
        );
        let rows = scores.as_chunks_mut().0;
        let scale = strip.finish_scores(attention, group, first_key, rows);
        let (mut top, mut sum) = ([0.0; LANES], [0.0; LANES]);
        columns::largest(rows, &mut top);
        columns::exponentials(rows, scale, &top, &mut sum);
        if let (Some((dropout, _)), Some(keys)) = (attention.dropout, strip.row_keys(attention, group)) {
            columns::drop(rows, first_key, dropout, &keys);
        }
        let panel = as_panel(format, scores, panel);
        // SAFETY: the caller's promise.
        let to = unsafe { out.head(group.span.query + strip.first, strip.head, strip.queries, width) };
        multiply(
            format,
            to,
            Start::Zero,
            Left::turned(panel),
            Right {
                words: &value_columns[sizes.words(first_key) * WIDTH..],
                panel: sizes.words(length) * WIDTH,
            },
            sizes.words(count),
        );
        for i in 0..strip.queries {
            let row = strip.first + i;
            // SAFETY: the caller's promise.
            let to = unsafe {
                lse.write(group.entry(strip.head, row), scale * top[i] + sum[i].ln());
                out.row(group.span.query + row, strip.head, width)
            };
            let factor = 1.0 / sum[i];
            to.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

/// Writes dq of the group's heads, and adds to `sums` what they give to keys, values and bias.
///
/// # Safety
/// No one else touches these columns of dq meanwhile.
pub unsafe fn backward(
    attention: &Attention,
    group: &Group,
    kept: Kept,
    dout: &[f32],
    dq: OutputSlice,
    sums: &mut Sums,
    scratch: &mut Vec<f32>,
) {
    let (length, width) = (group.span.length, attention.width);
    let format = panels::format(attention.precision);
    let sizes = Sizes { format, length, width };
    let mut arena = Arena::new(scratch, sizes.backward());
    let [key_rows, value_rows] = [(); 2].map(|()| arena.take(sizes.rows()));
    pack_rows(format, group.keys(), key_rows);
    pack_rows(format, group.values(), value_rows);
    let key_columns = arena.take(sizes.columns(length));
    pack(group.keys().t(), 0..width, 0..length, 1.0, WIDTH, format, key_columns);
    let [query_panel, dout_panel] = [(); 2].map(|()| arena.take(sizes.panel(width)));
    let [query_columns, dout_columns] = [(); 2].map(|()| arena.take(sizes.columns(LANES)));
    let [p, ds] = [(); 2].map(|()| arena.take(LANES * KEYS));
    let [p_words, ds_words] = [(); 2].map(|()| arena.take(KEYS * sizes.words(LANES)));
    let ds_panel = arena.take(sizes.panel(KEYS));
    let depth = sizes.words(width);

    for number in 0..group.heads.len() * strips(group.span.queries) {
        let strip = Strip::numbered(group, number);
        for row in strip.rows() {
            fetch(&kept.out[group.columns(strip.head, row)]);
        }
        let queries = group.queries(strip.head, strip.rows());
        let dout_rows = group.of_queries(dout, strip.head, strip.rows());
        let query_columns = &mut query_columns[..sizes.columns(strip.queries)];
        let dout_columns = &mut dout_columns[..sizes.columns(strip.queries)];
        for (rows, panel, columns) in [
            (queries, &mut *query_panel, &mut *query_columns),
            (dout_rows, &mut *dout_panel, &mut *dout_columns),
        ] {
            pack_columns(format, rows, panel);
            pack(rows.t(), 0..width, 0..strip.queries, 1.0, WIDTH, format, columns);
        }
        let (mut lse, mut along) = ([0.0; LANES], [0.0; LANES]);
        for (i, row) in strip.rows().enumerate() {
            lse[i] = kept.lse[group.entry(strip.head, row)];
            let columns = group.columns(strip.head, row);
            along[i] = dot_row(&kept.out[columns.clone()], &dout[columns]);
        }
        let row_keys = strip.row_keys(attention, group);
        let seen = attention.seen_by(&group.span, strip.rows());
        for (number, first_key) in ((seen.start & !1)..seen.end).step_by(KEYS).enumerate() {
            let count = KEYS.min(seen.end - first_key);
            // Products read whole tiles of rows; what lies in those after the last key goes
            // nowhere.
            let whole = LANES * count.next_multiple_of(HEIGHT);
            let (p, ds) = (&mut p[..whole], &mut ds[..whole]);
            for (to, rows, panel) in
                [(&mut *p, &*key_rows, &*query_panel), (&mut *ds, &*value_rows, &*dout_panel)]
            {
                multiply(
                    format,
                    MatMut::new(&mut to[..LANES * count], count, LANES),
                    Start::Zero,
                    Left::rows(&rows[first_key * depth..], depth),
                    Right { words: panel, panel: panel.len() },
                    depth,
                );
            }
            {
                let [p, ds] = [&mut *p, &mut *ds].map(|x| x[..LANES * count].as_chunks_mut().0);
                let scale = strip.finish_scores(attention, group, first_key, p);
                match (attention.dropout, &row_keys) {
                    (Some((dropout, _)), Some(keys)) => {
                        columns::gradients_dropped(p, ds, scale, &lse, &along, first_key, dropout, keys)
                    }
                    _ => columns::gradients(p, ds, scale, &lse, &along),
                }
                if let Some(table) = sums.table_of(strip.head) {
                    let zero = table.len() / 2 + first_key - strip.first;
                    columns::add_bias_gradient(table, ds, zero, strip.queries);
                }
            }
            let [p_rows, ds_rows] =
                [(&*p, &mut *p_words), (&*ds, &mut *ds_words)].map(|(x, words)| as_words(format, x, words));
            for (to, rows, columns) in
                [(&mut *sums.dv, p_rows, &*dout_columns), (&mut *sums.dk, ds_rows, &*query_columns)]
            {
                let to = &mut to[first_key * sums.stride..][..count * sums.stride];
                let panel = sizes.words(strip.queries) * WIDTH;
                multiply(
                    format,
                    MatMut::strided(to, count, width, sums.stride),
                    Start::Keep,
                    Left::rows(rows, sizes.words(LANES)),
                    Right { words: columns, panel },
                    sizes.words(strip.queries),
                );
            }
            // SAFETY: the caller's promise.
            let to = unsafe { dq.head(group.span.query + strip.first, strip.head, strip.queries, width) };
            multiply(
                format,
                to,
                if number == 0 { Start::Zero } else { Start::Keep },
                Left::turned(if format.per_word() > 1 {
                    as_panel(format, &ds[..LANES * count], ds_panel)
                } else {
                    ds_rows
                }),
                Right {
                    words: &key_columns[sizes.words(first_key) * WIDTH..],
                    panel: sizes.words(length) * WIDTH,
                },
                sizes.words(count),
            );
        }
        for row in strip.rows() {
            // SAFETY: the caller's promise.
            let dq = unsafe { dq.row(group.span.query + row, strip.head, width) };
            dq.iter_mut().for_each(|x| *x *= attention.scale);
        }
    }
}

/// The rows of a matrix as rows of words, without gaps.
fn pack_rows(format: Format, rows: Mat, out: &mut [f32]) {
    let depth = rows.cols().div_ceil(format.per_word());
    let (data, stride) = rows.stored_rows().expect("stored by rows");
    for (i, out) in out.chunks_exact_mut(depth).take(rows.rows()).enumerate() {
        if i + AHEAD < rows.rows() {
            fetch(&data[(i + AHEAD) * stride..][..rows.cols()]);
        }
        to_words(&data[i * stride..][..rows.cols()], format, out);
    }
}

/// A strip (keys, `LANES`) as a panel with queries as columns, in `out` if it can't stay where it
/// is.
fn as_panel<'a>(format: Format, strip: &'a [f32], out: &'a mut [f32]) -> &'a [f32] {
    if format.per_word() == 1 {
        return as_words(format, strip, out);
    }
    let keys = strip.len() / LANES;
    let out = &mut out[..keys.div_ceil(format.per_word()) * LANES];
    pack(Mat::new(strip, keys, LANES).t(), 0..LANES, 0..keys, 1.0, LANES, format, out);
    out
}

/// A strip (keys, `LANES`) as rows of words, in `out` if it can't stay where it is.
fn as_words<'a>(format: Format, strip: &'a [f32], out: &'a mut [f32]) -> &'a [f32] {
    if format == Format::F32 {
        return strip;
    }
    let out = &mut out[..strip.len() / format.per_word()];
    to_words(strip, format, out);
    out
}
