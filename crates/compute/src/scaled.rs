//! A small matrix scaled by rows and by columns, forward and backward: M' = diag(rows) · M ·
//! diag(columns). M is the B of a low-rank pair, and the diagonals are the vectors before and after
//! it. M' joins a layer's product, so the vectors cost no pass over activations.

use rayon::prelude::*;

use crate::profile::{self, Work};
use crate::rows::{each_row, row, sum_columns};

/// A matrix (height, width) and its factors by row (height) and by column (width); without columns
/// these are all ones.
#[derive(Clone, Copy)]
pub struct Scaled<'a> {
    pub matrix: &'a [f32],
    pub rows: &'a [f32],
    pub columns: Option<&'a [f32]>,
    pub width: usize,
}

impl Scaled<'_> {
    fn row(&self, number: usize) -> &[f32] {
        row(self.matrix, number, self.width)
    }

    fn work(&self) -> Work {
        Work::floats(2 * self.matrix.len())
    }
}

/// out = diag(rows) · M · diag(columns).
pub fn forward(of: Scaled, out: &mut [f32]) {
    let _span = profile::operation("scaled matrix", || of.work());
    each_row(out, of.width, |number, out| {
        let factor = of.rows[number];
        out.iter_mut().zip(of.row(number)).for_each(|(out, m)| *out = factor * m);
        if let Some(columns) = of.columns {
            out.iter_mut().zip(columns).for_each(|(out, c)| *out *= c);
        }
    });
}

/// gradient += diag(rows) · d · diag(columns), where d is the gradient of the scaled matrix.
pub fn matrix_gradient(of: Scaled, d: &[f32], gradient: &mut [f32]) {
    let _span = profile::operation("scaled matrix backward", || of.work());
    each_row(gradient, of.width, |number, gradient| {
        let (factor, d) = (of.rows[number], row(d, number, of.width));
        match of.columns {
            Some(columns) => (gradient.iter_mut().zip(d).zip(columns))
                .for_each(|((gradient, d), c)| *gradient += factor * d * c),
            None => gradient.iter_mut().zip(d).for_each(|(gradient, d)| *gradient += factor * d),
        }
    });
}

/// gradient (height) += Σ over columns of d · M · columns.
pub fn row_gradient(of: Scaled, d: &[f32], gradient: &mut [f32]) {
    let _span = profile::operation("scaled matrix backward", || of.work());
    gradient.par_iter_mut().zip(d.par_chunks_exact(of.width)).enumerate().for_each(
        |(number, (gradient, d))| {
            let products = d.iter().zip(of.row(number)).map(|(d, m)| d * m);
            *gradient += match of.columns {
                Some(columns) => products.zip(columns).map(|(product, c)| product * c).sum::<f32>(),
                None => products.sum::<f32>(),
            };
        },
    );
}

/// gradient (width) += Σ over rows of d · M · rows.
pub fn column_gradient(of: Scaled, d: &[f32], gradient: &mut [f32]) {
    let _span = profile::operation("scaled matrix backward", || of.work());
    sum_columns(of.width, of.rows.len(), gradient, |number, out| {
        let (factor, d) = (of.rows[number], row(d, number, of.width));
        out.iter_mut().zip(d).zip(of.row(number)).for_each(|((out, d), m)| *out += factor * d * m);
    });
}
