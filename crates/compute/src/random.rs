//! Counter-based random numbers: each is a function of a key and a position. Results therefore do
//! not depend on the order in which threads draw, and a dropout mask is recomputed in the backward
//! pass instead of saved.

/// A stream of random numbers, identified by everything that was folded into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Key(mix(seed))
    }

    /// The stream of this key for `n`: a purpose, a step, a layer, a row.
    pub fn fold(self, n: u64) -> Self {
        Key(mix(self.0 ^ mix(n.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// 32 random bits at position `i`.
    #[inline(always)]
    pub fn bits(self, i: u32) -> u32 {
        let [low, high] = self.halves();
        bits(low, high, i)
    }

    /// Returns the lower and upper half of the key, as `Dropout::factor_of` takes them: there,
    /// every lane has its own key.
    #[inline(always)]
    pub(crate) fn halves(self) -> [u32; 2] {
        [self.0 as u32, (self.0 >> 32) as u32]
    }

    /// 64 random bits at position `i`.
    pub fn bits_64(self, i: u64) -> u64 {
        mix(self.0.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// A uniform number in [0, 1) at position `i`.
    pub fn uniform(self, i: u64) -> f64 {
        (self.bits_64(i) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A standard normal number at position `i` (Box and Muller).
    pub fn normal(self, i: u64) -> f64 {
        let (u, v) = (1.0 - self.uniform(2 * i), self.uniform(2 * i + 1));
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// A bijection of the position that depends on the key's halves: multiply and xor-shift, twice.
#[inline(always)]
fn bits(low: u32, high: u32, i: u32) -> u32 {
    let mut x = i.wrapping_mul(0x9e37_79b1) ^ low;
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_add(high);
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// The finaliser of splitmix64 (Steele, Lea and Flood 2014), a bijection of 64 bits.
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Dropout of probability p: an element stays, scaled by 1 / (1 − p), or becomes zero.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// An element is dropped if its 32 random bits are below this.
    threshold: u32,
    scale: f32,
}

impl Dropout {
    /// Dropout with probability `p`.
    ///
    /// # Panics
    /// `p` is not in [0, 1).
    pub fn new(p: f64) -> Self {
        assert!((0.0..1.0).contains(&p), "dropout of {p}");
        Dropout { threshold: (p * 4_294_967_296.0) as u32, scale: (1.0 / (1.0 - p)) as f32 }
    }

    /// Whether p is above 0.
    pub fn is_active(self) -> bool {
        self.threshold > 0
    }

    /// The factor of element `i` in the row of `key`: 0 or 1 / (1 − p).
    #[inline(always)]
    pub fn factor(self, key: Key, i: u32) -> f32 {
        let [low, high] = key.halves();
        self.factor_of(low, high, i)
    }

    /// As `factor`, from the key's halves.
    #[inline(always)]
    pub(crate) fn factor_of(self, low: u32, high: u32, i: u32) -> f32 {
        if bits(low, high, i) < self.threshold { 0.0 } else { self.scale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_balanced_and_independent_of_neighbours() {
        // Over 2^16 positions each bit is set half of the time, and differs half of the time from
        // that of a neighbour in position or key, to within 6 standard deviations of a fair coin.
        let n = 1 << 16;
        let limit = 6.0 * (n as f64).sqrt() / 2.0;
        for k in 0..4 {
            let (key, other) = (Key::new(7).fold(k), Key::new(7).fold(k + 1));
            let mut ones = [[0u32; 32]; 3];
            for i in 0..n {
                let views = [key.bits(i), key.bits(i) ^ key.bits(i + 1), key.bits(i) ^ other.bits(i)];
                for (ones, bits) in ones.iter_mut().zip(views) {
                    for (b, count) in ones.iter_mut().enumerate() {
                        *count += bits >> b & 1;
                    }
                }
            }
            for count in ones.as_flattened() {
                assert!((*count as f64 - n as f64 / 2.0).abs() < limit, "{ones:?}");
            }
        }
    }

    #[test]
    fn dropout_drops_p_and_keeps_the_mean() {
        for p in [0.0, 0.1, 0.5] {
            let drop = Dropout::new(p);
            let n = 100_000;
            let sum: f64 = (0..n).map(|i| drop.factor(Key::new(3), i) as f64).sum();
            let sigma = (p / (1.0 - p) / n as f64).sqrt();
            assert!((sum / n as f64 - 1.0).abs() <= 5.0 * sigma + 1e-6, "p = {p}: mean {}", sum / n as f64);
            assert_eq!(drop.is_active(), p > 0.0);
        }
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let n = 20_000;
        let x: Vec<f64> = (0..n).map(|i| Key::new(1).normal(i)).collect();
        let mean = x.iter().sum::<f64>() / n as f64;
        let variance = x.iter().map(|x| x * x).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.04 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
