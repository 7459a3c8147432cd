//! What a product computes and moves, for profiles.

use super::mat::Data;
use super::{Mat, MatMut, Start, Term};
use crate::profile::Work;

/// The work of C = start + scale · Σ AᵢBᵢ: each factor is read once as it is stored, and C is
/// written once. What packing copies and reads again is not counted.
pub fn work(c: &MatMut, start: Start, terms: &[Term]) -> Work {
    let passes = if let Start::Keep = start { 2 } else { 1 };
    let mut work = Work::floats(passes * c.rows * c.cols);
    for (a, b) in terms {
        let operations = 2 * (a.rows * a.cols * b.cols) as u64;
        work += Work { operations, bytes: a.stored_bytes() + b.stored_bytes() };
    }
    work
}

impl Mat<'_> {
    fn stored_bytes(&self) -> u64 {
        match self.data {
            Data::Floats { .. } => 4 * (self.rows * self.cols) as u64,
            Data::Blocks { matrix, .. } => matrix.bytes().len() as u64,
            Data::Packed { matrix, transposed } => matrix.bytes_of(transposed) as u64,
        }
    }
}
