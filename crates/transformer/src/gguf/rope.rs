//! Rotary scaling in GGUF (keys or a tensor of divisors) and in transformers (`rope_scaling`), and
//! the conversions between them.

use serde_json::{Map, Value as Json, json};

use super::Gguf;
use super::metadata::GgufKeys;
use crate::error::Result;

/// Tensor in which converters store Llama 3's scaling: one divisor for each rotary frequency.
pub(super) const DIVISORS: &str = "rope_freqs.weight";

/// Llama 3's `rope_scaling`. The family's models differ in `factor` alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: f64,
}

impl Llama3Scaling {
    /// Returns the divisor of each of the `head_dim / 2` frequencies: 1 for short waves, `factor`
    /// for long ones, and in between the divisor that blends the two frequencies.
    pub fn divisors(self, base: f64, head_dim: usize) -> Vec<f32> {
        let context = self.original_max_position_embeddings;
        let (long, short) = (context / self.low_freq_factor, context / self.high_freq_factor);
        let divisor = |pair: usize| {
            let wave = std::f64::consts::TAU * base.powf(2.0 * pair as f64 / head_dim as f64);
            if wave < short {
                1.0
            } else if wave > long {
                self.factor
            } else {
                let blend =
                    (context / wave - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
                1.0 / ((1.0 - blend) / self.factor + blend)
            }
        };
        (0..head_dim / 2).map(|pair| divisor(pair) as f32).collect()
    }
}

/// Returns the file's scaling in transformers' form; `None` if it has none.
pub(super) fn scaling(
    file: &Gguf,
    keys: &GgufKeys,
    base: f64,
    head_dim: usize,
) -> Result<Option<Map<String, Json>>> {
    if file.contains(DIVISORS) {
        let original = keys.optional_integer("rope.scaling.original_context_length")?;
        return llama3(file, base, head_dim, original.unwrap_or(8192));
    }
    let kind = match keys.optional("rope.scaling.type") {
        Some(_) => keys.text("rope.scaling.type")?,
        // Before this key existed, linear scaling was the only kind and had a key of its own.
        None if keys.optional("rope.scale_linear").is_some() => {
            let factor = keys.positive("rope.scale_linear")?;
            return Ok(
                (factor != json!(1.0)).then(|| object(json!({"rope_type": "linear", "factor": factor})))
            );
        }
        None => return Ok(None),
    };
    let original = keys.optional_integer("rope.scaling.original_context_length")?;
    match kind {
        "none" => Ok(None),
        "linear" => {
            let factor = keys.positive("rope.scaling.factor")?;
            Ok(Some(object(json!({"rope_type": "linear", "factor": factor}))))
        }
        "yarn" => {
            let mut scaling =
                object(json!({"rope_type": "yarn", "factor": keys.positive("rope.scaling.factor")?}));
            if let Some(original) = original {
                scaling.insert("original_max_position_embeddings".into(), json!(original));
            }
            Ok(Some(scaling))
        }
        other => {
            let problem = format!("is {other:?}, expected none, linear or yarn");
            Err(keys.fault("rope.scaling.type", &problem))
        }
    }
}

/// Finds the scaling from its divisors, the largest of which is the factor. Converters write
/// nothing but the divisors; the other three numbers are the same in all models of the family.
/// Files written by this crate also state the original context.
fn llama3(file: &Gguf, base: f64, head_dim: usize, original: usize) -> Result<Option<Map<String, Json>>> {
    let divisors = file.tensor(DIVISORS)?;
    let factor = divisors.iter().copied().fold(1.0f32, f32::max);
    if divisors.iter().all(|v| *v == 1.0) {
        return Ok(None);
    }
    let candidate = Llama3Scaling {
        factor: factor.to_string().parse().unwrap_or(f64::from(factor)),
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: original as f64,
    };
    let expected = candidate.divisors(base, head_dim);
    // The writer may have computed in f32, so the last bits may differ.
    let near = |(seen, expected): (&f32, &f32)| (seen - expected).abs() <= 1e-3 * expected;
    if divisors.len() != expected.len() || !divisors.iter().zip(&expected).all(near) {
        let problem = format!(
            "its {} divisors are not those of Llama 3's scaling by {factor} (frequency factors 1 and 4, original \
             context {original}) for heads of {head_dim}",
            divisors.len()
        );
        return Err(file.tensor_fault(DIVISORS, problem));
    }
    Ok(Some(object(json!({
        "rope_type": "llama3",
        "factor": candidate.factor,
        "low_freq_factor": candidate.low_freq_factor,
        "high_freq_factor": candidate.high_freq_factor,
        "original_max_position_embeddings": original,
    }))))
}

fn object(value: Json) -> Map<String, Json> {
    match value {
        Json::Object(map) => map,
        _ => Map::new(),
    }
}
