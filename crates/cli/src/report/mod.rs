//! Everything that a person looks at: the report page, the terminal's text and progress.
//!
//! Each of them is made from the facts of a run and feeds nothing back. Only [`Terminal`] prints,
//! to standard error.

pub mod curves;
mod dev;
pub mod figures;
pub mod grid;
pub mod heatmap;
pub mod html;
mod overall;
mod printable;
mod profile;
mod progress;
mod prune;
pub mod terminal;

use lora_drop::adapter::added_values;
use lora_drop::record::ModuleNames;
use lora_drop::settings::Method;
use lora_drop::summary::Summary;
use lora_drop_transformer::{AdapterMethod, ModuleKind};

pub use html::render;
pub use overall::Overall;
pub use printable::printable;
pub use profile::{kernels, profile};
pub use progress::{Terminal, Verbosity};
pub use prune::{prune_page, prune_table};

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

/// What a method's parameters are compared with: plain LoRA's, or those of its own adapters where
/// these add to plain LoRA's.
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
pub mod page_tests;
#[cfg(test)]
pub mod samples;
#[cfg(test)]
mod terminal_tests;
