//! A pair's output taken apart in closed form: into directions of falling energy, of which any first few are the best pair of
//! that rank.
//!
//! With z = s A x and C = Σ z zᵀ over the tokens, the pair's score is g = Σ ‖B z‖² = trace(B C Bᵀ). Let W be a square root of C,
//! C = W Wᵀ, and B W = U S Vᵀ: then g = Σ_j S_j², and no pair of rank k comes nearer to the outputs than their projection on the
//! first k columns of U, which leaves Σ_{j>k} S_j². The projected pair is
//!
//!     B' = U_k,   A' = U_kᵀ B A
//!
//! which is V_kᵀ C^-½ A (scaled by S_k) on all inputs that were seen, without an inverse, so that C may be singular; on others it
//! keeps what B A does there.

use rayon::prelude::*;

use crate::algebra::{add, dot, singular_rows, square_root, triangle, triangle_times};

/// A pair that is taken apart.
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    /// (rank, in)
    pub a: &'a [f32],
    /// (rank, out)
    pub b_t: &'a [f32],
    pub rank: usize,
}

impl Factors<'_> {
    /// The products of A's rows with each other times s², (rank, rank): C if all inputs were white, with which the directions
    /// are the singular value decomposition of s B A.
    pub fn white_moment(&self, scale: f64) -> Vec<f64> {
        let rows = widened(self.a, self.rank);
        let of = |i: usize| (0..self.rank).map(move |j| (i, j));
        let pairs: Vec<(usize, usize)> = (0..self.rank).flat_map(of).collect();
        pairs.into_par_iter().map(|(i, j)| scale * scale * dot(&rows[i], &rows[j])).collect()
    }
}

/// The directions of a pair's output.
#[derive(Clone, Debug)]
pub struct Directions {
    /// e_j = S_j²: Σ over the tokens of the squared output along each direction, falling, all above zero. There are at most as many
    /// as the rank, and fewer where B or the inputs have a lower one, as f32 tells it.
    pub energies: Vec<f64>,
    /// Of each direction its u as B times these, (rank).
    in_b: Vec<Vec<f64>>,
    /// Of each direction its uᵀ B, (rank).
    on_a: Vec<Vec<f64>>,
}

impl Directions {
    /// Takes a pair apart; `moment` is Σ z zᵀ with z = s A x, (rank, rank).
    pub fn new(factors: Factors<'_>, moment: &[f64]) -> Self {
        let roots = square_root(moment);
        let triangle = triangle(&widened(factors.b_t, factors.rank));
        let product = triangle_times(&triangle, &roots);
        let mut directions = Directions { energies: Vec::new(), in_b: Vec::new(), on_a: Vec::new() };
        if product.first().is_none_or(Vec::is_empty) {
            return directions;
        }
        for (value, row) in singular_rows(product.clone()) {
            // S v; B W v / S = u, and with B = Q R: u = Q y.
            let by = |rows: &[Vec<f64>]| -> Vec<f64> {
                rows.iter().map(|other| dot(other, &row) / (value * value)).collect()
            };
            let y = by(&product);
            directions.energies.push(value * value);
            directions.in_b.push(by(&roots));
            directions.on_a.push(triangle.iter().map(|column| dot(column, &y[..column.len()])).collect());
        }
        directions
    }

    /// A' (k, in) and B' transposed (k, out) of the first `k` directions, for the same scale.
    ///
    /// Each row of A' is as long as A's rows are in the root mean square, and B' has what the direction adds: the learning rate of
    /// further training then means what it meant before. Rows beyond the directions that there are, are zeros.
    pub fn pair(&self, factors: Factors<'_>, k: usize) -> (Vec<f32>, Vec<f32>) {
        let Factors { a, b_t, rank } = factors;
        let (a, b) = (widened(a, rank), widened(b_t, rank));
        let length = (a.iter().map(|row| dot(row, row)).sum::<f64>() / rank as f64).sqrt();
        let sum = |of: &[f64], rows: &[Vec<f64>]| {
            let mut sum = vec![0.0; rows[0].len()];
            of.iter().zip(rows).for_each(|(&factor, row)| add(&mut sum, factor, row));
            sum
        };
        let row = |j: usize| {
            let (mut a, mut b) = match (self.on_a.get(j), self.in_b.get(j)) {
                (Some(on_a), Some(in_b)) => (sum(on_a, &a), sum(in_b, &b)),
                _ => return (vec![0.0; a[0].len()], vec![0.0; b[0].len()]),
            };
            let factor = length / dot(&a, &a).sqrt();
            a.iter_mut().for_each(|v| *v *= factor);
            b.iter_mut().for_each(|v| *v /= factor);
            let narrowed = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect();
            (narrowed(a), narrowed(b))
        };
        let (a, b): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (0..k).into_par_iter().map(row).unzip();
        (a.concat(), b.concat())
    }
}

/// The rows of a (rank, width) matrix.
fn widened(values: &[f32], rank: usize) -> Vec<Vec<f64>> {
    values.chunks(values.len() / rank).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
}
