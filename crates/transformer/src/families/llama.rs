//! Llama, and what Mistral, Qwen2 and Qwen3 add to it: windows, biases, norms of heads.
//!
//! x₁ = x + O · attention(rotated Q n, rotated K n, V n), y = x₁ + W₂(SiLU(W_g n₁) · W₁ n₁), with n
//! and n₁ the RMS norms of x and x₁. After the last norm follows a linear layer.

use serde_json::{Map, Value, json};

use super::decoder::{self, Decoder, MODULES};
use super::family::{Family, ModelType, WeightCollector};
use super::rope::{DEFAULT_THETA, Rope};
use crate::config::{Keys, ModelConfig};
use crate::error::Result;
use crate::gguf::architecture::GgufArchitecture;
use crate::gguf::metadata;
use crate::module::ModuleKind;
use crate::network::graph::Segment;

pub const FAMILY: Family = Family {
    name: "llama",
    model_types: &[
        ModelType { name: "llama", class: "Llama", gguf: Some(&LLAMA) },
        ModelType { name: "mistral", class: "Mistral", gguf: Some(&LLAMA) },
        ModelType { name: "qwen2", class: "Qwen2", gguf: Some(&QWEN2) },
        ModelType { name: "qwen3", class: "Qwen3", gguf: Some(&QWEN3) },
    ],
    decoder: true,
    prefix: "model",
    layers: "layers",
    modules: &MODULES,
    head: &["score"],
    token_head: Some("score"),
    defaults,
    config,
    graph: |config, head| {
        decoder::graph(config, head, Decoder { block, embedding_scale: None, norm_offset: 0.0 })
    },
};

/// Llama, and the models that converters write under its name: Mistral, TinyLlama, SmolLM2.
const LLAMA: GgufArchitecture = GgufArchitecture {
    name: "llama",
    norms: &NORMS,
    sorts_rows: true,
    norm_offset: 0.0,
    read: |keys, config| {
        let window = decoder::gguf_window(keys)?;
        let (model_type, class) = match window {
            Some(_) => ("mistral", "MistralForCausalLM"),
            None => ("llama", "LlamaForCausalLM"),
        };
        decoder::set_model_type(config, model_type, class, "hidden_act", "silu");
        config.insert("attention_bias".into(), json!(keys.file.has_tensor("blk.0.attn_q.bias")));
        config.insert("mlp_bias".into(), json!(keys.file.has_tensor("blk.0.ffn_up.bias")));
        config.extend(window.map(|window| ("sliding_window".to_string(), json!(window))));
        Ok(())
    },
    write: decoder::write_gguf_window,
};

const QWEN2: GgufArchitecture = GgufArchitecture {
    name: "qwen2",
    norms: &NORMS,
    sorts_rows: false,
    norm_offset: 0.0,
    read: |keys, config| read_qwen(keys, config, "qwen2", "Qwen2ForCausalLM"),
    write: decoder::write_gguf_window,
};

const QWEN3: GgufArchitecture = GgufArchitecture {
    name: "qwen3",
    norms: &NORMS,
    sorts_rows: false,
    norm_offset: 0.0,
    read: |keys, config| {
        config.insert("attention_bias".into(), json!(keys.file.has_tensor("blk.0.attn_q.bias")));
        read_qwen(keys, config, "qwen3", "Qwen3ForCausalLM")
    },
    write: decoder::write_gguf_window,
};

const NORMS: [(&str, &str); 1] = [("ffn_norm", "post_attention_layernorm")];

fn read_qwen(
    keys: &metadata::GgufKeys,
    config: &mut Map<String, Value>,
    model_type: &str,
    class: &str,
) -> Result<()> {
    decoder::set_model_type(config, model_type, class, "hidden_act", "silu");
    if let Some(window) = decoder::gguf_window(keys)? {
        let added = [
            ("sliding_window", json!(window)),
            ("use_sliding_window", json!(true)),
            ("max_window_layers", json!(0)),
        ];
        config.extend(added.map(|(key, value)| (key.to_string(), value)));
    }
    Ok(())
}

