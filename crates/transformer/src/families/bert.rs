//! BERT: a pooler in the body, positions from 0.

use super::encoder::{self, Encoder, MODULES};
use super::family::{Family, ModelType};
use crate::network::graph::Place;

pub const FAMILY: Family = Family {
    name: "bert",
    model_types: &[ModelType { name: "bert", class: "Bert", gguf: None }],
    decoder: false,
    prefix: "bert",
    layers: "encoder.layer",
    modules: &MODULES,
    head: &["bert.pooler.dense", "classifier"],
    token_head: Some("classifier"),
    defaults: |_| Vec::new(),
    config: |keys, config| encoder::config(keys, config, 0),
    graph: |config, head| {
        let own = Encoder {
            attention_norm: "attention.output.LayerNorm",
            relative_bias: None,
            head: [("pooler.dense", Place::Pooler), ("classifier", Place::Head)],
            drops_head_input: false,
        };
        encoder::graph(config, head, own)
    },
};
