//! A model that is loaded.

use crate::batch::DropoutRates;
use crate::config::ModelConfig;
use crate::linear::LinearWeights;
use crate::module::ModuleId;
use crate::network::Network;
use crate::network::cache::Cache;

/// Where the head's first values come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadOrigin {
    Checkpoint,
    /// Initialised: normal, as transformers does.
    Initialised,
    /// Initialised because the checkpoint's was made for this many outputs.
    OtherOutputs(usize),
}

/// A model that is loaded.
#[derive(Clone, Debug)]
pub struct Model {
    pub config: ModelConfig,
    /// Its graph and weights.
    pub net: Network,
    /// Of its head for labels: classes, or 1 for a regression. None for a decoder that predicts
    /// tokens.
    pub outputs: Option<usize>,
    /// What `load` found of that head.
    pub head_origin: Option<HeadOrigin>,
}

impl Model {
    pub fn layers(&self) -> usize {
        self.net.graph.blocks.len()
    }

    /// The linear layers of all blocks with what they are, block by block.
    pub fn linears(&self) -> Vec<(ModuleId, &LinearWeights)> {
        self.net.block_layers().filter_map(|layer| Some((layer.module?, layer))).collect()
    }

    /// The layer from the last norm to logits of tokens, where the model predicts them.
    pub fn output_layer(&self) -> Option<&LinearWeights> {
        if self.outputs.is_none() { self.net.layers.last() } else { None }
    }

    /// An empty cache for a text that it writes.
    pub fn new_cache(&self) -> Cache {
        Cache::new(self.layers())
    }

    /// The model's own dropout, none on LoRA.
    pub fn dropout_rates(&self) -> DropoutRates {
        DropoutRates {
            hidden: self.config.hidden_dropout,
            attention: self.config.attention_dropout,
            head: self.config.head_dropout,
            lora: 0.0,
        }
    }
}
