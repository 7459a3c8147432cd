//! Counts the operations and bytes of a product, for profiles.

use super::mat::Data;
use super::{Mat, MatMut, Start, Term};
use crate::profile::Work;

/// Returns the work of C = start + scale · Σ AᵢBᵢ. Each operand is read once as it is stored; C is
/// written once, and with [`Start::Keep`] also read. Copies made by packing are not counted.
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
