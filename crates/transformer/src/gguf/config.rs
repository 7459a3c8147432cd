//! A model's configuration from a GGUF file's metadata, in the form of transformers' config.json.

use serde_json::{Map, Value as Json, json};

use super::metadata::{Attention, GgufKeys};
use super::value::Value;
use super::{Gguf, rope};
use crate::error::Result;

/// llama.cpp's default for a file without `rope.freq_base`.
const DEFAULT_ROPE_BASE: f64 = 10000.0;

impl Gguf {
    /// The model's configuration in the form of transformers' config.json: `model_type`, sizes,
    /// `rope_theta` and `rope_scaling`, `tie_word_embeddings`, special tokens, and the
    /// architecture's own keys.
    ///
    /// # Errors
    /// A key is missing or of another type; another architecture; or a feature that is not
    /// supported: experts, rotary embedding of a part of a head, sizes that differ between blocks.
    pub fn config(&self) -> Result<Map<String, Json>> {
        if let Some(kind) = self.value("general.type").and_then(Value::as_str).filter(|kind| *kind != "model")
        {
            let problem = format!("is {kind:?}, expected \"model\": the file holds something else");
            return Err(self.metadata.key_fault("general.type", &problem));
        }
        let architecture = self.architecture()?;
        let keys = GgufKeys { file: &self.metadata, architecture: architecture.name };
        if let Some(experts) = keys.optional_integer("expert_count")?.filter(|n| *n > 0) {
            return Err(
                keys.fault("expert_count", &format!("is {experts}; mixtures of experts are not supported"))
            );
        }
        let Attention { heads, kv_heads, head_dim } = Attention::read(&keys)?;
        let mut config = Map::new();
        let mut set = |key: &str, value: Json| config.insert(key.to_string(), value);
        set("hidden_size", json!(keys.count("embedding_length")?));
        set("num_hidden_layers", json!(keys.count("block_count")?));
        set("num_attention_heads", json!(heads));
        set("num_key_value_heads", json!(kv_heads));
        set("head_dim", json!(head_dim));
        set("intermediate_size", json!(keys.count("feed_forward_length")?));
        set("vocab_size", json!(self.vocabulary(&keys)?));
        set("max_position_embeddings", json!(keys.count("context_length")?));
        set("rms_norm_eps", keys.positive("attention.layer_norm_rms_epsilon")?);
        let base = match keys.optional("rope.freq_base") {
            Some(_) => keys.positive("rope.freq_base")?,
            None => json!(DEFAULT_ROPE_BASE),
        };
        if let Some(scaling) = rope::scaling(self, &keys, base.as_f64().unwrap_or_default(), head_dim)? {
            set("rope_scaling", Json::Object(scaling));
        }
        set("rope_theta", base);
        // Files leave out the output layer's matrix if it is the embedding's.
        set("tie_word_embeddings", json!(!self.contains("lm_head.weight")));
        for (key, name) in [
            ("tokenizer.ggml.bos_token_id", "bos_token_id"),
            ("tokenizer.ggml.eos_token_id", "eos_token_id"),
            ("tokenizer.ggml.padding_token_id", "pad_token_id"),
        ] {
            if let Some(value) = self.value(key) {
                // Negative numbers pass too: they are reported when ids are compared with the
                // vocabulary.
                let id = value.as_u64().map(Json::from);
                let id = id.or_else(|| value.to_string().parse::<i64>().ok().map(Json::from));
                set(name, id.ok_or_else(|| self.metadata.wrong_type(key, value, "a token's number"))?);
            }
        }
        // Tokens that end a turn or a message end a text too, as in llama.cpp.
        let ends: Vec<Json> = ["eos", "eot", "eom"]
            .into_iter()
            .filter_map(|name| {
                self.value(&format!("tokenizer.ggml.{name}_token_id"))?.as_u64().map(Json::from)
            })
            .collect();
        if ends.len() > 1 {
            set("eos_token_id", json!(ends));
        }
        (architecture.read)(&keys, &mut config)?;
        Ok(config)
    }

    /// Returns the size of the vocabulary: the embedding's rows, which may be more than the
    /// tokenizer's tokens.
    fn vocabulary(&self, keys: &GgufKeys) -> Result<usize> {
        if let Some(shape) = self.shape("model.embed_tokens.weight") {
            return Ok(shape[0]);
        }
        if let Some(tokens) = self.value("tokenizer.ggml.tokens").and_then(Value::as_strings) {
            return Ok(tokens.len());
        }
        keys.count("vocab_size")
    }
}
