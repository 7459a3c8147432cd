//! Architectures, one file each: names, configuration, graph. Questions about an architecture are
//! answered here from these files.

mod bert;
mod decoder;
mod encoder;
pub mod family;
mod gemma3;
mod llama;
mod mpnet;
mod roberta;
mod rope;

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::{Architecture, Keys, ModelConfig, parse_object, read_folder};
use crate::error::{Error, Result};
use crate::gguf::architecture::GgufArchitecture;
use crate::model::{Head, HeadKind};
use crate::module::{ModuleId, ModuleKind};
use crate::network::graph::{Graph, Place};
use crate::unsupported_quantization;
use family::{Family, ModelType, Module};

pub use decoder::token_ids;

/// Decoders that are not supported, for a better message than "unknown".
const OTHER_DECODERS: [&str; 9] =
    ["mixtral", "gemma", "gemma2", "gemma3", "phi", "phi3", "gpt2", "gpt_neox", "deepseek_v3"];

impl Architecture {
    /// All architectures.
    pub const ALL: [Architecture; 5] = [
        Architecture::Bert,
        Architecture::Roberta,
        Architecture::Mpnet,
        Architecture::Llama,
        Architecture::Gemma3,
    ];

    /// Returns the definition in the family's file.
    pub(crate) fn family(self) -> &'static Family {
        match self {
            Architecture::Bert => &bert::FAMILY,
            Architecture::Roberta => &roberta::FAMILY,
            Architecture::Mpnet => &mpnet::FAMILY,
            Architecture::Llama => &llama::FAMILY,
            Architecture::Gemma3 => &gemma3::FAMILY,
        }
    }

    /// The architecture for config.json's `model_type`; None if it is not supported.
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.family().model_types.iter().any(|known| known.name == model_type))
    }

    /// Returns the model_types of all encoders, or of all decoders.
    fn model_types(decoder: bool) -> String {
        let families = Self::ALL.into_iter().map(Self::family).filter(|family| family.decoder == decoder);
        families.flat_map(|family| family.model_types).map(|known| known.name).collect::<Vec<_>>().join(", ")
    }

    /// The name in messages and files: `bert`, `llama`.
    pub fn name(self) -> &'static str {
        self.family().name
    }

    /// The prefix of weight names in a transformers model with a head, without the dot: `bert`,
    /// `model`.
    pub fn prefix(self) -> &'static str {
        self.family().prefix
    }

    /// Whether it is a decoder.
    pub fn is_decoder(self) -> bool {
        self.family().decoder
    }

    /// The kinds of linear layers in a block, in the order in which they are computed.
    pub fn kinds(self) -> impl Iterator<Item = ModuleKind> {
        self.family().modules.iter().map(|module| module.kind)
    }

    fn module(self, kind: ModuleKind) -> Option<&'static Module> {
        self.family().modules.iter().find(|module| module.kind == kind)
    }

    /// The module's name within its block: `attention.self.query`. For a kind that the architecture
    /// does not have, the kind's own name.
    pub fn module_name(self, kind: ModuleKind) -> &'static str {
        self.module(kind).map_or(kind.name(), |module| module.name)
    }

    /// The name by which PEFT's users target the module, and under which it is shown: `query`.
    pub fn short_name(self, kind: ModuleKind) -> &'static str {
        self.module(kind).map_or(kind.name(), |module| module.short)
    }

    /// The module's full name in the transformers model with a head:
    /// `bert.encoder.layer.3.attention.self.query`.
    pub fn module_path(self, module: ModuleId) -> String {
        if module == ModuleId::LM_HEAD {
            return module.kind.name().to_string();
        }
        format!("{}.{}", self.prefix(), self.linear(module))
    }

    /// Full names of the linear layers after the blocks in the transformers model for sequence
    /// classification: the pooler with its prefix, the head without.
    pub fn head_linears(self) -> &'static [&'static str] {
        self.family().head
    }

    /// Full name of the linear layer of a head for tokens; None if transformers has no such model.
    pub fn token_head(self) -> Option<&'static str> {
        self.family().token_head
    }

    /// Full names of all linear layers in the transformers models for sequence classification and,
    /// of decoders, for tokens, in the model's order.
    pub fn linear_names(self, layers: usize) -> Vec<String> {
        let blocks = (0..layers)
            .flat_map(|layer| self.kinds().map(move |kind| self.module_path(ModuleId { layer, kind })));
        let output = self.is_decoder().then(|| self.module_path(ModuleId::LM_HEAD));
        blocks.chain(self.head_linears().iter().map(|s| s.to_string())).chain(output).collect()
    }

    /// The module with this full name; None for other names. The inverse of `module_path`.
    pub fn module_at(self, path: &str) -> Option<ModuleId> {
        if self.is_decoder() && path == self.module_path(ModuleId::LM_HEAD) {
            return Some(ModuleId::LM_HEAD);
        }
        let rest = path.strip_prefix(self.prefix())?.strip_prefix('.')?.strip_prefix(self.layers())?;
        let (number, name) = rest.strip_prefix('.')?.split_once('.')?;
        let kind = self.kinds().find(|&kind| self.module_name(kind) == name)?;
        let layer = number.parse().ok()?;
        (self.module_path(ModuleId { layer, kind }) == path).then_some(ModuleId { layer, kind })
    }

    /// The kinds of linear layers that these targets name, in block order, each once; in every
    /// layer.
    ///
    /// As in PEFT, a target names each module whose name is the target or ends with a dot and the
    /// target, here within a block. `all-linear` names every linear layer of the block; no target
    /// at all means query and value.
    ///
    /// # Errors
    /// `Error::Target` for a target that names nothing in a block.
    pub fn resolve_targets(self, targets: &[String]) -> Result<Vec<ModuleKind>> {
        if targets.is_empty() {
            return Ok(vec![ModuleKind::Query, ModuleKind::Value]);
        }
        let names = |target: &str, kind: ModuleKind| {
            let rest = self.module_name(kind).strip_suffix(target);
            target == "all-linear" || rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let known = |target: &&String| self.kinds().any(|kind| !target.is_empty() && names(target, kind));
        if let Some(unknown) = targets.iter().find(|t| !known(t)) {
            let mut known: Vec<_> = self.kinds().map(|kind| self.short_name(kind).to_string()).collect();
            known.push("all-linear".into());
            return Err(Error::Target { target: unknown.clone(), architecture: self.name().into(), known });
        }
        Ok(self.kinds().filter(|&kind| targets.iter().any(|t| names(t, kind))).collect())
    }

    /// Returns the name of the list of blocks, without the prefix.
    pub fn layers(self) -> &'static str {
        self.family().layers
    }

    /// Returns the name of a block, without the prefix: `encoder.layer.3`.
    pub fn layer(self, number: usize) -> String {
        format!("{}.{number}", self.layers())
    }

    /// Returns the name of a block's linear layer, without the prefix: the stem of its `.weight`
    /// (out, in) and `.bias` (out).
    pub fn linear(self, module: ModuleId) -> String {
        format!("{}.{}", self.layer(module.layer), self.module_name(module.kind))
    }
}

