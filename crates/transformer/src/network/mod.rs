//! A model as a network: its graph, its weights, and the passes through them.
//!
//! An architecture is defined by its graph alone (`families`). The passes here run any graph: the
//! forward pass, which saves what the backward pass needs, and the backward pass down to the lowest
//! module that trains.

pub mod cache;
pub mod graph;
mod needs;
mod pass;
mod run;
mod saved;
mod space;
mod walk;

use lora_drop_compute::device::{self, Cpu, Device};
use lora_drop_compute::gemm::Precision;

pub use graph::Reads;
pub use pass::Context;
pub use run::Stopped;

use crate::adapter::AdapterTable;
use crate::linear::{FrozenForm, LinearWeights, Weight};
use crate::memory::{FrozenWeights, WeightBytes, embedding_bytes};
use crate::module::ModuleKind;
use graph::{Graph, Op, Segment, WeightId};

/// A model's graph and weights, and the passes through it.
///
/// # Errors
/// A pass ends with [`Stopped`] if the device fails or [`Context::stop`] is set.
#[derive(Clone, Debug)]
pub struct Network<D: Device = Cpu> {
    pub device: D,
    /// Linear layers, by their index in the graph.
    pub layers: Vec<LinearWeights<D>>,
    pub(crate) weights: Vec<Weight<D>>,
    pub(crate) graph: Graph,
}

/// Sizes and options of a pass.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub tokens: usize,
    /// Tokens that the head reads.
    pub chosen: usize,
    pub lora_dropout: bool,
    pub scored: bool,
    pub every_token: bool,
}

/// Maximum floats of token logits that exist at once: 128 MiB, unless `LEAST_LOGIT_ROWS` rows need
/// more.
const MOST_LOGITS: usize = 1 << 25;
/// Minimum rows of token logits that exist at once: half of a decoder's micro-batch. Each chunk of
/// rows widens the weights of the output layer again, which are many for a large vocabulary.
const LEAST_LOGIT_ROWS: usize = 256;

impl<D: Device> Network<D> {
    /// Returns the maximum number of rows of token logits that exist at once.
    pub(crate) fn logit_rows(&self) -> usize {
        (MOST_LOGITS / self.graph.head.values[self.graph.head.output].width).max(LEAST_LOGIT_ROWS)
    }

    /// The precision of the products of the blocks' layers.
    pub fn precision(&self) -> Precision {
        self.block_layers().next().map_or(Precision::F32, |layer| layer.precision)
    }

    /// Whether embeddings train; the backward pass then reaches all blocks.
    pub fn trains_embeddings(&self) -> bool {
        let tables = self.graph.embedding.ops.iter().filter_map(|op| match op {
            Op::Embed { tables, .. } => Some(tables),
            _ => None,
        });
        tables.flatten().any(|(table, _)| self.weights[*table].trains())
    }

    /// Returns the lowest block in which something trains; None if only the head does.
    pub fn lowest_trained_block(&self, table: &AdapterTable) -> Option<usize> {
        if self.trains_embeddings() { Some(0) } else { table.lowest_block() }
    }

    /// Iterates over the blocks' linear layers, block by block.
    pub(crate) fn block_layers(&self) -> impl Iterator<Item = &LinearWeights<D>> {
        self.layers.iter().filter(|layer| layer.in_block())
    }

    /// Returns the last block and the head, in the variants for first tokens if these are enough. A
    /// score is a sum over all tokens, even those whose output nothing reads. The variants serve
    /// for it if only query, key and value of the last block have adapters, without dropout:
    /// `Walk::score` then computes z of all tokens from the block's input.
    fn tail(&self, table: &AdapterTable, shape: &Shape) -> [&Segment; 2] {
        let layer = self.graph.blocks.len() - 1;
        let inside = |kind| {
            !matches!(kind, ModuleKind::Query | ModuleKind::Key | ModuleKind::Value)
                && table.get(crate::module::ModuleId { layer, kind }).is_some()
        };
        match &self.graph.first {
            Some(first)
                if !shape.every_token
                    && (!shape.scored
                        || !(shape.lora_dropout || ModuleKind::ALL.into_iter().any(inside))) =>
            {
                first.each_ref()
            }
            _ => [&self.graph.blocks[layer], &self.graph.head],
        }
    }
}

