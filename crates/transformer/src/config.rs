//! `config.json`: the sizes and choices of an encoder, checked so that nothing behind it meets an impossible model.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::decoder_config as decoder;
use crate::error::{Error, Result};
use crate::json;

/// How the encoder is built; each has its names, its positions and its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    Bert,
    /// RoBERTa, XLM-RoBERTa and CamemBERT.
    Roberta,
    /// BERT's block with a bias on attention that depends on the distance of two tokens.
    Mpnet,
    /// The decoders of Llama's kind: Llama, Mistral, Qwen2, Qwen3.
    Llama,
}

impl Architecture {
    /// The architecture behind config.json's model_type.
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        let encoder = KNOWN.iter().find(|(name, _)| *name == model_type).map(|(_, found)| *found);
        encoder.or_else(|| decoder::KNOWN.contains(&model_type).then_some(Architecture::Llama))
    }
}

/// The function between the two linear layers of the feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x Φ(x) with the error function.
    Gelu,
    /// GELU by the tanh formula.
    GeluTanh,
    Relu,
}

/// The configuration of an encoder. All sizes are at least 1 and small enough to be multiplied.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    pub architecture: Architecture,
    /// `bert`, `roberta`, `xlm-roberta`, `camembert` or `mpnet`.
    pub model_type: String,
    pub hidden_size: usize,
    pub layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub heads: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    /// Rows of the position table; a sequence may hold `max_tokens()`.
    pub max_positions: usize,
    /// Rows of the token type table; 0 for MPNet, which has none.
    pub type_vocab_size: usize,
    pub layer_norm_eps: f32,
    pub activation: Activation,
    pub hidden_dropout: f64,
    /// Dropout of the attention probabilities.
    pub attention_dropout: f64,
    /// Dropout of the head where it has its own; see `head_dropout()`.
    pub classifier_dropout: Option<f64>,
    /// Standard deviation of newly initialised weights.
    pub initializer_range: f64,
    pub pad_token_id: usize,
    /// Rows of the relative position table; 0 where there is none (all but MPNet).
    pub relative_buckets: usize,
    /// Class names in index order as the checkpoint has them; empty where it says nothing.
    pub labels: Vec<String>,
    /// `single_label_classification`, `regression` and the like, where the checkpoint says so.
    pub problem_type: Option<String>,
    /// The whole file, for writing the config.json of a merged model.
    pub raw: Map<String, Value>,
}

/// No size of a real model comes near it, and a product of two such sizes and of the layers fits u64.
pub(crate) const LARGEST: usize = 1 << 24;
pub(crate) const MOST_LAYERS: usize = 1 << 12;
/// Classes that a checkpoint counts without naming them.
const MOST_UNNAMED_LABELS: usize = 1 << 16;
/// 4 TB of f32.
pub(crate) const MOST_WEIGHTS: usize = 1 << 40;
/// config.json has some KB; with thousands of labels, some hundred.
pub(crate) const MOST_BYTES: u64 = 64 << 20;

/// model_type and the architecture that computes it.
const KNOWN: [(&str, Architecture); 5] = [
    ("bert", Architecture::Bert),
    ("roberta", Architecture::Roberta),
    ("xlm-roberta", Architecture::Roberta),
    ("camembert", Architecture::Roberta),
    ("mpnet", Architecture::Mpnet),
];

/// Names of decoders that are not computed here, for a better answer than "unknown".
const OTHER_DECODERS: [&str; 9] =
    ["mixtral", "gemma", "gemma2", "gemma3", "phi", "phi3", "gpt2", "gpt_neox", "deepseek_v3"];

const ACTIVATIONS: [(&str, Activation); 8] = [
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_accurate", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
];

impl EncoderConfig {
    /// Reads `folder/config.json`.
    ///
    /// # Errors
    /// The folder or the file is missing or cannot be read, and whatever `parse` finds.
    pub fn read(folder: &Path) -> Result<Self> {
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
        Self::parse(&read_text(&path, MOST_BYTES)?, &path)
    }

    /// Reads the text of a config.json; `path` is for messages.
    ///
    /// # Errors
    /// `Error::Config` for anything that is not an encoder this crate computes exactly as transformers does.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let raw = parse_object(text, path)?;
        let keys = Keys { map: &raw, path };

        let model_type = keys.required_text("model_type")?.to_string();
        let architecture = architecture_of(&model_type).map_err(|problem| keys.error(problem))?;
        let mpnet = architecture == Architecture::Mpnet;
        keys.refuse_other_arithmetic()?;

