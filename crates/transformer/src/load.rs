//! Loading of a model's weights from its files, and initial values of a head.

use std::collections::HashMap;

use lora_drop_compute::blocks::BlockType;
use lora_drop_compute::device::Storage;
use lora_drop_compute::random::Key;

use crate::config::ModelConfig;
use crate::error::Result;
use crate::linear::Weight;
use crate::model::{Head, HeadOrigin, Model};
use crate::network::Network;
use crate::network::graph::{Place, WeightSpec};
use crate::parameters::{Group, ParamId, Parameters};
use crate::quantize::quantize_if_asked;
use crate::weights::{HeadTensor, Source, Stored, Weights};

/// Which of the model's own weights train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// The head; and adapters, which are added separately.
    Head,
    /// The head, and BERT's pooler even if the checkpoint has one.
    HeadAndPooler,
    /// Every weight. Matrices of half precision and in blocks are widened to f32.
    Everything,
}

/// How a model is loaded.
#[derive(Clone, Copy)]
pub struct Loading {
    /// None for a decoder that predicts tokens.
    pub head: Option<Head>,
    pub trained: Trained,
    /// The storage of a decoder's frozen matrices of f32 and half precision; None, and other
    /// matrices: as in the file.
    pub quantize: Option<BlockType>,
    /// The key of a newly initialised head's values.
    pub key: Key,
}

/// A weight found in the source; `full` is its name in `Parameters`.
struct Found {
    spec: WeightSpec,
    full: String,
    stored: Stored,
}

impl Found {
    /// Adds the weight to the parameters that train.
    fn train(&self, group: Group, parameters: &mut Parameters) -> ParamId {
        let WeightSpec { name, shape, .. } = &self.spec;
        let decay = shape.len() > 1 && !name.contains("bias");
        let mut add = |values: &[f32]| parameters.add(&self.full, shape, group, decay, values);
        match &self.stored {
            Stored::F32(tensor) => {
                let id = add(tensor);
                tensor.release(0..tensor.len());
                id
            }
            Stored::Blocks(matrix) => add(&matrix.values()),
        }
    }
}

impl Model {
    /// Reads the weights of `config`'s model and its head, and adds those that train to
    /// `parameters`.
    ///
    /// Names may have the architecture's prefix or not. A missing head is initialised, and so is
    /// BERT's pooler, which then trains with the head.
    ///
    /// # Errors
    /// A list of all weights that are missing, have another shape or contain values that are not
    /// finite.
    pub fn load(
        source: &dyn Source,
        config: &ModelConfig,
        loading: Loading,
        parameters: &mut Parameters,
    ) -> Result<Self> {
        let Loading { head: wanted, trained, quantize, key } = loading;
        let (prefix, decoder) = (config.architecture.prefix(), config.architecture.is_decoder());
        let mut graph = config.graph(wanted);
        let specs = std::mem::take(&mut graph.specs);
        let mut source = Weights::new(source, prefix);
        let of_pooler = |spec: &&WeightSpec| spec.place == Place::Pooler;
        let has_pooler = specs.iter().find(of_pooler).is_none_or(|spec| source.has(&spec.name));
        // Everything is loaded and checked first: until then the configuration's sizes cannot be
        // trusted.
        let (mut found, mut missing, mut head) = (Vec::new(), Vec::new(), Vec::new());
        for spec in specs {
            let whole = matches!(spec.place, Place::Head | Place::Output);
            let full = if whole { spec.name.clone() } else { format!("{prefix}.{}", spec.name) };
            let stored = match spec.place {
                Place::Pooler if !has_pooler => {
                    missing.push((spec, full));
                    continue;
                }
                Place::Head => {
                    head.push((source.try_take_head(&spec.name, &spec.shape), spec));
                    continue;
                }
                Place::Body | Place::Pooler | Place::Output if decoder && spec.shape.len() == 2 => {
                    source.take_stored(&spec.name, &spec.shape, whole)
                }
                Place::Body | Place::Pooler | Place::Output => {
                    Stored::F32(source.take(&spec.name, &spec.shape))
                }
            };
            found.push(Found { spec, full, stored });
        }
        source.finish()?;

        let mut weights: HashMap<String, Weight> = HashMap::new();
        for found in found {
            let of_head = trained == Trained::HeadAndPooler && of_pooler(&&found.spec);
            let weight = if trained == Trained::Everything || of_head {
                let group = if of_head { Group::Head } else { Group::Base };
                Weight::Trained(found.train(group, parameters))
            } else {
                Weight::Frozen(match (found.stored, &found.spec.shape[..]) {
                    (stored, [_, _]) => quantize_if_asked(stored, quantize),
                    (Stored::F32(tensor), _) => Storage::F32(tensor),
                    (Stored::Blocks(matrix), _) => Storage::Blocks(matrix),
                })
            };
            weights.insert(found.spec.name, weight);
        }
        let initialise = |name: &str, shape: &[usize]| -> Vec<f32> {
            // A decoder's head is one matrix, so its key does not depend on the name.
            let key = if decoder { key } else { name.bytes().fold(key, |key, byte| key.fold(byte as u64)) };
            let spread = if name.ends_with("bias") { 0.0 } else { config.initializer_range };
            (0..shape.iter().product::<usize>() as u64).map(|i| (spread * key.normal(i)) as f32).collect()
        };
        for (WeightSpec { name, shape, .. }, full) in missing {
            let decay = name.ends_with("weight");
            let id = parameters.add(&full, &shape, Group::Head, decay, &initialise(&name, &shape));
            weights.insert(name, Weight::Trained(id));
        }
        let origin = head.iter().fold(HeadOrigin::Checkpoint, |origin, (tensor, _)| match tensor {
            HeadTensor::Found(_) => origin,
            HeadTensor::Missing if origin == HeadOrigin::Checkpoint => HeadOrigin::Initialised,
            HeadTensor::Missing => origin,
            HeadTensor::Misshapen { seen } => HeadOrigin::OtherOutputs(seen.first().copied().unwrap_or(0)),
        });
        for (tensor, WeightSpec { name, shape, .. }) in head {
            // If a tensor of the head is missing or misshapen, all of the head is initialised.
            let values = match tensor {
                HeadTensor::Found(tensor) if origin == HeadOrigin::Checkpoint => tensor.to_vec(),
                _ => initialise(&name, &shape),
            };
            let id = parameters.add(&name, &shape, Group::Head, !name.ends_with("bias"), &values);
            weights.insert(name, Weight::Trained(id));
        }
        if graph.tied {
            let layer = graph.layers.last().expect("an output layer is the last");
            let table = weights[&graph.weights[graph.embedding.words()].0].clone();
            weights.insert(format!("{}.weight", layer.stem), table);
        }
        let net = Network::new(graph, |name| weights.remove(name).expect("every weight is listed once"));
        let head_origin = wanted.map(|_| origin);
        Ok(Model { config: config.clone(), net, head: wanted, head_origin })
    }
}
