//! Decomposes a pair's output in closed form into directions of descending energy: the first k are
//! the best pair of rank k.
//!
//! With z = s A x and C = Σ z zᵀ over the tokens, the pair's score is g = Σ ‖B z‖² = trace(B C Bᵀ).
//! Let W be a square root of C, C = W Wᵀ, and B W = U S Vᵀ: then g = Σ_j S_j². No pair of rank k
//! comes nearer to the outputs than their projection on the first k columns of U, which leaves an
//! error of Σ_{j>k} S_j². The projected pair is
//!
//! ```text
//! B' = U_k,   A' = U_kᵀ B A
//! ```
//!
//! On all inputs that were seen, A' is S_k V_kᵀ C^-½ A, but it needs no inverse, so C may be
//! singular; on other inputs it keeps what B A does there.

use rayon::prelude::*;

use crate::algebra::{add, dot, singular_rows, square_root, triangle, triangle_times};

/// A pair that is decomposed.
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    /// (rank, in)
    pub a: &'a [f32],
    /// (rank, out)
    pub b_t: &'a [f32],
    /// The pair's rank.
    pub rank: usize,
}

impl Factors<'_> {
    /// Returns s² A Aᵀ, (rank, rank): C for white inputs, with which the directions are the
    /// singular value decomposition of s B A.
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
    /// e_j = S_j²: Σ over the tokens of the squared output along each direction, descending, all
    /// above zero. There are at most `rank`, and fewer if B or the inputs have a lower rank within
    /// f32's precision.
    pub energies: Vec<f64>,
    /// For each direction u, the coefficients c, (rank), with u = B c.
    in_b: Vec<Vec<f64>>,
    /// For each direction u, uᵀ B, (rank).
    on_a: Vec<Vec<f64>>,
}

impl Directions {
    /// Decomposes a pair; `moment` is C = Σ z zᵀ with z = s A x, (rank, rank).
    pub fn new(factors: Factors<'_>, moment: &[f64]) -> Self {
        let roots = square_root(moment);
        let triangle = triangle(&widened(factors.b_t, factors.rank));
        let product = triangle_times(&triangle, &roots);
        let mut directions = Directions { energies: Vec::new(), in_b: Vec::new(), on_a: Vec::new() };
        if product.first().is_none_or(Vec::is_empty) {
            return directions;
        }
        for (value, row) in singular_rows(product.clone()) {
            // `row` is S v. u = B W v / S, and with B = Q R, u = Q y.
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

    /// Returns A', (k, in), and B' transposed, (k, out), of the first `k` directions, for the same
    /// scale.
    ///
    /// Each row of A' has the root-mean-square length of A's rows, and B' has the remaining factor,
    /// so that a learning rate has the same effect in further training as before. Rows beyond the
    /// number of directions are zeros.
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

/// Returns the rows of a (rank, width) matrix in f64.
fn widened(values: &[f32], rank: usize) -> Vec<Vec<f64>> {
    values.chunks(values.len() / rank).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::init::RandomStream;

    /// A pair and the inputs that it sees, for outputs computed one by one as a reference.
    struct Case {
        a: Vec<f32>,
        b_t: Vec<f32>,
        rank: usize,
        scale: f64,
        /// (tokens, in)
        x: Vec<Vec<f64>>,
    }

    const INPUT: usize = 13;

    impl Case {
        fn random(seed: u64, rank: usize, output: usize, tokens: usize) -> Self {
            let mut random = RandomStream::new(seed, "directions");
            let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| random.uniform(1.0)).collect() };
            // One input is large throughout, as some are in models, and B's columns differ by
            // orders of magnitude.
            let x = draw(tokens * INPUT);
            let x = x.chunks(INPUT).map(|row| row.iter().enumerate());
            let x = x.map(|row| row.map(|(i, &v)| f64::from(v) + if i == 2 { 5.0 } else { 0.0 }).collect());
            let (x, a, mut b_t) = (x.collect(), draw(rank * INPUT), draw(rank * output));
            for (j, column) in b_t.chunks_mut(output).enumerate() {
                column.iter_mut().for_each(|v| *v *= 10f32.powi(-(j as i32 % 4)));
            }
            Case { a, b_t, rank, scale: 1.75, x }
        }

        fn factors(&self) -> Factors<'_> {
            Factors { a: &self.a, b_t: &self.b_t, rank: self.rank }
        }

        fn moment(&self) -> Vec<f64> {
            let a = widened(&self.a, self.rank);
            let mut moment = vec![0.0; self.rank * self.rank];
            for x in &self.x {
                let z: Vec<f64> = a.iter().map(|row| self.scale * dot(row, x)).collect();
                for (i, &zi) in z.iter().enumerate() {
                    for (j, &zj) in z.iter().enumerate() {
                        moment[i * self.rank + j] += zi * zj;
                    }
                }
            }
            moment
        }

        fn directions(&self) -> Directions {
            Directions::new(self.factors(), &self.moment())
        }

        /// Returns s B A x of each input for a pair of this rank.
        fn outputs(&self, a: &[f32], b_t: &[f32], rank: usize) -> Vec<Vec<f64>> {
            let output = self.b_t.len() / self.rank;
            let of = |x: &Vec<f64>| {
                let mut y = vec![0.0; output];
                for j in 0..rank {
                    let a: Vec<f64> = a[j * INPUT..][..INPUT].iter().map(|&v| v.into()).collect();
                    let b: Vec<f64> = b_t[j * output..][..output].iter().map(|&v| v.into()).collect();
                    add(&mut y, self.scale * dot(&a, x), &b);
                }
                y
            };
            self.x.iter().map(of).collect()
        }

        /// Returns the squared distance between the whole pair's outputs and those of its first `k`
        /// directions.
        fn error(&self, directions: &Directions, k: usize) -> f64 {
            let whole = self.outputs(&self.a, &self.b_t, self.rank);
            let (a, b_t) = directions.pair(self.factors(), k);
            let pruned = self.outputs(&a, &b_t, k);
            let squared = |(x, y): (&Vec<f64>, &Vec<f64>)| -> f64 {
                x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum()
            };
            whole.iter().zip(&pruned).map(squared).sum()
        }
    }

