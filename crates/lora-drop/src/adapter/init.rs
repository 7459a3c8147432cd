//! Initial values of LoRA pairs, from a counter-based generator: the same seed and name give the
//! same values, whatever else is drawn and in whatever order.

use lora_drop_compute::random::{Key, mix};

/// A stream of random numbers keyed by a seed and a name.
#[derive(Clone, Debug)]
pub struct RandomStream {
    key: Key,
    count: u64,
}

impl RandomStream {
    /// Starts the stream of this seed and name.
    pub fn new(seed: u64, name: &str) -> Self {
        RandomStream { key: Key::new(seed_of(seed, name)), count: 0 }
    }

    /// Returns the next number, uniform in (-bound, bound).
    pub fn uniform(&mut self, bound: f32) -> f32 {
        self.count += 1;
        let bits = self.key.bits_64(self.count) >> 40; // 24 bits
        // Midpoints of 2^24 equal cells of (-1, 1): symmetric, and never an end of the interval.
        let unit = (2.0 * bits as f64 + 1.0) / f64::from(1 << 24) - 1.0;
        (unit * f64::from(bound)) as f32
    }
}

/// Combines a run's seed and a name into the seed of the name's numbers.
fn seed_of(seed: u64, name: &str) -> u64 {
    // FNV-1a hashes the name to 64 bits; mixing keeps neighbouring seeds apart.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    mix(seed) ^ hash
}

/// Initial A of a pair, (rank, in): PEFT's Kaiming-uniform with a = sqrt(5), which is uniform in
/// ±1/sqrt(in).
pub fn kaiming_uniform(seed: u64, name: &str, rank: usize, input: usize) -> Vec<f32> {
    uniform(seed, name, rank * input, (1.0 / (input as f64).sqrt()) as f32)
}

/// `count` numbers, uniform in ±bound.
pub fn uniform(seed: u64, name: &str, count: usize, bound: f32) -> Vec<f32> {
    let mut random = RandomStream::new(seed, name);
    (0..count).map(|_| random.uniform(bound)).collect()
}

/// `count` numbers from a normal distribution of mean 0 and this standard deviation.
pub fn normal(seed: u64, name: &str, count: usize, deviation: f64) -> Vec<f32> {
    let key = Key::new(mix(seed_of(seed, name)));
    (0..count as u64).map(|i| (deviation * f64::from(key.normal(i) as f32)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_alone() {
        let a = kaiming_uniform(1, "lora.query.3.A", 8, 384);
        assert_eq!(a, kaiming_uniform(1, "lora.query.3.A", 8, 384));
        assert_ne!(a, kaiming_uniform(2, "lora.query.3.A", 8, 384));
        assert_ne!(a, kaiming_uniform(1, "lora.query.4.A", 8, 384));
    }

    #[test]
    fn values_are_uniform_within_the_bound() {
        let (rank, input) = (8, 4096);
        let a = kaiming_uniform(7, "x", rank, input);
        let bound = 1.0 / 64.0;
        assert!(a.iter().all(|v| v.abs() <= bound));
        let mean = a.iter().map(|&v| f64::from(v)).sum::<f64>() / a.len() as f64;
        let variance = a.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / a.len() as f64;
        // five standard errors of n = 32768: bound/sqrt(3n), and bound²/3 · sqrt(0.8/n)
        assert!(mean.abs() < 5.0 * f64::from(bound) / (3.0 * 32768f64).sqrt());
        let expected = f64::from(bound).powi(2) / 3.0;
        assert!((variance / expected - 1.0).abs() < 5.0 * (0.8f64 / 32768.0).sqrt());
    }
}
