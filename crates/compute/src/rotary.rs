//! Rotary position embedding (RoFormer, Su et al. 2021): rotates pairs of a head's values by an
//! angle that grows with the position. Value i is paired with i + width/2, as in transformers'
//! checkpoints.

use crate::cpu::vectorised;
use crate::math::fused;
use crate::profile::{self, Work};
use crate::rows::{each_row, row};

/// Cosines and sines for every position and frequency.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    frequencies: Vec<f32>,
    /// (positions, half) each, half = frequencies = width / 2
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The direction of rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// By the angle.
    Forward,
    /// By the negative angle, for gradients.
    Backward,
}

impl RotaryTable {
    /// A table for positions below `positions`; `frequencies` in radians per position, one for each
    /// pair. Angles are computed in f32, as in transformers.
    pub fn new(positions: usize, frequencies: &[f32]) -> Self {
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin) = angles.map(|a| ((a as f64).cos() as f32, (a as f64).sin() as f32)).unzip();
        RotaryTable { frequencies: frequencies.to_vec(), cos, sin }
    }

    /// Radians per position of each pair.
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// Whether it has at least `positions` positions, at these frequencies.
    pub fn holds(&self, positions: usize, frequencies: &[f32]) -> bool {
        self.frequencies == frequencies && self.cos.len() >= positions * frequencies.len()
    }

    /// Rotates every head of each row of x, (rows, heads · width), in place; `positions`: (rows).
    pub fn rotate(&self, rotation: Rotation, x: &mut [f32], positions: &[u32]) {
        if positions.is_empty() {
            return;
        }
        let (columns, half) = (x.len() / positions.len(), self.frequencies.len());
        assert!(columns * positions.len() == x.len() && columns.is_multiple_of(2 * half));
        let _span = profile::operation("rotary", || Work::floats(2 * x.len()));
        let sign = if rotation == Rotation::Forward { 1.0 } else { -1.0 };
        each_row(x, columns, |token, x| {
            let position = positions[token] as usize;
            rotate_row(x, row(&self.cos, position, half), row(&self.sin, position, half), sign);
        });
    }
}

vectorised! {
    fn rotate_row(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        for head in row.chunks_exact_mut(2 * cos.len()) {
            let (low, high) = head.split_at_mut(cos.len());
            for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let s = sign * s;
                let (x, y) = (*a, *b);
                *a = fused::<FMA>(x, c, -(y * s));
                *b = fused::<FMA>(y, c, x * s);
            }
        }
    }
}
