//! `config.json` of a decoder of Llama's kind: one configurable block, and everything else refused by name.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::{Architecture, Keys, LARGEST, MOST_LAYERS, MOST_WEIGHTS, read_object};
use crate::error::Result;
use crate::module::{ModuleId, ModuleKind};

/// The configuration of a decoder. All sizes are at least 1 and small enough to be multiplied.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    pub architecture: Architecture,
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub model_type: String,
    pub hidden_size: usize,
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    /// The longest sequence in tokens.
    pub max_positions: usize,
    pub rms_norm_eps: f32,
    /// Radians per position of each pair of a head's values: (head_dim / 2).
    pub rope_frequencies: Vec<f32>,
    /// For each layer, how many of the last tokens a query sees; None is all.
    pub windows: Vec<Option<usize>>,
    /// Whether q, k and v have biases, whether o has one, and whether gate, up and down have.
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// Whether each head of q and k is normalised before it is turned (Qwen3).
    pub qk_norm: bool,
    /// Whether the output layer is the embedding.
    pub tied: bool,
    pub attention_dropout: f64,
    /// Standard deviation of a newly initialised head.
    pub initializer_range: f64,
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// Class names of a classifier as the checkpoint has them; empty where it says nothing.
    pub labels: Vec<String>,
    pub problem_type: Option<String>,
    /// The whole file, with transformers' values of the keys that it leaves out.
    pub raw: Map<String, Value>,
}

/// The decoders' model_type.
pub const KNOWN: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// Far above any model's. Each pair of a head's values has its rotary frequency, so this bounds their memory.
const WIDEST_HEAD: usize = 1 << 14;

/// What transformers takes where config.json has no rope_theta, in each of these architectures.
const DEFAULT_THETA: f64 = 10_000.0;

