//! Activations and attention by their definitions, in f64.

use lora_drop_compute::activation::Activation;
use lora_drop_compute::attention::{Mask, Queries};
use lora_drop_compute::device::Attend;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The error function, by its series for |x| < 3, beyond by the continued fraction of its
/// complement.
fn erf(x: f64) -> f64 {
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 2.0 / std::f64::consts::PI.sqrt() * sum;
    }
    let z = x.abs();
    let fraction = (1..=60).rev().fold(z, |below, n| z + f64::from(n) / 2.0 / below);
    let complement = (-z * z).exp() / fraction / std::f64::consts::PI.sqrt();
    if x > 0.0 { 1.0 - complement } else { complement - 1.0 }
}

pub fn activate(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Silu => x * sigmoid(x),
        Activation::Tanh => x.tanh(),
    }
}

/// The derivative by central differences, which in f64 are far more exact than f32 can show.
pub fn slope(f: Activation, x: f64) -> f64 {
    if f == Activation::Relu {
        return f64::from(u8::from(x > 0.0));
    }
    let h = 1e-5;
    (8.0 * (activate(f, x + h) - activate(f, x - h)) - (activate(f, x + 2.0 * h) - activate(f, x - 2.0 * h)))
        / (12.0 * h)
}

/// A query: its sequence, its row, its token, and the keys that it attends to.
pub struct Query {
    pub sequence: usize,
    pub row: usize,
    pub token: usize,
    pub visible: std::ops::Range<usize>,
}

pub fn queries(attend: &Attend) -> Vec<Query> {
    let mut found = Vec::new();
    for (sequence, ends) in attend.offsets.windows(2).enumerate() {
        let length = ends[1] - ends[0];
        let asking = match attend.queries {
            Queries::All => 0..length,
            Queries::First => 0..1,
            Queries::Last(count) => length - count..length,
        };
        for place in asking {
            let visible = match attend.mask {
                Mask::Bidirectional => 0..length,
                Mask::Causal { window } => {
                    window.map_or(0, |window| (place + 1).saturating_sub(window))..place + 1
                }
            };
            let visible = ends[0] + visible.start..ends[0] + visible.end;
            found.push(Query { sequence, row: found.len(), token: ends[0] + place, visible });
        }
    }
    found
}

/// Returns the scores of a query's keys in a head, and their log-sum-exp.
pub fn scores(
    attend: &Attend,
    query: &Query,
    head: usize,
    q: &[f64],
    k: &[f64],
    bias: &[f64],
) -> (Vec<f64>, f64) {
    let (width, group) = (attend.width, attend.heads / attend.kv_heads);
    let scores: Vec<f64> = (query.visible.clone())
        .map(|key| {
            let q = &q[(query.row * attend.heads + head) * width..][..width];
            let k = &k[(key * attend.kv_heads + head / group) * width..][..width];
            let product: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
            let of_distance = attend
                .bias
                .map_or(0.0, |(_, reach)| bias[head * (2 * reach - 1) + key + reach - 1 - query.token]);
            f64::from(attend.scale) * product + of_distance
        })
        .collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum = most + scores.iter().map(|s| (s - most).exp()).sum::<f64>().ln();
    (scores, sum)
}

/// Returns the dropout factors of a query's probabilities in a head.
pub fn dropped(attend: &Attend, query: &Query, head: usize) -> Vec<f64> {
    let first = attend.offsets[query.sequence];
    (query.visible.clone())
        .map(|key| match attend.dropout {
            None => 1.0,
            Some((dropout, keys)) => {
                let place = (query.token - first) as u64;
                let key_of_row = keys[query.sequence].fold((head as u64) << 32 | place);
                f64::from(dropout.factor(key_of_row, (key - first) as u32))
            }
        })
        .collect()
}

pub fn attention(attend: &Attend, q: &[f64], k: &[f64], v: &[f64], bias: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (width, heads, group) = (attend.width, attend.heads, attend.heads / attend.kv_heads);
    let queries = queries(attend);
    let (mut out, mut sums) = (vec![0.0; queries.len() * heads * width], vec![0.0; queries.len() * heads]);
    for query in &queries {
        for head in 0..heads {
            let (scores, sum) = scores(attend, query, head, q, k, bias);
            sums[query.row * heads + head] = sum;
            let factors = dropped(attend, query, head);
            for ((key, score), factor) in query.visible.clone().zip(scores).zip(factors) {
                let p = (score - sum).exp() * factor;
                for i in 0..width {
                    out[(query.row * heads + head) * width + i] +=
                        p * v[(key * attend.kv_heads + head / group) * width + i];
                }
            }
        }
    }
    (out, sums)
}

/// Returns the gradients of q, k and v, and of the bias, from that of the output.
pub fn attention_backward(
    attend: &Attend,
    [q, k, v, dout]: [&[f64]; 4],
    bias: &[f64],
) -> ([Vec<f64>; 3], Vec<f64>) {
    let (width, heads, group) = (attend.width, attend.heads, attend.heads / attend.kv_heads);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let mut of_bias = vec![0.0; bias.len()];
    for query in &queries(attend) {
        for head in 0..heads {
            let (scores, sum) = scores(attend, query, head, q, k, bias);
            let factors = dropped(attend, query, head);
            let p: Vec<f64> = scores.iter().map(|score| (score - sum).exp()).collect();
            let row = (query.row * heads + head) * width;
            let at = |key: usize| (key * attend.kv_heads + head / group) * width;
            let of_p: Vec<f64> = (query.visible.clone().zip(&factors))
                .map(|(key, factor)| factor * (0..width).map(|i| dout[row + i] * v[at(key) + i]).sum::<f64>())
                .collect();
            let delta: f64 = p.iter().zip(&of_p).map(|(p, d)| p * d).sum();
            for (n, key) in query.visible.clone().enumerate() {
                let of_score = p[n] * (of_p[n] - delta);
                for i in 0..width {
                    dv[at(key) + i] += p[n] * factors[n] * dout[row + i];
                    dq[row + i] += f64::from(attend.scale) * of_score * k[at(key) + i];
                    dk[at(key) + i] += f64::from(attend.scale) * of_score * q[row + i];
                }
                if let Some((_, reach)) = attend.bias {
                    of_bias[head * (2 * reach - 1) + key + reach - 1 - query.token] += of_score;
                }
            }
        }
    }
    ([dq, dk, dv], of_bias)
}
