//! A model of either kind: what its folder says it is, and what encoders and decoders have in common.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value};

use crate::config::{Architecture, EncoderConfig};
use crate::decoder::{Classifier, Decoder, DecoderConfig, config as decoder_config};
use crate::encoder::{DropoutRates, Encoder, Sequences, Stopped, TrainPart};
use crate::error::Result;
use crate::linear::{LinearWeights, Values};
use crate::lora::LoraTable;
use crate::memory::{Memory, PassSize};
use crate::module::{ModuleId, ModuleKind};
use crate::moments::Moments;
use crate::network::Network;
use crate::parameters::Parameters;

/// The configuration of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelConfig {
    Encoder(EncoderConfig),
    Decoder(DecoderConfig),
}

/// A model that is loaded.
#[derive(Clone, Debug)]
pub enum Model {
    Encoder(Box<Encoder>),
    /// A decoder that predicts tokens.
    Decoder(Box<Decoder>),
    /// A decoder with a head.
    Classifier(Box<Classifier>),
}

/// A model with a head: outputs for each sequence, which are classes or one value.
pub trait SequenceModel: Sync {
    /// Classes, or 1 for a regression.
    fn outputs(&self) -> usize;

    /// The logits of packed sequences, (sequences, outputs), without dropout; the second moments of every module's z are
    /// added to `moments`.
    fn score(
        &self,
        parameters: &Parameters,
        table: &LoraTable,
        sequences: Sequences,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<Vec<f32>, Stopped>;

    /// The logits alone.
    fn logits(
        &self,
        parameters: &Parameters,
        table: &LoraTable,
        sequences: Sequences,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<Vec<f32>, Stopped> {
        self.score(parameters, table, sequences, None, memory, stop)
    }

    /// One part of a training step: adds to the parameters' `gradients` (and to `moments`) and returns the sum of the
    /// sequences' losses.
    #[allow(clippy::too_many_arguments)]
    fn train(
        &self,
        values: Values,
        gradients: &mut [f32],
        table: &LoraTable,
        part: TrainPart,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<f64, Stopped>;
}

impl Model {
    /// Its graph and weights.
    pub fn net(&self) -> &Network {
        match self {
            Model::Encoder(encoder) => &encoder.net,
            Model::Decoder(decoder) => &decoder.net,
            Model::Classifier(classifier) => &classifier.net,
        }
    }

    /// The model as one with a head; None for one that predicts tokens.
    pub fn with_head(&self) -> Option<&dyn SequenceModel> {
        match self {
            Model::Encoder(encoder) => Some(&**encoder),
            Model::Decoder(_) => None,
            Model::Classifier(classifier) => Some(&**classifier),
        }
    }

    /// The same, to be settled for training.
    pub fn net_mut(&mut self) -> &mut Network {
        match self {
            Model::Encoder(encoder) => &mut encoder.net,
            Model::Decoder(decoder) => &mut decoder.net,
            Model::Classifier(classifier) => &mut classifier.net,
        }
    }

    /// Floats of activations that a pass takes.
    pub fn floats(&self, table: &LoraTable, size: &PassSize) -> usize {
        self.net().floats(table, size)
    }

    pub fn layers(&self) -> usize {
        self.net().blocks.len()
    }

    pub fn hidden_size(&self) -> usize {
        self.net().hidden
    }

    /// The linear layers of all blocks with what they are, block by block.
    pub fn linears(&self) -> Vec<(ModuleId, &LinearWeights)> {
        self.net().block_layers().filter_map(|layer| Some((layer.module?, layer))).collect()
    }

    /// The layer from the last norm to logits of tokens, where the model predicts them.
    pub fn output_layer(&self) -> Option<&LinearWeights> {
        match self {
            Model::Decoder(decoder) => Some(decoder.output_layer()),
            Model::Encoder(_) | Model::Classifier(_) => None,
        }
    }

    /// Number of the lowest block in which something trains; None when only the head does.
    pub fn lowest(&self, table: &LoraTable) -> Option<usize> {
        self.net().lowest(table)
    }

    /// What the `blocks` lowest blocks (not all) make of packed sequences without dropout, (tokens, hidden), for
    /// `Below`. Whatever sequences stand beside it, the values of a sequence are the same.
    pub fn below(
        &self,
        values: Values,
        table: &LoraTable,
        sequences: Sequences,
        blocks: usize,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<Vec<f32>, Stopped> {
        self.net().lower_output(values, table, sequences, blocks, memory, stop)
    }

    /// The model's own dropout, none on LoRA.
    pub fn dropout_rates(&self) -> DropoutRates {
        match self {
            Model::Encoder(encoder) => encoder.dropout_rates(),
            Model::Decoder(decoder) => decoder.dropout_rates(),
            Model::Classifier(classifier) => classifier.dropout_rates(),
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
