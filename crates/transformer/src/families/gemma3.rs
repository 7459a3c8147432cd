//! Gemma 3's text models: norms with 1 + γ, four of them in each block, a gate with GELU, scaled
//! embeddings, and layers with an attention window and rotary frequencies of their own.
//!
//! x₁ = x + norm(O · attention(rotated norm(Q n), rotated norm(K n), V n)), y = x₁ +
//! norm(W₂(GELU(W_g n₁) · W₁ n₁)), with n and n₁ the norms of x and x₁. After the last norm follows
//! a linear layer, by default the table of embeddings.

use lora_drop_compute::activation::Activation;
use serde_json::{Map, Value, json};

use super::decoder::{self, Decoder, MODULES};
use super::family::{Family, ModelType, WeightCollector};
use super::rope::{DEFAULT_THETA, FULL, Rope, SLIDING, of_layers};
use crate::config::{Keys, ModelConfig};
use crate::error::Result;
use crate::gguf::architecture::{GgufArchitecture, Written};
use crate::gguf::{metadata, value};
use crate::module::ModuleKind;
use crate::network::graph::{Builder, Segment, ValueId};

pub const FAMILY: Family = Family {
    name: "gemma3",
    model_types: &[ModelType { name: "gemma3_text", class: "Gemma3", gguf: Some(&GGUF) }],
    decoder: true,
    prefix: "model",
    layers: "layers",
    modules: &MODULES,
    head: &["score"],
    token_head: None,
    defaults,
    config,
    graph: |config, head| {
        let embedding_scale = Some((config.hidden_size as f32).sqrt());
        decoder::graph(config, head, Decoder { block, embedding_scale, norm_offset: 1.0 })
    },
};

const GGUF: GgufArchitecture = GgufArchitecture {
    name: "gemma3",
    norms: &[
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    sorts_rows: false,
    norm_offset: 1.0,
    read: read_gguf,
    write: write_gguf,
};

/// Number of layers of the model with 27 billion parameters, the only one whose attention scores
/// are divided by √(hidden_size / heads) instead of √head_dim. GGUF files do not say so; llama.cpp
/// goes by this number too.
const LAYERS_OF_27B: usize = 62;

/// Key of the pattern of layers; converters leave it out if it is `PATTERN`.
const PATTERN_KEY: &str = "attention.sliding_window_pattern";

/// Key of Gemma 2's configuration, which no released Gemma 3 sets.
const CAP_KEY: &str = "final_logit_softcapping";

fn read_gguf(keys: &metadata::GgufKeys, config: &mut Map<String, Value>) -> Result<()> {
    decoder::set_model_type(
        config,
        "gemma3_text",
        "Gemma3ForCausalLM",
        "hidden_activation",
        "gelu_pytorch_tanh",
    );
    if keys.optional(CAP_KEY).is_some() {
        return Err(keys.fault(CAP_KEY, "is set, but capped logits are not supported"));
    }
    let heads = metadata::Attention::read(keys)?;
    let scalar = match keys.count("block_count")? {
        LAYERS_OF_27B => keys.count("embedding_length")? / heads.heads,
        _ => heads.head_dim,
    };
    let local = match keys.optional("rope.freq_base_swa") {
        Some(_) => keys.positive("rope.freq_base_swa")?,
        None => json!(DEFAULT_THETA),
    };
    let window = decoder::gguf_window(keys)?;
    // Without a window, every layer sees all tokens.
    let pattern = match window {
        Some(_) => keys.optional_count(PATTERN_KEY)?.unwrap_or(PATTERN),
        None => 1,
    };
    let added = [
        ("query_pre_attn_scalar", json!(scalar)),
        ("rope_local_base_freq", local),
        ("sliding_window", json!(window)),
        ("sliding_window_pattern", json!(pattern)),
        ("attention_bias", json!(keys.file.has_tensor("blk.0.attn_q.bias"))),
    ];
    config.extend(added.map(|(key, value)| (key.to_string(), value)));
    Ok(())
}

fn write_gguf(config: &ModelConfig) -> Written {
    let scalar = (1.0 / config.attention_scale.powi(2)).round() as usize;
    let written = match config.layers {
        LAYERS_OF_27B => config.hidden_size / config.heads,
        _ => config.head_dim,
    };
    if scalar != written {
        return Err(format!(
            "query_pre_attn_scalar is {scalar}, which GGUF has no key for; llama.cpp takes {written} for this model"
        ));
    }
    let rope = |layer_type: &str| of_layers(&config.raw, layer_type);
    let scaling = rope(SLIDING)?;
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
    if let Some(kind) = kind.filter(|kind| *kind != "default") {
        return Err(format!("the rope_type of {SLIDING} is {kind:?}, which GGUF has no key for"));
    }
    let base = |(layer_type, key, default): (&str, &str, f64)| {
        let own = rope(layer_type).unwrap_or_default();
        let found = own.get("rope_theta").or_else(|| config.raw.get(key)).and_then(Value::as_f64);
        value::Value::F32(found.unwrap_or(default) as f32)
    };
    let mut list = vec![("rope.freq_base", base(BASES[0])), ("rope.freq_base_swa", base(BASES[1]))];
    let sliding: Vec<bool> = config.windows.iter().map(Option::is_some).collect();
    let Some(window) = config.windows.iter().copied().flatten().next() else { return Ok(list) };
    let pattern = (1..=config.layers + 1)
        .find(|pattern| {
            let expected = (0..config.layers).map(|layer| !(layer + 1).is_multiple_of(*pattern));
            expected.eq(sliding.iter().copied())
        })
        .ok_or(
            "layer_types do not repeat a pattern of sliding layers followed by one that sees everything",
        )?;
    list.push(("attention.sliding_window", value::Value::U32(window as u32)));
    list.extend((pattern != PATTERN).then_some((PATTERN_KEY, value::Value::U32(pattern as u32))));
    Ok(list)
}

/// Returns `Gemma3TextConfig`'s defaults, except for sizes of matrices and the tokens that end
/// texts.
fn defaults(_: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("head_dim", json!(256)),
        ("num_key_value_heads", json!(4)),
        ("max_position_embeddings", json!(131_072)),
        ("rms_norm_eps", json!(1e-6)),
        ("sliding_window", json!(4096)),
        ("query_pre_attn_scalar", json!(256)),
        ("tie_word_embeddings", json!(true)),
    ]
}

