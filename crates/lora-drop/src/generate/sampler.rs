//! From logits to the next token: repetition penalty, temperature, top-k and top-p in transformers'
//! order, then the likeliest token or a draw.

use lora_drop_compute::random::Key;

use super::options::GenerateOptions;

/// Returns the index of the largest value, the first among equal ones.
pub fn argmax(x: &[f32]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}

/// Makes tokens that occurred less likely, once for each: a negative score is multiplied by
/// `penalty`, any other is divided by it.
pub fn penalise(scores: &mut [f32], occurred: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut tokens = occurred.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    for token in tokens {
        let score = &mut scores[token as usize];
        *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
    }
}

/// Chooses tokens by the options.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    temperature: f64,
    top_k: usize,
    top_p: f64,
}

impl Sampler {
    pub fn new(options: &GenerateOptions) -> Self {
        Sampler { temperature: options.temperature, top_k: options.top_k, top_p: options.top_p }
    }

    /// Chooses the next token; `logits` must be finite, and `key` is used for this step only.
    pub fn choose(&self, logits: &[f32], key: Key) -> u32 {
        if self.temperature == 0.0 {
            return argmax(logits) as u32;
        }
        let candidates = self.candidates(logits);
        let total: f64 = candidates.iter().map(|c| c.weight).sum();
        let mut left = key.uniform(0) * total;
        for candidate in &candidates {
            left -= candidate.weight;
            if left < 0.0 {
                return candidate.token;
            }
        }
        // Rounding left a little of the total, so the last token with a positive weight is taken.
        candidates.iter().rfind(|c| c.weight > 0.0).map_or_else(|| argmax(logits) as u32, |c| c.token)
    }

    /// Returns the tokens that may be drawn, by ascending id.
    fn candidates(&self, logits: &[f32]) -> Vec<Candidate> {
        // Division by the temperature keeps the order, so top-k can come before it.
        let least = match self.top_k {
            k if k == 0 || k >= logits.len() => f32::NEG_INFINITY,
            k => *logits.to_vec().select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1,
        };
        let top = f64::from(logits[argmax(logits)]);
        let weight = |x: f32| ((f64::from(x) - top) / self.temperature).exp();
        let likely = logits.iter().enumerate().filter(|(_, x)| **x >= least);
        let candidates =
            likely.map(|(token, &x)| Candidate { token: token as u32, weight: weight(x) }).collect();
        if self.top_p < 1.0 { nucleus(candidates, self.top_p) } else { candidates }
    }
}

/// A token and its unnormalised probability.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    token: u32,
    weight: f64,
}

