//! A run's facts as a report shows them.

use std::collections::BTreeMap;

use lora_drop_transformer::{Architecture, ModuleKind};

use crate::assignment::Assignment;
use crate::evaluate::{ClassCounts, EntityCount, ExampleRow, TextSample};
use crate::events::{EvaluationRecord, StepRecord};
use crate::score::Importance;
use crate::settings::RunSettings;
use crate::summary::{DataFacts, ModelFacts, Summary};

/// A function that makes the text of report.html from a run.
pub type Page<'a> = &'a (dyn Fn(&RunRecord) -> String + Sync);

/// The architecture's name of each module type, as in its checkpoints: MPNet calls its query `q`.
pub type ModuleNames = BTreeMap<ModuleKind, String>;

/// The names of all module types in models of this `model_type` of config.json; empty if it is
/// unknown.
pub fn module_names(model_type: &str) -> ModuleNames {
    Architecture::of_model_type(model_type).map_or_else(ModuleNames::new, names_of)
}

/// The names of an architecture's module types.
pub(crate) fn names_of(architecture: Architecture) -> ModuleNames {
    architecture.kinds().map(|kind| (kind, architecture.short_name(kind).to_string())).collect()
}

/// A run as a report shows it.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// The results, as in summary.json.
    pub summary: Summary,
    /// The settings with all values that the run computed, as in recipe.toml.
    pub settings: RunSettings,
    /// The model's sizes.
    pub model: ModelFacts,
    /// The data's splits and columns.
    pub data: DataFacts,
    /// The architecture's names of module types.
    pub module_names: ModuleNames,
    /// None for methods that score nothing.
    pub importance: Option<Importance>,
    /// None for methods without adapters.
    pub assignment: Option<Assignment>,
    /// The optimiser steps of both stages, in their order.
    pub steps: Vec<StepRecord>,
    /// The evaluations on dev, one per epoch.
    pub evaluations: Vec<EvaluationRecord>,
    /// Answers of the best epoch's model on dev.
    pub dev: DevFindings,
    /// While the run goes on, how long the remaining steps of its stage take, without evaluations;
    /// None before the first.
    pub seconds_left: Option<f64>,
}

/// Answers of the best epoch's model on dev.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct DevFindings {
    /// Counts by class; None where rows have no classes.
    pub classes: Option<ClassCounts>,
    /// Counts of entities by type; empty where tags mark none.
    #[serde(default)]
    pub entities: Vec<EntityCount>,
    /// The rows that show most about the model: mistakes, large errors, or texts with a high loss.
    pub examples: Vec<ExampleRow>,
    /// Texts that a decoder generated.
    pub samples: Vec<TextSample>,
}
