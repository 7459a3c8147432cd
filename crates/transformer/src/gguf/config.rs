//! The model's shape from a GGUF file's metadata, in the form of transformers' config.json.

use serde_json::{Map, Number, Value as Json, json};

use super::names::GgufArchitecture;
use super::value::Value;
use super::{Gguf, rope};
use crate::error::Result;

/// llama.cpp's value where a file does not name one.
const DEFAULT_ROPE_BASE: f64 = 10000.0;

/// The heads of attention, the same in all blocks.
pub(super) struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Attention {
    pub fn read(file: &Gguf, architecture: GgufArchitecture) -> Result<Self> {
        let keys = Keys { file, architecture };
        let heads = keys.count("attention.head_count")?;
        let kv_heads = keys.optional_count("attention.head_count_kv")?.unwrap_or(heads);
        let hidden = keys.count("embedding_length")?;
        let head_dim = match keys.optional_count("attention.key_length")? {
            Some(size) => size,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let problem = format!("is {heads}, which does not divide embedding_length {hidden}");
                return Err(keys.fault("attention.head_count", &problem));
            }
        };
        if !heads.is_multiple_of(kv_heads) {
            let problem = format!("is {kv_heads}, which does not divide head_count {heads}");
            return Err(keys.fault("attention.head_count_kv", &problem));
        }
        for key in ["attention.value_length", "rope.dimension_count"] {
            if let Some(size) = keys.optional_count(key)?.filter(|size| *size != head_dim) {
                return Err(keys.fault(key, &format!("is {size}, expected the size of a head, {head_dim}")));
            }
        }
        Ok(Attention { heads, kv_heads, head_dim })
    }
}

impl Gguf {
    /// The model's configuration as transformers' config.json has it: `model_type` (llama, mistral, qwen2, qwen3),
    /// sizes, `rope_theta` and `rope_scaling`, `sliding_window`, biases, `tie_word_embeddings`, special tokens.
    ///
    /// # Errors
    /// A key is missing or of another type, another architecture, or something that the architectures here do not
    /// have: experts, rotary embedding of a part of a head, sizes that differ from block to block.
    pub fn config(&self) -> Result<Map<String, Json>> {
        if let Some(kind) = self.value("general.type").and_then(Value::as_str).filter(|kind| *kind != "model")
        {
            let problem = format!("is {kind:?}, expected \"model\": the file holds something else");
            return Err(self.key_fault("general.type", &problem));
        }
        let architecture = self.architecture()?;
        let keys = Keys { file: self, architecture };
        if let Some(experts) = keys.optional_integer("expert_count")?.filter(|n| *n > 0) {
            return Err(
                keys.fault("expert_count", &format!("is {experts}; mixtures of experts are not read"))
            );
        }
        let Attention { heads, kv_heads, head_dim } = Attention::read(self, architecture)?;
        let window = keys.optional_integer("attention.sliding_window")?.filter(|n| *n > 0);
        let (model_type, class) = match architecture {
            GgufArchitecture::Llama if window.is_some() => ("mistral", "MistralForCausalLM"),
            GgufArchitecture::Llama => ("llama", "LlamaForCausalLM"),
            GgufArchitecture::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            GgufArchitecture::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
        };
        let mut config = Map::new();
        let mut set = |key: &str, value: Json| config.insert(key.to_string(), value);
        set("architectures", json!([class]));
        set("model_type", json!(model_type));
        set("hidden_act", json!("silu"));
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
        if let Some(window) = window {
            set("sliding_window", json!(window));
            if architecture != GgufArchitecture::Llama {
                set("use_sliding_window", json!(true));
                set("max_window_layers", json!(0));
            }
        }
        if architecture != GgufArchitecture::Qwen2 {
            set("attention_bias", json!(self.contains("model.layers.0.self_attn.q_proj.bias")));
        }
        if architecture == GgufArchitecture::Llama {
            set("mlp_bias", json!(self.contains("model.layers.0.mlp.up_proj.bias")));
        }
        // Files leave the output's matrix away where it is the embedding's.
        set("tie_word_embeddings", json!(!self.contains("lm_head.weight")));
        for (key, name) in [
            ("tokenizer.ggml.bos_token_id", "bos_token_id"),
            ("tokenizer.ggml.eos_token_id", "eos_token_id"),
            ("tokenizer.ggml.padding_token_id", "pad_token_id"),
        ] {
            if let Some(value) = self.value(key) {
                let id = value.as_u64().ok_or_else(|| self.wrong_type(key, value, "a token's number"))?;
                set(name, json!(id));
            }
        }
        Ok(config)
    }

    /// Tokens of the model: the embedding's rows, which may be more than the tokenizer's.
    fn vocabulary(&self, keys: &Keys) -> Result<usize> {
        if let Some(shape) = self.shape("model.embed_tokens.weight") {
            return Ok(shape[0]);
        }
        if let Some(tokens) = self.value("tokenizer.ggml.tokens").and_then(Value::as_strings) {
            return Ok(tokens.len());
        }
        keys.count("vocab_size")
    }
}

/// The keys of one architecture: `count("block_count")` reads `llama.block_count`.
pub(super) struct Keys<'a> {
    file: &'a Gguf,
    architecture: GgufArchitecture,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    pub fn fault(&self, name: &str, problem: &str) -> crate::Error {
        self.file.key_fault(&self.key(name), problem)
    }

    pub fn optional(&self, name: &str) -> Option<&Value> {
        self.file.value(&self.key(name))
    }

    pub fn text(&self, name: &str) -> Result<&str> {
        self.file.text(&self.key(name))
    }

    /// A count, 1 or more; an array of counts where all are the same.
    fn count(&self, name: &str) -> Result<usize> {
        self.optional_count(name)?.ok_or_else(|| self.fault(name, "is missing"))
    }

    fn optional_count(&self, name: &str) -> Result<Option<usize>> {
        match self.optional_integer(name)? {
            Some(0) => Err(self.fault(name, "is 0, expected 1 or more")),
            other => Ok(other),
        }
    }

    pub fn optional_integer(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.optional(name) else { return Ok(None) };
        let number = match value.as_integers().as_deref() {
            Some([first, rest @ ..]) if rest.iter().all(|v| v == first) => u64::try_from(*first).ok(),
            Some([_, ..]) => {
                let problem = "differs from block to block, expected one number for all";
                return Err(self.fault(name, problem));
            }
            _ => value.as_u64(),
        };
        // Larger numbers are no sizes of a model, and their products would overflow.
        match number.and_then(|n| u32::try_from(n).ok()) {
            Some(number) => Ok(Some(number as usize)),
            None => {
                let expected = "a whole number below 4294967296";
                Err(self.file.wrong_type(&self.key(name), value, expected))
            }
        }
    }

    /// A float above 0.
    pub fn positive(&self, name: &str) -> Result<Json> {
        let value = self.optional(name).ok_or_else(|| self.fault(name, "is missing"))?;
        let number = value.as_f64().filter(|v| *v > 0.0).and_then(Number::from_f64);
        let wrong = || self.file.wrong_type(&self.key(name), value, "a number above 0");
        number.map(Json::Number).ok_or_else(wrong)
    }
}
