//! Definition of a model family, and the helper that collects its graph's weights.

use serde_json::Value;

use crate::config::{Keys, ModelConfig};
use crate::error::Result;
use crate::gguf::architecture::GgufArchitecture;
use crate::model::Head;
use crate::module::{ModuleId, ModuleKind};
use crate::network::graph::{Graph, LayerId, LayerSpec, Place, WeightId, WeightSpec};

/// An architecture: the names in its files, how config.json is read, and its graph.
pub struct Family {
    /// Name in messages and files: `bert`, `llama`.
    pub name: &'static str,
    pub model_types: &'static [ModelType],
    /// Whether it is a decoder: each token attends to earlier ones only.
    pub decoder: bool,
    /// Attribute of the body in a transformers model with a head: every weight's name starts with
    /// it and a dot, except in the checkpoint of a bare body.
    pub prefix: &'static str,
    /// Name of the list of blocks, without the prefix.
    pub layers: &'static str,
    /// Linear layers of a block, in the order in which they are computed.
    pub modules: &'static [Module],
    /// Linear layers after the blocks of a model with a head for sequences, by their full names.
    pub head: &'static [&'static str],
    /// Linear layer of a head for tokens; None if transformers has no such model.
    pub token_head: Option<&'static str>,
    /// Returns transformers' defaults for keys that config.json of this model_type leaves out. A
    /// config.json that is written states them.
    pub defaults: fn(&str) -> Vec<(&'static str, Value)>,
    /// Reads the architecture's own keys of config.json; the argument has what all architectures
    /// share.
    pub config: fn(&Keys, ModelConfig) -> Result<ModelConfig>,
    /// Returns the graph with this head; the head is None for a decoder that predicts tokens.
    pub graph: fn(&ModelConfig, Option<Head>) -> Graph,
}

/// A model_type of config.json.
pub struct ModelType {
    pub name: &'static str,
    /// Prefix of transformers' class names: `Bert` in `BertForSequenceClassification`.
    pub class: &'static str,
    /// Architecture of its GGUF files; None if GGUF does not have it.
    pub gguf: Option<&'static GgufArchitecture>,
}

/// A linear layer of a block.
pub struct Module {
    pub kind: ModuleKind,
    /// Name within the block: `attention.self.query`.
    pub name: &'static str,
    /// Name by which PEFT's users target it, and under which it is shown: `query`.
    ///
    /// By PEFT's suffix rule, BERT's `output.dense` also matches `attention.output.dense`. To
    /// target only one of them, an adapter's configuration needs the module's full name.
    pub short: &'static str,
}

/// Shorthand for the tables of modules.
pub const fn module(kind: ModuleKind, name: &'static str, short: &'static str) -> Module {
    Module { kind, name, short }
}

/// Collects the weights and layers of a graph while it is built, in the order in which they are
/// added.
pub struct WeightCollector<'a> {
    pub config: &'a ModelConfig,
    specs: Vec<WeightSpec>,
    layers: Vec<LayerSpec>,
    weights: Vec<(String, usize)>,
}

impl<'a> WeightCollector<'a> {
    pub fn new(config: &'a ModelConfig) -> Self {
        WeightCollector { config, specs: Vec::new(), layers: Vec::new(), weights: Vec::new() }
    }

    /// Adds a norm's weight, (width).
    pub fn vector(&mut self, name: &str, width: usize) -> WeightId {
        self.weight(name, vec![width])
    }

    /// Adds a table of embeddings, (rows, width).
    pub fn table(&mut self, name: &str, rows: usize, width: usize) -> WeightId {
        self.weight(name, vec![rows, width])
    }

    fn weight(&mut self, name: &str, shape: Vec<usize>) -> WeightId {
        self.weights.push((name.to_string(), shape[shape.len() - 1]));
        self.specs.push(WeightSpec { name: name.to_string(), shape, place: Place::Body });
        self.weights.len() - 1
    }

    /// Adds a layer norm's γ and β.
    pub fn norm(&mut self, stem: &str, width: usize) -> [WeightId; 2] {
        ["weight", "bias"].map(|part| self.vector(&format!("{stem}.{part}"), width))
    }

    /// Adds a linear layer of a block; returns it with its output width.
    pub fn module(&mut self, layer: usize, kind: ModuleKind, bias: bool) -> (LayerId, usize) {
        let module = ModuleId { layer, kind };
        let stem = self.config.architecture.linear(module);
        let shape = self.config.linear_shape(kind);
        (self.linear(&stem, bias, shape, Place::Body, Some(module)), shape.0)
    }

    /// Adds a linear layer after the blocks, with `shape` (out, in).
    pub fn head(&mut self, stem: &str, bias: bool, shape: (usize, usize), place: Place) -> LayerId {
        let module = (place == Place::Output).then_some(ModuleId::LM_HEAD);
        self.linear(stem, bias, shape, place, module)
    }

    fn linear(
        &mut self,
        stem: &str,
        bias: bool,
        (output, input): (usize, usize),
        place: Place,
        module: Option<ModuleId>,
    ) -> LayerId {
        // A tied output layer has no weights of its own.
        if place != Place::Output || !self.config.tied {
            let mut add = |part: &str, shape: Vec<usize>| {
                self.specs.push(WeightSpec { name: format!("{stem}.{part}"), shape, place });
            };
            add("weight", vec![output, input]);
            if bias {
                add("bias", vec![output]);
            }
        }
        self.layers.push(LayerSpec { stem: stem.to_string(), bias, input, output, module });
        self.layers.len() - 1
    }

    /// Moves the weights and layers into `graph`.
    pub fn into_graph(self, graph: Graph) -> Graph {
        let WeightCollector { specs, layers, weights, .. } = self;
        Graph { specs, layers, weights, ..graph }
    }
}
