//! Checks every kind of attention against its definition in f64.

use super::*;

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64).map(|i| Key::new(seed).normal(i) as f32).collect()
}

/// An attention with its queries (queries, heads * width) and keys (tokens, kv_heads * width).
struct Definition<'a> {
    attention: &'a Attention<'a>,
    q: &'a [f32],
    k: &'a [f32],
}

impl Definition<'_> {
    fn query(&self, query: usize, head: usize) -> &[f32] {
        let a = self.attention;
        &self.q[(query * a.heads + head) * a.width..][..a.width]
    }

    fn of_key<'b>(&self, x: &'b [f32], token: usize, head: usize) -> &'b [f32] {
        let a = self.attention;
        let kv_head = head / (a.heads / a.kv_heads);
        &x[(token * a.kv_heads + kv_head) * a.width..][..a.width]
    }

    /// Returns the probability of each token of the sequence, its dropout factor, and the
    /// log-sum-exp of the scores.
    fn probabilities(&self, sequence: usize, row: usize, head: usize) -> (Vec<f64>, Vec<f64>, f64) {
        let a = self.attention;
        let span = a.span(sequence);
        // The query's token, from the sequence's start.
        let token = match a.queries {
            Queries::First => 0,
            _ => span.length - span.queries + row,
        };
        let scores: Vec<f64> = (0..span.length)
            .map(|key| {
                let visible = match a.mask {
                    Mask::Bidirectional => true,
                    Mask::Causal { window } => key <= token && window.is_none_or(|w| token - key < w),
                };
                if !visible {
                    return f64::NEG_INFINITY;
                }
                let bias = a
                    .bias
                    .map_or(0.0, |b| b.table[head * (2 * b.reach - 1) + b.reach - 1 + key - token] as f64);
                let product =
                    dot(self.query(span.query + row, head), self.of_key(self.k, span.token + key, head));
                a.scale as f64 * product + bias
            })
            .collect();
        let lse = scores.iter().map(|s| s.exp()).sum::<f64>().ln();
        let p = scores.iter().map(|s| (s - lse).exp()).collect();
        let factors = (0..span.length as u32)
            .map(|key| match a.dropout {
                Some((dropout, keys)) => dropout.factor(row_key(keys[sequence], head, row), key) as f64,
                None => 1.0,
            })
            .collect();
        (p, factors, lse)
    }
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(&x, &y)| x as f64 * y as f64).sum()
}

fn add(to: &mut [f64], factor: f64, x: &[f32]) {
    to.iter_mut().zip(x).for_each(|(to, &x)| *to += factor * x as f64);
}

/// Returns the relative error ‖got − want‖ / ‖want‖; NaN if a value is NaN.
fn difference(got: &[f32], want: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut got.iter().zip(want).map(|(&got, want)| got as f64 - want)) / norm(&mut want.iter().copied())
}

