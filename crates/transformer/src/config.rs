//! `config.json`: the sizes and options of a model, checked so that later code can rely on them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use lora_drop_compute::activation::Activation;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json;
use crate::module::ModuleKind;

/// A family of models with one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    Bert,
    /// RoBERTa, XLM-RoBERTa and CamemBERT.
    Roberta,
    Mpnet,
    /// Llama, Mistral, Qwen2, Qwen3.
    Llama,
    /// Gemma 3, text only.
    Gemma3,
}

/// The configuration of a model. All sizes are at least 1 and small enough to be multiplied; a
/// feature that the architecture does not have is None, empty or 0.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    /// `model_type` in config.json: `bert`, `xlm-roberta`, `qwen2`.
    pub model_type: String,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads of attention.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Factor on attention scores, usually 1 / √head_dim.
    pub attention_scale: f32,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Rows of the table of word embeddings.
    pub vocab_size: usize,
    /// Rows of an encoder's table of positions; most tokens of a decoder.
    pub max_positions: usize,
    /// The number of a sequence's first position.
    pub first_position: usize,
    /// Number of token types; None without them.
    pub token_types: Option<usize>,
    /// ε of all norms.
    pub norm_eps: f32,
    /// Activation of the feed-forward part, or of its gate.
    pub activation: Activation,
    /// Probability of dropout on hidden states in training.
    pub hidden_dropout: f64,
    /// Probability of dropout on attention probabilities.
    pub attention_dropout: f64,
    /// Probability of dropout in the head for labels, as in transformers' model.
    pub head_dropout: f64,
    /// Standard deviation of newly initialised weights.
    pub initializer_range: f64,
    /// Number of the padding token.
    pub pad_token_id: usize,
    /// Rows of the table of relative positions.
    pub relative_buckets: usize,
    /// Rotary embedding: radians per position of each pair of a head's values, (head_dim / 2), for
    /// each kind of layers.
    pub rope: Vec<Vec<f32>>,
    /// For each layer, the number of last tokens that a query sees; None is all. Empty if attention
    /// is bidirectional.
    pub windows: Vec<Option<usize>>,
    /// Whether a decoder's q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether a decoder's projection after attention has a bias.
    pub output_bias: bool,
    /// Whether a decoder's gate, up and down have biases.
    pub mlp_bias: bool,
    /// Whether each head of q and k is normalised before the rotation.
    pub qk_norm: bool,
    /// Whether a decoder's output layer is the table of word embeddings.
    pub tied: bool,
    /// Number of the token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Numbers of the tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Class names in index order, as in the checkpoint; empty without them.
    pub labels: Vec<String>,
    /// The checkpoint's task: `single_label_classification`, `regression`; None without it.
    pub problem_type: Option<String>,
    /// Problems in the file that affect no computation, for the user.
    pub warnings: Vec<String>,
    /// The whole file, with transformers' defaults for keys that it leaves out, if it is a
    /// decoder's.
    pub raw: Map<String, Value>,
}

/// Limit of all sizes. No real model comes near it, and the product of two sizes and the number of
/// layers fits u64.
pub(crate) const LARGEST: usize = 1 << 24;
pub(crate) const MOST_LAYERS: usize = 1 << 12;
/// Limit of `num_labels` in a checkpoint that does not name its classes.
const MOST_UNNAMED_LABELS: usize = 1 << 16;
/// Limit of a model's weights: 4 TiB of f32.
const MOST_WEIGHTS: usize = 1 << 40;
/// Limit of config.json's length. Real ones have a few KB, or some hundred KB with thousands of
/// labels.
const MOST_BYTES: u64 = 64 << 20;

impl ModelConfig {
    /// Reads the keys that all architectures share; what only some have is left off.
    pub(crate) fn common(keys: &Keys, architecture: Architecture, model_type: &str) -> Result<Self> {
        let size = |key| keys.size(key, LARGEST);
        let (hidden_size, heads) = (size("hidden_size")?, size("num_attention_heads")?);
        Ok(ModelConfig {
            architecture,
            model_type: model_type.to_string(),
            hidden_size,
            layers: keys.size("num_hidden_layers", MOST_LAYERS)?,
            heads,
            kv_heads: heads,
            head_dim: hidden_size / heads,
            attention_scale: 1.0,
            intermediate_size: size("intermediate_size")?,
            vocab_size: size("vocab_size")?,
            max_positions: size("max_position_embeddings")?,
            first_position: 0,
            token_types: None,
            norm_eps: 0.0,
            activation: Activation::Silu,
            hidden_dropout: 0.0,
            attention_dropout: 0.0,
            head_dropout: 0.0,
            initializer_range: keys.initializer_range()?,
            pad_token_id: 0,
            relative_buckets: 0,
            rope: Vec::new(),
            windows: Vec::new(),
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            tied: false,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            labels: keys.labels()?,
            problem_type: keys.text("problem_type")?.map(str::to_string),
            warnings: Vec::new(),
            raw: Map::new(),
        })
    }