/// Returns the tokens' numbers in a value of a configuration, a number or a list of them; None where it is neither.
pub fn token_ids(value: &Value) -> Option<Vec<u32>> {
    match value {
        Value::Array(list) => list.iter().map(token_id).collect(),
        value => token_id(value).map(|id| vec![id]),
    }
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Adds the values that transformers' `LlamaConfig`, `MistralConfig`, `Qwen2Config` and `Qwen3Config` give to keys that
/// a config.json leaves out. A key that is null is another case: as many heads of keys and values as of queries, no window.
///
/// Sizes of matrices have defaults there as well. Here they are required, for a file without them is no model's. Nor are
/// the ends of texts guessed: without the key there is none.
pub(crate) fn add_defaults(raw: &mut Map<String, Value>, model_type: &str) {
    let mut add = |key: &str, value: Value| {
        raw.entry(key).or_insert(value);
    };
    add("rms_norm_eps", json!(1e-6));
    match model_type {
        "mistral" => {
            add("num_key_value_heads", json!(8));
            add("max_position_embeddings", json!(131_072));
            add("sliding_window", json!(4096));
        }
        "qwen2" | "qwen3" => {
            add("num_key_value_heads", json!(32));
            add("max_position_embeddings", json!(32_768));
            add("sliding_window", json!(4096));
            add("max_window_layers", json!(28));
        }
        _ => add("max_position_embeddings", json!(2048)),
    }
    if model_type == "qwen3" {
        add("head_dim", json!(128));
    }
}

impl DecoderConfig {
    /// Reads `folder/config.json`.
    ///
    /// # Errors
    /// The file cannot be read or is not a JSON object, and whatever `parse` finds.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        Self::parse(read_object(&path)?, &path)
    }

    /// Reads the object of a config.json; `path` is for messages.
    ///
    /// # Errors
    /// `Error::Config` for anything that is not a decoder this crate computes exactly as transformers does.
    pub fn parse(mut raw: Map<String, Value>, path: &Path) -> Result<Self> {
        let keys = Keys { map: &raw, path };
        let model_type = keys.required_text("model_type")?.to_string();
        if !KNOWN.contains(&model_type.as_str()) {
            let known = KNOWN.join(", ");
            return Err(keys.error(format!("model_type {model_type:?} is no decoder known here: {known}")));
        }
        add_defaults(&mut raw, &model_type);
        let keys = Keys { map: &raw, path };
        let size = |key| keys.size(key, LARGEST);
        let (hidden_size, heads) = (size("hidden_size")?, size("num_attention_heads")?);
        let layers = keys.size("num_hidden_layers", MOST_LAYERS)?;
        let head_dim = match keys.bounded("head_dim", WIDEST_HEAD)? {
            Some(width) => width,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                return Err(keys.error(format!(
                    "num_attention_heads ({heads}) does not divide hidden_size ({hidden_size}), and there is no head_dim"
                )));
            }
        };
        let attention_bias = keys.flag("attention_bias")?;
        let activation = keys.text("hidden_act")?.unwrap_or("silu");
        if !matches!(activation, "silu" | "swish") {
            return Err(keys.error(format!("hidden_act {activation:?} is not supported (only \"silu\")")));
        }
        let eos_token_ids =
            keys.get("eos_token_id").map_or(Some(Vec::new()), token_ids).ok_or_else(|| {
                keys.wrong("eos_token_id", &raw["eos_token_id"], "a token's number or a list of them")
            })?;
        let bos_token_id = keys.get("bos_token_id").map(|value| {
            token_id(value).ok_or_else(|| keys.wrong("bos_token_id", value, "a token's number"))
        });
        let config = DecoderConfig {
            architecture: Architecture::Llama,
            hidden_size,
            layers,
            heads,
            kv_heads: keys.size_or("num_key_value_heads", heads)?,
            head_dim,
            intermediate_size: size("intermediate_size")?,
            vocab_size: size("vocab_size")?,
            max_positions: size("max_position_embeddings")?,
            rms_norm_eps: keys.required_fraction("rms_norm_eps")? as f32,
            rope_frequencies: rope_frequencies(&keys, head_dim)?,
            windows: windows(&keys, &model_type, layers)?,
            qkv_bias: model_type == "qwen2" || (model_type != "mistral" && attention_bias),
            output_bias: matches!(&*model_type, "llama" | "qwen3") && attention_bias,
            mlp_bias: model_type == "llama" && keys.flag("mlp_bias")?,
            qk_norm: model_type == "qwen3",
            tied: keys.flag("tie_word_embeddings")?,
            attention_dropout: keys.fraction("attention_dropout")?.unwrap_or(0.0),
            initializer_range: keys.initializer_range()?,
            bos_token_id: bos_token_id.transpose()?,
            eos_token_ids,
            labels: keys.labels()?,
            problem_type: keys.text("problem_type")?.map(str::to_string),
            model_type,
            raw: Map::new(),
        };
        config.check().map_err(|problem| keys.error(problem))?;
        Ok(DecoderConfig { raw, ..config })
    }

    /// (out, in) of a block's linear layer.
    pub fn linear_shape(&self, kind: ModuleKind) -> (usize, usize) {
        let (queries, pairs) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match kind {
            ModuleKind::Query => (queries, self.hidden_size),
            ModuleKind::Key | ModuleKind::Value => (pairs, self.hidden_size),
            ModuleKind::AttentionOutput => (self.hidden_size, queries),
            ModuleKind::Gate | ModuleKind::Intermediate => (self.intermediate_size, self.hidden_size),
            ModuleKind::Output => (self.hidden_size, self.intermediate_size),
        }
    }

    /// Whether a block's linear layer has a bias.
    pub fn has_bias(&self, kind: ModuleKind) -> bool {
        match kind {
            ModuleKind::Query | ModuleKind::Key | ModuleKind::Value => self.qkv_bias,
            ModuleKind::AttentionOutput => self.output_bias,
            _ => self.mlp_bias,
        }
    }

    /// Every weight with its shape, named without the prefix, from input to output; the output layer (`lm_head`, which
    /// never has the prefix) not.
    pub fn weights(&self) -> Vec<(String, Vec<usize>)> {
        let hidden = self.hidden_size;
        let mut list = vec![("embed_tokens.weight".to_string(), vec![self.vocab_size, hidden])];
        for number in 0..self.layers {
            let layer = self.architecture.layer(number);
            list.push((format!("{layer}.input_layernorm.weight"), vec![hidden]));
            for &kind in self.architecture.kinds() {
                let (out, input) = self.linear_shape(kind);
                let stem = self.architecture.linear(ModuleId { layer: number, kind });
                list.push((format!("{stem}.weight"), vec![out, input]));
                if self.has_bias(kind) {
                    list.push((format!("{stem}.bias"), vec![out]));
                }
            }
            for part in if self.qk_norm { &["q_norm", "k_norm"][..] } else { &[] } {
                list.push((format!("{layer}.self_attn.{part}.weight"), vec![self.head_dim]));
            }
            list.push((format!("{layer}.post_attention_layernorm.weight"), vec![hidden]));
        }
        list.push(("norm.weight".to_string(), vec![hidden]));
        list
    }

    /// A classifier's weights behind the last norm, with shape and full name (it never has the prefix).
    pub fn head_weights(&self, outputs: usize) -> Vec<(&'static str, Vec<usize>)> {
        vec![("score.weight", vec![outputs, self.hidden_size])]
    }

    /// Parameters of the model that predicts tokens.
    pub fn parameters(&self) -> usize {
        let output = if self.tied { 0 } else { self.vocab_size * self.hidden_size };
        self.body_parameters() + output
    }

    /// Parameters without an output layer or a head.
    pub fn body_parameters(&self) -> usize {
        self.weights().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    fn check(&self) -> std::result::Result<(), String> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "num_key_value_heads ({}) does not divide num_attention_heads ({})",
                self.kv_heads, self.heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head_dim is {}, expected an even number", self.head_dim));
        }
        let product = |a: usize, b: usize| a.checked_mul(b);
        let total = || {
            let wide = product(self.heads, self.head_dim)?;
            let attention = product(wide, self.hidden_size)?.checked_mul(4)?;
            let feed_forward = product(self.hidden_size, self.intermediate_size)?.checked_mul(3)?;
            let blocks = attention.checked_add(feed_forward)?.checked_mul(self.layers)?;
            product(self.vocab_size, self.hidden_size)?.checked_mul(2)?.checked_add(blocks)
        };
        match total() {
            Some(n) if n <= MOST_WEIGHTS => Ok(()),
            _ => Err("its sizes amount to more than 2^40 weights; one of them must be wrong".into()),
        }
    }
}

