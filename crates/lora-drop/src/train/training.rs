//! Training on rows that are in memory: no folder is read or written, and the adapter is the
//! result.

use std::path::PathBuf;

use super::learner::Learner;
use super::prepare::Prepared;
use super::state::{Best, TrainState};
use super::{RunSink, first_assignment, load, stages};
use crate::adapter::AdapterFile;
use crate::assignment::Assignment;
use crate::engine::thread_pool;
use crate::events::Event;
use crate::score::record::Record;
use crate::score::{Criterion, Importance, criterion};
use crate::settings::{Basis, CriterionName, Method, Restart, SelectionSettings, TrainSettings};
use crate::{Cancel, Error, Result};

/// A training: inputs, settings, and optionally a criterion or an assignment that replaces the one
/// in the settings.
pub struct Training<'a> {
    prepared: &'a Prepared,
    settings: TrainSettings,
    criterion: Option<&'a dyn Criterion>,
    assignment: Option<Assignment>,
}

/// A trained adapter, with the values after the best epoch.
#[derive(Clone, Debug)]
pub struct TrainedAdapter {
    /// Pairs and head: for a [`Predictor`](crate::evaluate::Predictor), PEFT's format or the
    /// compact file.
    pub adapter: AdapterFile,
    /// The best epoch on dev.
    pub best: Best,
    /// The scores, if modules were scored.
    pub importance: Option<Importance>,
    /// Which modules have their own pair, share one, or have none.
    pub assignment: Assignment,
    /// Optimiser steps of fine-tuning.
    pub steps: usize,
    /// Seconds of these steps, without evaluation.
    pub seconds: f64,
}

impl<'a> Training<'a> {
    /// A training by the settings alone.
    pub fn new(prepared: &'a Prepared, settings: &TrainSettings) -> Self {
        Training { prepared, settings: settings.clone(), criterion: None, assignment: None }
    }

    /// Scores modules by this criterion instead of the one in the settings.
    pub fn criterion(mut self, criterion: &'a dyn Criterion) -> Self {
        // The criterion's basis decides how the sample stage runs, so any setting of this basis
        // will do.
        self.settings.selection.criterion = match criterion.basis() {
            Basis::Training => CriterionName::Output,
            Basis::Gradients => CriterionName::Page,
            Basis::HiddenStates => CriterionName::Activation,
            Basis::Order => CriterionName::First,
        };
        self.criterion = Some(criterion);
        self
    }

    /// Trains these pairs, without a sample stage. Its modules must be the model's;
    /// [`Prepared::modules`] returns those of `target_modules`.
    pub fn assignment(mut self, assignment: Assignment) -> Self {
        self.assignment = Some(assignment);
        self
    }

    /// Trains, measures dev after each epoch, and returns the best epoch's adapter. It computes in
    /// its own thread pool.
    ///
    /// # Errors
    /// `Error::Usage` for settings that exclude each other, an assignment with modules that the
    /// model lacks, or `method = full`, which has no adapter; `Error::NotFinite` if training
    /// diverges, `Error::Interrupted` once `cancel` is raised, both without a result.
    pub fn run(self, cancel: &Cancel, listen: &mut (dyn FnMut(&Event) + Send)) -> Result<TrainedAdapter> {
        let Training { prepared, mut settings, criterion: own, assignment } = self;
        settings.validate()?;
        if let Some(assignment) = &assignment {
            check_assignment(prepared, assignment)?;
            // No stage chooses modules; only the settings of shared pairs still apply.
            let SelectionSettings { unselected, shared_rank, .. } = settings.selection;
            settings.selection =
                SelectionSettings { unselected, shared_rank, ..SelectionSettings::default() };
            settings.optimisation.restart = Restart::Fresh;
            if settings.adapter.method.has_sample() {
                settings.adapter.method = Method::Lora;
            }
        }
        if settings.adapter.method == Method::Full {
            let problem =
                "`method = full` trains every weight and has no adapter; `train::run` writes its model";
            return Err(Error::Usage(problem.to_string()));
        }
        let criterion = own.unwrap_or_else(|| criterion(settings.selection.criterion));
        thread_pool(settings.compute.threads)?.install(|| {
            let first = match assignment {
                Some(assignment) => assignment,
                None => first_assignment(prepared, &settings)?,
            };
            let (mut learner, plan) = load(prepared, &settings, &first, true, listen)?;
            learner.use_plan(&plan);
            let mut in_memory = InMemory::new(true)?;
            stages(&mut learner, prepared, &settings, criterion, &mut in_memory, cancel, listen)?;
            let best = learner.state.progress.best.take();
            let best = best.ok_or_else(|| Error::Input("no epoch was measured".to_string()))?;
            learner.state.parameters.set_values(&in_memory.values.unwrap_or_default());
            let adapter = learner.adapter_file(prepared, &settings);
            let TrainState { progress, optimiser, seconds, .. } = learner.state;
            Ok(TrainedAdapter {
                adapter,
                best,
                importance: progress.importance,
                assignment: progress.assignment,
                steps: optimiser.steps,
                seconds,
            })
        })
    }
}

/// Checks that the model has every module, under the types that the settings name.
fn check_assignment(prepared: &Prepared, assignment: &Assignment) -> Result<()> {
    let known = prepared.modules();
    match assignment.owners.keys().find(|module| !known.contains(module)) {
        None => Ok(()),
        Some(module) => Err(Error::Usage(format!(
            "the assignment has {} of layer {}, which is not a target module of this model",
            module.kind.name(),
            module.layer
        ))),
    }
}

/// Keeps the best epoch's values in memory, and writes no files. On the ranks of a job after the
/// first it keeps nothing.
pub(super) struct InMemory {
    values: Option<Vec<f32>>,
    /// Folder for activations that no step changes.
    scratch: tempfile::TempDir,
}

impl InMemory {
    /// # Errors
    /// `Error::Io` where no temporary folder can be made.
    pub fn new(keep_values: bool) -> Result<Self> {
        let scratch = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), e))?;
        Ok(InMemory { values: keep_values.then(Vec::new), scratch })
    }
}

impl RunSink for InMemory {
    fn scratch(&self) -> PathBuf {
        self.scratch.path().to_path_buf()
    }

    fn record(&mut self, _: &Event, _: &mut dyn FnMut(&Event)) {}

    fn save_scores(&mut self, _: &Learner, _: &Record, _: &mut dyn FnMut(&Event)) -> Result<()> {
        Ok(())
    }

    fn save_evaluation(&mut self, learner: &mut Learner, best: Option<Best>) -> Result<Vec<PathBuf>> {
        if best.is_some() {
            crate::finite::check_parameters(&learner.state.parameters)?;
            if let Some(values) = &mut self.values {
                *values = learner.state.parameters.values().to_vec();
            }
            learner.state.progress.best = best;
        }
        Ok(Vec::new())
    }

    fn checkpoint_if_due(&mut self, _: &Learner, _: bool, _: &mut dyn FnMut(&Event)) {}
}
