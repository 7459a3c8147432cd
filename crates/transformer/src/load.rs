//! A model's weights from its files, and a head's first values.

use std::collections::HashMap;

use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use lora_drop_compute::device::Storage;
use lora_drop_compute::random::Key;

use crate::error::Result;
use crate::families::{self, DecoderHead};
use crate::linear::Weight;
use crate::model::{HeadOrigin, Model, ModelConfig};
use crate::network::Reads;
use crate::parameters::{Group, ParamId, Parameters};
use crate::quantise::quantised_where_asked;
use crate::weights::{HeadTensor, Source, Stored, Weights};

/// Which of the model's own weights train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// The head, and LoRA where the bank has pairs.
    Head,
    /// The same, and BERT's pooler with the head even where the checkpoint has one.
    HeadAndPooler,
    /// Every weight. Matrices of half precision and in blocks are widened to f32.
    Everything,
}

/// How a model is loaded.
#[derive(Clone, Copy)]
pub struct Loading {
    /// Of a head for labels: classes, or 1 for a regression. None for a decoder that predicts tokens.
    pub outputs: Option<usize>,
    pub trained: Trained,
    /// A decoder's frozen matrices of f32 and half precision are stored so; others keep the storage of their file.
    pub quantise: Option<BlockType>,
    /// Of a head that is initialised.
    pub key: Key,
}

/// The output layer for tokens, which never has the prefix.
const OUTPUT: &str = "lm_head";

/// A weight that was found, with its name in `Parameters`.
struct Found {
    name: String,
    full: String,
    shape: Vec<usize>,
    stored: Stored,
}

impl Found {
    /// Among what trains from now on.
    fn train(&self, group: Group, parameters: &mut Parameters) -> ParamId {
        let decay = self.shape.len() > 1 && !self.name.contains("bias");
        let mut add = |values: &[f32]| parameters.add(&self.full, &self.shape, group, decay, values);
        match &self.stored {
            Stored::F32(tensor) => {
                let id = add(tensor);
                tensor.release(0..tensor.len());
                id
            }
            Stored::Blocks(matrix) => add(&widened(matrix)),
        }
    }
}

fn widened(matrix: &BlockMatrix) -> Vec<f32> {
    let mut values = vec![0.0; matrix.rows() * matrix.cols()];
    for (row, values) in values.chunks_exact_mut(matrix.cols()).enumerate() {
        matrix.widen_row_range(row, 0..matrix.cols(), values);
    }
    values
}

