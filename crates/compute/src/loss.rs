//! Losses of heads: cross-entropy over classes, binary cross-entropy of each class, squared error
//! of a regression.
//!
//! A row's loss is weighted by 1/total, where total is that of the whole optimiser step, so that
//! micro-batches and accumulation add up to the mean.

use rayon::prelude::*;

use crate::cpu::vectorised;
use crate::math::{exp, max, sum_by};
use crate::profile::{self, Work};

/// Cross-entropy with label smoothing ε: −Σ w q log p, where q = (1 − ε) · onehot + ε / classes and
/// w are the weights of the classes, (classes); empty for 1.
///
/// logits: (rows, classes). Returns the sum of the rows' losses and overwrites dlogits with the
/// gradient of that sum / total. Probabilities are computed in f64.
pub fn cross_entropy(
    logits: &[f32],
    labels: &[usize],
    weights: &[f64],
    smoothing: f64,
    total: f64,
    dlogits: Option<&mut [f32]>,
) -> f64 {
    if labels.is_empty() {
        return 0.0;
    }
    let classes = logits.len() / labels.len();
    assert_eq!(classes * labels.len(), logits.len());
    let slices = 1 + usize::from(dlogits.is_some());
    let _span = profile::operation("loss", || Work::floats(slices * logits.len()));
    let mut gradient = dlogits;
    let mut sum = 0.0;
    for (row, (logits, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        let lse = top + logits.iter().map(|&x| (x as f64 - top).exp()).sum::<f64>().ln();
        let target = |class: usize| {
            let share = smoothing / classes as f64 + if class == label { 1.0 - smoothing } else { 0.0 };
            weights.get(class).map_or(share, |weight| weight * share)
        };
        // Without weights, the targets of a row add up to 1.
        let mass = if weights.is_empty() { 1.0 } else { (0..classes).map(target).sum() };
        for (class, &logit) in logits.iter().enumerate() {
            let target = target(class);
            let log_p = logit as f64 - lse;
            sum -= target * log_p;
            if let Some(gradient) = gradient.as_deref_mut() {
                gradient[row * classes + class] = ((mass * log_p.exp() - target) / total) as f32;
            }
        }
    }
    sum
}

/// Binary cross-entropy of each class: −Σ (w t log σ(x) + (1 − t) log(1 − σ(x))), where t is 1 for
/// the classes that a row has and 0 otherwise, and w are the weights of the classes, (classes);
/// empty for 1.
///
/// logits and targets: (rows, classes). Returns the sum and overwrites dlogits with the gradient of
/// that sum / total.
pub fn binary_cross_entropy(
    logits: &[f32],
    targets: &[bool],
    weights: &[f64],
    total: f64,
    dlogits: Option<&mut [f32]>,
) -> f64 {
    assert_eq!(logits.len(), targets.len());
    let slices = 1 + usize::from(dlogits.is_some());
    let _span = profile::operation("loss", || Work::floats(slices * logits.len()));
    let mut gradient = dlogits;
    let mut sum = 0.0;
    for (i, (&logit, &has)) in logits.iter().zip(targets).enumerate() {
        let weight = match has {
            true if !weights.is_empty() => weights[i % weights.len()],
            _ => 1.0,
        };
        // −log σ(x) for a class that the row has, otherwise −log σ(−x).
        let x = if has { f64::from(logit) } else { -f64::from(logit) };
        let small = (-x.abs()).exp();
        sum += weight * (small.ln_1p() + (-x).max(0.0));
        if let Some(gradient) = gradient.as_deref_mut() {
            let wrong = if x < 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) };
            gradient[i] = (weight * if has { -wrong } else { wrong } / total) as f32;
        }
    }
    sum
}

/// Cross-entropy of next tokens, for rows of many classes: −log p(target) of each row of logits
/// (rows, vocabulary), in f32 as in PyTorch. With a scale, logits become the gradient of the summed
/// losses times `scale`.
pub(crate) fn token_losses(logits: &mut [f32], targets: &[u32], scale: Option<f32>) -> Vec<f32> {
    if targets.is_empty() {
        return Vec::new();
    }
    let vocabulary = logits.len() / targets.len();
    assert_eq!(vocabulary * targets.len(), logits.len());
    let _span = profile::operation("loss", || Work::floats(2 * logits.len()));
    let rows = logits.par_chunks_mut(vocabulary).zip(targets);
    rows.map(|(row, &target)| token_row(row, target as usize, scale)).collect()
}

vectorised! {
    fn token_row(row: &mut [f32], target: usize, scale: Option<f32>) -> f32 {
        let at_target = row[target];
        let top = max(row);
        for x in row.iter_mut() {
            *x = exp::<FMA>(*x - top);
        }
        let sum = sum_by(row, |x| x);
        if let Some(scale) = scale {
            let factor = scale / sum;
            for x in row.iter_mut() {
                *x *= factor;
            }
            row[target] -= scale;
        }
        sum.ln() + (top - at_target)
    }
}

/// Squared error Σ (y − target)²; predictions and targets: (rows). Returns the sum and overwrites
/// `gradient` with the gradient of that sum / total.
pub fn squared_error(predictions: &[f32], targets: &[f32], total: f64, gradient: Option<&mut [f32]>) -> f64 {
    assert_eq!(predictions.len(), targets.len());
    let slices = 2 + usize::from(gradient.is_some());
    let _span = profile::operation("loss", || Work::floats(slices * targets.len()));
    let difference = |i: usize| predictions[i] as f64 - targets[i] as f64;
    if let Some(gradient) = gradient {
        for (i, g) in gradient.iter_mut().enumerate() {
            *g = (2.0 * difference(i) / total) as f32;
        }
    }
    (0..targets.len()).map(|i| difference(i).powi(2)).sum()
}
