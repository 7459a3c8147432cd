//! A loaded model.

use crate::batch::DropoutRates;
use crate::config::ModelConfig;
use crate::linear::LinearWeights;
use crate::module::ModuleId;
use crate::network::Network;
use crate::network::cache::Cache;

/// A head for labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub kind: HeadKind,
    /// Classes, or 1 for a regression.
    pub outputs: usize,
}

/// What a head labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadKind {
    /// Sequences, as transformers' `*ForSequenceClassification`.
    #[default]
    Sequence,
    /// Tokens, as transformers' `*ForTokenClassification`.
    Token,
}

impl Head {
    /// A head that labels sequences.
    pub fn of_sequences(outputs: usize) -> Self {
        Head { kind: HeadKind::Sequence, outputs }
    }

    /// A head that labels tokens.
    pub fn of_tokens(outputs: usize) -> Self {
        Head { kind: HeadKind::Token, outputs }
    }
}

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
    /// None for a decoder that predicts tokens.
    pub head: Option<Head>,
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

    /// The layer from the last norm to the logits of tokens; None with a head for labels.
    pub fn output_layer(&self) -> Option<&LinearWeights> {
        if self.head.is_none() { self.net.layers.last() } else { None }
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
