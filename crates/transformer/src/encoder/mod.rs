//! BERT, RoBERTa and MPNet with a head for classification or regression.
//!
//! Sequences come packed, one behind the other without padding. Parameter gradients accumulate, so a batch
//! may be passed in parts.

mod load;

use std::sync::atomic::AtomicBool;

pub use crate::batch::{Below, DropoutRates, Sequences, Targets, TrainPart};
use crate::config::EncoderConfig;
use crate::linear::Values;
use crate::lora::LoraTable;
pub use crate::memory::{Keep, Memory, PassSize};
use crate::model::SequenceModel;
use crate::module::{ModuleId, ModuleKind};
use crate::moments::Moments;
use crate::network::Network;
pub use crate::network::Stopped;
use crate::parameters::Parameters;

/// The model: frozen weights, and the places of those that train in `Parameters`.
#[derive(Clone, Debug)]
pub struct Encoder {
    pub config: EncoderConfig,
    pub net: Network,
    /// Classes, or 1 for a regression.
    pub outputs: usize,
    /// What `load` found of the head.
    pub head_origin: HeadOrigin,
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

/// Which of the model's own weights train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// The head, and LoRA where the bank has pairs.
    Head,
    /// The same, and BERT's pooler with the head even where the checkpoint has one.
    HeadAndPooler,
    /// Every weight.
    Everything,
}

impl Encoder {
    /// The modules of `kinds` in all layers.
    pub fn modules(&self, kinds: &[ModuleKind]) -> Vec<ModuleId> {
        (0..self.config.layers)
            .flat_map(|layer| kinds.iter().map(move |&kind| ModuleId { layer, kind }))
            .collect()
    }

    /// The model's own dropout, none on LoRA.
    pub fn dropout_rates(&self) -> DropoutRates {
        DropoutRates {
            hidden: self.config.hidden_dropout,
            attention: self.config.attention_dropout,
            head: self.config.head_dropout(),
            lora: 0.0,
        }
    }
}

impl SequenceModel for Encoder {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn score(
        &self,
        parameters: &Parameters,
        table: &LoraTable,
        sequences: Sequences,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> Result<Vec<f32>, Stopped> {
        self.net.sequence_outputs(parameters.read(), table, sequences, moments, memory, stop)
    }

    fn train(
        &self,
        values: Values,
        gradients: &mut [f32],
        table: &LoraTable,
        part: TrainPart,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> Result<f64, Stopped> {
        self.net.train_sequences(values, gradients, table, part, moments, memory, stop)
    }
}
