//! A decoder whose outputs are classes, or one value for a regression: a linear layer without bias on the last norm of
//! each sequence's last token, as transformers' `LlamaForSequenceClassification`.
//!
//! Packed sequences have no padding, so the last token is always a real one.

use std::sync::atomic::AtomicBool;

use lora_drop_compute::blocks::BlockType;
use lora_drop_compute::random::Key;

use super::config::DecoderConfig;
use super::take;
use crate::batch::{DropoutRates, Sequences, TrainPart};
use crate::encoder::HeadOrigin;
use crate::error::Result;
use crate::families::{self, DecoderHead};
use crate::linear::{Values, Weight};
use crate::lora::LoraTable;
use crate::memory::Memory;
use crate::model::SequenceModel;
use crate::moments::Moments;
use crate::network::{Network, Reads, Stopped};
use crate::parameters::{Group, Parameters};
use crate::weights::{HeadTensor, Source, Weights};

/// The model: frozen weights, and the head's place in `Parameters`.
#[derive(Clone, Debug)]
pub struct Classifier {
    pub config: DecoderConfig,
    pub net: Network,
    outputs: usize,
    /// What `load` found of the head.
    pub head_origin: HeadOrigin,
}

impl Classifier {
    /// Reads the weights of `config`'s decoder, as `Decoder::load` does, and a head of `outputs`, which trains and is
    /// added to `parameters`. A head that is missing, or was made for other outputs, is initialised by `key`: normal, as
    /// transformers does. The output layer for tokens is not read.
    ///
    /// # Errors
    /// All weights that are missing, have another shape or hold values that are not finite.
    pub fn load(
        source: &dyn Source,
        config: &DecoderConfig,
        outputs: usize,
        quantise: Option<BlockType>,
        key: Key,
        parameters: &mut Parameters,
    ) -> Result<Self> {
        let mut source = Weights::new(source, config.architecture.prefix());
        let mut taken = take(&mut source, config, quantise);
        let (name, shape) = config.head_weights(outputs).remove(0);
        let found = source.try_take_head(name, &shape);
        source.finish()?;
        let spread = config.initializer_range;
        let initial = || (0..shape.iter().product::<usize>() as u64).map(|i| (spread * key.normal(i)) as f32);
        let (values, head_origin) = match found {
            HeadTensor::Found(tensor) => (tensor.to_vec(), HeadOrigin::Checkpoint),
            HeadTensor::Missing => (initial().collect(), HeadOrigin::Initialised),
            HeadTensor::Misshapen { seen } => {
                (initial().collect(), HeadOrigin::OtherOutputs(seen.first().copied().unwrap_or(0)))
            }
        };
        let weight = Weight::Trained(parameters.add(name, &shape, Group::Head, true, &values));
        taken.insert(name.to_string(), weight);
        let mut find = |name: &str| taken.remove(name).expect("weights() lists every weight once");
        let head = DecoderHead { name: "score", outputs, reads: Reads::Last };
        let net = families::decoder(config, head, &mut find);
        Ok(Classifier { config: config.clone(), net, outputs, head_origin })
    }

    /// The model's own dropout, none on LoRA.
    pub fn dropout_rates(&self) -> DropoutRates {
        self.config.dropout_rates()
    }
}

impl SequenceModel for Classifier {
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
    ) -> std::result::Result<Vec<f32>, Stopped> {
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
    ) -> std::result::Result<f64, Stopped> {
        self.net.train_sequences(values, gradients, table, part, moments, memory, stop)
    }
}
