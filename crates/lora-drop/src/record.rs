//! A run's facts for whoever shows them: what a report page is made of.

use std::collections::BTreeMap;

use lora_drop_transformer::{Architecture, ModuleKind};

use crate::assignment::Assignment;
use crate::evaluate::{ClassCounts, ExampleRow, TextSample};
use crate::events::{EvaluationRecord, StepRecord};
use crate::score::Importance;
use crate::settings::RunSettings;
use crate::summary::{DataFacts, ModelFacts, Summary};

/// Makes the text of `report.html` from a run.
pub type Page<'a> = &'a (dyn Fn(&RunRecord) -> String + Sync);

/// The architecture's own name of each module type, as its checkpoints have it: MPNet calls its
/// query `q`.
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
