//! Common parts of BERT, RoBERTa and MPNet. A block computes y₁ = norm(x + drop(O · attention(Q x,
//! K x, V x))) and y = norm(y₁ + drop(W₂ · act(W₁ y₁))). The head is a dense layer with tanh and
//! the output layer, on the first token, or the output layer alone, on labelled tokens.

use lora_drop_compute::activation::Activation;
use lora_drop_compute::attention::Mask;
use lora_drop_compute::device::Relative;

use super::decoder::is_token;
use super::family::{Module, WeightCollector, module};
use crate::config::{Architecture, Keys, ModelConfig};
use crate::dropout::Site;
use crate::error::Result;
use crate::model::{Head, HeadKind};
use crate::module::ModuleKind;
use crate::network::Reads;
use crate::network::graph::{
    self, Builder, DropoutSpec, Graph, Heads, Index, LayerId, Place, Rate, Rows, Segment, WeightId,
};

/// Linear layers of a block, by their names in BERT and RoBERTa.
pub const MODULES: [Module; 6] = [
    module(ModuleKind::Query, "attention.self.query", "query"),
    module(ModuleKind::Key, "attention.self.key", "key"),
    module(ModuleKind::Value, "attention.self.value", "value"),
    module(ModuleKind::AttentionOutput, "attention.output.dense", "attention.output.dense"),
    module(ModuleKind::Intermediate, "intermediate.dense", "intermediate.dense"),
    module(ModuleKind::Output, "output.dense", "output.dense"),
];

