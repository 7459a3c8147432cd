//! Means over seeds, and differences that are paired by seed with a bootstrap interval.

use lora_drop_compute::random::Key;
use serde::Serialize;

/// Resamples of a bootstrap, and the seed that they are drawn with.
const RESAMPLES: usize = 10_000;
const SEED: u64 = 0x0b00_7574_7261_7000;
/// The share of resampled means that the interval covers.
const COVERAGE: f64 = 0.95;

/// Values of several seeds: their mean, the sample's standard deviation, how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub mean: f64,
    /// With n − 1 in the denominator; None of a single value.
    pub deviation: Option<f64>,
    pub n: usize,
}

impl Spread {
    /// None where there are no values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = mean(values.iter().copied());
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Spread { mean, deviation: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()), n })
    }

    /// The standard error of the mean, deviation / √n; None of a single value.
    pub fn standard_error(&self) -> Option<f64> {
        self.deviation.map(|deviation| deviation / (self.n as f64).sqrt())
    }
}

/// The mean of paired differences.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub mean: f64,
    /// The bootstrap's 95 % interval; None of a single pair.
    pub interval: Option<(f64, f64)>,
    pub n: usize,
}

impl Difference {
    /// None where there are no pairs.
    pub fn of(differences: &[f64]) -> Option<Self> {
        let n = differences.len();
        (n > 0).then(|| Difference {
            mean: mean(differences.iter().copied()),
            interval: (n > 1).then(|| bootstrap(differences)),
            n,
        })
    }
}

/// The percentile interval of the mean (Efron 1979): of 10,000 resamples with replacement, the
/// means between which 95 % lie, interpolated between neighbours. The same values give the same
/// interval.
fn bootstrap(values: &[f64]) -> (f64, f64) {
    let key = Key::new(SEED);
    let n = values.len();
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|resample| {
            let draw = |i: usize| (key.uniform((resample * n + i) as u64) * n as f64) as usize;
            (0..n).map(|i| values[draw(i)]).sum::<f64>() / n as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - COVERAGE) / 2.0;
    (quantile(&means, tail), quantile(&means, 1.0 - tail))
}

/// The value below which this share of sorted values lies, linear between neighbours.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The arithmetic mean; NaN without values.
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut n) = (0.0, 0_u32);
    for value in values {
        sum += value;
        n += 1;
    }
    sum / f64::from(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b}");
    }

    #[test]
    fn mean_and_deviation_are_numpys() {
        // np.mean and np.std(ddof=1) of these
        let spread = Spread::of(&[0.81, 0.84, 0.79, 0.86]).unwrap();
        near(spread.mean, 0.825, 1e-12);
        near(spread.deviation.unwrap(), 0.031_091_263_510_296_05, 1e-12);
        near(spread.standard_error().unwrap(), 0.015_545_631_755_148_025, 1e-12);
        let single = Spread::of(&[0.5]).unwrap();
        assert_eq!((single.mean, single.deviation, single.standard_error()), (0.5, None, None));
        assert_eq!(Spread::of(&[]), None);
    }

    /// The percentiles of the means of all nⁿ resamples, which the bootstrap draws from.
    fn exact(values: &[f64]) -> (f64, f64) {
        let n = values.len();
        let mut means: Vec<f64> = (0..n.pow(n as u32))
            .map(|mut resample| {
                let mut sum = 0.0;
                for _ in 0..n {
                    sum += values[resample % n];
                    resample /= n;
                }
                sum / n as f64
            })
            .collect();
        means.sort_by(f64::total_cmp);
        (quantile(&means, 0.025), quantile(&means, 0.975))
    }

    #[test]
    fn the_interval_is_that_of_all_resamples() {
        assert_eq!(bootstrap(&[0.0, 1.0]), (0.0, 1.0));
        for values in [vec![-0.02, 0.01, 0.005, 0.03, -0.004], vec![1.0, 2.0, 4.0, 8.0]] {
            let (seen, all) = (bootstrap(&values), exact(&values));
            // The 2.5 % quantile of 10,000 draws lies within 0.16 percentage points of its place
            // (one standard deviation).
            let step = (values.iter().fold(f64::MIN, |a, b| a.max(*b)) - mean(values.iter().copied()))
                / values.len() as f64;
            near(seen.0, all.0, step);
            near(seen.1, all.1, step);
        }
    }

    #[test]
    fn of_many_values_the_interval_is_nearly_the_normal_one() {
        let key = Key::new(3);
        let values: Vec<f64> = (0..400).map(|i| 0.1 + key.normal(i)).collect();
        let spread = Spread::of(&values).unwrap();
        let half = 1.96 * spread.standard_error().unwrap();
        let (low, high) = bootstrap(&values);
        near(low, spread.mean - half, 0.1 * half);
        near(high, spread.mean + half, 0.1 * half);
    }

    #[test]
    fn differences_are_means_with_an_interval_from_two_pairs_on() {
        let same = Difference::of(&[0.01, 0.01, 0.01]).unwrap();
        near(same.mean, 0.01, 1e-15);
        let (low, high) = same.interval.unwrap();
        near(low, 0.01, 1e-15);
        near(high, 0.01, 1e-15);
        assert_eq!(Difference::of(&[-0.5]), Some(Difference { mean: -0.5, interval: None, n: 1 }));
        assert_eq!(Difference::of(&[]), None);
        assert_eq!(Difference::of(&[0.3, -0.1, 0.2]), Difference::of(&[0.3, -0.1, 0.2]));
    }

    #[test]
    fn quantiles_are_numpys() {
        // np.quantile([1, 2, 4, 8], [0.025, 0.5, 0.975])
        let sorted = [1.0, 2.0, 4.0, 8.0];
        for (share, value) in [(0.025, 1.075), (0.5, 3.0), (0.975, 7.7)] {
            near(quantile(&sorted, share), value, 1e-12);
        }
    }
}
