//! What llama.cpp calls the tensors of the Llama family, and what transformers calls them.

/// Architectures that are read and written, by `general.architecture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufArchitecture {
    /// Llama, and what converters write as it: Mistral, TinyLlama, SmolLM2.
    Llama,
    Qwen2,
    Qwen3,
}

impl GgufArchitecture {
    pub const ALL: [GgufArchitecture; 3] =
        [GgufArchitecture::Llama, GgufArchitecture::Qwen2, GgufArchitecture::Qwen3];

    pub fn name(self) -> &'static str {
        match self {
            GgufArchitecture::Llama => "llama",
            GgufArchitecture::Qwen2 => "qwen2",
            GgufArchitecture::Qwen3 => "qwen3",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    /// The architecture that a transformers model of this `model_type` is written as.
    pub fn from_model_type(model_type: &str) -> Option<Self> {
        match model_type {
            "mistral" => Some(GgufArchitecture::Llama),
            other => Self::from_name(other),
        }
    }

    /// Whether q's and k's rows lie in llama.cpp's order ([`super::to_gguf_rows`]).
    pub fn sorts_rows(self) -> bool {
        self == GgufArchitecture::Llama
    }
}

/// Outside the blocks: llama.cpp's name, transformers'.
const OUTER: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// In a block, behind `blk.N.` and `model.layers.N.`.
const INNER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// transformers' name of a tensor: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`.
pub fn hf_name(gguf: &str) -> Option<String> {
    let (stem, end) = split_end(gguf)?;
    if let Some((_, hf)) = OUTER.iter().find(|(name, _)| *name == stem) {
        return Some(format!("{hf}.{end}"));
    }
    let (layer, part) = layer(stem.strip_prefix("blk.")?)?;
    let (_, hf) = INNER.iter().find(|(name, _)| *name == part)?;
    Some(format!("model.layers.{layer}.{hf}.{end}"))
}

/// llama.cpp's name of a tensor: the inverse of [`hf_name`].
pub fn gguf_name(hf: &str) -> Option<String> {
    let (stem, end) = split_end(hf)?;
    if let Some((gguf, _)) = OUTER.iter().find(|(_, name)| *name == stem) {
        return Some(format!("{gguf}.{end}"));
    }
    let (layer, part) = layer(stem.strip_prefix("model.layers.")?)?;
    let (gguf, _) = INNER.iter().find(|(_, name)| *name == part)?;
    Some(format!("blk.{layer}.{gguf}.{end}"))
}

/// The projections whose rows llama.cpp sorts.
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

/// Which of them a tensor, by llama.cpp's name, belongs to.
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

/// `3.attn_q` as its number and its part. A number that is not written in the one usual way is none.
fn layer(rest: &str) -> Option<(u32, &str)> {
    let (digits, part) = rest.split_once('.')?;
    let number: u32 = digits.parse().ok()?;
    (number.to_string() == digits).then_some((number, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        let pairs = [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
            ("blk.3.attn_q.weight", "model.layers.3.self_attn.q_proj.weight"),
            ("blk.3.attn_k.bias", "model.layers.3.self_attn.k_proj.bias"),
            ("blk.3.attn_v.bias", "model.layers.3.self_attn.v_proj.bias"),
            ("blk.31.attn_output.weight", "model.layers.31.self_attn.o_proj.weight"),
            ("blk.7.attn_q_norm.weight", "model.layers.7.self_attn.q_norm.weight"),
            ("blk.7.attn_k_norm.weight", "model.layers.7.self_attn.k_norm.weight"),
            ("blk.7.ffn_norm.weight", "model.layers.7.post_attention_layernorm.weight"),
            ("blk.7.ffn_gate.weight", "model.layers.7.mlp.gate_proj.weight"),
            ("blk.7.ffn_up.weight", "model.layers.7.mlp.up_proj.weight"),
            ("blk.10.ffn_down.weight", "model.layers.10.mlp.down_proj.weight"),
        ];
        for (gguf, hf) in pairs {
            assert_eq!(hf_name(gguf).as_deref(), Some(hf));
            assert_eq!(gguf_name(hf).as_deref(), Some(gguf));
        }
    }

    #[test]
    fn other_names_have_none() {
        for name in
            ["rope_freqs.weight", "blk.03.attn_q.weight", "blk.x.attn_q.weight", "blk.3.attn_q", "blk."]
        {
            assert_eq!(hf_name(name), None, "{name}");
        }
        for name in ["model.layers.3.self_attn.rotary_emb.inv_freq", "model.layers.3", "model.norm.scale"] {
            assert_eq!(gguf_name(name), None, "{name}");
        }
    }
}
