//! Losses of the heads: cross-entropy over classes, squared error of a regression.
//!
//! A sequence's loss counts 1/total, with total the sequences of the whole optimiser step, so that
//! micro-batches and accumulation add up to the mean.

/// Cross-entropy with label smoothing ε: −Σ q log p, where q = (1 − ε) · onehot + ε / classes.
///
/// logits: (rows, classes); returns the sum of the rows' losses and overwrites dlogits with the gradient
/// of that sum / total. The probabilities are formed in f64: there are few of them.
pub fn cross_entropy(
    logits: &[f32],
    labels: &[usize],
    smoothing: f64,
    total: usize,
    dlogits: Option<&mut [f32]>,
) -> f64 {
    if labels.is_empty() {
        return 0.0;
    }
    let classes = logits.len() / labels.len();
    assert_eq!(classes * labels.len(), logits.len());
    let mut gradient = dlogits;
    let mut sum = 0.0;
    for (row, (logits, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        let lse = top + logits.iter().map(|&x| (x as f64 - top).exp()).sum::<f64>().ln();
        for (class, &logit) in logits.iter().enumerate() {
            let target = smoothing / classes as f64 + if class == label { 1.0 - smoothing } else { 0.0 };
            let log_p = logit as f64 - lse;
            sum -= target * log_p;
            if let Some(gradient) = gradient.as_deref_mut() {
                gradient[row * classes + class] = ((log_p.exp() - target) / total as f64) as f32;
            }
        }
    }
    sum
}

/// (y − target)²; predictions: (rows). Returns the sum and overwrites the gradient of that sum / total.
pub fn squared_error(
    predictions: &[f32],
    targets: &[f32],
    total: usize,
    gradient: Option<&mut [f32]>,
) -> f64 {
    assert_eq!(predictions.len(), targets.len());
    let difference = |i: usize| predictions[i] as f64 - targets[i] as f64;
    if let Some(gradient) = gradient {
        for (i, g) in gradient.iter_mut().enumerate() {
            *g = (2.0 * difference(i) / total as f64) as f32;
        }
    }
    (0..targets.len()).map(|i| difference(i).powi(2)).sum()
}
