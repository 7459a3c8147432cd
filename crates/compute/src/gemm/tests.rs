//! Checks every kernel, shape and layout against f64, and that results are bit-identical however a
//! product is split, packed or distributed.

use super::mat::Data;
use super::*;
use crate::Tensor;
use crate::blocks::half::{from_bf16, to_bf16};

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435761).wrapping_add(1);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

const BOTH: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Returns the precision in which a kernel multiplies.
fn precision(kernel: &Kernel) -> Precision {
    if kernel.a_format == Format::F32 { Precision::F32 } else { Precision::Bf16 }
}

/// Returns x as products in this precision round it.
fn factor(precision: Precision, x: f32) -> f64 {
    match precision {
        Precision::F32 => x as f64,
        Precision::Bf16 => from_bf16(to_bf16(x)) as f64,
    }
}

fn at(precision: Precision, m: Mat, i: usize, j: usize) -> f64 {
    let Data::Floats { data, row_stride, col_stride } = m.data else { panic!("f32") };
    factor(precision, data[i * row_stride + j * col_stride])
}

/// Returns one element of Σ AᵢBᵢ, in f64.
fn sum(precision: Precision, terms: &[Term], i: usize, j: usize) -> f64 {
    let product = |&(a, b): &Term| -> f64 {
        (0..a.cols).map(|k| at(precision, a, i, k) * at(precision, b, k, j)).sum()
    };
    terms.iter().map(product).sum()
}

#[test]
fn every_kernel_shape_layout_and_start() {
    let shapes = [(1, 1, 1), (14, 32, 5), (15, 33, 385), (8, 96, 1300), (200, 16, 40), (333, 70, 12)];
    for (case, &(m, n, k)) in shapes.iter().enumerate() {
        let (a, at_) = (numbers(m * k, 1), numbers(m * k, 2));
        let (b, bt) = (numbers(k * n, 3), numbers(k * n, 4));
        let (thin_a, thin_b) = (numbers(m * 3, 5), numbers(3 * n, 6));
        let bias = numbers(n, 7);
        let terms = [
            (Mat::new(&a, m, k), Mat::new(&bt, n, k).t()),
            (Mat::new(&at_, k, m).t(), Mat::new(&b, k, n)),
            (Mat::new(&thin_a, m, 3), Mat::new(&thin_b, 3, n)),
        ];
        let products = BOTH
            .map(|precision| (0..m * n).map(|at| sum(precision, &terms, at / n, at % n)).collect::<Vec<_>>());
        let chosen = BOTH.map(|precision| Kernel::choose(precision, m, n));
        for kernel in choose::available().into_iter().chain(chosen) {
            let products = &products[precision(&kernel) as usize];
            for start in [Start::Zero, Start::Bias(&bias), Start::Keep] {
                let before = numbers(m * n, 8);
                let mut c = before.clone();
                run(kernel, MatMut::new(&mut c, m, n), start, 0.5, &terms, true, SHARED_WORDS);
                for (at, (&got, &product)) in c.iter().zip(products).enumerate() {
                    let from = match start {
                        Start::Zero => 0.0,
                        Start::Bias(bias) => bias[at % n],
                        Start::Keep => before[at],
                    };
                    let want = from as f64 + 0.5 * product;
                    let error = (got as f64 - want).abs();
                    let name = kernel.name;
                    assert!(error < 2e-4, "case {case}, {name}, element {at}: {got} for {want}");
                }
            }
        }
    }
}

#[test]
fn gaps_between_strided_rows_are_not_written() {
    let (a, b) = (numbers(20 * 10, 1), numbers(10 * 8, 2));
    let mut c = vec![7.0; 20 * 24];
    matmul(
        Precision::F32,
        MatMut::strided(&mut c[8..], 20, 8, 24),
        Start::Zero,
        1.0,
        &[(Mat::new(&a, 20, 10), Mat::new(&b, 10, 8))],
    );
    for row in c.chunks(24) {
        assert!(row[..8].iter().chain(&row[16..]).all(|&x| x == 7.0));
        assert!(row[8..16].iter().all(|&x| x != 7.0));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (m, n, k) = (500, 200, 900);
    let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
    let terms = [(Mat::new(&a, m, k), Mat::new(&b, k, n))];
    for precision in BOTH {
        let product = |threads: usize| {
            let mut c = vec![0.0; m * n];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| matmul(precision, MatMut::new(&mut c, m, n), Start::Zero, 1.0, &terms));
            c
        };
        let one = product(1);
        assert!(product(2) == one && product(5) == one);
        let mut alone = vec![0.0; m * n];
        let kernel = Kernel::choose(precision, m, n);
        run(kernel, MatMut::new(&mut alone, m, n), Start::Zero, 1.0, &terms, false, SHARED_WORDS);
        assert!(alone == one);
    }
}