/// Returns the defaults of `LlamaConfig`, `MistralConfig`, `Qwen2Config` and `Qwen3Config` for
/// absent keys. A key that is null has another meaning: as many heads of keys and values as of
/// queries, no window.
///
/// These classes also have defaults for sizes of matrices. Here these keys are required, because a
/// file without them is not a model's. eos_token_id is not guessed either: without the key, no
/// token ends a text.
fn defaults(model_type: &str) -> Vec<(&'static str, Value)> {
    let mut list = vec![("rms_norm_eps", json!(1e-6))];
    list.extend(match model_type {
        "mistral" => vec![
            ("num_key_value_heads", json!(8)),
            ("max_position_embeddings", json!(131_072)),
            ("sliding_window", json!(4096)),
        ],
        "qwen2" | "qwen3" => vec![
            ("num_key_value_heads", json!(32)),
            ("max_position_embeddings", json!(32_768)),
            ("sliding_window", json!(4096)),
            ("max_window_layers", json!(28)),
        ],
        _ => vec![("max_position_embeddings", json!(2048))],
    });
    list.extend((model_type == "qwen3").then(|| ("head_dim", json!(128))));
    list
}

fn config(keys: &Keys, config: ModelConfig) -> Result<ModelConfig> {
    let model_type = config.model_type.clone();
    let config = decoder::config(keys, config)?;
    let attention_bias = keys.flag("attention_bias")?;
    let activation = keys.text("hidden_act")?.unwrap_or("silu");
    if !matches!(activation, "silu" | "swish") {
        return Err(keys.error(format!("hidden_act {activation:?} is not supported (only \"silu\")")));
    }
    Ok(ModelConfig {
        rope: vec![Rope::read(keys)?.frequencies(config.head_dim, "rope_theta", DEFAULT_THETA)?],
        windows: windows(keys, &model_type, config.layers)?,
        qkv_bias: model_type == "qwen2" || (model_type != "mistral" && attention_bias),
        output_bias: matches!(&*model_type, "llama" | "qwen3") && attention_bias,
        mlp_bias: model_type == "llama" && keys.flag("mlp_bias")?,
        qk_norm: model_type == "qwen3",
        ..config
    })
}

/// Reads the attention window of each layer.
fn windows(keys: &Keys, model_type: &str, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = keys.bounded("sliding_window", 1 << 31)?;
    if model_type == "mistral" {
        return Ok(vec![window; layers]);
    }
    if model_type == "llama" || !keys.flag("use_sliding_window")? {
        return Ok(vec![None; layers]);
    }
    if let Some(sliding) = decoder::sliding_layers(keys, layers)? {
        return Ok(sliding.into_iter().map(|sliding| window.filter(|_| sliding)).collect());
    }
    // Qwen's rule: the first max_window_layers layers see all tokens.
    let full = keys.integer("max_window_layers")?.ok_or_else(|| keys.missing("max_window_layers"))?;
    Ok((0..layers).map(|layer| window.filter(|_| layer >= full)).collect())
}

fn block(weights: &mut WeightCollector, number: usize) -> Segment {
    use ModuleKind::*;
    let config = weights.config;
    let (layer, h, epsilon) = (config.architecture.layer(number), config.hidden_size, config.norm_eps);
    let mut b = decoder::begin_segment(h);
    let x = b.input();
    let n = b.rms_norm(x, (weights.vector(&format!("{layer}.input_layernorm.weight"), h), 0.0), epsilon);
    let qkv = [Query, Key, Value].map(|kind| weights.module(number, kind, config.qkv_bias));
    let [mut q, mut k, v] = b.linear(n, qkv);
    if config.qk_norm {
        let mut norm =
            |part: &str| weights.vector(&format!("{layer}.self_attn.{part}.weight"), config.head_dim);
        q = b.rms_norm(q, (norm("q_norm"), 0.0), epsilon);
        k = b.rms_norm(k, (norm("k_norm"), 0.0), epsilon);
    }
    let qkv = [b.rotary(q, 0), b.rotary(k, 0), v];
    let context = decoder::attention(&mut b, config, number, qkv);
    let [branch] = b.linear(context, [weights.module(number, AttentionOutput, config.output_bias)]);
    let middle = b.add(x, branch);
    let gamma = weights.vector(&format!("{layer}.post_attention_layernorm.weight"), h);
    let n = b.rms_norm(middle, (gamma, 0.0), epsilon);
    let [gate, up] =
        b.linear(n, [Gate, Intermediate].map(|kind| weights.module(number, kind, config.mlp_bias)));
    let inner = b.gate(config.activation, gate, up);
    let [branch] = b.linear(inner, [weights.module(number, Output, config.mlp_bias)]);
    let y = b.add(middle, branch);
    b.finish(y)
}