        let size = |key, most| keys.size(key, most);
        let config =
            EncoderConfig {
                architecture,
                hidden_size: size("hidden_size", LARGEST)?,
                layers: size("num_hidden_layers", MOST_LAYERS)?,
                heads: size("num_attention_heads", LARGEST)?,
                intermediate_size: size("intermediate_size", LARGEST)?,
                vocab_size: size("vocab_size", LARGEST)?,
                max_positions: size("max_position_embeddings", LARGEST)?,
                // Where a key may be absent, its value is transformers' default.
                type_vocab_size: if mpnet { 0 } else { keys.size_or("type_vocab_size", 2)? },
                relative_buckets: if mpnet { keys.size_or("relative_attention_num_buckets", 32)? } else { 0 },
                layer_norm_eps: keys.fraction("layer_norm_eps")?.unwrap_or(1e-12) as f32,
                activation: keys.activation()?,
                hidden_dropout: keys.fraction("hidden_dropout_prob")?.unwrap_or(0.1),
                attention_dropout: keys.fraction("attention_probs_dropout_prob")?.unwrap_or(0.1),
                classifier_dropout: keys.fraction("classifier_dropout")?,
                initializer_range: keys.initializer_range()?,
                pad_token_id: keys
                    .integer("pad_token_id")?
                    .unwrap_or(if architecture == Architecture::Bert { 0 } else { 1 }),
                labels: keys.labels()?,
                problem_type: keys.text("problem_type")?.map(str::to_string),
                model_type,
                raw: Map::new(),
            };
        config.check().map_err(|problem| keys.error(problem))?;
        Ok(EncoderConfig { raw, ..config })
    }

    /// The longest sequence in tokens, special tokens counted. RoBERTa and MPNet number positions from
    /// `pad_token_id + 1` on, so that many rows of their table are never used.
    pub fn max_tokens(&self) -> usize {
        match self.architecture {
            Architecture::Bert => self.max_positions,
            _ => self.max_positions.saturating_sub(self.pad_token_id.saturating_add(1)),
        }
    }

    /// Width of one attention head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.heads
    }

    /// Dropout in the classification head, as transformers' model has it: MPNet's ignores `classifier_dropout`.
    pub fn head_dropout(&self) -> f64 {
        match self.architecture {
            Architecture::Mpnet => self.hidden_dropout,
            _ => self.classifier_dropout.unwrap_or(self.hidden_dropout),
        }
    }

    /// What single keys cannot show: sizes that do not go together.
    fn check(&self) -> std::result::Result<(), String> {
        if !self.hidden_size.is_multiple_of(self.heads) {
            return Err(format!(
                "num_attention_heads ({}) does not divide hidden_size ({})",
                self.heads, self.hidden_size
            ));
        }
        // The bucket of a distance is a logarithm to a base that fewer buckets make 0.
        if self.architecture == Architecture::Mpnet && self.relative_buckets < 4 {
            return Err(format!(
                "relative_attention_num_buckets is {}, expected at least 4",
                self.relative_buckets
            ));
        }
        if self.pad_token_id >= self.vocab_size {
            return Err(format!(
                "pad_token_id is {}, outside the vocabulary of {}",
                self.pad_token_id, self.vocab_size
            ));
        }
        if self.max_tokens() == 0 {
            return Err(format!(
                "max_position_embeddings is {}, which leaves no position: they count from pad_token_id + 1 = {}",
                self.max_positions,
                self.pad_token_id + 1
            ));
        }
        match self.weights() {
            Some(n) if n <= MOST_WEIGHTS => Ok(()),
            _ => Err("its sizes amount to more than 2^40 weights; one of them must be wrong".into()),
        }
    }

    /// The matrices' elements, `None` on overflow.
    fn weights(&self) -> Option<usize> {
        let rows = self.vocab_size + self.max_positions + self.type_vocab_size;
        let attention = self.hidden_size.checked_mul(self.hidden_size)?.checked_mul(4)?;
        let feed_forward = self.hidden_size.checked_mul(self.intermediate_size)?.checked_mul(2)?;
        let block = attention.checked_add(feed_forward)?;
        rows.checked_mul(self.hidden_size)?.checked_add(block.checked_mul(self.layers)?)
    }
}

fn architecture_of(model_type: &str) -> std::result::Result<Architecture, String> {
    if let Some((_, architecture)) = KNOWN.iter().find(|(name, _)| *name == model_type) {
        return Ok(*architecture);
    }
    let (known, decoders) = (names(&KNOWN), decoder::KNOWN.join(", "));
    Err(if decoder::KNOWN.contains(&model_type) {
        format!("model_type {model_type} is a decoder, and an encoder is needed here: {known}")
    } else if OTHER_DECODERS.contains(&model_type) {
        format!(
            "model_type {model_type} is a decoder that this version has not; the decoders are: {decoders}"
        )
    } else {
        format!(
            "model_type {model_type:?} is not supported; the encoders are: {known}; the decoders: {decoders}"
        )
    })
}