impl Network {
    /// Builds a network. `find` is called once for each weight, with its name.
    pub(crate) fn new(graph: Graph, mut find: impl FnMut(&str) -> Weight) -> Self {
        let layers = graph.layers.iter().map(|layer| LinearWeights {
            weight: find(&format!("{}.weight", layer.stem)),
            bias: layer.bias.then(|| find(&format!("{}.bias", layer.stem))),
            input: layer.input,
            output: layer.output,
            precision: Precision::F32,
            module: layer.module,
        });
        let layers = layers.collect();
        let weights = graph.weights.iter().map(|(name, _)| find(name)).collect();
        Network { device: Cpu, layers, weights, graph }
    }

    /// Copies the network to another device.
    ///
    /// # Errors
    /// The device has no room for the weights.
    pub fn on<D: Device>(&self, device: D) -> device::Result<Network<D>> {
        let weight = |weight: &Weight| {
            Ok(match weight {
                Weight::Frozen(storage) => Weight::Frozen(device.weight(storage)?),
                Weight::Trained(id) => Weight::Trained(*id),
            })
        };
        let layer = |layer: &LinearWeights| {
            let LinearWeights { input, output, precision, module, .. } = *layer;
            let bias = layer.bias.as_ref().map(weight).transpose()?;
            Ok(LinearWeights { weight: weight(&layer.weight)?, bias, input, output, precision, module })
        };
        Ok(Network {
            layers: self.layers.iter().map(layer).collect::<device::Result<_>>()?,
            weights: self.weights.iter().map(weight).collect::<device::Result<_>>()?,
            graph: self.graph.clone(),
            device,
        })
    }

    /// Sets the precision of training's products, in all layers except a head for labels. Sums,
    /// activations, all other operations and generating text stay f32.
    pub fn multiply_in(&mut self, precision: Precision) {
        let tokens = self.graph.reads == Reads::Learned;
        let layers = self.layers.iter_mut().filter(|layer| tokens || layer.in_block());
        layers.for_each(|layer| layer.precision = precision);
    }

    /// Converts frozen f32 matrices to this form.
    pub fn convert_frozen(&mut self, form: FrozenForm) {
        for number in 0..self.layers.len() {
            let form = self.form_of(&self.layers[number], form);
            self.layers[number].convert_frozen(form);
        }
    }

    /// Returns the form of a layer if the blocks have this one. Heads for labels stay as they are,
    /// and so does an output layer that is the table of embeddings, which must be f32. Other output
    /// layers are rounded rather than packed.
    fn form_of(&self, layer: &LinearWeights, form: FrozenForm) -> FrozenForm {
        match form {
            _ if layer.in_block() => form,
            _ if self.graph.tied || self.graph.reads != Reads::Learned => FrozenForm::AsIs,
            FrozenForm::Packed => FrozenForm::Rounded,
            FrozenForm::AsIs | FrozenForm::Rounded => form,
        }
    }

    /// Bytes of the blocks' matrices in their precision; None if some of them train or are not
    /// stored as f32.
    pub fn frozen_bytes(&self) -> Option<usize> {
        self.block_layers().map(LinearWeights::frozen_bytes).sum()
    }

    /// Bytes of frozen weights in this form, without a table of embeddings that is not also the
    /// output layer.
    pub fn weight_bytes(&self, form: FrozenForm) -> WeightBytes {
        let mut weights = FrozenWeights::default();
        self.layers.iter().for_each(|layer| weights.add_linear(layer, self.form_of(layer, form)));
        let words = self.words();
        let rest = self.weights.iter().enumerate().filter(|(number, _)| *number != words);
        rest.for_each(|(_, weight)| weights.add(weight));
        weights.bytes()
    }

    /// Bytes of a table of embeddings that is not also the output layer, as far as they are
    /// resident after the rows of `used` tokens, (vocabulary), were read.
    pub fn embedding_bytes(&self, used: &[bool]) -> usize {
        if self.graph.tied { 0 } else { embedding_bytes(&self.weights[self.words()], used) }
    }

    /// Returns the table of word embeddings.
    pub(crate) fn words(&self) -> WeightId {
        self.graph.embedding.words()
    }
}
