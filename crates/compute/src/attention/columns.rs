//! Operations on a strip of scores: one row per key, with one lane for each of `QUERIES` queries.
//! All lanes do the same, and nothing is summed across them.

use crate::cpu::vectorised;
use crate::gemm::panels::WIDTH;
use crate::math::{exp, fused};
use crate::random::{Dropout, Key};

/// Number of queries of a strip.
pub const QUERIES: usize = WIDTH;

/// A value for each query.
pub type PerQuery = [f32; QUERIES];

/// Dropout keys of a strip: the lower and upper halves of the key of each query's row of
/// probabilities.
pub struct RowKeys {
    low: [u32; QUERIES],
    high: [u32; QUERIES],
}

impl RowKeys {
    /// Collects the keys of at most `QUERIES` queries.
    pub fn new(keys: impl Iterator<Item = Key>) -> Self {
        let mut all = RowKeys { low: [0; QUERIES], high: [0; QUERIES] };
        for (i, key) in keys.enumerate() {
            [all.low[i], all.high[i]] = key.halves();
        }
        all
    }
}

vectorised! {
    /// score = scale · score + bias. The bias of row `key` and query `query` is `table[zero + key −
    /// query]`.
    pub fn add_bias(scores: &mut [PerQuery], scale: f32, table: &[f32], zero: usize, queries: usize) {
        for (key, row) in scores.iter_mut().enumerate() {
            let bias = &table[zero + key + 1 - queries..][..queries];
            for (x, &bias) in row[..queries].iter_mut().zip(bias.iter().rev()) {
                *x = fused::<FMA>(scale, *x, bias);
            }
        }
    }
}

vectorised! {
    /// Adds the gradient of the score of row `key` and query `query` to `table[zero + key −
    /// query]`, so that the bias's gradient is summed along diagonals.
    pub fn add_bias_gradient(table: &mut [f32], gradients: &[PerQuery], zero: usize, queries: usize) {
        for (key, row) in gradients.iter().enumerate() {
            let bias = &mut table[zero + key + 1 - queries..][..queries];
            for (bias, &x) in bias.iter_mut().rev().zip(&row[..queries]) {
                *bias += x;
            }
        }
    }
}

vectorised! {
    /// Writes the largest score of each query to `top`.
    pub fn largest(scores: &[PerQuery], top: &mut PerQuery) {
        let mut most = [f32::NEG_INFINITY; QUERIES];
        for row in scores {
            for (most, &x) in most.iter_mut().zip(row) {
                *most = if x > *most { x } else { *most };
            }
        }
        *top = most;
    }
}

vectorised! {
    /// Replaces scores by exp(scale · (score − top)), and writes their sums to `sum`.
    pub fn exponentials(scores: &mut [PerQuery], scale: f32, top: &PerQuery, sum: &mut PerQuery) {
        let shift = top.map(|top| -scale * top);
        let mut total = [0.0; QUERIES];
        for row in scores {
            for ((x, &shift), total) in row.iter_mut().zip(&shift).zip(&mut total) {
                *x = exp::<FMA>(fused::<FMA>(scale, *x, shift));
                *total += *x;
            }
        }
        *sum = total;
    }
}

vectorised! {
    /// Multiplies probabilities by the dropout factors. The first row is key `first`.
    pub fn drop(probabilities: &mut [PerQuery], first: usize, dropout: Dropout, keys: &RowKeys) {
        for (key, row) in (first as u32..).zip(probabilities) {
            for ((x, &low), &high) in row.iter_mut().zip(&keys.low).zip(&keys.high) {
                *x *= dropout.factor_of(low, high, key);
            }
        }
    }
}

vectorised! {
    /// Replaces scores in `p` by probabilities P = exp(scale · score − lse), and their gradients dP
    /// in `ds` by dS = P · (dP − delta), where `delta` is Σ dO·O of each query.
    pub fn gradients(p: &mut [PerQuery], ds: &mut [PerQuery], scale: f32, lse: &PerQuery, delta: &PerQuery) {
        for (p, ds) in p.iter_mut().zip(ds) {
            for (((p, ds), &lse), &delta) in p.iter_mut().zip(ds).zip(lse).zip(delta) {
                *p = exp::<FMA>(fused::<FMA>(scale, *p, -lse));
                *ds = *p * (*ds - delta);
            }
        }
    }
}

vectorised! {
    /// As `gradients`, with dropout factors f: dS = P · (f · dP − delta), and `p` becomes f · P.
    /// The first row is key `first`.
    pub fn gradients_dropped(
        p: &mut [PerQuery],
        ds: &mut [PerQuery],
        scale: f32,
        lse: &PerQuery,
        delta: &PerQuery,
        first: usize,
        dropout: Dropout,
        keys: &RowKeys,
    ) {
        for ((key, p), ds) in (first as u32..).zip(p).zip(ds) {
            for j in 0..QUERIES {
                let factor = dropout.factor_of(keys.low[j], keys.high[j], key);
                let x = exp::<FMA>(fused::<FMA>(scale, p[j], -lse[j]));
                ds[j] = x * fused::<FMA>(factor, ds[j], -delta[j]);
                p[j] = x * factor;
            }
        }
    }
}

vectorised! {
    /// to = factor · x, for as many values as `to` has.
    pub fn scale(to: &mut [f32], x: &[f32], factor: f32) {
        for (to, x) in to.iter_mut().zip(x) {
            *to = factor * x;
        }
    }
}