    /// Returns the maximum number of tokens in a sequence, special tokens included. RoBERTa and
    /// MPNet number positions from after the padding token's, so the first rows of their table are
    /// not used.
    pub fn max_tokens(&self) -> usize {
        self.max_positions.saturating_sub(self.first_position)
    }

    /// Returns the shape (out, in) of a linear layer that can have an adapter.
    pub fn linear_shape(&self, kind: ModuleKind) -> (usize, usize) {
        let (queries, pairs) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match kind {
            ModuleKind::Query => (queries, self.hidden_size),
            ModuleKind::Key | ModuleKind::Value => (pairs, self.hidden_size),
            ModuleKind::AttentionOutput => (self.hidden_size, queries),
            ModuleKind::Gate | ModuleKind::Intermediate => (self.intermediate_size, self.hidden_size),
            ModuleKind::Output => (self.hidden_size, self.intermediate_size),
            ModuleKind::LmHead => (self.vocab_size, self.hidden_size),
        }
    }

    /// Checks that the sizes go together, which the checks of single keys cannot do.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        if self.max_tokens() == 0 {
            return Err(format!(
                "max_position_embeddings is {}, which leaves no position: they count from pad_token_id + 1 = {}",
                self.max_positions, self.first_position
            ));
        }
        match self.bound() {
            Some(n) if n <= MOST_WEIGHTS => Ok(()),
            _ => Err("its sizes amount to more than 2^40 weights; one of them must be wrong".into()),
        }
    }

    /// Returns an upper bound on the number of elements in all matrices; None on overflow.
    fn bound(&self) -> Option<usize> {
        let rows = 2 * self.vocab_size + self.max_positions + self.token_types.unwrap_or(0);
        let wide = self.heads.checked_mul(self.head_dim)?;
        let attention = wide.checked_mul(self.hidden_size)?.checked_mul(4)?;
        let feed_forward = self.hidden_size.checked_mul(self.intermediate_size)?.checked_mul(3)?;
        let block = attention.checked_add(feed_forward)?;
        rows.checked_mul(self.hidden_size)?.checked_add(block.checked_mul(self.layers)?)
    }
}

/// JSON object of a configuration, and its path, so that every message names the file and the key.
pub struct Keys<'a> {
    pub map: &'a Map<String, Value>,
    pub path: &'a Path,
}

impl<'a> Keys<'a> {
    pub fn error(&self, problem: String) -> Error {
        Error::Config { path: PathBuf::from(self.path), problem }
    }

    pub fn wrong(&self, key: &str, seen: &Value, expected: &str) -> Error {
        let mut seen = seen.to_string();
        if seen.len() > 80 {
            seen = seen.chars().take(77).chain("...".chars()).collect();
        }
        self.error(format!("{key} is {seen}, expected {expected}"))
    }

    /// Returns the error for a value that makes the model compute something that is not
    /// implemented.
    pub fn unsupported(&self, key: &str, seen: impl std::fmt::Display, only: &str) -> Error {
        self.error(format!("{key} is {seen}, which is not supported (only {only})"))
    }

