//! The settings of a run: defined once, read from recipes and options, checked, and passed to the
//! stages in groups.

mod byte_size;
mod choices;
mod class_weights;
mod criterion;
mod data_sources;
pub(crate) mod definition;
mod groups;
mod method;
mod output_check;
mod recipe;
mod situation;
mod toml_file;
mod validate;
pub mod words;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::Table;

use crate::assignment::Rest;
use crate::{Error, Result};

pub use byte_size::Size;
pub use choices::{
    BadRows, Dtype, LogTo, OverLength, Quantize, Restart, ScheduleShape, Scope, SparseBy, Task, Unselected,
};
pub use class_weights::ClassWeights;
pub use criterion::{Basis, CriterionName};
pub use data_sources::{DataSource, DataSources};
pub use definition::{Definition, Kind, Range, Setting};
pub use groups::{AdapterSettings, Compute, Optimisation, Place, RowSettings, SelectionSettings};
pub use method::Method;
pub use recipe::{RECIPE, Recipe};
pub use recipe::{changes_no_result, check_table, unknown_among};
pub use situation::{Given, Need, Reader, Situation};
pub use toml_file::{TomlFile, one_line};
pub use words::as_options;

/// The default of `max_length`, in tokens, for models that take as many.
pub(crate) const MAX_LENGTH: usize = 256;

/// How long the sample stage trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampleEpochs {
    /// Until the ranking is stable.
    #[default]
    Auto,
    /// This number of epochs.
    #[serde(untagged)]
    Epochs(usize),
}

/// How many parameters are kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Budget {
    /// The smallest fraction that does not raise the loss on held-out rows.
    Auto,
    /// This fraction in (0, 1].
    #[serde(untagged)]
    Share(f64),
}

/// The rule by which modules are chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// Keep until the cumulative importance reaches this fraction T in (0, 1].
    Threshold(f64),
    /// Keep this many layers (of each module type, or of the one ranking).
    TopK(usize),
    /// Keep as many as fit into this fraction in (0, 1] of plain LoRA's parameters, shared pairs
    /// included.
    Budget(f64),
    /// Like [`Self::Budget`], with a fraction that is found after the sample stage.
    Auto,
    /// Keep these layers, whatever their importance.
    Layers(Vec<usize>),
}

/// How a model is trained on rows, wherever the two come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainSettings {
    /// What trains.
    pub adapter: AdapterSettings,
    /// The sample stage, and how modules are chosen.
    pub selection: SelectionSettings,
    /// Epochs, learning rate, dropout, seed.
    pub optimisation: Optimisation,
    /// Types, memory and threads.
    pub compute: Compute,
}

/// All settings of a run on files: what a recipe holds, with the options' names as keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunSettings {
    /// The model, the data and the output folder.
    pub place: Place,
    /// How rows are read.
    pub rows: RowSettings,
    /// How the model is trained.
    pub train: TrainSettings,
    /// Which of these were given, and where.
    pub given: Given,
}

/// The definitions of all settings, in the order of help texts and recipes.
pub fn definitions() -> impl Iterator<Item = &'static Definition> {
    let groups = [
        Place::DEFINITIONS,
        AdapterSettings::DEFINITIONS,
        SelectionSettings::DEFINITIONS,
        Optimisation::DEFINITIONS,
        RowSettings::DEFINITIONS,
        Compute::DEFINITIONS,
    ];
    groups.into_iter().flatten()
}

/// The definition of the setting with this name, in kebab case.
pub fn definition(name: &str) -> Option<&'static Definition> {
    definitions().find(|definition| definition.name == name)
}

impl RunSettings {
    /// All settings by name; those that are not set are left out.
    pub fn to_table(&self) -> Table {
        let named = |definition: &Definition| Some((definition.name.to_string(), (definition.get)(self)?));
        definitions().filter_map(named).collect()
    }