/// What differs between encoders.
pub struct Encoder {
    /// Name of the norm after attention, within a block.
    pub attention_norm: &'static str,
    /// Name of the table of the relative position bias; None without this bias.
    pub relative_bias: Option<&'static str>,
    /// Layers of the head for sequences: a dense layer, which may be the body's pooler, and the
    /// output layer.
    pub head: [(&'static str, Place); 2],
    /// Whether the head drops values of its input: drop(tanh(dense drop(x))) in RoBERTa and MPNet,
    /// against drop(tanh(dense x)) in BERT.
    pub drops_head_input: bool,
}

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

/// Reads the keys of an encoder; absent keys have transformers' defaults. `pad` is the default of
/// pad_token_id.
pub fn config(keys: &Keys, config: ModelConfig, pad: usize) -> Result<ModelConfig> {
    refuse_other_arithmetic(keys)?;
    let name = keys.text("hidden_act")?.unwrap_or("gelu");
    let activation = ACTIVATIONS.iter().find(|(known, _)| *known == name).map(|(_, found)| *found);
    let hidden_dropout = keys.fraction("hidden_dropout_prob")?.unwrap_or(0.1);
    let needs_pad = config.architecture != Architecture::Bert;
    let odd = keys
        .get("pad_token_id")
        .filter(|id| !needs_pad && !is_token(id, config.vocab_size) && id.is_number());
    let pad_id = if odd.is_some() { None } else { keys.integer("pad_token_id")? };
    let problem = |id: &dyn std::fmt::Display| {
        format!("pad_token_id is {id}, outside the vocabulary of {}", config.vocab_size)
    };
    let warnings = odd.iter().map(|id| format!("{}; it is not used", problem(id))).collect();
    let config = ModelConfig {
        attention_scale: 1.0 / (config.head_dim as f32).sqrt(),
        token_types: Some(keys.size_or("type_vocab_size", 2)?),
        norm_eps: keys.fraction("layer_norm_eps")?.unwrap_or(1e-12) as f32,
        activation: activation.ok_or_else(|| {
            let known: Vec<_> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
            let known = known.join(", ");
            keys.error(format!("hidden_act {name:?} is not supported; the known ones are: {known}"))
        })?,
        hidden_dropout,
        attention_dropout: keys.fraction("attention_probs_dropout_prob")?.unwrap_or(0.1),
        head_dropout: keys.fraction("classifier_dropout")?.unwrap_or(hidden_dropout),
        pad_token_id: pad_id.unwrap_or(pad),
        ..config
    };
    if !config.hidden_size.is_multiple_of(config.heads) {
        return Err(keys.error(format!(
            "num_attention_heads ({}) does not divide hidden_size ({})",
            config.heads, config.hidden_size
        )));
    }
    // Positions are numbered from after pad_token_id.
    if needs_pad && config.pad_token_id >= config.vocab_size {
        return Err(keys.error(problem(&config.pad_token_id)));
    }
    Ok(ModelConfig { warnings, ..config })
}

/// Refuses variants under the same model_type that compute something else, instead of computing
/// wrong numbers.
fn refuse_other_arithmetic(keys: &Keys) -> Result<()> {
    if let Some(v) = keys.get("position_embedding_type").filter(|v| v.as_str() != Some("absolute")) {
        return Err(keys.unsupported("position_embedding_type", v, "\"absolute\""));
    }
    for key in ["is_decoder", "add_cross_attention"] {
        if let Some(v) = keys.get(key).filter(|v| v.as_bool() != Some(false)) {
            return Err(keys.unsupported(key, v, "false"));
        }
    }
    if let Some(v) = keys.get("embedding_size").filter(|v| Some(*v) != keys.get("hidden_size")) {
        return Err(keys.unsupported("embedding_size", v, "the same as hidden_size"));
    }
    if let Some(v) = keys.get("pruned_heads").filter(|v| v.as_object().is_none_or(|heads| !heads.is_empty()))
    {
        return Err(keys.unsupported("pruned_heads", v, "none"));
    }
    Ok(())
}

fn dropout(site: Site, rate: Rate, by_row: bool) -> DropoutSpec {
    DropoutSpec { site, rate, by_row }
}

/// Returns the graph of an encoder with this head.
pub fn graph(config: &ModelConfig, head: Option<Head>, own: Encoder) -> Graph {
    let head = head.expect("an encoder has a head");
    let h = config.hidden_size;
    let mut weights = WeightCollector::new(config);
    let mut tables = vec![
        (weights.table("embeddings.word_embeddings.weight", config.vocab_size, h), Index::Tokens),
        (
            weights.table("embeddings.position_embeddings.weight", config.max_positions, h),
            Index::Positions(config.first_position as u32),
        ),
    ];
    if let Some(types) = config.token_types {
        tables.push((weights.table("embeddings.token_type_embeddings.weight", types, h), Index::Types));
    }
    let norm = weights.norm("embeddings.LayerNorm", h);
    let mut b = Builder::new(None);
    let sum = b.embed(tables, h);
    let normed = b.layer_norm(sum, None, norm, config.norm_eps);
    let dropped = b.dropout(normed, dropout(Site::Embedding, Rate::Hidden, true));
    let embedding = b.finish(dropped);

    let layers: Vec<Layer> =
        (0..config.layers).map(|number| Layer::new(&mut weights, number, own.attention_norm)).collect();
    let last = layers.last().expect("a model has a block");
    let relative = own.relative_bias.map(|name| {
        let (buckets, heads) = (config.relative_buckets, config.heads);
        (weights.table(name, buckets, heads), Relative { buckets, heads, reach: 0 })
    });
    let (segment, first, reads) = match head.kind {
        HeadKind::Sequence => {
            let [(dense, place), (output, _)] = own.head;
            let head = SequenceHead {
                dense: weights.head(dense, true, (h, h), place),
                output: weights.head(output, true, (head.outputs, h), Place::Head),
                outputs: head.outputs,
                drops_input: own.drops_head_input,
            };
            let first = [last.block(config, true), head.segment(h, Rows::Chosen)];
            (head.segment(h, Rows::Tokens), Some(first), Reads::First)
        }
        HeadKind::Token => (token_head(&mut weights, head.outputs), None, Reads::Labelled),
    };
    let described = Graph {
        embedding,
        blocks: layers.iter().map(|layer| layer.block(config, false)).collect(),
        head: segment,
        first,
        hidden: h,
        reads,
        relative,
        ..Graph::default()
    };
    weights.into_graph(described)
}

struct Layer {
    number: usize,
    attention: [(LayerId, usize); 4],
    attention_norm: [WeightId; 2],
    feed_forward: [(LayerId, usize); 2],
    output_norm: [WeightId; 2],
}

impl Layer {
    fn new(weights: &mut WeightCollector, number: usize, attention_norm: &str) -> Self {
        use ModuleKind::*;
        let (layer, h) = (weights.config.architecture.layer(number), weights.config.hidden_size);
        Layer {
            number,
            attention: [Query, Key, Value, AttentionOutput].map(|kind| weights.module(number, kind, true)),
            attention_norm: weights.norm(&format!("{layer}.{attention_norm}"), h),
            feed_forward: [Intermediate, Output].map(|kind| weights.module(number, kind, true)),
            output_norm: weights.norm(&format!("{layer}.output.LayerNorm"), h),
        }
    }

    /// Returns a block. With `first`, only keys and values are computed for all tokens, everything
    /// else for each sequence's first token.
    fn block(&self, config: &ModelConfig, first: bool) -> Segment {
        let (number, epsilon) = (self.number, config.norm_eps);
        let [query, key, value, output] = self.attention;
        let mut b = Builder::new(Some(graph::Value { rows: Rows::Tokens, width: config.hidden_size }));
        let x = b.input();
        let (query_input, qkv) = if first {
            let query_input = b.gather(x);
            let [q] = b.linear(query_input, [query]);
            let [k, v] = b.linear(x, [key, value]);
            (query_input, [q, k, v])
        } else {
            (x, b.linear(x, [query, key, value]))
        };
        let heads = Heads {
            heads: config.heads,
            kv_heads: config.heads,
            width: config.head_dim,
            scale: config.attention_scale,
            mask: Mask::Bidirectional,
            biased: true,
        };
        let context = b.attention(qkv, heads, dropout(Site::Attention(number), Rate::Attention, false));
        let [branch] = b.linear(context, [output]);
        let residual = (query_input, dropout(Site::AttentionOutput(number), Rate::Hidden, true));
        let middle = b.layer_norm(branch, Some(residual), self.attention_norm, epsilon);
        let [inner, output] = self.feed_forward;
        let [pre] = b.linear(middle, [inner]);
        let inner = b.activation(pre, config.activation);
        let [branch] = b.linear(inner, [output]);
        let residual = (middle, dropout(Site::Output(number), Rate::Hidden, true));
        let y = b.layer_norm(branch, Some(residual), self.output_norm, epsilon);
        b.finish(y)
    }
}

/// Returns the head for tokens: dropout and the output layer on the labelled tokens.
fn token_head(weights: &mut WeightCollector, outputs: usize) -> Segment {
    let h = weights.config.hidden_size;
    let mut b = Builder::new(Some(graph::Value { rows: Rows::Tokens, width: h }));
    let input = b.input();
    let x = b.gather(input);
    let x = b.dropout(x, dropout(Site::HeadInput, Rate::Head, true));
    let stem = weights.config.architecture.family().token_head.expect("every encoder has a head for tokens");
    let [logits] = b.linear(x, [(weights.head(stem, true, (outputs, h), Place::Head), outputs)]);
    b.finish(logits)
}

struct SequenceHead {
    /// (hidden, hidden)
    dense: LayerId,
    output: LayerId,
    outputs: usize,
    drops_input: bool,
}

impl SequenceHead {
    fn segment(&self, hidden: usize, rows: Rows) -> Segment {
        let mut b = Builder::new(Some(graph::Value { rows, width: hidden }));
        let input = b.input();
        let mut x = b.gather(input);
        if self.drops_input {
            x = b.dropout(x, dropout(Site::HeadInput, Rate::Head, false));
        }
        let [pre] = b.linear(x, [(self.dense, hidden)]);
        let inner = b.activation(pre, Activation::Tanh);
        let dropped = b.dropout(inner, dropout(Site::HeadInner, Rate::Head, false));
        let [logits] = b.linear(dropped, [(self.output, self.outputs)]);
        b.finish(logits)
    }
}
