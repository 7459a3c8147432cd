//! Common parts of decoders: keys of config.json, names of modules, embedding and head.

use lora_drop_compute::attention::Mask;
use serde_json::{Map, Value};

use super::family::{Module, WeightCollector, module};
use super::rope::{FULL, SLIDING};
use crate::config::{Keys, ModelConfig};
use crate::dropout::Site;
use crate::error::Result;
use crate::gguf::architecture::Written;
use crate::gguf::metadata;
use crate::model::{Head, HeadKind};
use crate::module::ModuleKind;
use crate::network::Reads;
use crate::network::graph::{
    self, Builder, DropoutSpec, Graph, Heads, Index, Place, Rate, Rows, Segment, ValueId,
};

/// The linear layers of a block.
pub const MODULES: [Module; 7] = [
    module(ModuleKind::Query, "self_attn.q_proj", "q_proj"),
    module(ModuleKind::Key, "self_attn.k_proj", "k_proj"),
    module(ModuleKind::Value, "self_attn.v_proj", "v_proj"),
    module(ModuleKind::AttentionOutput, "self_attn.o_proj", "o_proj"),
    module(ModuleKind::Gate, "mlp.gate_proj", "gate_proj"),
    module(ModuleKind::Intermediate, "mlp.up_proj", "up_proj"),
    module(ModuleKind::Output, "mlp.down_proj", "down_proj"),
];

/// Limit of `head_dim`, far above any model's. Each pair of a head's values has its rotary
/// frequency, so this bounds their memory.
const WIDEST_HEAD: usize = 1 << 14;

/// Reads the keys that config.json has for every decoder.
pub fn config(keys: &Keys, config: ModelConfig) -> Result<ModelConfig> {
    let (hidden, heads) = (config.hidden_size, config.heads);
    let head_dim = match keys.bounded("head_dim", WIDEST_HEAD)? {
        Some(width) => width,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(keys.error(format!(
                "num_attention_heads ({heads}) does not divide hidden_size ({hidden}), and there is no head_dim"
            )));
        }
    };
    let kv_heads = keys.size_or("num_key_value_heads", heads)?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(keys.error(format!(
            "num_key_value_heads ({kv_heads}) does not divide num_attention_heads ({heads})"
        )));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(keys.error(format!("head_dim is {head_dim}, expected an even number")));
    }
    let mut warnings = Vec::new();
    let mut ids = |key| special_ids(keys, key, config.vocab_size, &mut warnings);
    let (begin, ends, _) = (ids("bos_token_id")?, ids("eos_token_id")?, ids("pad_token_id")?);
    Ok(ModelConfig {
        kv_heads,
        head_dim,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        norm_eps: keys.required_fraction("rms_norm_eps")? as f32,
        tied: keys.flag("tie_word_embeddings")?,
        attention_dropout: keys.fraction("attention_dropout")?.unwrap_or(0.0),
        // For a head on tokens: a head for sequences has no dropout, whatever these keys say.
        head_dropout: match keys.fraction("classifier_dropout")? {
            Some(rate) => rate,
            None => keys.fraction("hidden_dropout")?.unwrap_or(0.1),
        },
        bos_token_id: begin.first().copied(),
        eos_token_ids: ends,
        warnings,
        ..config
    })
}

/// Reads the attention window of a GGUF file; 0 counts as none.
pub fn gguf_window(keys: &metadata::GgufKeys) -> Result<Option<usize>> {
    Ok(keys.optional_integer("attention.sliding_window")?.filter(|window| *window > 0))
}

/// Returns the key of the attention window for a GGUF file, if a layer has a window.
pub fn write_gguf_window(config: &ModelConfig) -> Written {
    let window = config.windows.iter().copied().flatten().next();
    Ok(window.map(|window| ("attention.sliding_window", (window as u32).into())).into_iter().collect())
}

/// Sets model_type, class and, under `key`, the activation in the config.json of a GGUF file's
/// model.
pub fn set_model_type(
    config: &mut Map<String, Value>,
    model_type: &str,
    class: &str,
    key: &str,
    activation: &str,
) {
    config.insert("architectures".into(), vec![class].into());
    for (key, value) in [("model_type", model_type), (key, activation)] {
        config.insert(key.into(), value.into());
    }
}

/// Reads the token numbers under a key. Numbers outside the vocabulary, such as -1 or 4294967295
/// for no token, are left out with a warning: no computation needs them.
fn special_ids(keys: &Keys, key: &str, vocabulary: usize, warnings: &mut Vec<String>) -> Result<Vec<u32>> {
    let Some(value) = keys.get(key) else { return Ok(Vec::new()) };
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    if list.iter().any(|id| !id.is_i64() && !id.is_u64()) {
        return Err(keys.wrong(key, value, "a token's number or a list of them"));
    }
    let (known, others): (Vec<_>, Vec<_>) = list.iter().partition(|id| is_token(id, vocabulary));
    if let Some(id) = others.first() {
        warnings.push(format!(
            "{key} is {id}, which is no token of the vocabulary of {vocabulary}; it is not used"
        ));
    }
    Ok(known.into_iter().filter_map(token_id).collect())
}

