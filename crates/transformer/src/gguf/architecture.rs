//! An architecture of GGUF files: names of tensors and keys in llama.cpp and in transformers.

use serde_json::{Map, Value as Json};

use super::metadata::GgufKeys;
use super::value::Value;
use crate::config::ModelConfig;
use crate::error::Result;

/// How the files of a `general.architecture` differ from transformers' files.
pub struct GgufArchitecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// Norms of a block whose names differ between architectures: llama.cpp's name, transformers'
    /// name.
    pub(crate) norms: &'static [(&'static str, &'static str)],
    /// Whether the rows of q and k are in llama.cpp's order (`to_gguf_rows`).
    pub(crate) sorts_rows: bool,
    /// Offset that files add to the weights of norms.
    pub(crate) norm_offset: f32,
    /// Adds the architecture's own keys to those of config.json, including model_type and the
    /// class.
    pub(crate) read: fn(&GgufKeys, &mut Map<String, Json>) -> Result<()>,
    /// Returns the architecture's own keys, without its name and the dot, or a message on what
    /// cannot be written.
    pub(crate) write: fn(&ModelConfig) -> Written,
}

/// Keys and values, or a message on what cannot be written.
pub type Written = std::result::Result<Vec<(&'static str, Value)>, String>;

/// Tensors outside the blocks: llama.cpp's name, transformers' name.
const OUTER: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Tensors in a block, after `blk.N.` and `model.layers.N.`: llama.cpp's name, transformers' name.
const INNER: [(&str, &str); 10] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

impl GgufArchitecture {
    fn inner(&self) -> impl Iterator<Item = &(&'static str, &'static str)> {
        INNER.iter().chain(self.norms)
    }

    /// transformers' name of a tensor: `blk.3.attn_q.weight` is
    /// `model.layers.3.self_attn.q_proj.weight`.
    pub fn hf_name(&self, gguf: &str) -> Option<String> {
        let (stem, end) = split_end(gguf)?;
        if let Some((_, hf)) = OUTER.iter().find(|(name, _)| *name == stem) {
            return Some(format!("{hf}.{end}"));
        }
        let (layer, part) = layer(stem.strip_prefix("blk.")?)?;
        let (_, hf) = self.inner().find(|(name, _)| *name == part)?;
        Some(format!("model.layers.{layer}.{hf}.{end}"))
    }

    /// llama.cpp's name of a tensor: the inverse of `hf_name`.
    pub fn gguf_name(&self, hf: &str) -> Option<String> {
        let (stem, end) = split_end(hf)?;
        if let Some((gguf, _)) = OUTER.iter().find(|(_, name)| *name == stem) {
            return Some(format!("{gguf}.{end}"));
        }
        let (layer, part) = layer(stem.strip_prefix("model.layers.")?)?;
        let (gguf, _) = self.inner().find(|(_, name)| *name == part)?;
        Some(format!("blk.{layer}.{gguf}.{end}"))
    }

    /// Returns the offset that the file adds to a tensor's values.
    pub(crate) fn offset(&self, gguf: &str) -> f32 {
        if gguf.ends_with("norm.weight") { self.norm_offset } else { 0.0 }
    }
}

/// The projections whose rows llama.cpp reorders for its rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RotaryPart {
    Query,
    Key,
}

impl RotaryPart {
    pub fn heads(self, heads: usize, kv_heads: usize) -> usize {
        match self {
            RotaryPart::Query => heads,
            RotaryPart::Key => kv_heads,
        }
    }
}

/// Returns the projection that a tensor belongs to, by llama.cpp's name.
pub(super) fn rotary_part(gguf: &str) -> Option<RotaryPart> {
    let (stem, _) = split_end(gguf)?;
    match layer(stem.strip_prefix("blk.")?)?.1 {
        "attn_q" => Some(RotaryPart::Query),
        "attn_k" => Some(RotaryPart::Key),
        _ => None,
    }
}

fn split_end(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, end)| matches!(*end, "weight" | "bias"))
}

/// Splits `3.attn_q` into its number and its part. None for a number in another form, such as `03`.
fn layer(rest: &str) -> Option<(u32, &str)> {
    let (digits, part) = rest.split_once('.')?;
    let number: u32 = digits.parse().ok()?;
    (number.to_string() == digits).then_some((number, part))
}
