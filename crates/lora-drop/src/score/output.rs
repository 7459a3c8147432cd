//! The paper's criterion: the squared norm of a module's LoRA output over the sample, computed from
//! r × r sums.

use std::collections::BTreeMap;

use lora_drop_transformer::{ModuleId, Observer, SecondMoments};

use super::{Criterion, Evidence};
use crate::settings::CriterionName;

/// g = Σ over tokens of ‖s B A x‖², from the second moments that a window's passes collect and B at
/// the window's end (docs/method.md, step 3).
pub struct LoraOutput;

impl Criterion for LoraOutput {
    fn name(&self) -> &str {
        CriterionName::Output.name()
    }

    fn sums(&self, rank: usize) -> usize {
        rank * rank
    }

    fn observer(&self) -> Option<&dyn Observer> {
        Some(&SecondMoments)
    }

    fn scores_adapters(&self) -> bool {
        true
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        let Evidence { bank, parameters, observations, .. } = evidence;
        let modules = bank.modules().keys();
        let scored = modules.filter_map(|&module| {
            let (pair, moment) = (bank.pair_of(module)?, observations.get(module)?);
            // The moments are of z = s·A x, so they include the scale already.
            Some((module, lora_output_score(parameters.value(pair.lora.b), moment, 1.0)))
        });
        scored.collect()
    }
}

/// g = Σ over tokens of ‖s B A x‖² = s² · trace(BᵀB · Σ z zᵀ), with z = A x (docs/method.md, step 3
/// and below).
///
/// - `b_t`: B transposed, (rank, out), as in the bank
/// - `moment`: Σ z zᵀ over the sample's real tokens, (rank, rank)
/// - `scale`: s = alpha / rank, or the pair's own scale
///
/// Sums are computed in f64, in a fixed order.
///
/// # Panics
/// The lengths do not fit each other.
pub fn lora_output_score(b_t: &[f32], moment: &[f64], scale: f64) -> f64 {
    let rank = moment.len().isqrt();
    assert!(rank > 0 && rank * rank == moment.len(), "a moment of {} values is not square", moment.len());
    assert!(b_t.len().is_multiple_of(rank), "B of {} values does not have rank {rank}", b_t.len());
    let rows: Vec<&[f32]> = b_t.chunks_exact(b_t.len() / rank).collect(); // rank × (out)
    let mut trace = 0.0;
    for i in 0..rank {
        for j in 0..rank {
            let gram: f64 = rows[i].iter().zip(rows[j]).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            trace += gram * moment[j * rank + i];
        }
    }
    // A sum of squares, which rounding may take below zero; a NaN must stay visible.
    if trace < 0.0 { 0.0 } else { scale * scale * trace }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::init::RandomStream;

    #[test]
    fn equals_the_norm_of_the_outputs_computed_one_by_one() {
        let (tokens, input, output, rank, scale) = (17, 13, 11, 4, 1.75);
        let mut random = RandomStream::new(5, "score");
        let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| random.uniform(1.0)).collect() };
        let (x, a, b) = (draw(tokens * input), draw(rank * input), draw(output * rank));

        let mut expected = 0.0;
        let mut moment = vec![0.0; rank * rank];
        for t in 0..tokens {
            let z: Vec<f64> = (0..rank)
                .map(|i| (0..input).map(|k| f64::from(a[i * input + k]) * f64::from(x[t * input + k])).sum())
                .collect();
            for o in 0..output {
                let y: f64 = (0..rank).map(|i| f64::from(b[o * rank + i]) * z[i]).sum::<f64>() * scale;
                expected += y * y;
            }
            for i in 0..rank {
                for j in 0..rank {
                    moment[i * rank + j] += z[i] * z[j];
                }
            }
        }
        let b_t: Vec<f32> =
            (0..rank).flat_map(|i| (0..output).map(move |o| (i, o))).map(|(i, o)| b[o * rank + i]).collect();
        let score = lora_output_score(&b_t, &moment, scale);
        assert!((score / expected - 1.0).abs() < 1e-12, "{score} {expected}");
    }

    #[test]
    fn an_untrained_pair_scores_zero() {
        assert_eq!(lora_output_score(&[0.0; 6], &[1.0, 0.5, 0.5, 2.0], 2.0), 0.0);
    }

    #[test]
    fn a_nan_value_gives_a_nan_score() {
        assert!(lora_output_score(&[f32::NAN, 1.0], &[1.0], 1.0).is_nan());
    }
}
