//! Prints the peaks of the kernels and the rates of products in a linear layer's shapes, in f32 and in bf16.

use std::time::Instant;

use lora_drop_compute::gemm::{Mat, MatMut, Precision, Start, matmul, measure_peak};

fn main() {
    for precision in [Precision::F32, Precision::Bf16] {
        measure(precision);
    }
}

fn measure(precision: Precision) {
    let peak = measure_peak(precision, 0.5);
    println!("{precision:?}: peak {:.0} GFLOP/s on {} threads", peak / 1e9, rayon::current_num_threads());
    for (m, n, k, what) in [
        (1024, 384, 384, "query"),
        (1024, 1536, 384, "intermediate"),
        (1024, 384, 1536, "output"),
        (1024, 3072, 768, "intermediate 768"),
        (512, 576, 576, "SmolLM2 query"),
        (512, 192, 576, "SmolLM2 key"),
        (512, 1536, 576, "SmolLM2 gate"),
        (512, 576, 1536, "SmolLM2 down"),
        (1024, 16, 384, "x Aᵀ"),
        (8, 384, 1024, "zᵀ dy"),
        (128, 128, 32, "scores"),
    ] {
        let (a, b) = (vec![0.5; m * k], vec![0.25; n * k]);
        let mut c = vec![0.0; m * n];
        let mut rates: Vec<f64> = (0..9)
            .map(|_| {
                let began = Instant::now();
                let times = (2e9 / (m * n * k) as f64) as usize / 4 + 1;
                for _ in 0..times {
                    matmul(
                        precision,
                        MatMut::new(&mut c, m, n),
                        Start::Zero,
                        1.0,
                        &[(Mat::new(&a, m, k), Mat::new(&b, n, k).t())],
                    );
                }
                2.0 * (times * m * n * k) as f64 / began.elapsed().as_secs_f64()
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        println!(
            "{what:18} {m} × {n} × {k}: {:.0} GFLOP/s, {:.0} %",
            rates[4] / 1e9,
            100.0 * rates[4] / peak
        );
    }
}
