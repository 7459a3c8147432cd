//! Linear algebra of small matrices in f64: QR, Cholesky and the singular value decomposition. Every
//! sum has a fixed order, so the number of threads does not affect results. Matrices are lists of
//! rows or of columns, as each function says.

use rayon::prelude::*;

/// The cosine below which two rows count as orthogonal.
const ORTHOGONAL: f64 = 1e-12;
/// Upper bound on Jacobi sweeps; about ten are needed at the sizes used here.
const MAX_SWEEPS: usize = 40;

/// The columns of R in U = Q R, by Householder reflections. Column j has its first j + 1 values
/// (fewer if U has fewer rows); the others are zero. `left` are U's columns.
pub fn triangle(left: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut columns = left.to_vec();
    let height = columns.len().min(columns.first().map_or(0, Vec::len));
    for i in 0..height {
        let (done, rest) = columns.split_at_mut(i + 1);
        let mut mirror = done[i][i..].to_vec();
        let norm = dot(&mirror, &mirror).sqrt();
        if norm > 0.0 {
            // The sign that avoids cancellation.
            let diagonal = if mirror[0] > 0.0 { -norm } else { norm };
            mirror[0] -= diagonal;
            let half = dot(&mirror, &mirror) / 2.0;
            rest.par_iter_mut().for_each(|column| {
                let column = &mut column[i..];
                add(column, -dot(&mirror, column) / half, &mirror);
            });
            done[i][i] = diagonal;
        }
    }
    columns.iter_mut().enumerate().for_each(|(j, column)| column.truncate(height.min(j + 1)));
    columns
}

/// The rows of R V, where `triangle` are R's columns and `right` V's rows.
pub fn triangle_times(triangle: &[Vec<f64>], right: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let height = triangle.last().map_or(0, Vec::len);
    (0..height)
        .into_par_iter()
        .map(|i| {
            let mut row = vec![0.0; right[0].len()];
            for (column, other) in triangle.iter().zip(right).skip(i) {
                add(&mut row, column[i], other);
            }
            row
        })
        .collect()
}

/// The singular values of a matrix in falling order, each with its right singular vector times the
/// value. Values below the largest times f32's epsilon are left out.
pub fn singular_rows(mut rows: Vec<Vec<f64>>) -> Vec<(f64, Vec<f64>)> {
    make_orthogonal(&mut rows);
    let mut rows: Vec<(f64, Vec<f64>)> = rows.into_iter().map(|row| (dot(&row, &row).sqrt(), row)).collect();
    rows.sort_by(|x, y| y.0.total_cmp(&x.0));
    let least = rows.first().map_or(0.0, |(largest, _)| largest * f64::from(f32::EPSILON));
    rows.retain(|(value, _)| *value > least);
    rows
}

/// Returns the rows of W with C = W Wᵀ for a symmetric positive semi-definite C, by Cholesky's
/// method with the largest pivot first. It stops once all pivots are rounding errors, so W has
/// rank(C) columns. `c` is C in row-major order.
pub fn square_root(c: &[f64]) -> Vec<Vec<f64>> {
    let n = c.len().isqrt();
    // Scales C to ones on its diagonal, so that the threshold for pivots does not depend on the
    // units of a row and its column.
    let lengths: Vec<f64> = (0..n).map(|i| c[i * n + i].max(0.0).sqrt()).collect();
    let mut left: Vec<usize> = (0..n).filter(|&i| lengths[i] > 0.0).collect();
    let mut pivots = vec![1.0; n];
    let mut rows: Vec<Vec<f64>> = vec![Vec::new(); n];
    let least = n as f64 * f64::EPSILON;
    while let Some(place) =
        (0..left.len()).reduce(|x, y| if pivots[left[y]] > pivots[left[x]] { y } else { x })
        && pivots[left[place]] > least
    {
        let pivot = left.remove(place);
        let root = pivots[pivot].sqrt();
        let own = rows[pivot].clone();
        for &i in &left {
            let value = (c[i * n + pivot] / (lengths[i] * lengths[pivot]) - dot(&rows[i], &own)) / root;
            rows[i].push(value);
            pivots[i] -= value * value;
        }
        rows[pivot].push(root);
    }
    let rank = rows.iter().map(Vec::len).max().unwrap_or(0);
    for (row, length) in rows.iter_mut().zip(lengths) {
        row.resize(rank, 0.0);
        row.iter_mut().for_each(|value| *value *= length);
    }
    rows
}

/// Rotates pairs of rows until all are orthogonal: one-sided Jacobi (Hestenes 1958). The pairs of a
/// round are disjoint, as in a round-robin tournament, so they are rotated concurrently.
fn make_orthogonal(rows: &mut Vec<Vec<f64>>) {
    if rows.len() % 2 == 1 {
        rows.push(vec![0.0; rows[0].len()]);
    }
    for _ in 0..MAX_SWEEPS {
        let mut rotated = false;
        for _ in 1..rows.len() {
            let half = rows.len() / 2;
            let (top, bottom) = rows.split_at_mut(half);
            let pairs = top.par_iter_mut().zip(bottom.par_iter_mut().rev());
            rotated |= pairs.map(|(x, y)| rotate(x, y)).reduce(|| false, |x, y| x | y);
            rows[1..].rotate_right(1);
        }
        if !rotated {
            break;
        }
    }
}

/// Makes two rows orthogonal by a rotation; returns false if they already are.
fn rotate(x: &mut [f64], y: &mut [f64]) -> bool {
    let (xx, yy, xy) = (dot(x, x), dot(y, y), dot(x, y));
    let orthogonal = xy.abs() <= ORTHOGONAL * xx.sqrt() * yy.sqrt();
    if orthogonal || !xy.is_finite() {
        return false;
    }
    let zeta = (yy - xx) / (2.0 * xy);
    let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = cosine * tangent;
    for (x, y) in x.iter_mut().zip(y) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
    true
}

/// Returns Σ xᵢ yᵢ. Eight partial sums let the compiler vectorise the loop.
pub fn dot(x: &[f64], y: &[f64]) -> f64 {
    let (xs, x_rest) = x.as_chunks::<8>();
    let (ys, y_rest) = y.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (x, y) in xs.iter().zip(ys) {
        for lane in 0..8 {
            sums[lane] += x[lane] * y[lane];
        }
    }
    let rest: f64 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}

/// to += factor · from
pub fn add(to: &mut [f64], factor: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}