fn names<T>(table: &[(&str, T)]) -> String {
    table.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// The object with its path, so that every message names the file and the key.
pub(crate) struct Keys<'a> {
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

    /// The key's value; `null` counts as absent, as transformers writes it.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn missing(&self, key: &str) -> Error {
        let hint = match key {
            "model_type" => format!(" (one of {})", names(&KNOWN)),
            _ => String::new(),
        };
        self.error(format!("the key {key} is missing{hint}"))
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.wrong(key, v, "a string"))).transpose()
    }

    pub fn required_text(&self, key: &str) -> Result<&'a str> {
        self.text(key)?.ok_or_else(|| self.missing(key))
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

    /// A number from 0 to below 1: a dropout, or the norm's epsilon.
    pub fn fraction(&self, key: &str) -> Result<Option<f64>> {
        // Below 1 in f32 as well: that is what it may be computed in.
        let read = |v: &Value| v.as_f64().filter(|x| (0.0..1.0).contains(x) && (*x as f32) < 1.0);
        self.get(key)
            .map(|v| read(v).ok_or_else(|| self.wrong(key, v, "a number from 0 to below 1")))
            .transpose()
    }

    pub fn required_fraction(&self, key: &str) -> Result<f64> {
        self.fraction(key)?.ok_or_else(|| self.missing(key))
    }

    /// Standard deviation of newly initialised weights, 0.02 where the file does not name one.
    pub fn initializer_range(&self) -> Result<f64> {
        let Some(value) = self.get("initializer_range") else { return Ok(0.02) };
        let number = value.as_f64().filter(|range| *range >= 0.0 && (*range as f32).is_finite());
        number.ok_or_else(|| self.wrong("initializer_range", value, "a number from 0 up"))
    }

    /// Whether a key is true; absent, it is false.
    pub fn flag(&self, key: &str) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    fn activation(&self) -> Result<Activation> {
        let name = self.text("hidden_act")?.unwrap_or("gelu");
        ACTIVATIONS.iter().find(|(known, _)| *known == name).map(|(_, a)| *a).ok_or_else(|| {
            self.error(format!(
                "hidden_act {name:?} is not supported; the known ones are: {}",
                names(&ACTIVATIONS)
            ))
        })
    }

    /// Variants under the same model_type that compute something else: an error, rather than wrong numbers.
    fn refuse_other_arithmetic(&self) -> Result<()> {
        let unsupported = |key: &str, seen: &Value, only: &str| {
            self.error(format!("{key} is {seen}, which is not supported (only {only})"))
        };
        if let Some(v) = self.get("position_embedding_type").filter(|v| v.as_str() != Some("absolute")) {
            return Err(unsupported("position_embedding_type", v, "\"absolute\""));
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if let Some(v) = self.get(key).filter(|v| v.as_bool() != Some(false)) {
                return Err(unsupported(key, v, "false"));
            }
        }
        if let Some(v) = self.get("embedding_size").filter(|v| Some(*v) != self.get("hidden_size")) {
            return Err(unsupported("embedding_size", v, "the same as hidden_size"));
        }
        if let Some(v) =
            self.get("pruned_heads").filter(|v| v.as_object().is_none_or(|heads| !heads.is_empty()))
        {
            return Err(unsupported("pruned_heads", v, "none"));
        }
        Ok(())
    }

    /// Class names from id2label, or as many made-up ones (as transformers makes them) as num_labels says.
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
            match (slot, name.as_str()) {
                (Some(slot @ None), Some(name)) => *slot = Some(name.to_string()),
                _ => return Err(self.wrong("id2label", value, &format!("{expected}, without a gap"))),
            }
        }
        Ok(labels.into_iter().flatten().collect())
    }
}

fn parse_object(text: &str, path: &Path) -> Result<Map<String, Value>> {
    let problem = match json::from_str(text) {
        Ok(Value::Object(object)) => return Ok(object),
        Ok(_) => "expected a JSON object".into(),
        Err(e) => format!("not valid JSON: {e}"),
    };
    Err(Error::Config { path: path.into(), problem })
}

/// Reads the JSON object of a config.json.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    parse_object(&read_text(path, MOST_BYTES)?, path)
}

/// Reads a text file of at most `most` bytes.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    let problem = |problem: String| Error::Config { path: path.to_path_buf(), problem };
    if bytes.len() as u64 > most {
        return Err(problem(format!("larger than {} MB, which no such file is", most >> 20)));
    }
    String::from_utf8(bytes).map_err(|e| {
        problem(format!("not UTF-8: the byte at offset {} starts no character", e.utf8_error().valid_up_to()))
    })
}