/// For each type of layers: the key of its rotary base, read if rope_parameters has none, and the
/// default.
const BASES: [(&str, &str, f64); 2] =
    [(FULL, "rope_theta", 1e6), (SLIDING, "rope_local_base_freq", DEFAULT_THETA)];

/// Length of the pattern of layers: the last layer of each group of this many sees all tokens and
/// the others a window, unless config.json says otherwise.
const PATTERN: usize = 6;

fn config(keys: &Keys, config: ModelConfig) -> Result<ModelConfig> {
    let config = decoder::config(keys, config)?;
    if let Some(name) = keys.text("hidden_activation")?.filter(|name| *name != "gelu_pytorch_tanh") {
        return Err(keys.unsupported("hidden_activation", name, "gelu_pytorch_tanh"));
    }
    if let Some(cap) = keys.get("final_logit_softcapping") {
        return Err(keys.unsupported("final_logit_softcapping", cap, "null"));
    }
    if keys.flag("use_bidirectional_attention")? {
        return Err(keys.unsupported("use_bidirectional_attention", true, "false"));
    }
    let scalar = keys.size_or("query_pre_attn_scalar", config.head_dim)?;
    let bias = keys.flag("attention_bias")?;
    let window = keys.bounded("sliding_window", 1 << 31)?;
    let sliding = match decoder::sliding_layers(keys, config.layers)? {
        Some(sliding) => sliding,
        None => {
            let pattern = keys.size_or("sliding_window_pattern", PATTERN)?;
            (0..config.layers).map(|layer| !(layer + 1).is_multiple_of(pattern)).collect()
        }
    };
    if window.is_none() && sliding.contains(&true) {
        return Err(keys.missing("sliding_window"));
    }
    let rope = BASES.map(|(layer_type, key, default)| {
        Rope::of_layers(keys, layer_type)?.frequencies(config.head_dim, key, default)
    });
    Ok(ModelConfig {
        attention_scale: 1.0 / (scalar as f32).sqrt(),
        activation: Activation::GeluTanh,
        rope: rope.into_iter().collect::<Result<_>>()?,
        windows: sliding.into_iter().map(|sliding| window.filter(|_| sliding)).collect(),
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: true,
        ..config
    })
}

fn block(weights: &mut WeightCollector, number: usize) -> Segment {
    use ModuleKind::*;
    let config = weights.config;
    let (layer, h, head) = (config.architecture.layer(number), config.hidden_size, config.head_dim);
    // `rope[1]` has the frequencies of layers with a window.
    let rope = usize::from(config.windows[number].is_some());
    let norm = |b: &mut Builder, weights: &mut WeightCollector, x: ValueId, part: &str, width: usize| {
        b.rms_norm(x, (weights.vector(&format!("{layer}.{part}.weight"), width), 1.0), config.norm_eps)
    };
    let mut b = decoder::begin_segment(h);
    let x = b.input();
    let n = norm(&mut b, weights, x, "input_layernorm", h);
    let [q, k, v] =
        b.linear(n, [Query, Key, Value].map(|kind| weights.module(number, kind, config.qkv_bias)));
    let q = norm(&mut b, weights, q, "self_attn.q_norm", head);
    let k = norm(&mut b, weights, k, "self_attn.k_norm", head);
    let qkv = [b.rotary(q, rope), b.rotary(k, rope), v];
    let context = decoder::attention(&mut b, config, number, qkv);
    let [branch] = b.linear(context, [weights.module(number, AttentionOutput, config.output_bias)]);
    let branch = norm(&mut b, weights, branch, "post_attention_layernorm", h);
    let middle = b.add(x, branch);
    let n = norm(&mut b, weights, middle, "pre_feedforward_layernorm", h);
    let [gate, up] = b.linear(n, [Gate, Intermediate].map(|kind| weights.module(number, kind, false)));
    let inner = b.gate(config.activation, gate, up);
    let [branch] = b.linear(inner, [weights.module(number, Output, false)]);
    let branch = norm(&mut b, weights, branch, "post_feedforward_layernorm", h);
    let y = b.add(middle, branch);
    b.finish(y)
}
