//! Prints the cost of weights in blocks: the rates of widening, of a layer's products, and of
//! products of few rows.
//!
//! Every rate is printed beside its baseline, measured in the same run: a plain read of the same
//! bytes, or the same product with the weight in f32.

use std::time::Instant;

use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use lora_drop_compute::gemm::{Mat, MatMut, Precision, Start, matmul, matmul_few};
use rayon::prelude::*;

/// Returns the seconds of one call: the shortest of 9, because other work on the machine only
/// lengthens calls.
fn seconds(mut f: impl FnMut()) -> f64 {
    let one = |_| {
        let began = Instant::now();
        f();
        began.elapsed().as_secs_f64()
    };
    (0..9).map(one).fold(f64::INFINITY, f64::min)
}

/// Returns the seconds to read every byte once, on all threads.
fn read(bytes: &[u8]) -> f64 {
    seconds(|| {
        let sum = bytes
            .par_chunks(1 << 20)
            .map(|part| {
                let mut lanes = [0u64; 32];
                for words in part.as_chunks::<8>().0.as_chunks::<32>().0 {
                    for (lane, &word) in lanes.iter_mut().zip(words) {
                        *lane = lane.wrapping_add(u64::from_le_bytes(word));
                    }
                }
                lanes.iter().fold(0u64, |sum, &lane| sum.wrapping_add(lane))
            })
            .reduce(|| 0, u64::wrapping_add);
        std::hint::black_box(sum);
    })
}

/// Returns a matrix whose blocks are all equal.
fn matrix(kind: BlockType, rows: usize, cols: usize) -> BlockMatrix {
    let size = BlockMatrix::size(kind, rows, cols).expect("whole blocks");
    BlockMatrix::new(kind, rows, cols, vec![0x23; size]).expect("whole blocks")
}

fn main() {
    let threads = rayon::current_num_threads();
    println!("{threads} threads\n\nwidening 16 rows of 4096 on one thread, values a nanosecond");
    for kind in BlockType::ALL {
        let matrix = matrix(kind, 16, 4096);
        let mut out = vec![0.0; 16 * 4096];
        let took = seconds(|| kind.widen(matrix.bytes(), &mut out));
        println!("{:5} {:6.2}", kind.name(), out.len() as f64 / took / 1e9);
    }

    let (rows, out, input) = (512, 8960, 1536);
    println!(
        "\nproducts of {rows} rows with a weight ({out}, {input}): GFLOP/s, and the share of f32's rate"
    );
    let floats = vec![0.5; out * input];
    let f32s = Mat::new(&floats, out, input);
    for precision in [Precision::F32, Precision::Bf16] {
        let (x, mut y) = (vec![0.25; rows * input], vec![0.0; rows * out]);
        let (dy, mut dx) = (vec![0.25; rows * out], vec![0.0; rows * input]);
        let mut product = |w: Mat, back: bool| {
            let (a, c) =
                if back { (Mat::new(&dy, rows, out), &mut dx) } else { (Mat::new(&x, rows, input), &mut y) };
            let cols = if back { input } else { out };
            let w = if back { w } else { w.t() };
            let took = seconds(|| matmul(precision, MatMut::new(c, rows, cols), Start::Zero, 1.0, &[(a, w)]));
            2.0 * (rows * out * input) as f64 / took / 1e9
        };
        let of_f32s = [false, true].map(|back| product(f32s, back));
        for kind in BlockType::ALL {
            let matrix = matrix(kind, out, input);
            let [forward, back] = [false, true].map(|back| product(Mat::blocks(&matrix), back));
            let [of_forward, of_back] = [100.0 * forward / of_f32s[0], 100.0 * back / of_f32s[1]];
            let name = kind.name();
            println!(
                "{precision:?} {name:7} x Wᵀ {forward:5.0} ({of_forward:3.0} %), dy W {back:5.0} ({of_back:3.0} %)"
            );
        }
    }

    // A weight larger than the caches.
    let (out, input) = (16384, 4096);
    println!("\nfew rows with a weight ({out}, {input}): GB/s of the weight, beside a plain read");
    let line = |name: &str, bytes: &[u8], w: Mat| {
        let rate = |seconds: f64| bytes.len() as f64 / seconds / 1e9;
        print!("{name:5} {:4} MB: read {:5.1}", bytes.len() >> 20, rate(read(bytes)));
        for rows in [1, 2, 4, 8] {
            let (x, mut y) = (vec![0.25; rows * input], vec![0.0; rows * out]);
            let x = Mat::new(&x, rows, input);
            let took = seconds(|| matmul_few(MatMut::new(&mut y, rows, out), Start::Zero, (x, w), None));
            print!(", {rows} rows {:5.1}", rate(took));
        }
        println!();
    };
    for kind in BlockType::ALL {
        let matrix = matrix(kind, out, input);
        line(kind.name(), matrix.bytes(), Mat::blocks(&matrix).t());
    }
    let floats = vec![0.5f32; out * input];
    let bytes: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
    line("F32", &bytes, Mat::new(&floats, out, input).t());
}
