//! Checks products with weights that stay in blocks.

use lora_drop_compute::blocks::BlockType::*;
use lora_drop_compute::blocks::{BlockMatrix, BlockType, QuantizeError};
use lora_drop_compute::gemm::{FEW_ROWS, Mat, MatMut, Precision, Start, matmul, matmul_few};

fn words(n: usize, seed: u32) -> impl Iterator<Item = u32> {
    let mut state = seed.wrapping_mul(2_654_435_761) ^ 0x9e37_79b9;
    (0..n).map(move |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    })
}

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    words(n, seed).map(|x| x as f32 / u32::MAX as f32 - 0.5).collect()
}

/// Returns random blocks and their values in f32. All bytes are below 64, so every f16 scale is
/// below 2.
fn blocks(kind: BlockType, rows: usize, cols: usize, seed: u32) -> (BlockMatrix, Vec<f32>) {
    let size = BlockMatrix::size(kind, rows, cols).unwrap();
    let bytes: Vec<u8> = words(size, seed).map(|x| (x >> 8) as u8 & 63).collect();
    let mut wide = vec![0.0; rows * cols];
    kind.widen(&bytes, &mut wide);
    (BlockMatrix::new(kind, rows, cols, bytes).unwrap(), wide)
}

/// Shapes with odd numbers of rows, and of columns if the type allows it.
fn shapes(kind: BlockType) -> Vec<(usize, usize)> {
    match kind.values() {
        1 => vec![(1, 1), (3, 1), (1, 7), (33, 50), (45, 401)],
        32 => vec![(1, 32), (5, 96), (33, 416), (47, 64)],
        _ => vec![(1, 256), (35, 512), (50, 768)],
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn products_are_those_of_the_widened_matrix_bit_for_bit() {
    for kind in BlockType::ALL {
        for (out, input) in shapes(kind) {
            let (matrix, wide) = blocks(kind, out, input, 3);
            let cases = [1, 8, 15, 64].map(|rows| [Precision::F32, Precision::Bf16].map(|p| (rows, p)));
            for (rows, precision) in cases.into_iter().flatten() {
                let (x, dy) = (numbers(rows * input, 1), numbers(rows * out, 2));
                let product = |m: &[f32], n, k, w: Mat| {
                    let mut c = vec![0.0; rows * n];
                    let c_mat = MatMut::new(&mut c, rows, n);
                    matmul(precision, c_mat, Start::Zero, 0.5, &[(Mat::new(m, rows, k), w)]);
                    bits(&c)
                };
                let (blocks, floats) = (Mat::blocks(&matrix), Mat::new(&wide, out, input));
                let case = format!("{matrix:?}, {rows} rows, {precision:?}");
                assert_eq!(
                    product(&x, out, input, blocks.t()),
                    product(&x, out, input, floats.t()),
                    "{case}"
                );
                assert_eq!(product(&dy, input, out, blocks), product(&dy, input, out, floats), "{case}");
                // Also as the left operand, with a scale.
                let left = |w: Mat, n, k| {
                    let mut c = vec![0.0; n * rows];
                    let terms = [(w, Mat::new(&x[..k * rows], k, rows))];
                    matmul(precision, MatMut::new(&mut c, n, rows), Start::Zero, 0.3, &terms);
                    bits(&c)
                };
                assert_eq!(left(blocks, out, input), left(floats, out, input), "{case}");
                if out <= input {
                    assert_eq!(left(blocks.t(), input, out), left(floats.t(), input, out), "{case}");
                }
            }
        }
    }
}

/// Packing f32 as pairs flushes denormals to zero; packing bf16 leaves that to the kernel.
#[test]
fn denormals_in_blocks_are_multiplied_as_in_f32() {
    let (out, input) = (45, 401);
    let halves = words(out * input, 3).map(|x| if x & 1 == 0 { 0x007f } else { 0x8001u16 });
    let bytes = halves.flat_map(u16::to_le_bytes).collect();
    let matrix = BlockMatrix::new(Bf16, out, input, bytes).unwrap();
    let mut wide = vec![0.0; out * input];
    Bf16.widen(matrix.bytes(), &mut wide);
    assert!(wide.iter().all(|x| x.is_subnormal()));
    for rows in [1, 8, 15, 64] {
        // So large that its product with a denormal is a normal number.
        let large = |n| numbers(rows * n, 1).iter().map(|x| 1e38 * x).collect::<Vec<_>>();
        let (x, dy) = (large(input), large(out));
        let product = |m: &[f32], n, k, w: Mat| {
            let mut c = vec![0.0; rows * n];
            let terms = [(Mat::new(m, rows, k), w)];
            matmul(Precision::Bf16, MatMut::new(&mut c, rows, n), Start::Zero, 1.0, &terms);
            bits(&c)
        };
        let (blocks, floats) = (Mat::blocks(&matrix), Mat::new(&wide, out, input));
        assert_eq!(product(&x, out, input, blocks.t()), product(&x, out, input, floats.t()));
        assert_eq!(product(&dy, input, out, blocks), product(&dy, input, out, floats));
    }
}

#[test]
fn few_rows_against_f64() {
    for kind in BlockType::ALL {
        for (out, input) in shapes(kind) {
            let (matrix, wide) = blocks(kind, out, input, 3);
            let (z, b) = (numbers(FEW_ROWS * 3, 7), numbers(3 * out, 8));
            let (x, bias) = (numbers(FEW_ROWS * input, 1), numbers(out, 6));
            for start in [Start::Zero, Start::Bias(&bias), Start::Keep] {
                let product = |rows: usize, w: Mat| {
                    let mut c = numbers(rows * (out + 3), 9);
                    let thin = (Mat::new(&z, rows, 3), Mat::new(&b, 3, out));
                    let wide = (Mat::new(&x, rows, input), w.t());
                    matmul_few(MatMut::strided(&mut c, rows, out, out + 3), start, wide, Some(thin));
                    c
                };
                let all = product(FEW_ROWS, Mat::blocks(&matrix));
                // In these types, minima are multiplied separately from the values.
                if ![Q2K, Q4K, Q5K].contains(&kind) {
                    assert_eq!(bits(&all), bits(&product(FEW_ROWS, Mat::new(&wide, out, input))));
                }
                let before = numbers(FEW_ROWS * (out + 3), 9);
                for (at, (&got, &before)) in all.iter().zip(&before).enumerate() {
                    let (i, j) = (at / (out + 3), at % (out + 3));
                    if j >= out {
                        assert_eq!(got, before, "between rows");
                        continue;
                    }
                    let from = match start {
                        Start::Zero => 0.0,
                        Start::Bias(bias) => bias[j],
                        Start::Keep => before,
                    };
                    let pairs = x[i * input..][..input].iter().zip(&wide[j * input..][..input]);
                    let products = pairs.map(|(&x, &w)| x as f64 * w as f64).chain([from as f64]);
                    let thin = (0..3).map(|r| z[i * 3 + r] as f64 * b[r * out + j] as f64);
                    let (sum, size) =
                        products.chain(thin).fold((0.0, 0.0), |(s, size), p| (s + p, size + p.abs()));
                    let error = (got as f64 - sum).abs();
                    assert!(error <= 2e-6 * size, "{matrix:?} ({i}, {j}): {got} for {sum}");
                }
                // A row does not depend on the number of other rows.
                for rows in 1..FEW_ROWS {
                    let some = product(rows, Mat::blocks(&matrix));
                    for i in 0..rows {
                        let range = i * (out + 3)..i * (out + 3) + out;
                        assert_eq!(bits(&some[range.clone()]), bits(&all[range]), "row {i} of {rows}");
                    }
                }
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (matrix, _) = blocks(Q4K, 700, 512, 3);
    let (x, dy) = (numbers(200 * 512, 1), numbers(200 * 700, 2));
    let products = |threads: usize| {
        let (mut y, mut dx, mut few) = (vec![0.0; 200 * 700], vec![0.0; 200 * 512], vec![0.0; 5 * 700]);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let w = Mat::blocks(&matrix);
            matmul(
                Precision::F32,
                MatMut::new(&mut y, 200, 700),
                Start::Zero,
                1.0,
                &[(Mat::new(&x, 200, 512), w.t())],
            );
            matmul(
                Precision::F32,
                MatMut::new(&mut dx, 200, 512),
                Start::Zero,
                1.0,
                &[(Mat::new(&dy, 200, 700), w)],
            );
            let wide = (Mat::new(&x[..5 * 512], 5, 512), w.t());
            matmul_few(MatMut::new(&mut few, 5, 700), Start::Zero, wide, None);
        });
        [y, dx, few].map(|v| bits(&v))
    };
    let one = products(1);
    assert!(products(2) == one && products(3) == one);
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    assert!(BlockMatrix::new(Q4_0, 2, 32, vec![0; 35]).is_none());
    assert!(BlockMatrix::new(Q4_0, 2, 32, vec![0; 37]).is_none());
    assert!(BlockMatrix::new(Q4_0, 2, 33, vec![0; 36]).is_none());
    assert!(BlockMatrix::new(Q6K, 1, 128, vec![0; 105]).is_none());
    assert_eq!(BlockMatrix::size(Q4K, usize::MAX, 256), None);
    assert_eq!(BlockMatrix::size(F16, usize::MAX / 2, usize::MAX / 2), None);
    assert!(BlockMatrix::new(F16, usize::MAX, usize::MAX, vec![]).is_none());
    // A matrix may have no rows or no columns.
    let empty = BlockMatrix::new(Q8_0, 3, 0, vec![]).unwrap();
    empty.widen_row_range(2, 0..0, &mut []);
    let mut c = [7.0; 6];
    matmul(
        Precision::F32,
        MatMut::new(&mut c, 2, 3),
        Start::Zero,
        1.0,
        &[(Mat::new(&[], 2, 0), Mat::blocks(&empty).t())],
    );
    assert_eq!(c, [0.0; 6]);
    matmul_few(MatMut::new(&mut c, 2, 3), Start::Keep, (Mat::new(&[], 2, 0), Mat::blocks(&empty).t()), None);
    assert_eq!(c, [0.0; 6]);

    let shape = |rows, cols, values| {
        BlockMatrix::quantize(Q8_0, rows, cols, &vec![1.0; values]).err().map(|e| e.to_string())
    };
    assert_eq!(shape(2, 32, 64), None);
    assert!(shape(2, 32, 63).unwrap().contains("63 values of a matrix (2, 32)"));
    assert!(shape(1, 48, 48).unwrap().contains("whole blocks of 32"));
    assert!(shape(usize::MAX, 32, 0).is_some() && shape(0, usize::MAX, 0).is_some());
    assert_eq!(BlockMatrix::quantize(Q4K, 1, 256, &[0.0; 256]).unwrap_err(), QuantizeError::Kind(Q4K));
}

#[test]
fn values_that_a_type_cannot_hold_are_refused() {
    // Nearly the largest value that each type can hold, and values that it cannot.
    for (kind, most) in
        [(F16, 65519.996), (Bf16, 3.394_6e38), (Q8_0, 65503.9 * 127.0), (Q4_0, -65503.9 * 8.0)]
    {
        let mut values = vec![1.0; 64];
        values[40] = most;
        let matrix = BlockMatrix::quantize(kind, 2, 32, &values).unwrap();
        let mut wide = [0.0; 32];
        matrix.widen_row_range(1, 0..32, &mut wide);
        assert!((wide[8] / most - 1.0).abs() < 5e-3, "{kind:?}: {} for {most}", wide[8]);
        for bad in [most * 1.01, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            values[40] = bad;
            values[41] = bad;
            match BlockMatrix::quantize(kind, 2, 32, &values).unwrap_err() {
                QuantizeError::Value { row: 1, col: 8, .. } => {}
                other => panic!("{kind:?}: {other}"),
            }
        }
    }
}

#[test]
#[should_panic(expected = "Q8_0[2, 32]")]
fn a_range_outside_the_matrix_panics() {
    BlockMatrix::quantize(Q8_0, 2, 32, &[0.0; 64]).unwrap().widen_row_range(1, 16..48, &mut [0.0; 32]);
}
