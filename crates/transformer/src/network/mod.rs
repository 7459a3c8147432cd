//! A model as a network: its graph, its weights, and the passes through them.
//!
//! What an architecture is stands in the graph alone (`families`). Whatever it is, the passes here
//! run it: forward, with what the backward pass needs, and back down to the lowest module that
//! trains.

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

use crate::adapter::LoraTable;
use crate::linear::{FrozenForm, LinearWeights, Weight};
use crate::memory::{FrozenWeights, WeightBytes, embedding_bytes};
use crate::module::ModuleKind;
use graph::{Graph, Op, Segment, WeightId};

/// A model's graph and weights.
#[derive(Clone, Debug)]
pub struct Network<D: Device = Cpu> {
    pub device: D,
    pub layers: Vec<LinearWeights<D>>,
    pub(crate) weights: Vec<Weight<D>>,
    pub(crate) graph: Graph,
}

/// How large a pass is, for what runs it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub tokens: usize,
    /// Tokens that the head reads.
    pub chosen: usize,
    pub lora_dropout: bool,
    pub scored: bool,
    pub every: bool,
}

/// Floats of logits that exist at once: 128 MiB.
const MOST_LOGITS: usize = 1 << 25;

impl<D: Device> Network<D> {
    /// Rows whose logits exist at once, where they are those of tokens.
    pub fn chunk(&self) -> usize {
        (MOST_LOGITS / self.graph.head.values[self.graph.head.output].width).max(8)
    }

    /// What the blocks' layers multiply in.
    pub fn precision(&self) -> Precision {
        self.block_layers().next().map_or(Precision::F32, |layer| layer.precision)
    }

    /// Whether embeddings train, and so everything above them.
    pub fn trains_embeddings(&self) -> bool {
        let tables = self.graph.embedding.ops.iter().filter_map(|op| match op {
            Op::Embed { tables, .. } => Some(tables),
            _ => None,
        });
        tables.flatten().any(|(table, _)| self.weights[*table].trains())
    }

    /// Number of the lowest block in which something trains; None when only the head does.
    pub fn lowest(&self, table: &LoraTable) -> Option<usize> {
        if self.trains_embeddings() { Some(0) } else { table.lowest() }
    }

    /// The blocks' linear layers, block by block.
    pub(crate) fn block_layers(&self) -> impl Iterator<Item = &LinearWeights<D>> {
        self.layers.iter().filter(|layer| layer.module.is_some())
    }

    /// The last block and the head. A score counts all tokens, also those of which nothing reads
    /// the output. Where it needs no more of them than the block's input, first tokens are enough
    /// all the same.
    fn tail(&self, table: &LoraTable, shape: &Shape) -> [&Segment; 2] {
        let layer = self.graph.blocks.len() - 1;
        let inside = |kind| {
            !matches!(kind, ModuleKind::Query | ModuleKind::Key | ModuleKind::Value)
                && table.get(crate::module::ModuleId { layer, kind }).is_some()
        };
        match &self.graph.first {
            Some(first)
                if !shape.every
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
    /// A graph with its weights, each of which `find` gives once, by name.
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

    /// The same network on another device.
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

    /// What training multiplies in from now on, in all layers but a head for labels. Sums,
    /// activations and all other operations stay f32, and so does generating text.
    pub fn multiply_in(&mut self, precision: Precision) {
        let tokens = self.graph.reads == Reads::Learned;
        let layers = self.layers.iter_mut().filter(|layer| tokens || layer.module.is_some());
        layers.for_each(|layer| layer.precision = precision);
    }

    /// Keeps frozen f32 matrices in this form from now on.
    pub fn keep_frozen(&mut self, form: FrozenForm) {
        for number in 0..self.layers.len() {
            let form = self.form_of(&self.layers[number], form);
            self.layers[number].keep_frozen(form);
        }
    }

    /// How a layer is kept beside blocks in this form: an output layer as it is where it is the
    /// table of embeddings, for these are f32.
    fn form_of(&self, layer: &LinearWeights, form: FrozenForm) -> FrozenForm {
        match form {
            _ if layer.module.is_some() => form,
            _ if self.graph.tied || self.graph.reads != Reads::Learned => FrozenForm::AsIs,
            FrozenForm::Packed => FrozenForm::Rounded,
            FrozenForm::AsIs | FrozenForm::Rounded => form,
        }
    }

    /// Bytes of the blocks' matrices as training multiplies them, in f32 or bf16; None where some
    /// of them train or are stored otherwise than as f32.
    pub fn frozen_bytes(&self) -> Option<usize> {
        self.block_layers().map(LinearWeights::frozen_bytes).sum()
    }

    /// Bytes of frozen weights without a table of embeddings that is no output layer, once they are
    /// kept in this form.
    pub fn weight_bytes(&self, form: FrozenForm) -> WeightBytes {
        let mut weights = FrozenWeights::default();
        self.layers.iter().for_each(|layer| weights.add_linear(layer, self.form_of(layer, form)));
        let words = self.words();
        let rest = self.weights.iter().enumerate().filter(|(number, _)| *number != words);
        rest.for_each(|(_, weight)| weights.add(weight));
        weights.bytes()
    }

    /// Bytes of such a table of embeddings that are resident once the `used` of all tokens have
    /// been read.
    pub fn embedding_bytes(&self, used: &[bool]) -> usize {
        if self.graph.tied { 0 } else { embedding_bytes(&self.weights[self.words()], used) }
    }

    /// The table of word embeddings.
    pub(crate) fn words(&self) -> WeightId {
        self.graph.embedding.words()
    }
}
