//! Products x Wᵀ of few rows, as in text generation with one row per sequence. W is read once, row
//! by row, and nothing is packed.
//!
//! Each element of C is accumulated over k in 16 partial sums, which are then added in a fixed
//! order. It depends neither on the threads nor on the number of rows, but it is rounded
//! differently from the result of `matmul`.

use std::cell::Cell;

use rayon::prelude::*;

use super::mat::Data;
use super::{MAX_SERIAL_WORK, Mat, MatMut, Start, Term, with_scratch};
use crate::aligned::AlignedBuffer;
use crate::blocks::dot::{MAX_VECTORS, StoredRows, Vectors, dot};
use crate::cpu::vectorised;
use crate::math::fused;
use crate::output_slice::OutputSlice;

/// Maximum number of rows of [`matmul_few`].
pub const FEW_ROWS: usize = MAX_VECTORS;
/// Rows of W that a task multiplies before it writes to C.
const GROUP: usize = 64;

thread_local! {
    static X_SCRATCH: Cell<Vectors> = const { Cell::new(Vectors::new()) };
    static SUMS_SCRATCH: Cell<AlignedBuffer> = const { Cell::new(AlignedBuffer::EMPTY) };
}

/// Computes C = start + x Wᵀ + z B for at most [`FEW_ROWS`] rows, on all threads. `wide` is (x, Wᵀ)
/// with x (m, k) and W (n, k) stored by rows; `thin` is (z, B), a LoRA's low-rank product, also
/// stored by rows.
///
/// # Panics
/// There are more than [`FEW_ROWS`] rows, shapes do not match, or an operand is not stored by rows.
pub fn matmul_few(c: MatMut, start: Start, wide: Term, thin: Option<Term>) {
    few(c, start, wide, thin, true);
}

/// [`matmul_few`] on the calling thread alone, for use inside a parallel task.
pub(crate) fn matmul_few_local(c: MatMut, start: Start, wide: Term, thin: Option<Term>) {
    few(c, start, wide, thin, false);
}

fn few(c: MatMut, start: Start, wide: Term, thin: Option<Term>, parallel: bool) {
    let (m, n) = (c.rows, c.cols);
    let (x, w) = (wide.0, wide.1.t());
    assert!(m <= FEW_ROWS, "{m} rows are not few");
    for (a, b) in [Some(wide), thin].into_iter().flatten() {
        assert!(a.rows == m && b.cols == n && a.cols == b.rows, "shapes of a product do not fit");
    }
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), n, "bias");
    }
    if m == 0 || n == 0 {
        return;
    }
    let k = x.cols;
    let (x, x_stride) = x.stored_rows().expect("x is stored by rows");
    let thin = thin.map(|(z, b)| {
        let parts = (z.stored_rows(), b.stored_rows());
        let (Some((z_data, z_stride)), Some((b_data, b_stride))) = parts else {
            panic!("the thin product is stored by rows")
        };
        (move |row: usize| &z_data[row * z_stride..][..z.cols], b_data, b_stride)
    });

    let parallel = parallel && n.saturating_mul(m * k) > MAX_SERIAL_WORK;
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let tasks = if threads > 1 { 4 * threads } else { 1 };
    let each = n.div_ceil(tasks).next_multiple_of(4);
    let to = OutputSlice::new(c.data, c.row_stride);
    let stored = stored(&w);
    let task = |task: usize, x: &Vectors| {
        let outputs = (task * each).min(n)..((task + 1) * each).min(n);
        // SAFETY: C is borrowed mutably, and no other task accesses columns `outputs`.
        let c_row = |row: usize| unsafe { to.columns(row, outputs.start, outputs.len()) };
        with_scratch(&SUMS_SCRATCH, GROUP * FEW_ROWS, |sums| {
            for first in outputs.clone().step_by(GROUP) {
                let group = first..(first + GROUP).min(outputs.end);
                let sums = &mut sums[..group.len() * x.count()];
                dot(stored, group.clone(), x, sums);
                for row in 0..m {
                    let sums = sums[row..].iter().step_by(x.count());
                    let c = &mut c_row(row)[group.start - outputs.start..][..group.len()];
                    match start {
                        Start::Zero => c.iter_mut().zip(sums).for_each(|(c, sum)| *c = *sum),
                        Start::Bias(bias) => {
                            let bias = &bias[group.clone()];
                            c.iter_mut().zip(sums).zip(bias).for_each(|((c, sum), bias)| *c = bias + sum)
                        }
                        Start::Keep => c.iter_mut().zip(sums).for_each(|(c, sum)| *c += sum),
                    }
                }
            }
        });
        if let Some((z_row, b, stride)) = thin
            && !outputs.is_empty()
        {
            for row in 0..m {
                add_rows(c_row(row), z_row(row), &b[outputs.start..], stride);
            }
        }
    };
    // Taken out of its slot, not borrowed: while it waits for the other tasks, this thread may be
    // given another product.
    let mut vectors = X_SCRATCH.take();
    vectors.fill(stored.kind, x, m, k, x_stride);
    if tasks > 1 {
        (0..tasks).into_par_iter().with_max_len(1).for_each(|i| task(i, &vectors));
    } else {
        task(0, &vectors);
    }
    X_SCRATCH.set(vectors);
}

/// Returns the rows of W as they are stored.
fn stored<'a>(w: &Mat<'a>) -> StoredRows<'a> {
    match w.data {
        Data::Floats { data, row_stride, col_stride } => {
            assert!(col_stride == 1 || w.cols == 1, "W is stored by rows");
            // SAFETY: an f32 is four bytes, all of them initialised.
            let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), 4 * data.len()) };
            StoredRows { kind: None, bytes, stride: 4 * row_stride, row_bytes: 4 * w.cols }
        }
        Data::Blocks { matrix, transposed } => {
            assert!(!transposed, "W is stored by rows");
            let row_bytes = matrix.row_bytes();
            StoredRows { kind: Some(matrix.kind()), bytes: matrix.bytes(), stride: row_bytes, row_bytes }
        }
        Data::Packed { .. } => panic!("a packed matrix is not stored by rows"),
    }
}

vectorised! {
    /// c += Σ zᵣ · row r of b, whose rows start `stride` apart.
    pub(crate) fn add_rows(c: &mut [f32], z: &[f32], b: &[f32], stride: usize) {
        let n = c.len();
        for (r, &z) in z.iter().enumerate() {
            for (c, &b) in c.iter_mut().zip(&b[r * stride..][..n]) {
                *c = fused::<FMA>(z, b, *c);
            }
        }
    }
}