/// The object of a config.json that can be read as one.
pub(crate) fn peek(path: &Path) -> Option<Map<String, Value>> {
    read_object(path).ok()
}

/// The angle per position of each pair, as transformers computes it in f32 (modeling_rope_utils).
fn rope_frequencies(keys: &Keys, head_dim: usize) -> Result<Vec<f32>> {
    // transformers 5 writes one object rope_parameters, earlier versions rope_theta and rope_scaling.
    let mut object = Map::new();
    for key in ["rope_parameters", "rope_scaling"] {
        match keys.get(key) {
            None => {}
            Some(Value::Object(map)) if map.is_empty() => {}
            Some(Value::Object(map)) => object = map.clone(),
            Some(other) => return Err(keys.wrong(key, other, "an object")),
        }
    }
    let number = |key: &str| -> Result<Option<f64>> {
        let found = object.get(key).filter(|v| !v.is_null()).map(|v| (v, v.as_f64()));
        match found {
            None => Ok(None),
            Some((_, Some(x))) if x > 0.0 && x.is_finite() => Ok(Some(x)),
            Some((v, _)) => Err(keys.wrong(&format!("rope_scaling.{key}"), v, "a number above 0")),
        }
    };
    let needed =
        |key: &str| number(key)?.ok_or_else(|| keys.error(format!("the key rope_scaling.{key} is missing")));
    let theta = match (number("rope_theta")?, keys.get("rope_theta")) {
        (Some(theta), _) => theta,
        (None, None) => DEFAULT_THETA,
        (None, Some(v)) => match v.as_f64() {
            Some(theta) if theta > 0.0 && theta.is_finite() => theta,
            _ => return Err(keys.wrong("rope_theta", v, "a number above 0")),
        },
    };
    let partial = object.get("partial_rotary_factor").or_else(|| keys.get("partial_rotary_factor"));
    if let Some(v) = partial.filter(|v| !v.is_null() && v.as_f64() != Some(1.0)) {
        return Err(keys.error(format!("partial_rotary_factor is {v}, which is not supported (only 1)")));
    }
    let base = |i: usize| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32);
    let frequencies: Vec<f32> = (0..head_dim / 2).map(base).collect();
    let kind = match object.get("rope_type").or_else(|| object.get("type")) {
        None | Some(Value::Null) => "default",
        Some(v) => v.as_str().ok_or_else(|| keys.wrong("rope_scaling.rope_type", v, "a string"))?,
    };
    match kind {
        "default" => Ok(frequencies),
        "linear" => {
            let factor = needed("factor")? as f32;
            Ok(frequencies.into_iter().map(|f| f / factor).collect())
        }
        "llama3" => {
            let factor = needed("factor")? as f32;
            let (low, high) = (needed("low_freq_factor")? as f32, needed("high_freq_factor")? as f32);
            let length = needed("original_max_position_embeddings")? as f32;
            if low == high {
                return Err(keys.error("rope_scaling: low_freq_factor and high_freq_factor are equal".into()));
            }
            Ok(frequencies.into_iter().map(|f| llama3(f, factor, low, high, length)).collect())
        }
        // Factors by pair, as GGUF files carry Llama 3's.
        "factors" => {
            let factors: Option<Vec<f32>> = (object.get("factors").and_then(Value::as_array))
                .map(|list| list.iter().map(|v| v.as_f64().unwrap_or(f64::NAN) as f32).collect());
            match factors {
                Some(factors)
                    if factors.len() == frequencies.len()
                        && factors.iter().all(|f| *f > 0.0 && f.is_finite()) =>
                {
                    Ok(frequencies.iter().zip(factors).map(|(f, factor)| f / factor).collect())
                }
                _ => Err(keys.error(format!("rope_scaling.factors: expected {} numbers", frequencies.len()))),
            }
        }
        other => {
            Err(keys.error(format!("rope_scaling type {other:?} is not supported (default, linear, llama3)")))
        }
    }
}

