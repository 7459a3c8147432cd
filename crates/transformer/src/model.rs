//! A model of either kind: what its folder says it is, and what encoders and decoders have in common.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use lora_drop_compute::gemm::Precision;
use serde_json::{Map, Value};

use crate::config::{Architecture, EncoderConfig};
use crate::decoder::{Classifier, Decoder, DecoderConfig, config as decoder_config};
use crate::encoder::{DropoutRates, Encoder, Sequences, Stopped, TrainPart};
use crate::error::Result;
use crate::linear::{FrozenForm, LinearWeights, Values};
use crate::lora::LoraTable;
use crate::memory::{Memory, PassSize, WeightBytes};
use crate::module::{ModuleId, ModuleKind};
use crate::moments::Moments;
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
    /// The model as one with a head; None for one that predicts tokens.
    pub fn with_head(&self) -> Option<&dyn SequenceModel> {
        match self {
            Model::Encoder(encoder) => Some(&**encoder),
            Model::Decoder(_) => None,
            Model::Classifier(classifier) => Some(&**classifier),
        }
    }

    /// What training multiplies in from now on, in all linear layers but a head for labels. Sums, activations and all
    /// other operations stay f32, and so does generating text.
    pub fn multiply_in(&mut self, precision: Precision) {
        match self {
            Model::Encoder(encoder) => encoder.multiply_in(precision),
            Model::Decoder(decoder) => decoder.multiply_in(precision),
            Model::Classifier(classifier) => classifier.multiply_in(precision),
        }
    }

    /// Keeps frozen f32 matrices in this form from now on.
    pub fn keep_frozen(&mut self, form: FrozenForm) {
        match self {
            Model::Encoder(encoder) => encoder.keep_frozen(form),
            Model::Decoder(decoder) => decoder.keep_frozen(form),
            Model::Classifier(classifier) => classifier.body.keep_frozen(form),
        }
    }

    /// Bytes of the blocks' matrices as training multiplies them, in f32 or bf16; None where some of them train or are stored
    /// otherwise than as f32.
    pub fn frozen_bytes(&self) -> Option<usize> {
        self.linears().iter().map(|(_, linear)| linear.frozen_bytes()).sum()
    }

    /// Floats of activations that a pass takes.
    pub fn floats(&self, table: &LoraTable, size: &PassSize) -> usize {
        match self {
            Model::Encoder(encoder) => encoder.floats(table, size),
            Model::Decoder(decoder) => decoder.floats(table, size),
            Model::Classifier(classifier) => classifier.floats(table, size),
        }
    }

    /// Bytes of frozen weights without a table of embeddings of which only rows are read, once they are kept in this form.
    pub fn weight_bytes(&self, form: FrozenForm) -> WeightBytes {
        match self {
            Model::Encoder(encoder) => encoder.weight_bytes(form),
            Model::Decoder(decoder) => decoder.weight_bytes(form),
            Model::Classifier(classifier) => classifier.weight_bytes(form),
        }
    }

    /// Bytes of such a table of embeddings that are resident once the `used` of all tokens have been read.
    pub fn embedding_bytes(&self, used: &[bool]) -> usize {
        match self {
            Model::Encoder(encoder) => encoder.embedding_bytes(used),
            Model::Decoder(decoder) => decoder.embedding_bytes(used),
            Model::Classifier(classifier) => classifier.embedding_bytes(used),
        }
    }

    pub fn layers(&self) -> usize {
        match self {
            Model::Encoder(encoder) => encoder.config.layers,
            Model::Decoder(decoder) => decoder.config.layers,
            Model::Classifier(classifier) => classifier.config.layers,
        }
    }

    pub fn hidden_size(&self) -> usize {
        match self {
            Model::Encoder(encoder) => encoder.config.hidden_size,
            Model::Decoder(decoder) => decoder.config.hidden_size,
            Model::Classifier(classifier) => classifier.config.hidden_size,
        }
    }

    /// The linear layers of all blocks with what they are, block by block.
    pub fn linears(&self) -> Vec<(ModuleId, &LinearWeights)> {
        let of_block = |layer: usize| -> &[LinearWeights] {
            match self {
                Model::Encoder(encoder) => &encoder.blocks[layer].linears,
                Model::Decoder(decoder) => &decoder.body.blocks[layer].linears,
                Model::Classifier(classifier) => &classifier.body.blocks[layer].linears,
            }
        };
        let numbered = |layer| {
            let linears = of_block(layer).iter().zip(ModuleKind::ALL);
            linears.map(move |(linear, kind)| (ModuleId { layer, kind }, linear))
        };
        (0..self.layers()).flat_map(numbered).collect()
    }

    /// The layer from the last norm to logits of tokens, where the model predicts them.
    pub fn output_layer(&self) -> Option<&LinearWeights> {
        match self {
            Model::Decoder(decoder) => Some(&decoder.output),
            Model::Encoder(_) | Model::Classifier(_) => None,
        }
    }

    /// Number of the lowest block in which something trains; None when only the head does.
    pub fn lowest(&self, table: &LoraTable) -> Option<usize> {
        match self {
            Model::Encoder(encoder) => encoder.lowest(table),
            Model::Decoder(decoder) => decoder.body.lowest(table),
            Model::Classifier(classifier) => classifier.body.lowest(table),
        }
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
        let (body, config) = match self {
            Model::Encoder(encoder) => {
                return encoder.below(values, table, sequences, blocks, memory, stop);
            }
            Model::Decoder(decoder) => (&decoder.body, &decoder.config),
            Model::Classifier(classifier) => (&classifier.body, &classifier.config),
        };
        body.below(config, values, table, sequences.ids, sequences.offsets, blocks, memory, stop)
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