/// Checks forward and backward of this attention against the definition.
fn check(name: &str, attention: Attention) {
    let a = &attention;
    let (sequences, tokens) = (a.offsets.len() - 1, a.offsets[a.offsets.len() - 1]);
    let queries: usize = (0..sequences).map(|s| a.span(s).queries).sum();
    let (wide, narrow) = (a.heads * a.width, a.kv_heads * a.width);
    let (q, k, v) = (numbers(queries * wide, 1), numbers(tokens * narrow, 2), numbers(tokens * narrow, 3));
    let dout = numbers(queries * wide, 4);
    let definition = Definition { attention: a, q: &q, k: &k };

    let mut want: [Vec<f64>; 5] =
        [queries * wide, queries * a.heads, queries * wide, tokens * narrow, tokens * narrow]
            .map(|n| vec![0.0; n]);
    let mut want_table = vec![0.0f64; a.bias.map_or(0, |b| b.table.len())];
    for sequence in 0..sequences {
        let span = a.span(sequence);
        for (row, head) in (0..span.queries).flat_map(|row| (0..a.heads).map(move |head| (row, head))) {
            let (p, factors, lse) = definition.probabilities(sequence, row, head);
            let query = span.query + row;
            let at = (query * a.heads + head) * a.width;
            let dout = &dout[at..at + a.width];
            want[1][query * a.heads + head] = lse;
            let dp: Vec<f64> = (0..span.length)
                .map(|key| factors[key] * dot(dout, definition.of_key(&v, span.token + key, head)))
                .collect();
            let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for key in 0..span.length {
                let ds = p[key] * (dp[key] - delta);
                let token = span.token + key;
                let kv = (token * a.kv_heads + head / (a.heads / a.kv_heads)) * a.width;
                add(
                    &mut want[0][at..at + a.width],
                    p[key] * factors[key],
                    definition.of_key(&v, token, head),
                );
                add(&mut want[2][at..at + a.width], a.scale as f64 * ds, definition.of_key(&k, token, head));
                add(&mut want[3][kv..kv + a.width], a.scale as f64 * ds, definition.query(query, head));
                add(&mut want[4][kv..kv + a.width], p[key] * factors[key], dout);
                if let Some(b) = a.bias {
                    want_table[head * (2 * b.reach - 1) + b.reach - 1 + key - row] += ds;
                }
            }
        }
    }

    for precision in [Precision::F32, Precision::Bf16] {
        let attention = Attention { precision, ..attention };
        let run = |threads: usize| {
            // The previous contents must not matter.
            let [mut out, mut lse, mut dq, mut dk, mut dv] = want.each_ref().map(|x| vec![f32::NAN; x.len()]);
            let mut table = a.bias.map(|b| vec![0.0; b.table.len()]);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let of = |data, stride| Columns { data, stride };
                let inputs = Inputs { q: of(&q, wide), k: of(&k, narrow), v: of(&v, narrow) };
                attention.forward(inputs, &mut out, &mut lse);
                let gradients = [
                    ColumnsMut { data: &mut dq, stride: wide },
                    ColumnsMut { data: &mut dk, stride: narrow },
                    ColumnsMut { data: &mut dv, stride: narrow },
                ];
                let saved = SavedForward { inputs, out: &out, lse: &lse };
                attention.backward(saved, &dout, gradients, table.as_deref_mut());
            });
            ([out, lse, dq, dk, dv], table)
        };
        let (got, table) = run(1);
        assert!(run(3) == (got.clone(), table.clone()), "{name}, {precision:?}: bits of other threads");
        // A factor in bf16 has eight significant bits.
        let limit = if precision == Precision::F32 { 3e-6 } else { 1e-2 };
        for ((what, got), want) in ["out", "lse", "dq", "dk", "dv"].iter().zip(&got).zip(&want) {
            let off = difference(got, want);
            assert!(off < limit, "{name}, {precision:?}: {what} is off by {off}");
        }
        if let Some(table) = table {
            let off = difference(&table, &want_table);
            assert!(off < limit, "{name}, {precision:?}: the bias's gradient is off by {off}");
        }
    }
}

/// Sequences shorter and longer than a strip, than a block of keys, and than what is left unpacked.
const OFFSETS: [usize; 7] = [0, 1, 6, 37, 69, 202, 233];

fn plain(width: usize) -> Attention<'static> {
    Attention {
        offsets: &OFFSETS,
        heads: 4,
        kv_heads: 4,
        width,
        scale: 1.0 / (width as f32).sqrt(),
        bias: None,
        dropout: None,
        queries: Queries::All,
        mask: Mask::Bidirectional,
        precision: Precision::F32,
    }
}

#[test]
fn widths_of_heads() {
    for width in [1, 7, 32, 48, 64] {
        check(&format!("width {width}"), plain(width));
    }
}

#[test]
fn masks_and_head_groups() {
    for window in [None, Some(2), Some(7), Some(50), Some(1000)] {
        for kv_heads in [1, 2, 4] {
            let attention = Attention { kv_heads, mask: Mask::Causal { window }, ..plain(16) };
            check(&format!("window {window:?}, {kv_heads} heads of keys"), attention);
        }
    }
}

#[test]
fn bias_and_dropout() {
    let table = numbers(4 * (2 * 140 - 1), 5);
    let bias = Some(RelativeBias { table: &table, reach: 140 });
    let keys: Vec<Key> = (0..6).map(|i| Key::new(9).fold(i)).collect();
    let dropout = Some((Dropout::new(0.2), &keys[..]));
    check("bias", Attention { bias, ..plain(8) });
    check("dropout", Attention { dropout, ..plain(8) });
    check("both", Attention { bias, dropout, ..plain(8) });
    let mask = Mask::Causal { window: Some(40) };
    check("dropout in a window", Attention { dropout, mask, kv_heads: 2, ..plain(8) });
}

#[test]
fn queries_of_some_tokens() {
    let offsets = [0, 40, 90, 223];
    let plain = Attention { offsets: &offsets, ..plain(16) };
    check("first", Attention { queries: Queries::First, ..plain });
    for last in [1, 8, 9, 35] {
        for window in [None, Some(20)] {
            let (queries, mask) = (Queries::Last(last), Mask::Causal { window });
            check(
                &format!("last {last}, window {window:?}"),
                Attention { queries, mask, kv_heads: 2, ..plain },
            );
        }
    }
    let table = numbers(4 * (2 * 140 - 1), 5);
    let bias = Some(RelativeBias { table: &table, reach: 140 });
    check("first with bias", Attention { queries: Queries::First, bias, ..plain });
}
