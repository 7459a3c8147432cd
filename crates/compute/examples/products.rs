//! Prints the rates of matrix products in f32 and in bf16, on one thread and on all: of the kernel
//! alone, and in the shapes of a linear layer, its LoRA and a head of attention.

use std::time::{Duration, Instant};

use lora_drop_compute::gemm::{Mat, MatMut, Precision, Start, matmul, measure_peak};

/// Rows, columns and depth.
const SHAPES: [(&str, usize, usize, usize); 8] = [
    ("MiniLM, query, key, value", 1024, 384, 384),
    ("MiniLM, first feed-forward layer", 1024, 1536, 384),
    ("MiniLM, second feed-forward layer", 1024, 384, 1536),
    ("MPNet, first feed-forward layer", 1024, 3072, 768),
    ("SmolLM2, down", 512, 576, 1536),
    ("LoRA of rank 16, x Aᵀ", 1024, 16, 384),
    ("LoRA of rank 8, zᵀ dy", 8, 384, 1024),
    ("a head of 64, scores", 128, 512, 64),
];
const BOTH: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Returns the GFLOP/s of a product, the best of seven samples of 20 ms. B is the transpose of a
/// row-major (n, k), as Wᵀ in the forward pass, or with `by_columns` a row-major (k, n), as W in
/// the gradient of the input.
fn rate(precision: Precision, (m, n, k): (usize, usize, usize), by_columns: bool) -> f64 {
    let number = |i: usize| (i * 7919 % 1000) as f32 / 500.0 - 1.0;
    let (a, b): (Vec<f32>, Vec<f32>) = ((0..m * k).map(number).collect(), (0..n * k).map(number).collect());
    let mut c = vec![0.0; m * n];
    let b = if by_columns { Mat::new(&b, k, n) } else { Mat::new(&b, n, k).t() };
    let mut sample = || {
        let (began, mut calls) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_millis(20) {
            let c = MatMut::new(&mut c, m, n);
            matmul(precision, c, Start::Zero, 1.0, &[(Mat::new(&a, m, k), b)]);
            calls += 1;
        }
        (calls * 2 * m * n * k) as f64 / began.elapsed().as_secs_f64() / 1e9
    };
    (0..7).map(|_| sample()).fold(0.0, f64::max)
}

fn main() {
    let all = rayon::current_num_threads();
    for threads in if all > 1 { vec![1, all] } else { vec![1] } {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            println!(
                "GFLOP/s on {threads} threads; weights by rows, then by columns{:9}f32{:13}bf16",
                "", ""
            );
            let [f32, bf16] = BOTH.map(|precision| measure_peak(precision, 0.2) / 1e9);
            println!("{:54} {f32:16.0} {bf16:16.0}", "kernel alone");
            for (name, m, n, k) in SHAPES {
                let [f32, bf16] = BOTH
                    .map(|precision| [false, true].map(|by_columns| rate(precision, (m, n, k), by_columns)));
                let text = |[rows, columns]: [f64; 2]| format!("{rows:7.0} {columns:7.0}");
                let shape = format!("{m} × {n} × {k}");
                println!("{name:36} {shape:17} {:>16} {:>16}", text(f32), text(bf16));
            }
        });
    }
}
