//! Settings of text generation, and their check.

use crate::{Error, Result};

/// Settings of a generation. The defaults are greedy decoding without penalties.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateOptions {
    /// Largest number of new tokens of a prompt.
    pub max_new_tokens: usize,
    /// Divisor of the logits before a token is drawn; 0 takes the likeliest token.
    pub temperature: f64,
    /// Number of likeliest tokens to draw from (and those equal to the last of them); 0 is all.
    pub top_k: usize,
    /// Tokens are drawn from the smallest set of likeliest tokens whose probabilities sum to this
    /// or more; 1 is all.
    pub top_p: f64,
    /// Positive logits of tokens that occurred, in the prompt or since, are divided by it, and
    /// negative ones multiplied; 1 has no effect.
    pub repetition_penalty: f64,
    /// Beams of a beam search; 1 turns it off.
    pub num_beams: usize,
    /// Exponent of the length by which a finished beam's log-probability is divided.
    pub length_penalty: f64,
    /// Whether a beam search ends when `num_beams` beams have finished; otherwise it ends when the
    /// best running beam, at its present length, cannot be better than the worst finished one.
    pub early_stopping: bool,
    /// Tokens that end a text.
    pub end_tokens: Vec<u32>,
    /// Strings that end a text; the text before them is kept. A special token's name counts as that
    /// token in `end_tokens`.
    pub stop: Vec<String>,
    /// Seed of the draws. A draw depends only on the seed, the prompt's index and the step.
    pub seed: u64,
    /// Number of prompts that are continued at the same time. The next one starts when one is done.
    pub batch_size: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_new_tokens: 128,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: false,
            end_tokens: Vec::new(),
            stop: Vec::new(),
            seed: 0,
            batch_size: 8,
        }
    }
}

impl GenerateOptions {
    /// Checks the values.
    ///
    /// # Errors
    /// `Error::Usage` for a value out of its range, and for values that exclude each other.
    pub fn check(&self) -> Result<()> {
        let usage = |message: String| Err(Error::Usage(message));
        for (name, count) in [
            ("max_new_tokens", self.max_new_tokens),
            ("num_beams", self.num_beams),
            ("batch_size", self.batch_size),
        ] {
            if count == 0 {
                return usage(format!("`{name}` is 0, expected at least 1"));
            }
        }
        let (temperature, top_p) = (self.temperature, self.top_p);
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return usage(format!("`temperature` is {temperature}, expected 0 (greedy) or a number above 0"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return usage(format!("`top_p` is {top_p}, expected a number above 0 and at most 1"));
        }
        let penalty = self.repetition_penalty;
        if !((penalty as f32) > 0.0 && (penalty as f32).is_finite()) {
            return usage(format!("`repetition_penalty` is {penalty}, expected a number above 0"));
        }
        if !self.length_penalty.is_finite() {
            return usage(format!("`length_penalty` is {}, expected a number", self.length_penalty));
        }
        if self.num_beams > 1 && temperature > 0.0 {
            return usage(format!(
                "`temperature = {temperature}` draws tokens, `num_beams = {}` searches for the likeliest text; give one of them",
                self.num_beams
            ));
        }
        if temperature == 0.0 && (self.top_k != 0 || top_p < 1.0) {
            return usage(
                "`top_k` and `top_p` need a `temperature` above 0; without it nothing is drawn".into(),
            );
        }
        if self.stop.iter().any(String::is_empty) {
            return usage("`stop` is an empty string, which every text contains".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_usage_errors() {
        type Spoil = fn(&mut GenerateOptions);
        let wrong: [(&str, Spoil); 14] = [
            ("`max_new_tokens`", |o| o.max_new_tokens = 0),
            ("`batch_size`", |o| o.batch_size = 0),
            ("`num_beams`", |o| o.num_beams = 0),
            ("`temperature`", |o| o.temperature = -0.1),
            ("`temperature`", |o| o.temperature = f64::NAN),
            ("`top_p`", |o| (o.temperature, o.top_p) = (1.0, 0.0)),
            ("`top_p`", |o| (o.temperature, o.top_p) = (1.0, 1.1)),
            ("`top_p`", |o| (o.temperature, o.top_p) = (1.0, f64::NAN)),
            ("`repetition_penalty`", |o| o.repetition_penalty = 0.0),
            ("`repetition_penalty`", |o| o.repetition_penalty = 1e300),
            ("`length_penalty`", |o| o.length_penalty = f64::INFINITY),
            ("`num_beams = 2`", |o| (o.temperature, o.num_beams) = (0.7, 2)),
            ("`top_k`", |o| o.top_k = 5),
            ("`stop`", |o| o.stop = vec![String::new()]),
        ];
        GenerateOptions::default().check().unwrap();
        for (option, change) in wrong {
            let mut options = GenerateOptions::default();
            change(&mut options);
            match options.check() {
                Err(Error::Usage(message)) => assert!(message.contains(option), "{message}"),
                other => panic!("{option}: {other:?}"),
            }
        }
    }
}
