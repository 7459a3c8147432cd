//! Decoders of Llama's kind that predict tokens, and those with a head.

pub mod classifier;
pub mod config;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use lora_drop_compute::blocks::BlockType;
use lora_drop_compute::device::Storage;

use crate::batch::{DropoutRates, Sequences};
pub use crate::batch::{TextPart, Texts};
use crate::error::Result;
use crate::families::{self, DecoderHead};
use crate::linear::{LinearWeights, Values, Weight};
use crate::lora::LoraTable;
use crate::memory::Memory;
use crate::moments::Moments;
pub use crate::network::cache::Cache;
use crate::network::{Network, Reads, Stopped};
use crate::parameters::Parameters;
use crate::quantise::quantised_where_asked;
use crate::weights::{Source, Weights};
pub use classifier::Classifier;
pub use config::DecoderConfig;

/// The output layer's name where it is not the table of embeddings.
const OUTPUT: &str = "lm_head";

/// The model: frozen weights.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub config: DecoderConfig,
    pub net: Network,
}

/// Takes the weights of `config`'s decoder but for its output layer. Matrices keep the storage of their file; with `quantise`, those
/// that are f32 or half precision get this one. Call `source.finish` before they are used.
fn take(
    source: &mut Weights,
    config: &DecoderConfig,
    quantise: Option<BlockType>,
) -> HashMap<String, Weight> {
    let take = |(name, shape): (String, Vec<usize>)| {
        let storage = match shape[..] {
            [_, _] => quantised_where_asked(source.take_stored(&name, &shape, false), quantise),
            _ => Storage::F32(source.take(&name, &shape)),
        };
        (name, Weight::Frozen(storage))
    };
    config.weights().into_iter().map(take).collect()
}

impl Decoder {
    /// Reads the weights of `config`'s decoder. Names may come with the prefix `model.` or without. Matrices keep the
    /// storage of their file; with `quantise`, those that are f32 or half precision get this one.
    ///
    /// # Errors
    /// All weights that are missing, have another shape or hold values that are not finite.
    pub fn load(source: &dyn Source, config: &DecoderConfig, quantise: Option<BlockType>) -> Result<Self> {
        let mut source = Weights::new(source, config.architecture.prefix());
        let mut taken = take(&mut source, config, quantise);
        let (input, outputs) = (config.hidden_size, config.vocab_size);
        let name = format!("{OUTPUT}.weight");
        let output = if config.tied {
            taken["embed_tokens.weight"].clone()
        } else {
            let stored = source.take_stored(&name, &[outputs, input], true);
            Weight::Frozen(quantised_where_asked(stored, quantise))
        };
        source.finish()?;
        taken.insert(name, output);
        let mut find = |name: &str| taken.remove(name).expect("weights() lists every weight once");
        let head = DecoderHead { name: OUTPUT, outputs, reads: Reads::Learned };
        Ok(Decoder { config: config.clone(), net: families::decoder(config, head, &mut find) })
    }

    /// From the last norm to logits.
    pub fn output_layer(&self) -> &LinearWeights {
        self.net.layers.last().expect("the output layer is the last")
    }

    /// −log p of every learned token, in order, without dropout; second moments of the modules' z are added to
    /// `moments`.
    pub fn losses(
        &self,
        parameters: &Parameters,
        table: &LoraTable,
        texts: Texts,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<Vec<f32>, Stopped> {
        self.net.text_losses(parameters.read(), table, texts, moments, memory, stop)
    }

    /// One part of a training step: adds to the parameters' `gradients` (and to `moments`) and returns the sum of the
    /// learned tokens' losses.
    #[allow(clippy::too_many_arguments)]
    pub fn train(
        &self,
        values: Values,
        gradients: &mut [f32],
        table: &LoraTable,
        part: TextPart,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<f64, Stopped> {
        self.net.train_texts(values, gradients, table, part, moments, memory, stop)
    }

    /// An empty cache for this model.
    pub fn new_cache(&self) -> Cache {
        Cache::new(self.config.layers)
    }

    /// The logits behind the last of each text's new tokens, (texts, vocabulary); `texts` stand behind what their
    /// caches hold, and the caches grow by them.
    pub fn extend(
        &self,
        parameters: &Parameters,
        table: &LoraTable,
        ids: &[u32],
        offsets: &[usize],
        caches: &mut [&mut Cache],
        memory: &mut Memory,
    ) -> Vec<f32> {
        self.net.extend(parameters.read(), table, Sequences { ids, types: &[], offsets }, caches, memory)
    }

    /// The model's own dropout, none on LoRA.
    pub fn dropout_rates(&self) -> DropoutRates {
        self.config.dropout_rates()
    }
}
