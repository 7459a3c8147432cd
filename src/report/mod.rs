//! Everything that a person looks at: the report page, the terminal's text and progress, the metrics log.
//!
//! Each of them is made from the facts of a run and feeds nothing back. Only [`Terminal`] prints, to standard error.

pub(crate) mod curves;
mod dev;
pub(crate) mod figures;
pub(crate) mod grid;
pub(crate) mod heatmap;
pub(crate) mod html;
mod log;
mod overall;
mod printable;
mod profile;
mod progress;
mod prune;
pub mod terminal;

use std::collections::BTreeMap;

use lora_drop_transformer::{AdapterMethod, Architecture, ModuleKind};

use crate::adapter::added_values;
use crate::assignment::Assignment;
use crate::evaluate::{ClassCounts, ExampleRow, TextSample};
use crate::events::{EvaluationRecord, StepRecord};
use crate::score::Importance;
use crate::settings::{Method, RunSettings};
use crate::summary::{DataFacts, ModelFacts, Summary};

pub use html::{render, write_report};
pub use log::MetricsLog;
pub use overall::Overall;
pub use printable::printable;
pub use profile::{kernels, profile};
pub use progress::{Terminal, Verbosity};
pub use prune::{prune_table, write_prune_page};

/// The architecture's own name of each module type, as its checkpoints have it: MPNet calls its query `q`.
pub type ModuleNames = BTreeMap<ModuleKind, String>;

/// The names of all module types in models of config.json's model_type; none where it is unknown.
pub fn module_names(model_type: &str) -> ModuleNames {
    let architecture = Architecture::of_model_type(model_type);
    let named = |a: Architecture| a.kinds().map(|kind| (kind, a.short_name(kind).to_string())).collect();
    architecture.map_or_else(ModuleNames::new, named)
}

/// A run as the report shows it.
#[derive(Clone, Debug)]
pub struct RunRecord {
    pub summary: Summary,
    /// Resolved, as recipe.toml has them.
    pub settings: RunSettings,
    pub model: ModelFacts,
    pub data: DataFacts,
    pub module_names: ModuleNames,
    /// `None` for methods that score nothing.
    pub importance: Option<Importance>,
    /// `None` for methods without LoRA.
    pub assignment: Option<Assignment>,
    /// Of both stages, in the order in which they were made.
    pub steps: Vec<StepRecord>,
    pub evaluations: Vec<EvaluationRecord>,
    pub dev: DevFindings,
}

/// What the best epoch made of dev's rows.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct DevFindings {
    /// `None` where there are no classes.
    pub classes: Option<ClassCounts>,
    /// Mistakes, values that are far off, or texts with a high loss.
    pub examples: Vec<ExampleRow>,
    /// What a decoder wrote.
    pub samples: Vec<TextSample>,
}

/// The architecture's name of a module type, or its part in the block where the map has none.
fn module_name(names: &ModuleNames, kind: ModuleKind) -> &str {
    names.get(&kind).map_or(kind.name(), String::as_str)
}

/// A method's name in running text.
fn method_name(method: &str) -> &str {
    named(method).map_or(method, |method| method.title())
}

/// What a method's adapters are called there.
fn adapter_name(method: &str) -> &'static str {
    named(method).and_then(Method::adapter).unwrap_or_default().title()
}

/// What a method's parameters are compared with: plain LoRA's, or those of its own adapters where these add to plain LoRA's.
fn plain_name(method: &str) -> &'static str {
    let adapter = named(method).and_then(Method::adapter).unwrap_or_default();
    if added_values(adapter, 1) > 0 { adapter.title() } else { AdapterMethod::Lora.title() }
}

fn named(method: &str) -> Option<Method> {
    Method::from_name(method)
}

/// A metric's name in running text.
pub(crate) fn metric_name(metric: &str) -> &str {
    match metric {
        "accuracy" => "Accuracy",
        "f1" => "F1",
        "mcc" => "Matthews correlation",
        "pearson" => "Pearson correlation",
        "spearman" => "Spearman correlation",
        "perplexity" => "Perplexity",
        other => other,
    }
}

/// A summary's metrics, the deciding one first, then by name.
fn metrics_in_order(summary: &Summary) -> Vec<(&str, f64)> {
    let mut all: Vec<(&str, f64)> = summary.metrics.iter().map(|(name, &v)| (name.as_str(), v)).collect();
    all.sort_by_key(|(name, _)| *name != summary.metric);
    all
}

#[cfg(test)]
pub(crate) mod page_tests;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod terminal_tests;
