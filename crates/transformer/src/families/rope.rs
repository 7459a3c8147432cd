//! Rotary frequencies, as transformers computes them in f32 (modeling_rope_utils).

use serde_json::{Map, Value};

use crate::config::Keys;
use crate::error::Result;

/// Default of rope_theta in most of transformers' architectures.
pub const DEFAULT_THETA: f64 = 10_000.0;

/// Type of layers that see all tokens, as config.json names it.
pub const FULL: &str = "full_attention";
/// Type of layers with an attention window.
pub const SLIDING: &str = "sliding_attention";

/// Rotary keys of one type of layers: base and scaling.
pub struct Rope<'a> {
    pub keys: &'a Keys<'a>,
    /// The object rope_scaling or, in newer files, rope_parameters.
    pub object: Map<String, Value>,
}

impl<'a> Rope<'a> {
    /// Reads the keys that all layers share: transformers 5 writes one object rope_parameters,
    /// earlier versions rope_theta and rope_scaling.
    ///
    /// # Errors
    /// One of them is not an object.
    pub fn read(keys: &'a Keys<'a>) -> Result<Self> {
        let mut object = Map::new();
        for key in ["rope_parameters", "rope_scaling"] {
            match keys.get(key) {
                None => {}
                Some(Value::Object(map)) if map.is_empty() => {}
                Some(Value::Object(map)) => object = map.clone(),
                Some(other) => return Err(keys.wrong(key, other, "an object")),
            }
        }
        Ok(Rope { keys, object })
    }

    /// Reads the keys of layers of this type; see [`of_layers`].
    ///
    /// # Errors
    /// Those of `of_layers`.
    pub fn of_layers(keys: &'a Keys<'a>, layer_type: &str) -> Result<Self> {
        let object = of_layers(keys.map, layer_type).map_err(|problem| keys.error(problem))?;
        Ok(Rope { keys, object })
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let found = self.object.get(key).filter(|v| !v.is_null()).map(|v| (v, v.as_f64()));
        match found {
            None => Ok(None),
            Some((_, Some(x))) if x > 0.0 && x.is_finite() => Ok(Some(x)),
            Some((v, _)) => Err(self.keys.wrong(&format!("rope_scaling.{key}"), v, "a number above 0")),
        }
    }

    fn needed(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.keys.error(format!("the key rope_scaling.{key} is missing")))
    }

    /// Returns the radians per position of each pair of a head's values, (width / 2). The base is
    /// the object's rope_theta, else config.json's `key`, else `default`.
    ///
    /// # Errors
    /// A number is missing or not above 0, rope_type is not a string, or a scaling is not supported.
    pub fn frequencies(&self, width: usize, key: &str, default: f64) -> Result<Vec<f32>> {
        let keys = self.keys;
        let theta = match (self.number("rope_theta")?, keys.get(key)) {
            (Some(theta), _) => theta,
            (None, None) => default,
            (None, Some(v)) => match v.as_f64() {
                Some(theta) if theta > 0.0 && theta.is_finite() => theta,
                _ => return Err(keys.wrong(key, v, "a number above 0")),
            },
        };
        let partial = self.object.get("partial_rotary_factor").or_else(|| keys.get("partial_rotary_factor"));
        if let Some(v) = partial.filter(|v| !v.is_null() && v.as_f64() != Some(1.0)) {
            return Err(keys.unsupported("partial_rotary_factor", v, "1"));
        }
        let base = |i: usize| 1.0 / (theta as f32).powf((2 * i) as f32 / width as f32);
        let frequencies: Vec<f32> = (0..width / 2).map(base).collect();
        let kind = match self.object.get("rope_type").or_else(|| self.object.get("type")) {
            None | Some(Value::Null) => "default",
            Some(v) => v.as_str().ok_or_else(|| keys.wrong("rope_scaling.rope_type", v, "a string"))?,
        };
        match kind {
            "default" => Ok(frequencies),
            "linear" => {
                let factor = self.needed("factor")? as f32;
                Ok(frequencies.into_iter().map(|f| f / factor).collect())
            }
            "llama3" => {
                let [factor, low, high, length] =
                    ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
                        .map(|key| self.needed(key).map(|number| number as f32));
                let (factor, low, high, length) = (factor?, low?, high?, length?);
                if low == high {
                    let problem = "rope_scaling: low_freq_factor and high_freq_factor are equal";
                    return Err(keys.error(problem.into()));
                }
                Ok(frequencies.into_iter().map(|f| llama3(f, factor, low, high, length)).collect())
            }
            other => {
                Err(keys
                    .error(format!("rope_scaling type {other:?} is not supported (default, linear, llama3)")))
            }
        }
    }
}

/// Returns the rotary keys of layers of this type. Newer files have an object for each type within
/// rope_parameters. Earlier versions scaled only full_attention, by rope_scaling; if a key is in
/// both, rope_scaling's counts, as in transformers.
///
/// # Errors
/// An entry is not an object, or rope_parameters does not have types of layers.
pub fn of_layers(
    config: &Map<String, Value>,
    layer_type: &str,
) -> std::result::Result<Map<String, Value>, String> {
    let object = |key: &str, value: Option<&Value>| match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(other) => Err(format!("{key} is {other}, expected an object")),
    };
    let all = object("rope_parameters", config.get("rope_parameters"))?;
    if !all.is_empty() && !all.contains_key(FULL) && !all.contains_key(SLIDING) {
        return Err(format!("rope_parameters has neither {FULL} nor {SLIDING}, expected an object for each"));
    }
    let mut own = object(layer_type, all.get(layer_type))?;
    if layer_type == FULL {
        own.extend(object("rope_scaling", config.get("rope_scaling"))?);
    }
    Ok(own)
}

/// Llama 3.1's rule: divides frequencies of long waves by the factor, keeps those of short waves,
/// and blends in between.
fn llama3(frequency: f32, factor: f32, low: f32, high: f32, length: f32) -> f32 {
    let wave = 2.0 * std::f32::consts::PI / frequency;
    if wave > length / low {
        frequency / factor
    } else if wave < length / high {
        frequency
    } else {
        let smooth = (length / wave - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}
