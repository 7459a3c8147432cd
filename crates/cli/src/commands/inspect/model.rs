//! A model's folder or GGUF file, or the GGUF files of a hub's repository: architecture, sizes,
//! linear layers that can carry a LoRA, labels.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::report::terminal::{Style, Table, rows};
use lora_drop::format::{bytes, grouped};
use lora_drop::hub::{GgufModel, HubOptions};
use lora_drop::model::ModelFiles;
use lora_drop::{Cancel, Result};
use lora_drop_transformer::{HeadKind, ModuleKind};
use serde::Serialize;

use crate::commands::interrupt::Interrupt;

/// The object of `--json`.
#[derive(Serialize)]
pub struct Model {
    kind: &'static str,
    path: PathBuf,
    architecture: String,
    layers: usize,
    hidden_size: usize,
    heads: usize,
    intermediate_size: usize,
    vocabulary: usize,
    max_tokens: usize,
    /// All weights without a head for labels, as `train` counts them.
    parameters: usize,
    /// Number of tensors of each type in the files.
    types: BTreeMap<String, usize>,
    head_found: bool,
    /// What the head learns, by the model's configuration.
    head_task: &'static str,
    labels: Vec<String>,
    modules: Vec<Module>,
    /// Values in the files that are wrong and not needed.
    notes: Vec<String>,
}

/// One module type: the same linear layer of every block.
#[derive(Serialize)]
struct Module {
    name: &'static str,
    input: usize,
    output: usize,
    /// LoRA's parameters in all layers together, for each unit of rank.
    lora_parameters_per_rank: usize,
}

/// The object of `--json` for a name that may mean several GGUF models.
#[derive(Serialize)]
pub struct GgufModels {
    kind: &'static str,
    name: String,
    pub models: Vec<GgufModel>,
}

/// The GGUF models of a hub name that has several; none for any other name.
pub fn gguf_models(name: &str, interrupt: &Interrupt) -> Result<GgufModels> {
    let on_hub = !Path::new(name).exists();
    let ask = || HubOptions::from_env().gguf_models(name, &interrupt.cancel);
    let models = if on_hub { ask()? } else { Vec::new() };
    Ok(GgufModels { kind: "gguf_models", name: name.to_string(), models })
}

impl GgufModels {
    pub fn table(&self) -> String {
        let table = Table::new(&self.models)
            .text("file", |model| model.file.clone())
            .number("parts", |model| model.parts.to_string())
            .number("size", |model| model.bytes.map_or("-".into(), bytes));
        let first = &self.models[0].file;
        let rest = format!("One of them is a model: lora-drop inspect {}:{first}\n", self.name);
        table.fit(Style::stdout().width) + "\n" + &rest
    }
}

pub fn read(name: &str) -> Result<Model> {
    let files = ModelFiles::open(name, &Cancel::new(), &mut |_| {})?;
    let config = &files.config;
    let head_found = files.has_head();
    // transformers gives every configuration two labels; without a head those of a decoder mean
    // nothing.
    let meant = head_found || !config.architecture.is_decoder();
    let labels = if meant { config.labels.clone() } else { Vec::new() };
    let modules = config.architecture.kinds().map(|kind| {
        let (output, input) = config.linear_shape(kind);
        let name = config.architecture.short_name(kind);
        Module { name, input, output, lora_parameters_per_rank: config.layers * (input + output) }
    });
    Ok(Model {
        kind: "model",
        path: files.path.clone(),
        max_tokens: config.max_tokens(),
        architecture: config.model_type.clone(),
        layers: config.layers,
        hidden_size: config.hidden_size,
        heads: config.heads,
        intermediate_size: config.linear_shape(ModuleKind::Intermediate).0,
        vocabulary: config.vocab_size,
        parameters: files.facts(head_found).parameters,
        types: files.types(),
        head_found,
        head_task: match (config.head_kind(), config.problem_type.as_deref()) {
            (HeadKind::Token, _) => "token classification",
            (HeadKind::Sequence, Some("multi_label_classification")) => "multi-label classification",
            (HeadKind::Sequence, _) => "classification",
        },
        labels,
        modules: modules.collect(),
        notes: files.notes(None),
    })
}

impl Model {
    pub fn table(&self) -> String {
        let head = if self.head_found {
            format!("{}, {}", self.head_task, self.labels.join(", "))
        } else {
            "none".into()
        };
        let types: Vec<String> =
            self.types.iter().map(|(kind, count)| format!("{} {kind}", grouped(*count))).collect();
        let mut text = rows(&[
            ("architecture", self.architecture.clone()),
            ("layers", self.layers.to_string()),
            ("width", format!("{}, feed-forward {}", self.hidden_size, self.intermediate_size)),
            ("heads", self.heads.to_string()),
            ("vocabulary", grouped(self.vocabulary)),
            ("tokens", format!("{} at most", self.max_tokens)),
            ("parameters", grouped(self.parameters)),
            ("tensors", types.join(", ")),
            ("head", head),
        ]);
        text.push('\n');
        let modules = Table::new(&self.modules)
            .text("module", |m| m.name.to_string())
            .number("input", |m| m.input.to_string())
            .number("output", |m| m.output.to_string())
            .number("LoRA at rank 8", |m| grouped(8 * m.lora_parameters_per_rank));
        text += &modules.fit(Style::stdout().width);
        self.notes.iter().for_each(|note| text += &format!("\nnote: {note}\n"));
        text
    }
}
