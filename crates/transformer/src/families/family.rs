//! What a family of models is, and what its graph is written with.

use serde_json::Value;

use crate::config::{Keys, ModelConfig};
use crate::error::Result;
use crate::gguf::architecture::GgufArchitecture;
use crate::model::Head;
use crate::module::{ModuleId, ModuleKind};
use crate::network::graph::{Graph, LayerId, LayerSpec, Place, WeightId, WeightSpec};

/// An architecture: what its files call things, how config.json is read, and its graph.
pub struct Family {
    /// What it is called in messages and files: `bert`, `llama`.
    pub name: &'static str,
    pub model_types: &'static [ModelType],
    /// Whether it reads from left to right.
    pub decoder: bool,
    /// Attribute of the body in a transformers model with a head: every weight's name starts with
    /// it and a dot, except in the checkpoint of a bare body.
    pub prefix: &'static str,
    /// What the blocks' list is called, without the prefix.
    pub layers: &'static str,
    /// The linear layers of a block, in the order in which it computes them.
    pub modules: &'static [Module],
    /// Linear layers after the blocks of a model with a head for sequences, by their full names.
    pub head: &'static [&'static str],
    /// The linear layer of a head for tokens; None where transformers has no such model.
    pub token_head: Option<&'static str>,
    /// What transformers takes where config.json of this model_type leaves a key out, and a
    /// config.json that is written had better say.
    pub defaults: fn(&str) -> Vec<(&'static str, Value)>,
    /// Reads what is its own of config.json, into what all have.
    pub config: fn(&Keys, ModelConfig) -> Result<ModelConfig>,
    /// The graph with this head, or for a decoder that predicts tokens with none.
    pub graph: fn(&ModelConfig, Option<Head>) -> Graph,
}

/// A model_type of config.json.
pub struct ModelType {
    pub name: &'static str,
    /// What the names of transformers' classes begin with: `BertForSequenceClassification`.
    pub class: &'static str,
    /// What it is in GGUF files, where it can be.
    pub gguf: Option<&'static GgufArchitecture>,
}

/// A linear layer of a block.
pub struct Module {
    pub kind: ModuleKind,
    /// Within the block: `attention.self.query`.
    pub name: &'static str,
    /// By which PEFT's users target it, and under which it is shown: `query`.
    ///
    /// By PEFT's suffix rule BERT's `output.dense` means `attention.output.dense` as well; to say
    /// exactly one of them, an adapter's configuration needs the module's full name.
    pub short: &'static str,
}

/// Shorthand for the tables of families.
pub const fn module(kind: ModuleKind, name: &'static str, short: &'static str) -> Module {
    Module { kind, name, short }
}

/// The weights and layers of a graph while it is written, in the order in which they are named.
pub struct Parts<'a> {
    pub config: &'a ModelConfig,
    specs: Vec<WeightSpec>,
    layers: Vec<LayerSpec>,
    weights: Vec<(String, usize)>,
}

impl<'a> Parts<'a> {
    pub fn new(config: &'a ModelConfig) -> Self {
        Parts { config, specs: Vec::new(), layers: Vec::new(), weights: Vec::new() }
    }

    /// A norm's weight, (width).
    pub fn vector(&mut self, name: &str, width: usize) -> WeightId {
        self.weight(name, vec![width])
    }

    /// A table of embeddings, (rows, width).
    pub fn table(&mut self, name: &str, rows: usize, width: usize) -> WeightId {
        self.weight(name, vec![rows, width])
    }

    fn weight(&mut self, name: &str, shape: Vec<usize>) -> WeightId {
        self.weights.push((name.to_string(), shape[shape.len() - 1]));
        self.specs.push(WeightSpec { name: name.to_string(), shape, place: Place::Body });
        self.weights.len() - 1
    }

    /// A layer norm's γ and β.
    pub fn norm(&mut self, stem: &str, width: usize) -> [WeightId; 2] {
        ["weight", "bias"].map(|part| self.vector(&format!("{stem}.{part}"), width))
    }

    /// A linear layer of a block, and its width.
    pub fn module(&mut self, layer: usize, kind: ModuleKind, bias: bool) -> (LayerId, usize) {
        let module = ModuleId { layer, kind };
        let stem = self.config.architecture.linear(module);
        let shape = self.config.linear_shape(kind);
        (self.linear(&stem, bias, shape, Place::Body, Some(module)), shape.0)
    }

    /// A linear layer after the blocks: (out, in).
    pub fn head(&mut self, stem: &str, bias: bool, shape: (usize, usize), place: Place) -> LayerId {
        self.linear(stem, bias, shape, place, None)
    }

    fn linear(
        &mut self,
        stem: &str,
        bias: bool,
        (output, input): (usize, usize),
        place: Place,
        module: Option<ModuleId>,
    ) -> LayerId {
        // What is tied has its values elsewhere.
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

    /// All of them, into the graph that names them.
    pub fn into_graph(self, graph: Graph) -> Graph {
        let Parts { specs, layers, weights, .. } = self;
        Graph { specs, layers, weights, ..graph }
    }
}
