//! MPNet: BERT's block with a relative position bias on attention, and RoBERTa's positions and
//! head.

use super::encoder::{self, Encoder};
use super::family::{Family, ModelType, module};
use crate::config::ModelConfig;
use crate::module::ModuleKind::*;
use crate::network::graph::Place;

pub const FAMILY: Family = Family {
    name: "mpnet",
    model_types: &[ModelType { name: "mpnet", class: "MPNet", gguf: None }],
    decoder: false,
    prefix: "mpnet",
    layers: "encoder.layer",
    modules: &[
        module(Query, "attention.attn.q", "q"),
        module(Key, "attention.attn.k", "k"),
        module(Value, "attention.attn.v", "v"),
        module(AttentionOutput, "attention.attn.o", "o"),
        module(Intermediate, "intermediate.dense", "intermediate.dense"),
        module(Output, "output.dense", "output.dense"),
    ],
    head: &["classifier.dense", "classifier.out_proj"],
    token_head: Some("classifier"),
    defaults: |_| Vec::new(),
    config: |keys, config| {
        let config = encoder::config(keys, config, 1)?;
        let relative_buckets = keys.size_or("relative_attention_num_buckets", 32)?;
        // A distance's bucket is a logarithm of distance / (buckets / 4), so this must not be 0.
        if relative_buckets < 4 {
            return Err(keys.error(format!(
                "relative_attention_num_buckets is {relative_buckets}, expected at least 4"
            )));
        }
        Ok(ModelConfig {
            token_types: None,
            relative_buckets,
            first_position: config.pad_token_id.saturating_add(1),
            // transformers' model ignores classifier_dropout.
            head_dropout: config.hidden_dropout,
            ..config
        })
    },
    graph: |config, head| {
        let own = Encoder {
            attention_norm: "attention.LayerNorm",
            relative_bias: Some("encoder.relative_attention_bias.weight"),
            head: [("classifier.dense", Place::Head), ("classifier.out_proj", Place::Head)],
            drops_head_input: true,
        };
        encoder::graph(config, head, own)
    },
};
