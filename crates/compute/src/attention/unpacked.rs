//! Attention for few queries, with unpacked keys and values: packing them would cost as much as
//! their products. Rows are queries, and products are in f32 whatever the precision.

use super::{Attention, GroupGradients, HeadGroup, SavedForward, row_key};
use crate::arena::Arena;
use crate::cpu::vectorised;
use crate::gemm::{FEW_ROWS, MatMut, Start, add_rows, matmul_few_local};
use crate::math::{exp, fused, max, sum_by, sum_by_2};
use crate::output_slice::OutputSlice;
use crate::random::{Dropout, Key};
use crate::rows::add_row;

/// Returns whether a sequence has few enough queries.
pub fn applies_to(queries: usize) -> bool {
    queries <= FEW_ROWS
}

/// Floats of scratch memory that `forward` and `backward` take for sequences of this length.
pub const fn scratch(length: usize) -> usize {
    2 * FEW_ROWS * length
}

/// Computes one head's columns of `out` and its entries of `lse`.
///
/// # Safety
/// No one else accesses them during the call.
pub unsafe fn forward(
    attention: &Attention,
    group: &HeadGroup,
    head: usize,
    [out, lse]: [OutputSlice; 2],
    scratch: &mut Vec<f32>,
) {
    let (queries, length) = (group.span.queries, group.span.length);
    let scores = Arena::new(scratch, queries * length).take(queries * length);
    let (q, keys) = (group.queries(head, 0..queries), group.keys());
    matmul_few_local(MatMut::new(scores, queries, length), Start::Zero, (q, keys.t()), None);
    let (values, stride) = group.values().stored_rows().expect("values are stored by rows");
    for (row, scores) in scores.chunks_exact_mut(length).enumerate() {
        scores.iter_mut().for_each(|x| *x *= attention.scale);
        if let Some(bias) = attention.bias_row(head, row, length) {
            add_row(scores, bias);
        }
        let visible = attention.visible_keys(&group.span, row..row + 1);
        scores[..visible.start].fill(0.0);
        scores[visible.end..].fill(0.0);
        let first = visible.start;
        let sum = softmax_row(&mut scores[visible.clone()]);
        if let Some((dropout, keys)) = attention.dropout {
            drop_row(&mut scores[visible], first, dropout, row_key(keys[group.sequence], head, row));
        }
        // SAFETY: the caller promises exclusive access to these entries and columns.
        let out = unsafe {
            lse.columns(group.span.query + row, head, 1)[0] = sum;
            out.columns(group.span.query + row, head * attention.width, attention.width)
        };
        out.fill(0.0);
        add_rows(out, scores, values, stride);
    }
}

/// Computes one head's columns of dq, and adds its gradients of keys, values and bias to `sums`.
///
/// # Safety
/// No one else accesses these columns during the call.
pub unsafe fn backward(
    attention: &Attention,
    (group, head): (&HeadGroup, usize),
    saved: SavedForward,
    dout: &[f32],
    dq: OutputSlice,
    sums: &mut GroupGradients,
    scratch: &mut Vec<f32>,
) {
    let (queries, length) = (group.span.queries, group.span.length);
    let mut arena = Arena::new(scratch, 2 * queries * length);
    let [p, ds] = [(); 2].map(|()| arena.take(queries * length));
    let q = group.queries(head, 0..queries);
    matmul_few_local(MatMut::new(p, queries, length), Start::Zero, (q, group.keys().t()), None);
    let dout_rows = group.of_queries(dout, head, 0..queries);
    matmul_few_local(MatMut::new(ds, queries, length), Start::Zero, (dout_rows, group.values().t()), None);
    let (keys, stride) = group.keys().stored_rows().expect("keys are stored by rows");
    let (query_rows, query_stride) = q.stored_rows().expect("queries are stored by rows");
    for (row, (p, ds)) in p.chunks_exact_mut(length).zip(ds.chunks_exact_mut(length)).enumerate() {
        p.iter_mut().for_each(|x| *x *= attention.scale);
        if let Some(bias) = attention.bias_row(head, row, length) {
            add_row(p, bias);
        }
        let visible = attention.visible_keys(&group.span, row..row + 1);
        for x in [&mut *p, &mut *ds] {
            x[..visible.start].fill(0.0);
            x[visible.end..].fill(0.0);
        }
        let columns = group.columns(head, row);
        let dout = &dout[columns.clone()];
        let delta = dot_row(&saved.out[columns], dout);
        {
            let (first, p, ds) = (visible.start, &mut p[visible.clone()], &mut ds[visible]);
            probabilities_row(p, saved.lse[group.entry(head, row)]);
            match attention.dropout {
                Some((dropout, keys)) => {
                    let key = row_key(keys[group.sequence], head, row);
                    score_gradients_row_dropped(p, ds, delta, first, dropout, key);
                }
                None => score_gradients_row(p, ds, delta),
            }
        }
        if let Some(table) = sums.table_of(head) {
            let reach = table.len().div_ceil(2);
            add_row(&mut table[reach - 1 - row..][..length], ds);
        }
        // SAFETY: the caller promises exclusive access to these columns of dq.
        let dq = unsafe { dq.columns(group.span.query + row, head * attention.width, attention.width) };
        dq.fill(0.0);
        add_rows(dq, ds, keys, stride);
        dq.iter_mut().for_each(|x| *x *= attention.scale);
        add_outer(sums.dv, sums.stride, p, dout);
        add_outer(sums.dk, sums.stride, ds, &query_rows[row * query_stride..][..attention.width]);
    }
}

vectorised! {
    /// Replaces scores by probabilities; returns the log-sum-exp.
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
    pub fn dot_row(x: &[f32], y: &[f32]) -> f32 {
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
    /// Applies dropout to a row of probabilities. The first value is that of token `first`.
    fn drop_row(x: &mut [f32], first: usize, dropout: Dropout, key: Key) {
        for (i, x) in x.iter_mut().enumerate() {
            *x *= dropout.factor(key, (first + i) as u32);
        }
    }
}

vectorised! {
    /// ds = p · (ds − delta)
    fn score_gradients_row(p: &mut [f32], ds: &mut [f32], delta: f32) {
        for (p, ds) in p.iter().zip(ds) {
            *ds = *p * (*ds - delta);
        }
    }
}

vectorised! {
    /// ds = p · (factor · ds − delta); p = factor · p
    fn score_gradients_row_dropped(p: &mut [f32], ds: &mut [f32], delta: f32, first: usize, dropout: Dropout, key: Key) {
        for (i, (p, ds)) in p.iter_mut().zip(ds).enumerate() {
            let factor = dropout.factor(key, (first + i) as u32);
            *ds = *p * fused::<FMA>(factor, *ds, -delta);
            *p *= factor;
        }
    }
}

vectorised! {
    /// Adds xᵢ · y to row i of `to`, whose rows start `stride` apart.
    fn add_outer(to: &mut [f32], stride: usize, x: &[f32], y: &[f32]) {
        for (to, &x) in to.chunks_exact_mut(stride).zip(x) {
            for (to, &y) in to.iter_mut().zip(y) {
                *to = fused::<FMA>(x, y, *to);
            }
        }
    }
}