    /// Returns the eigenvalues of Σ y yᵀ, descending, by rotations of the matrix itself (Jacobi
    /// 1846).
    fn squared_singular_values(y: &[Vec<f64>]) -> Vec<f64> {
        let n = y[0].len();
        let entry = |i: usize, j: usize| y.iter().map(|row| row[i] * row[j]).sum::<f64>();
        let mut m: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| entry(i, j)).collect()).collect();
        for _ in 0..60 {
            for p in 0..n {
                for q in p + 1..n {
                    let angle = 0.5 * (2.0 * m[p][q]).atan2(m[q][q] - m[p][p]);
                    let (s, c) = angle.sin_cos();
                    for row in &mut m {
                        (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                    }
                    let (upper, lower) = m.split_at_mut(q);
                    for (x, y) in upper[p].iter_mut().zip(&mut lower[0]) {
                        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                    }
                }
            }
        }
        let mut values: Vec<f64> = (0..n).map(|i| m[i][i]).collect();
        values.sort_by(|x, y| y.total_cmp(x));
        values
    }

    /// (rank, out, tokens). Some ranks exceed the tokens, the outputs or the inputs.
    const SHAPES: [(usize, usize, usize); 7] =
        [(4, 9, 40), (1, 6, 20), (8, 11, 5), (8, 5, 40), (16, 20, 60), (5, 7, 1), (3, 1, 30)];

    #[test]
    fn the_error_on_the_data_is_the_dropped_energy() {
        for (seed, (rank, output, tokens)) in (0..).zip(SHAPES.into_iter().cycle().take(42)) {
            let case = Case::random(seed, rank, output, tokens);
            let directions = case.directions();
            let total: f64 = directions.energies.iter().sum();
            let of_whole: f64 = case.outputs(&case.a, &case.b_t, rank).iter().map(|y| dot(y, y)).sum();
            assert!((total / of_whole - 1.0).abs() < 1e-9, "{total} {of_whole}");
            assert!(directions.energies.is_sorted_by(|x, y| x >= y) && directions.energies.len() <= rank);
            for k in 0..=directions.energies.len() {
                let dropped: f64 = directions.energies[k..].iter().sum();
                let error = case.error(&directions, k);
                // In addition, f32 rounds A' and B'.
                let allowed = 1e-6 * dropped + 1e-12 * total;
                assert!((error - dropped).abs() < allowed, "{seed}: {k} of {rank}: {error}, not {dropped}");
            }
        }
    }

    #[test]
    fn no_other_pair_of_the_rank_is_closer() {
        // By Eckart and Young, the best error is what the outputs' own singular values leave.
        for (seed, (rank, output, tokens)) in (100..).zip(SHAPES) {
            let case = Case::random(seed, rank, output, tokens);
            let directions = case.directions();
            let best = squared_singular_values(&case.outputs(&case.a, &case.b_t, rank));
            for (found, best) in directions.energies.iter().zip(&best) {
                assert!(
                    (found - best).abs() < 1e-9 * best + 1e-13 * directions.energies[0],
                    "{found} {best}"
                );
            }
        }
    }

    #[test]
    fn white_inputs_give_the_svd_of_the_product() {
        let case = Case::random(7, 6, 9, 1);
        // As many inputs as input dimensions, each a unit vector.
        let unit = |i: usize| (0..INPUT).map(|j| f64::from(u8::from(i == j))).collect();
        let case = Case { x: (0..INPUT).map(unit).collect(), ..case };
        let white = case.factors().white_moment(case.scale);
        assert!(case.moment().iter().zip(&white).all(|(x, y)| (x - y).abs() < 1e-12));
    }

    #[test]
    fn a_zero_output_has_no_direction() {
        let mut case = Case::random(3, 4, 6, 20);
        case.b_t[6..].fill(0.0);
        assert_eq!(case.directions().energies.len(), 1);
        case.b_t.fill(0.0);
        assert!(case.directions().energies.is_empty());
        let (a, b_t) = case.directions().pair(case.factors(), 2);
        assert!(a.len() == 2 * INPUT && b_t.len() == 2 * 6 && a.iter().chain(&b_t).all(|v| *v == 0.0));
        let case = Case { x: vec![vec![0.0; INPUT]; 3], ..Case::random(3, 4, 6, 20) };
        assert!(case.directions().energies.is_empty());
    }

    #[test]
    fn rows_of_a_are_as_long_as_they_were() {
        let case = Case::random(5, 6, 9, 50);
        let length = |row: &[f32]| row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        let before = case.a.chunks(INPUT).map(length).sum::<f64>() / 6.0;
        let (a, _) = case.directions().pair(case.factors(), 4);
        a.chunks(INPUT).for_each(|row| assert!((length(row) / before - 1.0).abs() < 1e-5));
    }

    #[test]
    fn values_of_very_different_size_neither_overflow_nor_vanish() {
        // A row of A is scaled by the factor, its column of B by the inverse.
        for factor in [1e-30f32, 1e-15, 1e15, 1e30] {
            let mut case = Case::random(11, 3, 8, 40);
            case.a[..INPUT].iter_mut().for_each(|v| *v *= factor);
            case.b_t[..8].iter_mut().for_each(|v| *v /= factor);
            let directions = case.directions();
            assert_eq!(directions.energies.len(), 3, "{factor}");
            let (a, b_t) = directions.pair(case.factors(), 3);
            assert!(a.iter().chain(&b_t).all(|v| v.is_finite()));
            let total: f64 = directions.energies.iter().sum();
            let dropped: f64 = directions.energies[2..].iter().sum();
            assert!((case.error(&directions, 2) - dropped).abs() < 1e-5 * total, "{factor}");
        }
    }

    #[test]
    fn threads_do_not_affect_results() {
        let case = Case::random(9, 16, 20, 60);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (case.directions().energies, case.directions().pair(case.factors(), 9)))
        };
        assert_eq!(on(1), on(3));
    }
}