/// Llama 3.1's rule: long waves are slowed by the factor, short ones kept, those between blended.
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

/// How far each layer sees.
fn windows(keys: &Keys, model_type: &str, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = keys.bounded("sliding_window", 1 << 31)?;
    if model_type == "mistral" {
        return Ok(vec![window; layers]);
    }
    if model_type == "llama" || !keys.flag("use_sliding_window")? {
        return Ok(vec![None; layers]);
    }
    if let Some(types) = keys.get("layer_types") {
        let types = types.as_array().ok_or_else(|| keys.wrong("layer_types", types, "a list"))?;
        let sliding = |v: &Value| match v.as_str() {
            Some("sliding_attention") => Ok(window),
            Some("full_attention") => Ok(None),
            _ => Err(keys.wrong("layer_types", v, "\"full_attention\" or \"sliding_attention\"")),
        };
        let found = types.iter().map(sliding).collect::<Result<Vec<_>>>()?;
        return if found.len() == layers {
            Ok(found)
        } else {
            Err(keys.error(format!("layer_types has {} entries for {layers} layers", found.len())))
        };
    }
    // Qwen's rule: the first max_window_layers see everything.
    let full = keys.integer("max_window_layers")?.ok_or_else(|| keys.missing("max_window_layers"))?;
    Ok((0..layers).map(|layer| window.filter(|_| layer >= full)).collect())
}
