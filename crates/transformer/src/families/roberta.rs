//! RoBERTa, XLM-RoBERTa and CamemBERT: BERT with positions numbered from after pad_token_id, and a
//! head of two layers.

use super::encoder::{self, Encoder, MODULES};
use super::family::{Family, ModelType};
use crate::config::ModelConfig;
use crate::network::graph::Place;

pub const FAMILY: Family = Family {
    name: "roberta",
    model_types: &[
        ModelType { name: "roberta", class: "Roberta", gguf: None },
        ModelType { name: "xlm-roberta", class: "XLMRoberta", gguf: None },
        ModelType { name: "camembert", class: "Camembert", gguf: None },
    ],
    decoder: false,
    prefix: "roberta",
    layers: "encoder.layer",
    modules: &MODULES,
    head: &["classifier.dense", "classifier.out_proj"],
    token_head: Some("classifier"),
    defaults: |_| Vec::new(),
    config: |keys, config| {
        let config = encoder::config(keys, config, 1)?;
        Ok(ModelConfig { first_position: config.pad_token_id.saturating_add(1), ..config })
    },
    graph: |config, head| {
        let own = Encoder {
            attention_norm: "attention.output.LayerNorm",
            relative_bias: None,
            head: [("classifier.dense", Place::Head), ("classifier.out_proj", Place::Head)],
            drops_head_input: true,
        };
        encoder::graph(config, head, own)
    },
};
