//! A model of either kind: what its folder says it is, and what encoders and decoders have in common.

use std::path::Path;

use serde_json::{Map, Value};

use crate::batch::DropoutRates;
use crate::config::{Architecture, EncoderConfig};
use crate::decoder_config::{self, DecoderConfig};
use crate::error::Result;
use crate::linear::LinearWeights;
use crate::module::{ModuleId, ModuleKind};
use crate::network::Network;
use crate::network::cache::Cache;

/// The configuration of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelConfig {
    Encoder(EncoderConfig),
    Decoder(DecoderConfig),
}

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
    /// Of its head for labels: classes, or 1 for a regression. None for a decoder that predicts tokens.
    pub outputs: Option<usize>,
    /// What `load` found of that head.
    pub head_origin: Option<HeadOrigin>,
}

impl Model {
    pub fn layers(&self) -> usize {
        self.net.blocks.len()
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
        match &self.config {
            ModelConfig::Encoder(config) => DropoutRates {
                hidden: config.hidden_dropout,
                attention: config.attention_dropout,
                head: config.head_dropout(),
                lora: 0.0,
            },
            ModelConfig::Decoder(config) => {
                DropoutRates { attention: config.attention_dropout, ..DropoutRates::NONE }
            }
        }
    }
}

impl From<EncoderConfig> for ModelConfig {
    fn from(config: EncoderConfig) -> Self {
        ModelConfig::Encoder(config)
    }
}

impl From<DecoderConfig> for ModelConfig {
    fn from(config: DecoderConfig) -> Self {
        ModelConfig::Decoder(config)
    }
}

impl ModelConfig {
    /// Reads `folder/config.json`.
    ///
    /// # Errors
    /// Those of `EncoderConfig::read` and `DecoderConfig::read`, by the file's model_type.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if let Some(Value::String(kind)) =
            decoder_config::peek(&path).as_ref().and_then(|o| o.get("model_type"))
            && decoder_config::KNOWN.contains(&kind.as_str())
        {
            return DecoderConfig::read(folder).map(ModelConfig::Decoder);
        }
        EncoderConfig::read(folder).map(ModelConfig::Encoder)
    }

    pub fn architecture(&self) -> Architecture {
        match self {
            ModelConfig::Encoder(config) => config.architecture,
            ModelConfig::Decoder(config) => config.architecture,
        }
    }

    /// config.json's model_type.
    pub fn model_type(&self) -> &str {
        match self {
            ModelConfig::Encoder(config) => &config.model_type,
            ModelConfig::Decoder(config) => &config.model_type,
        }
    }

    pub fn layers(&self) -> usize {
        match self {
            ModelConfig::Encoder(config) => config.layers,
            ModelConfig::Decoder(config) => config.layers,
        }
    }

    pub fn hidden_size(&self) -> usize {
        match self {
            ModelConfig::Encoder(config) => config.hidden_size,
            ModelConfig::Decoder(config) => config.hidden_size,
        }
    }

    pub fn heads(&self) -> usize {
        match self {
            ModelConfig::Encoder(config) => config.heads,
            ModelConfig::Decoder(config) => config.heads,
        }
    }

    pub fn vocab_size(&self) -> usize {
        match self {
            ModelConfig::Encoder(config) => config.vocab_size,
            ModelConfig::Decoder(config) => config.vocab_size,
        }
    }

    /// The token types that there is an embedding for; None where the model has no token types.
    pub fn token_types(&self) -> Option<usize> {
        match self {
            ModelConfig::Encoder(config) => {
                (config.architecture != Architecture::Mpnet).then_some(config.type_vocab_size)
            }
            ModelConfig::Decoder(_) => None,
        }
    }

    /// The longest sequence in tokens.
    pub fn max_tokens(&self) -> usize {
        match self {
            ModelConfig::Encoder(config) => config.max_tokens(),
            ModelConfig::Decoder(config) => config.max_positions,
        }
    }

    /// Every weight with its shape, named without the prefix, from input to output; BERT's pooler included, an output layer and
    /// other heads not.
    pub fn weights(&self) -> Vec<(String, Vec<usize>)> {
        match self {
            ModelConfig::Encoder(config) => config.encoder_weights(),
            ModelConfig::Decoder(config) => config.weights(),
        }
    }

    /// Whether the output layer is the table of embeddings.
    pub fn tied(&self) -> bool {
        match self {
            ModelConfig::Encoder(_) => false,
            ModelConfig::Decoder(config) => config.tied,
        }
    }

    /// Tokens that end a text; none for an encoder.
    pub fn eos_token_ids(&self) -> &[u32] {
        match self {
            ModelConfig::Encoder(_) => &[],
            ModelConfig::Decoder(config) => &config.eos_token_ids,
        }
    }

    /// Standard deviation of newly initialised weights.
    pub fn initializer_range(&self) -> f64 {
        match self {
            ModelConfig::Encoder(config) => config.initializer_range,
            ModelConfig::Decoder(config) => config.initializer_range,
        }
    }

    /// Parameters without a head that is trained.
    pub fn parameters(&self) -> usize {
        match self {
            ModelConfig::Encoder(config) => {
                config.encoder_weights().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
            }
            ModelConfig::Decoder(config) => config.parameters(),
        }
    }

    /// The head's weights with their shapes and full names (heads have no prefix), for this many outputs.
    pub fn head_weights(&self, outputs: usize) -> Vec<(&'static str, Vec<usize>)> {
        match self {
            ModelConfig::Encoder(config) => config.head_weights(outputs),
            ModelConfig::Decoder(config) => config.head_weights(outputs),
        }
    }

    /// Class names of a classifier as the checkpoint has them; empty where it says nothing.
    pub fn labels(&self) -> &[String] {
        match self {
            ModelConfig::Encoder(config) => &config.labels,
            ModelConfig::Decoder(config) => &config.labels,
        }
    }

    /// (out, in) of a block's linear layer.
    pub fn linear_shape(&self, kind: ModuleKind) -> (usize, usize) {
        match self {
            ModelConfig::Encoder(config) => config.linear_shape(kind),
            ModelConfig::Decoder(config) => config.linear_shape(kind),
        }
    }

    /// Elements of the linear layers of all blocks.
    pub fn block_parameters(&self) -> usize {
        let one = self.architecture().kinds().iter().map(|&kind| {
            let (output, input) = self.linear_shape(kind);
            output * input
        });
        self.layers() * one.sum::<usize>()
    }

    /// The modules of `kinds` in all layers.
    pub fn modules(&self, kinds: &[ModuleKind]) -> Vec<ModuleId> {
        (0..self.layers()).flat_map(|layer| kinds.iter().map(move |&kind| ModuleId { layer, kind })).collect()
    }

    /// The whole config.json.
    pub fn raw(&self) -> &Map<String, Value> {
        match self {
            ModelConfig::Encoder(config) => &config.raw,
            ModelConfig::Decoder(config) => &config.raw,
        }
    }
}