#[test]
fn a_prepacked_matrix_gives_the_same_bits_in_both_directions() {
    // B is shared in some cases and A in others; k has one block or several; n selects each of the
    // kernels.
    let shapes = [(1, 1, 1), (300, 40, 33), (20, 90, 1300), (8, 2500, 64), (70, 16, 700)];
    for (m, output, input) in shapes {
        let tensor = Tensor::new(vec![output, input], numbers(output * input, 1));
        let w = Mat::new(&tensor, output, input);
        let (x, dy, z) = (numbers(m * input, 2), numbers(m * output, 3), numbers(m * 3, 4));
        let (x, dy, z) = (Mat::new(&x, m, input), Mat::new(&dy, m, output), Mat::new(&z, m, 3));
        let thin = numbers(3 * input.max(output), 5);
        let products = |kernel: Kernel, n: usize, terms: &[Term]| {
            [false, true].map(|parallel| {
                let mut c = numbers(m * n, 6);
                run(kernel, MatMut::new(&mut c, m, n), Start::Keep, 0.5, terms, parallel, SHARED_WORDS);
                c
            })
        };
        for kernel in choose::available() {
            let packed = PackedMatrix::for_kernels(|_| kernel, &tensor);
            let packed = Mat::packed(&packed);
            for (a, b, packed, n) in [(x, w.t(), packed.t(), output), (dy, w, packed, input)] {
                let thin = (z, Mat::new(&thin[..3 * n], 3, n));
                let plain = products(kernel, n, &[(a, b), thin]);
                let name = kernel.name;
                assert!(products(kernel, n, &[(a, packed), thin]) == plain, "{m} x {n}, {name}");
                assert!(plain[0] == plain[1]);
            }
        }
        for precision in BOTH {
            let packed = PackedMatrix::new(precision, &tensor);
            let packed = Mat::packed(&packed);
            for (a, plain, packed, n) in [(x, w.t(), packed.t(), output), (dy, w, packed, input)] {
                let [plain, packed] = [plain, packed].map(|b| {
                    let mut c = vec![0.0; m * n];
                    matmul(precision, MatMut::new(&mut c, m, n), Start::Zero, 1.0, &[(a, b)]);
                    c
                });
                assert!(plain == packed, "{m} x {n}, {precision:?}");
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_how_much_is_packed_at_once() {
    let k = 1300;
    // B is the shared operand, then A.
    for (m, n) in [(100, 40), (40, 100)] {
        let (a, b, bias) = (numbers(m * k, 1), numbers(k * n, 2), numbers(n, 7));
        let (thin_a, thin_b) = (numbers(m * 3, 5), numbers(3 * n, 6));
        let starts = [Start::Zero, Start::Bias(&bias), Start::Keep];
        let kernels = BOTH.map(|precision| Kernel::choose(precision, m, n)).into_iter();
        for (kernel, start) in kernels.flat_map(|kernel| starts.map(|start| (kernel, start))) {
            let product = |limit: usize, parallel: bool| {
                let mut c = numbers(m * n, 8);
                let terms = [
                    (Mat::new(&a, m, k), Mat::new(&b, n, k).t()),
                    (Mat::new(&thin_a, m, 3), Mat::new(&thin_b, 3, n)),
                ];
                run(kernel, MatMut::new(&mut c, m, n), start, 1.0, &terms, parallel, limit);
                c
            };
            let whole = product(SHARED_WORDS, false);
            for limit in
                [1, DEFAULT_SIZES.depth * 14, DEFAULT_SIZES.depth * 32, DEFAULT_SIZES.depth * 70, 900 * 128]
            {
                assert!(product(limit, false) == whole && product(limit, true) == whole, "{limit}");
            }
        }
    }
}

#[test]
fn groups_cover_the_product_and_stay_below_the_limit() {
    let (a, b) = (vec![0.0; 900], vec![0.0; 900 * 100]);
    let terms = [(Mat::new(&a, 1, 900), Mat::new(&b, 900, 100))];
    let shared = Side {
        operand: Operand::B,
        extent: 100,
        height: 32,
        format: Format::F32,
        step: 1,
        sizes: DEFAULT_SIZES,
    };
    for limit in [DEFAULT_SIZES.depth * 32, DEFAULT_SIZES.depth * 70, DEFAULT_SIZES.depth * 150, SHARED_WORDS]
    {
        let groups = groups(&terms, shared, limit);
        let size = |g: &Group| g.blocks.iter().map(|b| b.k.len()).sum::<usize>() * g.strips.len() * 32;
        assert!(groups.iter().all(|g| size(g) <= limit));
        assert_eq!(groups.iter().map(size).sum::<usize>(), 900 * 128);
    }
}

/// Returns the bits of panels of B for `kernel`: rows `rows` and columns `k` of m, which is Bᵀ.
fn panels(m: Mat, rows: Range<usize>, k: Range<usize>, kernel: Kernel) -> Vec<u32> {
    let (format, height) = (kernel.b_format, kernel.nr);
    let depth = k.len().div_ceil(format.per_word()).next_multiple_of(kernel.step);
    let mut out = vec![f32::NAN; rows.len().div_ceil(height) * height * depth];
    pack::pack(m, rows, k, 1.0, height, format, &mut out);
    out.iter().map(|x| x.to_bits()).collect()
}

/// Returns the kernels with which this machine multiplies in bf16.
fn bf16_kernels() -> Vec<Kernel> {
    [(1000, 1000), (8, 1000), (1000, 16)].map(|(m, n)| Kernel::choose(Precision::Bf16, m, n)).into()
}

#[test]
fn a_prerounded_matrix_has_the_same_panels() {
    // Among the numbers are ties, denormals (one of which rounds to a normal number), −0, f32::MAX,
    // which rounds to ∞, and −∞.
    let odd = [0x3f80_8000, 0x3f81_8000, 1, 0x807f_ffff, 0x007f_8000, 0x8000_0000, 0x7f7f_ffff, 0xff80_0000];
    for (rows, cols) in [(1, 1), (14, 32), (16, 33), (45, 401), (70, 1100)] {
        let mut values = numbers(rows * cols, 3);
        for (value, odd) in values.iter_mut().step_by(7).zip(odd.into_iter().cycle()) {
            *value = f32::from_bits(odd);
        }
        let rounded = round(&Tensor::new(vec![rows, cols], values.clone()));
        let (floats, halves) = (Mat::new(&values, rows, cols), Mat::blocks(&rounded));
        for ((floats, halves), kernel) in [(floats, halves), (floats.t(), halves.t())]
            .into_iter()
            .flat_map(|m| bf16_kernels().into_iter().map(move |k| (m, k)))
        {
            let (rows, k) = (floats.rows, floats.cols);
            for (from, to) in [(0, k), (k / 2, k), (k / 3, k / 2)] {
                let packed = |m| panels(m, rows / 3..rows, from..to, kernel);
                let case = format!("{}: ({rows}, {k}) from {from}", kernel.name);
                assert!(packed(floats) == packed(halves), "{case}");
            }
        }
    }
}

#[test]
fn every_value_is_rounded_as_it_is_packed() {
    let lower = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
    let bits = (0..=u16::MAX).flat_map(|upper| lower.map(|lower| u32::from(upper) << 16 | lower));
    let values: Vec<f32> = bits.map(f32::from_bits).collect();
    let cols = values.len() / 64;
    let rounded = round(&Tensor::new(vec![64, cols], values.clone()));
    for kernel in bf16_kernels() {
        let packed = |m| panels(m, 0..64, 0..cols, kernel);
        assert!(packed(Mat::new(&values, 64, cols)) == packed(Mat::blocks(&rounded)), "{}", kernel.name);
    }
}

#[test]
fn kernels_agree() {
    // Every kernel of this machine agrees, up to rounding, with the f64 sum of the operands as its
    // format rounds them.
    let (m, n) = (32, 32);
    for (kernel, k) in choose::available().into_iter().flat_map(|kernel| [(kernel, 100), (kernel, 77)]) {
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let terms = [(Mat::new(&a, m, k), Mat::new(&b, k, n))];
        let Kernel { a_format, b_format, step, .. } = kernel;
        let depth = k.div_ceil(a_format.per_word()).next_multiple_of(step);
        let mut a_packed = vec![0.0; kernel.mr * depth];
        let mut b_packed = vec![0.0; kernel.nr * depth];
        let (rows, cols) = (kernel.mr.min(m), kernel.nr.min(n));
        pack::pack(terms[0].0, 0..rows, 0..k, 1.0, kernel.mr, a_format, &mut a_packed);
        pack::pack(terms[0].1.t(), 0..cols, 0..k, 1.0, kernel.nr, b_format, &mut b_packed);
        for (rows, cols) in [(rows, cols), (1, 1), (rows - 1, cols - 1)] {
            let mut c = vec![9.0; m * n];
            let tile =
                Tile { c: c.as_mut_ptr(), row_stride: n, rows, cols, start: Start::Zero, streamed: None };
            // SAFETY: the panels are packed for this kernel; the tile is inside c.
            unsafe { (kernel.run)(depth, &a_packed, &b_packed, tile) };
            for (at, &got) in c.iter().enumerate() {
                let (i, j) = (at / n, at % n);
                let want = if i < rows && j < cols { sum(precision(&kernel), &terms, i, j) } else { 9.0 };
                let name = kernel.name;
                assert!(
                    (got as f64 - want).abs() < 1e-4,
                    "{name}, {a_format:?}: ({i}, {j}) {got} for {want}"
                );
            }
        }
    }
}
