//! The best pair for several layers to share: of all pairs of the given rank, the one whose product
//! s·B·A is nearest to the mean of the layers' products in the Frobenius norm. Its product is the
//! truncated singular value decomposition (SVD) of that mean.
//!
//! The mean of L pairs of rank r is U V, where U holds the L·r scaled columns of B and V the L·r
//! rows of A, so it is never formed as a matrix. With U = Q R, the right singular vectors are those
//! of R V, found by making its rows orthogonal with one-sided Jacobi rotations. Everything is
//! computed in f64, each sum in a fixed order, so the number of threads does not affect results.

use rayon::prelude::*;

use crate::algebra::{add, dot, singular_rows, triangle, triangle_times};

/// A layer's product: scale · B A.
pub(super) struct Product<'a> {
    pub scale: f64,
    /// (rank, in)
    pub a: &'a [f32],
    /// (rank, out)
    pub b_t: &'a [f32],
}

/// Returns the rows of A and the columns of B of the best common pair of this rank and scale, in
/// descending order of singular value. There are fewer than `rank` if the mean's rank is lower, to
/// the precision of f32.
///
/// The rows of A are orthogonal, and each has the root-mean-square length of the layers' rows; B
/// carries the singular values. AdamW moves a value by about the learning rate whatever its
/// gradient, so the effect of one step on the product depends on the lengths of A and B. Keeping
/// the length of A keeps the effect of the learning rate, and directions with a small singular
/// value do not start with a short row of A, where they could barely grow.
pub(super) fn best_common_pair(
    products: &[Product<'_>],
    rank: usize,
    (input, output): (usize, usize),
    scale: f64,
) -> Vec<(Vec<f32>, Vec<f32>)> {
    let widened = |values: &[f32], factor: f64| values.iter().map(|&v| f64::from(v) * factor).collect();
    let (mut left, mut right) = (Vec::<Vec<f64>>::new(), Vec::<Vec<f64>>::new());
    for product in products {
        let weight = product.scale / products.len() as f64;
        left.extend(product.b_t.chunks(output).map(|column| widened(column, weight)));
        right.extend(product.a.chunks(input).map(|row| widened(row, 1.0)));
    }
    let mut rows = singular_rows(triangle_times(&triangle(&left), &right));
    let length = (right.iter().map(|row| dot(row, row)).sum::<f64>() / right.len() as f64).sqrt();
    rows.truncate(rank);
    rows.into_par_iter()
        .map(|(value, row)| {
            let a: Vec<f64> = row.iter().map(|v| v / value * length).collect();
            // b = U (V aᵀ) / (s |a|²), from the factors.
            let mut b = vec![0.0; output];
            for (column, other) in left.iter().zip(&right) {
                add(&mut b, dot(other, &a) / (length * length * scale), column);
            }
            let narrowed = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect();
            (narrowed(a), narrowed(b))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::init::RandomStream;
    use super::*;

    const INPUT: usize = 11;

    fn random(name: &str, count: usize) -> Vec<f32> {
        let mut numbers = RandomStream::new(5, name);
        (0..count).map(|_| numbers.uniform(1.0)).collect()
    }

    /// Random pairs whose B shrinks tenfold from layer to layer.
    fn layers(count: usize, rank: usize, output: usize) -> Vec<(Vec<f32>, Vec<f32>)> {
        let layer = |l: usize| {
            let size = 10f32.powi(-(l as i32));
            let b_t: Vec<f32> = random(&format!("B{l}"), rank * output).iter().map(|v| v * size).collect();
            (random(&format!("A{l}"), rank * INPUT), b_t)
        };
        (0..count).map(layer).collect()
    }

    fn products<'a>(layers: &'a [(Vec<f32>, Vec<f32>)], scale: f64) -> Vec<Product<'a>> {
        layers.iter().map(|(a, b_t)| Product { scale, a, b_t }).collect()
    }

    /// Σ weight · B A as a matrix (out, in), in f64.
    fn dense<'a>(
        pairs: impl IntoIterator<Item = (&'a [f32], &'a [f32])>,
        output: usize,
        weight: f64,
    ) -> Vec<Vec<f64>> {
        let mut sum = vec![vec![0.0; INPUT]; output];
        for (a, b) in pairs {
            for (a, b) in a.chunks(INPUT).zip(b.chunks(output)) {
                for (row, &b) in sum.iter_mut().zip(b) {
                    row.iter_mut().zip(a).for_each(|(x, &a)| *x += weight * f64::from(b) * f64::from(a));
                }
            }
        }
        sum
    }

    /// Reference truncated SVD: the largest eigenvectors of MᵀM by power iteration, with deflation.
    fn truncated(matrix: &[Vec<f64>], rank: usize) -> Vec<Vec<f64>> {
        let mut left = matrix.to_vec();
        for k in 0..rank {
            let mut v: Vec<f64> = random(&format!("start {k}"), INPUT).iter().map(|&v| v.into()).collect();
            for _ in 0..5000 {
                let along: Vec<f64> = left.iter().map(|row| dot(row, &v)).collect();
                let mut next = vec![0.0; INPUT];
                left.iter().zip(along).for_each(|(row, x)| add(&mut next, x, row));
                let norm = dot(&next, &next).sqrt();
                v = next.iter().map(|x| x / norm).collect();
            }
            for row in &mut left {
                let along = dot(row, &v);
                add(row, -along, &v);
            }
        }
        let difference =
            |(row, left): (&Vec<f64>, &Vec<f64>)| row.iter().zip(left).map(|(x, y)| x - y).collect();
        matrix.iter().zip(&left).map(difference).collect()
    }

    fn norm(matrix: &[Vec<f64>]) -> f64 {
        matrix.iter().map(|row| dot(row, row)).sum::<f64>().sqrt()
    }

    fn distance(x: &[Vec<f64>], y: &[Vec<f64>]) -> f64 {
        let rows = x.iter().zip(y).map(|(x, y)| x.iter().zip(y).map(|(x, y)| x - y).collect());
        norm(&rows.collect::<Vec<_>>())
    }

    #[test]
    fn it_is_the_truncated_svd_of_the_mean() {
        // U has more rows than columns, fewer (then R is not square), and as many.
        for (count, rank, output) in [(2, 2, 9), (3, 3, 7), (5, 2, 10)] {
            let layers = layers(count, rank, output);
            let found = best_common_pair(&products(&layers, 4.0), rank, (INPUT, output), 0.5);
            assert_eq!(found.len(), rank);
            let mean = dense(layers.iter().map(|(a, b)| (&a[..], &b[..])), output, 4.0 / count as f64);
            let best = truncated(&mean, rank);
            let product = dense(found.iter().map(|(a, b)| (&a[..], &b[..])), output, 0.5);
            assert!(distance(&product, &best) < 1e-6 * norm(&mean), "{count} layers of rank {rank}");
            assert!(distance(&mean, &best) > 1e-3 * norm(&mean), "else anything would do");
            // Every row of A has the root-mean-square length of the layers' rows.
            let squares = |a: &[f32]| a.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
            let before: f64 = layers.iter().map(|(a, _)| squares(a)).sum::<f64>() / (count * rank) as f64;
            found.iter().for_each(|(a, _)| assert!((squares(a) / before - 1.0).abs() < 1e-5));
        }
    }

    #[test]
    fn one_layer_gives_its_own_product() {
        let layers = layers(1, 3, 8);
        let found = best_common_pair(&products(&layers, 2.0), 3, (INPUT, 8), 2.0);
        let own = dense(layers.iter().map(|(a, b)| (&a[..], &b[..])), 8, 2.0);
        let product = dense(found.iter().map(|(a, b)| (&a[..], &b[..])), 8, 2.0);
        assert!(distance(&product, &own) < 1e-6 * norm(&own));
    }

    #[test]
    fn there_are_no_more_directions_than_the_mean_has() {
        let mut layers = layers(2, 2, 6);
        let first = layers[0].clone();
        layers[1] = first.clone();
        // The same pair twice, with one column of B zero: the mean has rank 1.
        layers.iter_mut().for_each(|(_, b)| b[6..].fill(0.0));
        let found = best_common_pair(&products(&layers, 1.0), 2, (INPUT, 6), 1.0);
        let [(a, b)] = &found[..] else { panic!("{} directions", found.len()) };
        let own = dense([(&first.0[..INPUT], &first.1[..6])], 6, 1.0);
        assert!(distance(&dense([(&a[..], &b[..])], 6, 1.0), &own) < 1e-6 * norm(&own));
        layers.iter_mut().for_each(|(_, b)| b.fill(0.0));
        assert!(best_common_pair(&products(&layers, 1.0), 2, (INPUT, 6), 1.0).is_empty());
    }

    #[test]
    fn threads_do_not_affect_results() {
        let layers = layers(4, 4, 12);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| best_common_pair(&products(&layers, 1.0), 4, (INPUT, 12), 1.0))
        };
        assert_eq!(on(1), on(3));
    }
}
