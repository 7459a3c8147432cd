//! The standard error of a metric on dev by the bootstrap (Efron 1979), which works for shares, F1,
//! correlations and perplexity.

use rayon::prelude::*;

use crate::data::Labels;
use crate::data::random::{Stream, stream};
use crate::evaluate::Answers;
use crate::evaluate::metrics::Metric;

/// Number of bootstrap resamples.
const DRAWS: u64 = 1000;

/// A model's answers to dev's rows, from which a metric is computed.
pub struct DevAnswers<'a> {
    /// The answers.
    pub answers: &'a Answers,
    /// Learned tokens of each text; empty for rows with labels.
    pub tokens: Vec<usize>,
    /// None for texts.
    pub labels: Option<&'a Labels>,
}

impl DevAnswers<'_> {
    /// Returns the standard deviation of the metric over resamples of the rows with replacement.
    /// The number of threads does not affect it.
    pub fn standard_error(&self, metric: Metric) -> f64 {
        let rows = self.answers.rows();
        let draw = |number: u64| {
            let mut random = Stream::new(number, stream::BOOTSTRAP);
            let drawn: Vec<usize> = (0..rows).map(|_| random.below(rows as u64) as usize).collect();
            self.value(metric, &drawn)
        };
        let values: Vec<f64> = (0..DRAWS).into_par_iter().map(draw).collect();
        let mean = values.iter().sum::<f64>() / DRAWS as f64;
        (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (DRAWS - 1) as f64).sqrt()
    }

    /// Returns the metric of the rows `drawn`; NaN if it is not a metric of their task.
    fn value(&self, metric: Metric, drawn: &[usize]) -> f64 {
        let found = match (self.answers, self.labels) {
            (answers, Some(labels)) => labels.measure(answers, drawn),
            (Answers::Losses(of), None) => {
                let sum: f64 = drawn.iter().map(|&row| f64::from(of[row]) * self.tokens[row] as f64).sum();
                let tokens: usize = drawn.iter().map(|&row| self.tokens[row]).sum();
                vec![(Metric::Perplexity, (sum / tokens.max(1) as f64).exp())]
            }
            (_, None) => Vec::new(),
        };
        found.into_iter().find(|(name, _)| *name == metric).map_or(f64::NAN, |(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::metrics;
    use crate::evaluate::{ClassAnswer, ValueAnswer};

    fn near(found: f64, expected: f64) {
        // The relative error of the bootstrap itself over 1000 resamples is 1 / √(2 · 1000).
        assert!((found / expected - 1.0).abs() < 0.1, "{found}, expected {expected}");
    }

    #[test]
    fn a_share_has_the_standard_error_of_a_share() {
        let answer =
            |row: u32| ClassAnswer { predicted: u32::from(row.is_multiple_of(5)), confidence: 1.0, label: 0 };
        let answers = Answers::Classes((0..500).map(answer).collect());
        let labels = Labels::classes(["a", "b"].map(String::from).into());
        let outcomes = DevAnswers { answers: &answers, tokens: Vec::new(), labels: Some(&labels) };
        near(outcomes.standard_error(Metric::Accuracy), (0.8 * 0.2 / 500f64).sqrt());
    }

    #[test]
    fn a_correlation_has_fishers_standard_error() {
        // For normal values (1 − ρ²)/√n; sums of three uniform numbers are nearly normal.
        let mut random = Stream::new(3, 4);
        let mut normal =
            || (0..3).map(|_| random.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5).sum::<f32>();
        let answer = |_| {
            let (x, y) = (normal(), normal());
            ValueAnswer { predicted: x, label: x + y }
        };
        let of: Vec<ValueAnswer> = (0..400).map(answer).collect();
        let (x, y): (Vec<f64>, Vec<f64>) =
            of.iter().map(|answer| (f64::from(answer.predicted), f64::from(answer.label))).unzip();
        let answers = Answers::Values(of);
        let labels = Some(&Labels::Regression);
        let outcomes = DevAnswers { answers: &answers, tokens: Vec::new(), labels };
        near(outcomes.standard_error(Metric::Pearson), (1.0 - metrics::pearson(&x, &y).powi(2)) / 20.0);
    }

    #[test]
    fn a_perplexity_has_that_of_its_mean_loss_times_itself() {
        let answers = Answers::Losses((0..300).map(|row| (row % 3) as f32 / 2.0).collect());
        let outcomes = DevAnswers { answers: &answers, tokens: vec![4; 300], labels: None };
        let deviation = (1.0f64 / 6.0).sqrt();
        near(outcomes.standard_error(Metric::Perplexity), 0.5f64.exp() * deviation / 300f64.sqrt());
    }
}