    /// Returns a key's value; `null`, which transformers writes for a missing value, counts as
    /// absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn missing(&self, key: &str) -> Error {
        self.error(format!("the key {key} is missing"))
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.wrong(key, v, "a string"))).transpose()
    }

    pub fn integer(&self, key: &str) -> Result<Option<usize>> {
        let read = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        self.get(key).map(|v| read(v).ok_or_else(|| self.wrong(key, v, "an integer from 0 up"))).transpose()
    }

    pub fn bounded(&self, key: &str, most: usize) -> Result<Option<usize>> {
        match self.integer(key)? {
            Some(n) if n == 0 || n > most => {
                Err(self.wrong(key, &Value::from(n), &format!("an integer from 1 to {most}")))
            }
            found => Ok(found),
        }
    }

    pub fn size(&self, key: &str, most: usize) -> Result<usize> {
        self.bounded(key, most)?.ok_or_else(|| self.missing(key))
    }

    pub fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.bounded(key, LARGEST)?.unwrap_or(default))
    }

    /// Reads a number from 0 to below 1: a dropout probability, or the norm's epsilon.
    pub fn fraction(&self, key: &str) -> Result<Option<f64>> {
        // Below 1 after rounding to f32 as well, because it may be computed in f32.
        let read = |v: &Value| v.as_f64().filter(|x| (0.0..1.0).contains(x) && (*x as f32) < 1.0);
        self.get(key)
            .map(|v| read(v).ok_or_else(|| self.wrong(key, v, "a number from 0 to below 1")))
            .transpose()
    }

    pub fn required_fraction(&self, key: &str) -> Result<f64> {
        self.fraction(key)?.ok_or_else(|| self.missing(key))
    }

    /// Reads the standard deviation of newly initialised weights; 0.02 if the file does not give
    /// it.
    pub fn initializer_range(&self) -> Result<f64> {
        let Some(value) = self.get("initializer_range") else { return Ok(0.02) };
        let number = value.as_f64().filter(|range| *range >= 0.0 && (*range as f32).is_finite());
        number.ok_or_else(|| self.wrong("initializer_range", value, "a number from 0 up"))
    }

    /// Reads a flag; an absent key is false.
    pub fn flag(&self, key: &str) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    /// Reads the class names from id2label. Without it, returns `num_labels` names LABEL_0,
    /// LABEL_1, ..., as transformers makes them.
    pub fn labels(&self) -> Result<Vec<String>> {
        let Some(value) = self.get("id2label") else {
            let count = self.bounded("num_labels", MOST_UNNAMED_LABELS)?.unwrap_or(0);
            return Ok((0..count).map(|i| format!("LABEL_{i}")).collect());
        };
        let expected = "an object from class numbers (\"0\", \"1\", ...) to names";
        let map = value.as_object().ok_or_else(|| self.wrong("id2label", value, expected))?;
        let mut labels = vec![None; map.len()];
        for (number, name) in map {
            let slot = number.parse::<usize>().ok().and_then(|i| labels.get_mut(i));
            // Some files have numbers or booleans as names.
            let name = match name {
                Value::String(name) => Some(name.clone()),
                Value::Number(_) | Value::Bool(_) => Some(name.to_string()),
                _ => None,
            };
            match (slot, name) {
                (Some(slot @ None), Some(name)) => *slot = Some(name),
                _ => return Err(self.wrong("id2label", value, &format!("{expected}, without a gap"))),
            }
        }
        Ok(labels.into_iter().flatten().collect())
    }
}

/// Reads the JSON object of a config.json's text; `path` is for messages.
pub(crate) fn parse_object(text: &str, path: &Path) -> Result<Map<String, Value>> {
    let problem = match json::from_str(text) {
        Ok(Value::Object(object)) => return Ok(object),
        Ok(_) => "expected a JSON object".into(),
        Err(e) => format!("not valid JSON: {e}"),
    };
    Err(Error::Config { path: path.into(), problem })
}

/// Reads `folder/config.json`; returns its object and its path.
///
/// # Errors
/// The folder or the file is missing, cannot be read, or is no JSON object.
pub(crate) fn read_folder(folder: &Path) -> Result<(Map<String, Value>, PathBuf)> {
    let path = folder.join("config.json");
    if !path.exists() {
        let problem = if !folder.exists() {
            "the folder does not exist"
        } else if !folder.is_dir() {
            "not a folder; a model is a folder with config.json and model.safetensors"
        } else if folder.join("adapter_config.json").exists() {
            "this is an adapter (adapter_config.json, no config.json); give the folder of its base model"
        } else {
            "no config.json in it; a model's folder has config.json, tokenizer.json and model.safetensors"
        };
        return Err(Error::Folder { folder: folder.to_path_buf(), problem: problem.into() });
    }
    Ok((parse_object(&read_text(&path, MOST_BYTES)?, &path)?, path))
}

/// Reads a text file of at most `most` bytes.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    let problem = |problem: String| Error::Config { path: path.to_path_buf(), problem };
    if bytes.len() as u64 > most {
        return Err(problem(format!("larger than {} MB, which is too large for such a file", most >> 20)));
    }
    String::from_utf8(bytes).map_err(|e| {
        problem(format!(
            "not UTF-8: the byte at offset {} does not start a character",
            e.utf8_error().valid_up_to()
        ))
    })
}