    /// The default settings for a model, data and an output folder.
    pub fn new(model: impl Into<String>, data: impl Into<DataSources>, output: impl Into<PathBuf>) -> Self {
        let place =
            Place { model: model.into(), data: data.into(), output: output.into(), ..Place::default() };
        RunSettings { place, ..RunSettings::default() }
    }

    /// Sets the settings of a table, by name; the others stay as they are.
    ///
    /// # Errors
    /// `Error::Usage` for an unknown name, and for a value of another type or outside its range.
    pub fn apply(&mut self, table: &Table) -> Result<()> {
        for (name, value) in table {
            let setting =
                definition(name).ok_or_else(|| Error::Usage(format!("no setting is called {name:?}")))?;
            if let Some(problem) = setting.problem(value) {
                return Err(Error::Usage(problem));
            }
            (setting.set)(self, value)
                .map_err(|expected| Error::Usage(format!("`{}`: {expected}", setting.field)))?;
        }
        Ok(())
    }
}

impl TrainSettings {
    /// Optimiser steps over `rows` training rows. With `restart = continue` they include the sample
    /// stage's, and at least one follows it.
    pub fn steps(&self, rows: usize) -> usize {
        let Optimisation { max_steps, epochs, restart, .. } = self.optimisation;
        let least = if self.samples() && restart == Restart::Continue { 2 } else { 1 };
        max_steps.unwrap_or(epochs * rows.div_ceil(self.optimisation.step_rows())).max(least)
    }

    /// Number of epochs over `rows` training rows; a partial epoch counts as one.
    pub(crate) fn epochs_over(&self, rows: usize) -> usize {
        self.steps(rows).div_ceil(rows.div_ceil(self.optimisation.step_rows()))
    }

    /// Whether there is a sample stage, which decides which modules, or which of their values, are
    /// kept.
    pub fn samples(&self) -> bool {
        let SelectionSettings { keep_layers, scores, .. } = &self.selection;
        let decided = keep_layers.is_some() || scores.is_some() || self.adapter.init_adapter.is_some();
        self.adapter.method.has_sample() && !decided
    }
}

impl Optimisation {
    /// Rows of an optimiser step.
    pub(crate) fn step_rows(&self) -> usize {
        self.batch_size * self.grad_accumulation
    }
}

impl AdapterSettings {
    /// Rank that new pairs begin with. AdaLoRA's begin with 1.5 times the rank, as in PEFT, and
    /// lose the excess during training.
    pub(crate) fn first_rank(&self) -> usize {
        if self.method == Method::AdaLora { (3 * self.rank).div_ceil(2) } else { self.rank }
    }
}

impl SelectionSettings {
    /// The fraction of a LoRA's values that a SparseAdapter keeps.
    pub(crate) fn density(&self) -> f64 {
        match self.budget {
            Some(Budget::Share(share)) => share,
            Some(Budget::Auto) | None => 0.5,
        }
    }

    /// What the modules that are not kept get.
    pub fn rest(&self) -> Rest {
        Rest { unselected: self.unselected, shared_rank: self.shared_rank }
    }

    /// The rule that the exclusive settings `threshold`, `top_k`, `budget` and `keep_layers` give;
    /// T = 0.9 by default.
    pub fn rule(&self) -> Selection {
        match (self.threshold, self.top_k, self.budget, &self.keep_layers) {
            (_, _, _, Some(layers)) => Selection::Layers(layers.clone()),
            (_, Some(k), _, _) => Selection::TopK(k),
            (_, _, Some(Budget::Share(f)), _) => Selection::Budget(f),
            (_, _, Some(Budget::Auto), _) => Selection::Auto,
            (t, _, _, _) => Selection::Threshold(t.unwrap_or(0.9)),
        }
    }
}

impl RowSettings {
    /// Most tokens of a row, for a model that takes `most`.
    pub(crate) fn row_tokens(&self, most: usize) -> usize {
        self.max_length.unwrap_or(MAX_LENGTH.min(most))
    }
}