impl Model {
    /// Reads the weights of `config`'s model and its head, adding what trains to `parameters`.
    ///
    /// Names may come with the architecture's prefix or without. A missing head is initialised, so is BERT's pooler, which then
    /// trains with the head.
    ///
    /// # Errors
    /// All weights that are missing, have another shape or hold values that are not finite.
    pub fn load(
        source: &dyn Source,
        config: &ModelConfig,
        loading: Loading,
        parameters: &mut Parameters,
    ) -> Result<Self> {
        let Loading { outputs, trained, quantise, key } = loading;
        let prefix = config.architecture().prefix();
        let mut source = Weights::new(source, prefix);
        let pooler = config.architecture().pooler();
        let has_pooler = pooler.is_none_or(|stem| source.has(&format!("{stem}.weight")));
        let of_pooler = |name: &str| pooler.is_some_and(|stem| name.starts_with(stem));
        // First everything is taken and checked: sizes are not to be trusted before.
        let mut found = Vec::new();
        let mut missing = Vec::new();
        for (name, shape) in config.weights() {
            let full = format!("{prefix}.{name}");
            if !has_pooler && of_pooler(&name) {
                missing.push((name, full, shape));
                continue;
            }
            let stored = match (config, &shape[..]) {
                (ModelConfig::Decoder(_), [_, _]) => source.take_stored(&name, &shape, false),
                _ => Stored::F32(source.take(&name, &shape)),
            };
            found.push(Found { name, full, shape, stored });
        }
        let output = format!("{OUTPUT}.weight");
        if outputs.is_none() && !config.tied() {
            let (name, shape) = (output.clone(), vec![config.vocab_size(), config.hidden_size()]);
            let stored = source.take_stored(&name, &shape, true);
            found.push(Found { full: name.clone(), name, shape, stored });
        }
        let head_weights = outputs.map(|outputs| config.head_weights(outputs)).unwrap_or_default();
        let head: Vec<_> = (head_weights.into_iter())
            .map(|(name, shape)| (name, source.try_take_head(name, &shape), shape))
            .collect();
        source.finish()?;

        let mut weights: HashMap<String, Weight> = HashMap::new();
        for found in found {
            let of_head = trained == Trained::HeadAndPooler && of_pooler(&found.name);
            let weight = if trained == Trained::Everything || of_head {
                let group = if of_head { Group::Head } else { Group::Base };
                Weight::Trained(found.train(group, parameters))
            } else {
                Weight::Frozen(match (found.stored, &found.shape[..]) {
                    (stored, [_, _]) => quantised_where_asked(stored, quantise),
                    (Stored::F32(tensor), _) => Storage::F32(tensor),
                    (Stored::Blocks(matrix), _) => Storage::Blocks(matrix),
                })
            };
            weights.insert(found.name, weight);
        }
        let initialise = |name: &str, shape: &[usize]| -> Vec<f32> {
            // A decoder's head is one matrix, so its name is not folded in.
            let key = match config {
                ModelConfig::Encoder(_) => name.bytes().fold(key, |key, byte| key.fold(byte as u64)),
                ModelConfig::Decoder(_) => key,
            };
            let spread = if name.ends_with("bias") { 0.0 } else { config.initializer_range() };
            (0..shape.iter().product::<usize>() as u64).map(|i| (spread * key.normal(i)) as f32).collect()
        };
        for (name, full, shape) in missing {
            let decay = name.ends_with("weight");
            let id = parameters.add(&full, &shape, Group::Head, decay, &initialise(&name, &shape));
            weights.insert(name, Weight::Trained(id));
        }
        let origin = head.iter().fold(HeadOrigin::Checkpoint, |origin, (_, tensor, _)| match tensor {
            HeadTensor::Found(_) => origin,
            HeadTensor::Missing if origin == HeadOrigin::Checkpoint => HeadOrigin::Initialised,
            HeadTensor::Missing => origin,
            HeadTensor::Misshapen { seen } => HeadOrigin::OtherOutputs(seen.first().copied().unwrap_or(0)),
        });
        for (name, tensor, shape) in head {
            // Half of a head is no head: all of it is initialised then.
            let values = match tensor {
                HeadTensor::Found(tensor) if origin == HeadOrigin::Checkpoint => tensor.to_vec(),
                _ => initialise(name, &shape),
            };
            let id = parameters.add(name, &shape, Group::Head, !name.ends_with("bias"), &values);
            weights.insert(name.to_string(), Weight::Trained(id));
        }
        if outputs.is_none() && config.tied() {
            weights.insert(output, weights["embed_tokens.weight"].clone());
        }
        let mut find = |name: &str| weights.remove(name).expect("every weight is listed once");
        let net = match (config, outputs) {
            (ModelConfig::Encoder(config), outputs) => {
                families::encoder(config, outputs.expect("an encoder has a head"), &mut find)
            }
            (ModelConfig::Decoder(config), Some(outputs)) => families::decoder(
                config,
                DecoderHead { name: "score", outputs, reads: Reads::Last },
                &mut find,
            ),
            (ModelConfig::Decoder(config), None) => {
                let (outputs, reads) = (config.vocab_size, Reads::Learned);
                families::decoder(config, DecoderHead { name: OUTPUT, outputs, reads }, &mut find)
            }
        };
        let head_origin = outputs.map(|_| origin);
        Ok(Model { config: config.clone(), net, outputs, head_origin })
    }
}