/// Whether a value is the number of a token in the vocabulary.
pub fn is_token(id: &Value, vocabulary: usize) -> bool {
    token_id(id).is_some_and(|id| (id as usize) < vocabulary)
}

/// Returns the token numbers in a value of a configuration, a number or a list; None for anything
/// else.
pub fn token_ids(value: &Value) -> Option<Vec<u32>> {
    match value {
        Value::Array(list) => list.iter().map(token_id).collect(),
        value => token_id(value).map(|id| vec![id]),
    }
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Reads from layer_types whether each layer has an attention window; None if the key is absent.
pub fn sliding_layers(keys: &Keys, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(types) = keys.get("layer_types") else { return Ok(None) };
    let types = types.as_array().ok_or_else(|| keys.wrong("layer_types", types, "a list"))?;
    let sliding = |v: &Value| match v.as_str() {
        Some(SLIDING) => Ok(true),
        Some(FULL) => Ok(false),
        _ => Err(keys.wrong("layer_types", v, "\"full_attention\" or \"sliding_attention\"")),
    };
    let found = types.iter().map(sliding).collect::<Result<Vec<_>>>()?;
    if found.len() != layers {
        return Err(keys.error(format!("layer_types has {} entries for {layers} layers", found.len())));
    }
    Ok(Some(found))
}

/// Begins a segment whose input is (tokens, hidden).
pub fn begin_segment(hidden: usize) -> Builder {
    Builder::new(Some(graph::Value { rows: Rows::Tokens, width: hidden }))
}

/// Adds a block's causal attention, limited to the layer's window if it has one.
pub fn attention(b: &mut Builder, config: &ModelConfig, number: usize, qkv: [ValueId; 3]) -> ValueId {
    let heads = Heads {
        heads: config.heads,
        kv_heads: config.kv_heads,
        width: config.head_dim,
        scale: config.attention_scale,
        mask: Mask::Causal { window: config.windows[number] },
        biased: false,
    };
    b.attention(
        qkv,
        heads,
        DropoutSpec { site: Site::Attention(number), rate: Rate::Attention, by_row: false },
    )
}

/// What differs between decoders.
pub struct Decoder {
    pub block: fn(&mut WeightCollector, usize) -> Segment,
    /// Factor on the embeddings.
    pub embedding_scale: Option<f32>,
    /// Offset on γ of the last norm; blocks set their own.
    pub norm_offset: f32,
}

/// Returns the graph of a decoder with a head on each text's last token or on labelled tokens, or
/// without a head, with the layer that predicts tokens.
pub fn graph(config: &ModelConfig, head: Option<Head>, own: Decoder) -> Graph {
    let h = config.hidden_size;
    let mut weights = WeightCollector::new(config);
    let mut b = Builder::new(None);
    let words = weights.table("embed_tokens.weight", config.vocab_size, h);
    let x = b.embed(vec![(words, Index::Tokens)], h);
    let x = own.embedding_scale.map_or(x, |scale| b.scale(x, scale));
    let embedding = b.finish(x);
    let blocks = (0..config.layers).map(|number| (own.block)(&mut weights, number)).collect();
    let mut b = begin_segment(h);
    let x = b.input();
    let x = b.gather(x);
    let mut n = b.rms_norm(x, (weights.vector("norm.weight", h), own.norm_offset), config.norm_eps);
    let (stem, width, place, reads) = match head {
        Some(Head { kind: HeadKind::Sequence, outputs }) => ("score", outputs, Place::Head, Reads::Last),
        Some(Head { kind: HeadKind::Token, outputs }) => ("score", outputs, Place::Head, Reads::Labelled),
        None => ("lm_head", config.vocab_size, Place::Output, Reads::Learned),
    };
    let of_tokens = reads == Reads::Labelled;
    if of_tokens {
        n = b.dropout(n, DropoutSpec { site: Site::HeadInput, rate: Rate::Head, by_row: true });
    }
    let [logits] = b.linear(n, [(weights.head(stem, of_tokens, (width, h), place), width)]);
    let described = Graph {
        embedding,
        blocks,
        head: b.finish(logits),
        hidden: h,
        reads,
        tied: config.tied && head.is_none(),
        rope: config.rope.clone(),
        ..Graph::default()
    };
    weights.into_graph(described)
}
