//! An adapter: rank, strength, labels, and which modules own their pair and which share one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lora_drop::Result;
use lora_drop::adapter::AdapterFile;
use lora_drop::data::Labels;
use lora_drop::format::{counted, grouped, layers};
use lora_drop::settings::Task;
use lora_drop_transformer::ModuleKind;
use serde::Serialize;

use crate::report::terminal::rows;

/// The object of `--json`.
#[derive(Serialize)]
pub struct Adapter {
    kind: &'static str,
    method: &'static str,
    /// The method in running text.
    #[serde(skip)]
    title: &'static str,
    path: PathBuf,
    base_model: String,
    /// Ranks and alphas of all pairs: one value each, unless another program made them differ.
    ranks: BTreeSet<usize>,
    alphas: Vec<f64>,
    modules: Vec<ModuleType>,
    /// Values in unique pairs.
    lora_parameters: usize,
    /// Values if every adapted module had a pair of its own.
    lora_parameters_full: usize,
    head_parameters: usize,
    /// null in an adapter of another program.
    labels: Option<serde_json::Value>,
    metadata: BTreeMap<String, String>,
    /// A note on what else the file has.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// The modules of one type, by layer.
#[derive(Serialize)]
struct ModuleType {
    name: &'static str,
    own: Vec<usize>,
    shared: Vec<usize>,
}

pub fn read(path: &Path) -> Result<Adapter> {
    let (file, note) = AdapterFile::open_for(path, None)?;
    let mut alphas: Vec<f64> = file.pairs.iter().map(|pair| pair.alpha).collect();
    alphas.sort_by(f64::total_cmp);
    alphas.dedup();
    // A bare encoder's names are those of BERT and RoBERTa alike.
    let architecture = file.architectures[0];
    let mut modules: BTreeMap<_, ModuleType> = BTreeMap::new();
    for (id, pair) in &file.modules {
        let name = architecture.short_name(id.kind);
        let entry = modules.entry(id.kind).or_insert_with(|| ModuleType {
            name,
            own: Vec::new(),
            shared: Vec::new(),
        });
        if file.pairs[*pair].shared { &mut entry.shared } else { &mut entry.own }.push(id.layer);
    }
    Ok(Adapter {
        kind: "adapter",
        method: file.method.name(),
        title: file.method.title(),
        path: path.to_path_buf(),
        ranks: file.pairs.iter().map(|pair| pair.rank).collect(),
        alphas,
        modules: modules.into_values().collect(),
        lora_parameters: file.unique_parameters(),
        lora_parameters_full: file.written_parameters(),
        head_parameters: file.head.values().map(|weight| weight.values.len()).sum(),
        base_model: file.base,
        labels: file.labels,
        metadata: file.metadata,
        note,
    })
}

impl Adapter {
    pub fn table(&self) -> String {
        let list =
            |values: Vec<String>| if values.is_empty() { "none".to_string() } else { values.join(", ") };
        let (unique, full) = (grouped(self.lora_parameters), grouped(self.lora_parameters_full));
        let mut table = vec![
            (
                "base model",
                if self.base_model.is_empty() { "unknown".into() } else { self.base_model.clone() },
            ),
            ("rank", list(self.ranks.iter().map(usize::to_string).collect())),
            ("alpha", list(self.alphas.iter().map(f64::to_string).collect())),
            (self.title, format!("{unique} parameters; {full} with a pair for each module")),
            ("head", counted(self.head_parameters, "parameter")),
        ];
        if let Some(labels) = &self.labels {
            table.push(("labels", described(labels)));
        }
        for kind in &self.modules {
            if kind.name == ModuleKind::LmHead.name() {
                table.push(("module", format!("{}, the output layer", kind.name)));
                continue;
            }
            let mut parts = Vec::new();
            for (verb, numbers) in [("own in", &kind.own), ("shared in", &kind.shared)] {
                if !numbers.is_empty() {
                    let noun = if numbers.len() == 1 { "layer" } else { "layers" };
                    parts.push(format!("{verb} {noun} {}", layers(numbers)));
                }
            }
            table.push(("module", format!("{}: {}", kind.name, parts.join("; "))));
        }
        let note = self.note.as_ref().map_or(String::new(), |note| format!("\nnote: {note}\n"));
        rows(&table) + &note
    }
}

/// The labels as people read them; as JSON where another program wrote them.
fn described(labels: &serde_json::Value) -> String {
    match serde_json::from_value(labels.clone()) {
        Ok(Labels::Regression) => "a number (regression)".to_string(),
        Ok(labels) => {
            let names = labels.names();
            let of = match labels.task() {
                Task::MultiLabel => ", any number of them a row",
                Task::TokenClassification => " of words",
                _ => "",
            };
            format!("{} classes{of}: {}", grouped(names.len()), names.join(", "))
        }
        Err(_) => labels.to_string(),
    }
}
