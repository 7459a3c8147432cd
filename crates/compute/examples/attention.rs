//! Prints the rates of attention and of its backward pass in f32 and in bf16, on one thread, for
//! the heads of some models.

use std::time::{Duration, Instant};

use lora_drop_compute::attention::{Attention, Columns, ColumnsMut, Inputs, Mask, Queries, SavedForward};
use lora_drop_compute::gemm::Precision;
use lora_drop_compute::random::{Dropout, Key};

struct Shape {
    name: &'static str,
    sequences: usize,
    /// Tokens of each sequence.
    length: usize,
    heads: usize,
    kv_heads: usize,
    /// Width of a head.
    width: usize,
    causal: bool,
    /// Dropout of the probabilities.
    dropout: f64,
}

const MINILM: Shape = Shape {
    name: "MiniLM",
    sequences: 4,
    length: 128,
    heads: 12,
    kv_heads: 12,
    width: 32,
    causal: false,
    dropout: 0.1,
};
const SMOLLM2: Shape = Shape {
    name: "SmolLM2",
    sequences: 2,
    length: 256,
    heads: 9,
    kv_heads: 3,
    width: 64,
    causal: true,
    dropout: 0.0,
};
const SHAPES: [Shape; 4] = [
    MINILM,
    Shape { name: "MPNet", sequences: 2, width: 64, ..MINILM },
    SMOLLM2,
    Shape { sequences: 1, length: 2048, ..SMOLLM2 },
];

/// Returns calls per second, the best of nine samples of 30 ms.
fn rate(mut call: impl FnMut()) -> f64 {
    let mut sample = || {
        let (began, mut calls) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_millis(30) {
            call();
            calls += 1;
        }
        f64::from(calls) / began.elapsed().as_secs_f64()
    };
    (0..9).map(|_| sample()).fold(0.0, f64::max)
}

fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    println!("GFLOP/s on one thread{:29}f32: forward, backward    bf16: forward, backward", "");
    for Shape { name, sequences, length, heads, kv_heads, width, causal, dropout } in SHAPES {
        let offsets: Vec<usize> = (0..=sequences).map(|i| i * length).collect();
        let tokens = sequences * length;
        let numbers =
            |n: usize| -> Vec<f32> { (0..n).map(|i| (i * 7919 % 997) as f32 / 498.5 - 1.0).collect() };
        let (wide, narrow) = (heads * width, kv_heads * width);
        let (q, dout) = (numbers(tokens * wide), numbers(tokens * wide));
        let (k, v) = (numbers(tokens * narrow), numbers(tokens * narrow));
        let keys: Vec<Key> = (0..sequences as u64).map(Key::new).collect();
        let mut rates = Vec::new();
        for precision in [Precision::F32, Precision::Bf16] {
            let attention = Attention {
                offsets: &offsets,
                heads,
                kv_heads,
                width,
                scale: 1.0 / (width as f32).sqrt(),
                bias: None,
                dropout: (dropout > 0.0).then(|| (Dropout::new(dropout), &keys[..])),
                queries: Queries::All,
                mask: if causal { Mask::Causal { window: None } } else { Mask::Bidirectional },
                precision,
            };
            let of = |data, stride| Columns { data, stride };
            let inputs = Inputs { q: of(&q, wide), k: of(&k, narrow), v: of(&v, narrow) };
            let (mut out, mut lse) = (vec![0.0; tokens * wide], vec![0.0; tokens * heads]);
            let [mut dq, mut dk, mut dv] = [wide, narrow, narrow].map(|columns| vec![0.0; tokens * columns]);
            // On average, a causal query sees half of the keys.
            let product = (2 * sequences * length * length * wide) as f64 * if causal { 0.5 } else { 1.0 };
            pool.install(|| {
                rates.push(2.0 * product * rate(|| attention.forward(inputs, &mut out, &mut lse)) / 1e9);
                let saved = SavedForward { inputs, out: &out, lse: &lse };
                let backward = || {
                    let gradients = [(&mut dq, wide), (&mut dk, narrow), (&mut dv, narrow)];
                    let gradients = gradients.map(|(data, stride)| ColumnsMut { data, stride });
                    attention.backward(saved, &dout, gradients, None);
                };
                rates.push(5.0 * product * rate(backward) / 1e9);
            });
        }
        let shape = format!("{name}: {sequences} × {length}, {heads} heads of {width}");
        println!("{shape:48} {:12.0} {:11.0} {:14.0} {:11.0}", rates[0], rates[1], rates[2], rates[3]);
    }
}
