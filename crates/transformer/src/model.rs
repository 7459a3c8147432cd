//! A loaded model.

use crate::batch::DropoutRates;
use crate::config::ModelConfig;
use crate::linear::LinearWeights;
use crate::module::ModuleId;
use crate::network::Network;
use crate::network::cache::Cache;

/// Where the head's initial values come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadOrigin {
    Checkpoint,
    /// Drawn from a normal distribution, as in transformers.
    Initialised,
    /// Drawn, because the checkpoint's head has this other number of outputs.
    OtherOutputs(usize),
}

/// A loaded model.
#[derive(Clone, Debug)]
pub struct Model {
    pub config: ModelConfig,
    pub net: Network,
    /// Outputs of its head for labels: classes, or 1 for a regression. None for a decoder that
    /// predicts tokens.
    pub outputs: Option<usize>,
    /// Where the head's initial values come from; None without a head.
    pub head_origin: Option<HeadOrigin>,
}

impl Model {
    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.net.graph.blocks.len()
    }

    /// The linear layers of all blocks, block by block, with their modules.
    pub fn linears(&self) -> Vec<(ModuleId, &LinearWeights)> {
        self.net.block_layers().filter_map(|layer| Some((layer.module?, layer))).collect()
    }

    /// The linear layer of a module; None if the model does not have it.
    pub fn linear(&self, module: ModuleId) -> Option<&LinearWeights> {
        self.net.layers.iter().find(|layer| layer.module == Some(module))
    }

    /// The layer from the last norm to the logits of tokens; None with a head for labels.
    pub fn output_layer(&self) -> Option<&LinearWeights> {
        if self.outputs.is_none() { self.net.layers.last() } else { None }
    }

    /// An empty cache for generating one text.
    pub fn new_cache(&self) -> Cache {
        Cache::new(self.layers())
    }

    /// The dropout rates of the model's configuration, with none on adapters.
    pub fn dropout_rates(&self) -> DropoutRates {
        DropoutRates {
            hidden: self.config.hidden_dropout,
            attention: self.config.attention_dropout,
            head: self.config.head_dropout,
            lora: 0.0,
        }
    }
}