/// Drops the least likely tokens whose probabilities sum to 1 − p or less; of equally likely ones,
/// higher ids first. At least one token stays.
fn nucleus(candidates: Vec<Candidate>, p: f64) -> Vec<Candidate> {
    let total: f64 = candidates.iter().map(|c| c.weight).sum();
    let tail = (1.0 - p) * total;
    // Tokens this unlikely do not reach the tail's sum even all together, so they need no sorting;
    // they are most of the vocabulary.
    let slight = tail / candidates.len() as f64;
    let (slight, mut rest): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|c| c.weight < slight);
    let mut sum: f64 = slight.iter().map(|c| c.weight).sum();
    rest.sort_unstable_by(|a, b| a.weight.total_cmp(&b.weight).then(b.token.cmp(&a.token)));
    let within = |c: &Candidate| {
        sum += c.weight;
        sum <= tail
    };
    let dropped = rest.iter().map(within).take_while(|&within| within).count();
    rest.drain(..dropped.min(rest.len() - 1));
    rest.sort_unstable_by_key(|c| c.token);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f64, top_k: usize, top_p: f64) -> Sampler {
        Sampler { temperature, top_k, top_p }
    }

    fn kept(sampler: Sampler, logits: &[f32]) -> Vec<u32> {
        sampler.candidates(logits).iter().map(|c| c.token).collect()
    }

    /// Returns logits with these probabilities.
    fn logits(probabilities: &[f64]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() as f32).collect()
    }

    #[test]
    fn top_k_keeps_the_likeliest_and_ties() {
        let x = [1.0, 3.0, 2.0, 3.0, -1.0, 2.0];
        assert_eq!(kept(sampler(1.0, 1, 1.0), &x), [1, 3]);
        assert_eq!(kept(sampler(1.0, 2, 1.0), &x), [1, 3]);
        assert_eq!(kept(sampler(0.3, 3, 1.0), &x), [1, 2, 3, 5]);
        for all in [0, 6, 100] {
            assert_eq!(kept(sampler(1.0, all, 1.0), &x), [0, 1, 2, 3, 4, 5]);
        }
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        let x = logits(&[0.1, 0.45, 0.05, 0.3, 0.1]);
        assert_eq!(kept(sampler(1.0, 0, 0.4), &x), [1]);
        assert_eq!(kept(sampler(1.0, 0, 0.5), &x), [1, 3]);
        // The two of 0.1 are equal: the lower id stays.
        assert_eq!(kept(sampler(1.0, 0, 0.8), &x), [0, 1, 3]);
        assert_eq!(kept(sampler(1.0, 0, 0.9), &x), [0, 1, 3, 4]);
        assert_eq!(kept(sampler(1.0, 0, 0.99), &x), [0, 1, 2, 3, 4]);
        assert_eq!(kept(sampler(1.0, 0, 1e-9), &x), [1]);
        // After the temperature: 0.45² and 0.3² are 0.64 and 0.28 of all squares.
        assert_eq!(kept(sampler(0.5, 0, 0.6), &x), [1]);
        assert_eq!(kept(sampler(0.5, 0, 0.9), &x), [1, 3]);
        // After top-k: the share of 0.45 in 0.45 + 0.3 is 0.6.
        assert_eq!(kept(sampler(1.0, 2, 0.59), &x), [1]);
        assert_eq!(kept(sampler(1.0, 2, 0.61), &x), [1, 3]);
    }

    #[test]
    fn top_p_is_the_definition_on_a_large_vocabulary() {
        let key = Key::new(5);
        let x: Vec<f32> = (0..5000).map(|i| 3.0 * key.normal(i) as f32).collect();
        let total: f64 = x.iter().map(|x| f64::from(*x).exp()).sum();
        for p in [0.1, 0.5, 0.9, 0.99] {
            let mut order: Vec<u32> = (0..5000).collect();
            order.sort_by(|a, b| x[*b as usize].total_cmp(&x[*a as usize]));
            let mut sum = 0.0;
            let mut want: Vec<u32> = Vec::new();
            for token in order {
                want.push(token);
                sum += f64::from(x[token as usize]).exp() / total;
                if sum >= p {
                    break;
                }
            }
            want.sort();
            assert_eq!(kept(sampler(1.0, 0, p), &x), want, "{p}");
        }
    }

    #[test]
    fn temperature_zero_is_greedy_and_the_first_of_equals() {
        let x = [0.5, 2.0, 2.0, -3.0];
        for step in 0..20 {
            assert_eq!(sampler(0.0, 0, 1.0).choose(&x, Key::new(step)), 1);
            // Close to zero, the draw is one of the equally likely.
            assert!((1..3).contains(&sampler(1e-300, 0, 1.0).choose(&x, Key::new(step))));
        }
    }

    #[test]
    fn draws_are_distributed_as_the_probabilities() {
        let p = [0.5, 0.25, 0.0, 0.2, 0.05];
        let draws = 8000;
        let mut seen = [0usize; 5];
        for step in 0..draws {
            let token = sampler(1.0, 0, 1.0).choose(&logits(&p), Key::new(3).fold(step));
            seen[token as usize] += 1;
        }
        for (count, p) in seen.iter().zip(p) {
            let (mean, deviation) = (draws as f64 * p, (draws as f64 * p * (1.0 - p)).sqrt());
            assert!((*count as f64 - mean).abs() <= 4.0 * deviation, "{seen:?}");
        }
    }

    #[test]
    fn same_key_same_draw() {
        let x = logits(&[0.2; 5]);
        let draw = |seed| {
            let key = |step| Key::new(seed).fold(step);
            (0..50).map(|step| sampler(1.0, 0, 1.0).choose(&x, key(step))).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn penalty_once_a_token() {
        let mut x = [2.0, -1.0, 3.0, 0.0, -4.0];
        penalise(&mut x, &[4, 0, 0, 4, 3], 2.0);
        assert_eq!(x, [1.0, -1.0, 3.0, 0.0, -8.0]);
    }
}