impl GgufArchitecture {
    /// Iterates over the supported architectures; one occurs once for each model_type that is
    /// written as it.
    pub fn all() -> impl Iterator<Item = &'static GgufArchitecture> {
        let families = Architecture::ALL.into_iter().map(Architecture::family);
        families.flat_map(|family| family.model_types).filter_map(|known| known.gguf)
    }

    /// Returns the architecture with this `general.architecture`.
    pub fn of_name(name: &str) -> Option<&'static Self> {
        Self::all().find(|known| known.name == name)
    }

    /// Returns the architecture as which a model is written.
    ///
    /// # Errors
    /// A message, if GGUF has no form for the model's type.
    pub fn of_config(config: &ModelConfig) -> std::result::Result<&'static Self, String> {
        let (model_type, known) = (&config.model_type, config.architecture.family().model_types);
        let found = known.iter().find(|known| known.name == model_type).and_then(|known| known.gguf);
        found.ok_or_else(|| format!("model_type {model_type:?} cannot be written as GGUF"))
    }
}

impl ModelConfig {
    /// Reads `folder/config.json`.
    ///
    /// # Errors
    /// The folder or the file is missing or cannot be read, and those of [`Self::from_object`].
    pub fn read(folder: &Path) -> Result<Self> {
        let (object, path) = read_folder(folder)?;
        Self::from_object(object, &path)
    }

    /// Parses the text of a config.json; `path` is for messages.
    ///
    /// # Errors
    /// The text is not a JSON object, and those of [`Self::from_object`].
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        Self::from_object(parse_object(text, path)?, path)
    }

    /// Reads the object of a config.json; `path` is for messages.
    ///
    /// # Errors
    /// `Error::Config` for any model that this crate would not compute exactly as transformers
    /// does.
    pub fn from_object(mut raw: Map<String, Value>, path: &Path) -> Result<Self> {
        let keys = Keys { map: &raw, path };
        let [encoders, decoders] = [false, true].map(Architecture::model_types);
        let known = format!("the encoders are: {encoders}; the decoders: {decoders}");
        let Some(model_type) = keys.text("model_type")?.map(str::to_string) else {
            return Err(keys.error(format!("the key model_type is missing; {known}")));
        };
        let architecture = Architecture::of_model_type(&model_type).ok_or_else(|| {
            keys.error(if OTHER_DECODERS.contains(&model_type.as_str()) {
                format!(
                    "model_type {model_type} is a decoder that is not supported; the supported decoders are: {decoders}"
                )
            } else {
                format!("model_type {model_type:?} is not supported; {known}")
            })
        })?;
        unsupported_quantization::check_config(&keys)?;
        let family = architecture.family();
        for (key, value) in (family.defaults)(&model_type) {
            raw.entry(key).or_insert(value);
        }
        let keys = Keys { map: &raw, path };
        let config = (family.config)(&keys, Self::common(&keys, architecture, &model_type)?)?;
        config.check().map_err(|problem| keys.error(problem))?;
        Ok(ModelConfig { raw, ..config })
    }

    /// The prefix of transformers' class names for this model: `Bert` in
    /// `BertForSequenceClassification`.
    pub fn class(&self) -> &'static str {
        let known = self.architecture.family().model_types;
        known.iter().find(|known| known.name == self.model_type).map_or("", |ModelType { class, .. }| class)
    }

    /// Returns what the checkpoint's head labels, by the class that config.json names.
    pub fn head_kind(&self) -> HeadKind {
        let class = self.raw.get("architectures").and_then(|classes| classes.get(0)?.as_str());
        match class.is_some_and(|class| class.ends_with("ForTokenClassification")) {
            true => HeadKind::Token,
            false => HeadKind::Sequence,
        }
    }

    /// Returns the graph with this head; `head` is None for a decoder that predicts tokens.
    pub(crate) fn graph(&self, head: Option<Head>) -> Graph {
        (self.architecture.family().graph)(self, head)
    }

    /// Names (without the prefix) and shapes of all weights, from input to output. Includes BERT's
    /// pooler, but no output layer and no head.
    pub fn weights(&self) -> Vec<(String, Vec<usize>)> {
        self.body_weights(Head::of_sequences(1))
    }

    /// Names and shapes of the body's weights in a model with this head, as in [`Self::weights`]:
    /// BERT has no pooler below a head for tokens.
    pub fn body_weights(&self, head: Head) -> Vec<(String, Vec<usize>)> {
        self.specs(Some(head), |place| matches!(place, Place::Body | Place::Pooler))
    }

    /// Full names and shapes of the weights of a head.
    pub fn head_weights(&self, head: Head) -> Vec<(String, Vec<usize>)> {
        self.specs(Some(head), |place| place == Place::Head)
    }

    /// Full names and shapes of the weights of a decoder's output layer; empty if it is the table
    /// of word embeddings.
    pub fn output_weights(&self) -> Vec<(String, Vec<usize>)> {
        if self.architecture.is_decoder() {
            self.specs(None, |place| place == Place::Output)
        } else {
            Vec::new()
        }
    }

    fn specs(&self, head: Option<Head>, of: impl Fn(Place) -> bool) -> Vec<(String, Vec<usize>)> {
        let specs = self.graph(head).specs.into_iter().filter(|spec| of(spec.place));
        specs.map(|spec| (spec.name, spec.shape)).collect()
    }

    /// Number of values in the body and, with `output`, in the layer that predicts tokens.
    pub fn parameters(&self, output: bool) -> usize {
        let output = if output { self.output_weights() } else { Vec::new() };
        self.weights().iter().chain(&output).map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Number of values in the linear layers of all blocks.
    pub fn block_parameters(&self) -> usize {
        let one = self.architecture.kinds().map(|kind| {
            let (output, input) = self.linear_shape(kind);
            output * input
        });
        self.layers * one.sum::<usize>()
    }

    /// The modules of `kinds` in all layers.
    pub fn modules(&self, kinds: &[ModuleKind]) -> Vec<ModuleId> {
        (0..self.layers).flat_map(|layer| kinds.iter().map(move |&kind| ModuleId { layer, kind })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ModuleKind::*;

    fn resolve(architecture: Architecture, targets: &[&str]) -> Result<Vec<ModuleKind>> {
        architecture.resolve_targets(&targets.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn targets_follow_the_suffix_rule() {
        use Architecture::*;
        assert_eq!(resolve(Bert, &[]).unwrap(), [Query, Value]);
        assert_eq!(resolve(Bert, &["value", "query", "value"]).unwrap(), [Query, Value]);
        assert_eq!(resolve(Bert, &["self.key"]).unwrap(), [Key]);
        assert_eq!(resolve(Bert, &["output.dense"]).unwrap(), [AttentionOutput, Output]);
        assert_eq!(resolve(Mpnet, &["output.dense"]).unwrap(), [Output]);
        assert_eq!(resolve(Roberta, &["dense"]).unwrap(), [AttentionOutput, Intermediate, Output]);
        assert_eq!(resolve(Mpnet, &["o", "attention.attn.q"]).unwrap(), [Query, AttentionOutput]);
        assert_eq!(resolve(Roberta, &["all-linear"]).unwrap(), Roberta.kinds().collect::<Vec<_>>());
        assert_eq!(resolve(Llama, &["all-linear"]).unwrap(), Llama.kinds().collect::<Vec<_>>());
        assert_eq!(resolve(Llama, &["gate_proj", "q_proj"]).unwrap(), [Query, Gate]);
    }

    #[test]
    fn an_unknown_target_is_an_error_that_lists_the_names() {
        // `ense` and `lf.query` end a name, but not after a dot; a layer's number cannot be a
        // target.
        for target in ["q_proj", "ense", "lf.query", "", "layer.0.attention.self.query", "classifier"] {
            let text = resolve(Architecture::Bert, &["query", target]).unwrap_err().to_string();
            assert!(text.contains(&format!("target module {target:?} ")), "{text}");
            assert!(text.contains("query, key, value, attention.output.dense, intermediate.dense"), "{text}");
        }
        let text = resolve(Architecture::Mpnet, &["query"]).unwrap_err().to_string();
        assert!(text.contains("q, k, v, o, intermediate.dense, output.dense, all-linear"), "{text}");
    }

    #[test]
    fn module_at_inverts_module_path() {
        for architecture in Architecture::ALL {
            for kind in architecture.kinds() {
                let module = ModuleId { layer: 11, kind };
                assert_eq!(architecture.module_at(&architecture.module_path(module)), Some(module));
            }
        }
        let bert = Architecture::Bert;
        assert_eq!(
            bert.module_path(ModuleId { layer: 3, kind: Query }),
            "bert.encoder.layer.3.attention.self.query"
        );
        for path in [
            "bert.pooler.dense",
            "bert.encoder.layer.03.output.dense",
            "roberta.encoder.layer.3.output.dense",
        ] {
            assert_eq!(bert.module_at(path), None, "{path}");
        }
    }
}
