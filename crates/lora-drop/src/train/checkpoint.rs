//! Checkpoints: a run writes its state into its folder from time to time, with what it takes to
//! continue: settings, hashes of the model and the data, the lengths of the logs.

use std::path::{Path, PathBuf};
use std::time::Instant;

use lora_drop_compute::gemm::instructions;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::learner::Learner;
use super::logs::{Lengths, Logs};
use super::prepare::Prepared;
use super::state_file;
use crate::events::{Event, Stage};
use crate::folder::{OutputFolder, checkpoints, recover};
use crate::rss::peak_rss_bytes;
use crate::settings::{
    DataSources, Method, Reader, Recipe, RunSettings, TomlFile, changes_no_result, definition,
};
use crate::summary::{Status, Summary};
use crate::{Cancel, Error, Result, digest};

/// Settings that say where the same files are now, and may change.
pub(crate) const RELOCATABLE_SETTINGS: [&str; 4] = ["model", "data", "init-adapter", "scores"];
/// Settings of the output folder, which stays the run's own.
const FOLDER_SETTINGS: [&str; 2] = ["output", "overwrite"];
/// Settings that may be raised.
const RAISABLE_SETTINGS: [&str; 2] = ["epochs", "max-steps"];

/// What the checkpoint of a run on files has besides the training state.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFacts {
    /// The program's version.
    pub version: String,
    /// The instructions of its matrix products.
    pub kernels: String,
    /// The text of recipe.toml.
    pub recipe: String,
    pub sources: InputHashes,
    pub logs: Lengths,
    /// Seconds of the run up to this checkpoint, without those between its processes.
    pub seconds: f64,
    pub startup_seconds: f64,
    pub checkpoint_seconds: f64,
    pub peak_rss_bytes: u64,
}

/// Hashes of the model's and of the data's files, in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputHashes {
    pub model: String,
    pub data: String,
}

impl InputHashes {
    /// Hashes all files.
    ///
    /// # Errors
    /// `Error::Io`, and `Error::Interrupted` after `cancel` was raised.
    fn of(prepared: &Prepared, data: &DataSources, cancel: &Cancel) -> Result<Self> {
        let hex = |hash: u128| format!("{hash:032x}");
        Ok(InputHashes {
            model: hex(prepared.model_hash(cancel)?),
            data: hex(digest::of_data(data, cancel)?),
        })
    }

    /// Checks that model and data are those of the run.
    ///
    /// # Errors
    /// `Error::Input` with the model or the data if it differs.
    fn check(&self, run: &InputHashes, model: &Path, data: &DataSources) -> Result<()> {
        let (model, data) = (model.display().to_string(), data.to_string());
        for (what, path, now, before) in
            [("model", model, &self.model, &run.model), ("data", data, &self.data, &run.data)]
        {
            if now != before {
                return Err(Error::Input(format!(
                    "{path}: the {what} has changed since the run began, or is another one; a run is resumed with the same \
                     {what}: restore it, say where it is with `{what}`, or train anew"
                )));
            }
        }
        Ok(())
    }
}

/// A run that was stopped, to be continued from its last checkpoint.
#[derive(Debug)]
pub struct StoppedRun {
    /// The settings that it continues with.
    pub settings: RunSettings,
    pub(super) path: PathBuf,
    pub(super) facts: RunFacts,
    /// Whether its number of epochs or steps was raised.
    pub(super) raised: bool,
}

impl StoppedRun {
    /// Reads the last checkpoint in a run's folder, and overlays the run's settings with `changes`,
    /// settings by name.
    ///
    /// # Errors
    /// `Error::Usage` if there is no checkpoint, or a change would lead to another result;
    /// `Error::Input` if the checkpoint is damaged or of another version of the program.
    pub fn open(folder: &Path, changes: &Table) -> Result<Self> {
        recover(folder)?;
        let path = checkpoints(folder).pop().ok_or_else(|| Error::Usage(no_checkpoint(folder)))?;
        let fault = |problem: String| Error::file(&path, problem);
        let (stage, facts) = state_file::read_facts(&path)?;
        let version = env!("CARGO_PKG_VERSION");
        if facts.version != version {
            return Err(fault(format!(
                "the checkpoint is of version {} of this program, which is {version}; resume with that version",
                facts.version
            )));
        }
        let name = format!("the recipe in {}", path.display());
        let recipe = Recipe::parse(&TomlFile::from_text(name, facts.recipe.clone()))?;
        let (mut settings, _) = recipe.settings(Reader::Train)?;
        let raised = change(&mut settings, changes, stage)?;
        settings.place.output = folder.to_path_buf();
        Ok(StoppedRun { settings, path, facts, raised })
    }

    /// Checks that model and data are the run's, and returns what to say of other differences.
    ///
    /// # Errors
    /// `Error::Input`
    pub(super) fn check(&self, sources: &InputHashes, model: &Path, kernels: &str) -> Result<Option<String>> {
        sources.check(&self.facts.sources, model, &self.settings.place.data)?;
        let before = &self.facts.kernels;
        Ok((before != kernels).then(|| {
            format!(
                "matrix products are computed with {kernels} here, and with {before} where the checkpoint was written: \
                 the result may differ in its last digits from that of a run that was not stopped"
            )
        }))
    }
}

/// The checkpoints of a run that is under way.
pub(super) struct Checkpoints {
    facts: RunFacts,
    /// Seconds of the run before this process.
    earlier_seconds: f64,
    /// Seconds between two checkpoints; None: none are written.
    every: Option<f64>,
    /// Number of checkpoints to keep, and whether they stay when the run has finished.
    keep: usize,
    stay: bool,
    last: Instant,
    /// Seconds that the last checkpoint took.
    cost: Option<f64>,
    failed: bool,
}

impl Checkpoints {
    /// Hashes the run's model and data. If a run is continued, the hashes must be those of its
    /// checkpoint.
    ///
    /// # Errors
    /// Those of `InputHashes::of` and `StoppedRun::check`.
    pub fn new(
        prepared: &Prepared,
        settings: &RunSettings,
        stopped: Option<&StoppedRun>,
        cancel: &Cancel,
        listen: &mut dyn FnMut(&Event),
    ) -> Result<Self> {
        let place = &settings.place;
        let every = Some(60.0 * place.checkpoint_minutes).filter(|seconds| *seconds > 0.0);
        let kernels = instructions(settings.train.compute.dtype.precision()).to_string();
        let sources = if every.is_some() || stopped.is_some() {
            InputHashes::of(prepared, &place.data, cancel)?
        } else {
            InputHashes::default()
        };
        if let Some(stopped) = stopped
            && let Some(note) = stopped.check(&sources, &prepared.model.path, &kernels)?
        {
            listen(&Event::Warning(&note));
        }
        let before = stopped.map(|stopped| stopped.facts.clone()).unwrap_or_default();
        let earlier_seconds = before.seconds;
        let facts = RunFacts { version: env!("CARGO_PKG_VERSION").to_string(), kernels, sources, ..before };
        let (keep, stay) = (place.save_total.unwrap_or(1), place.save_total.is_some());
        Ok(Checkpoints {
            facts,
            earlier_seconds,
            every,
            keep,
            stay,
            last: Instant::now(),
            cost: None,
            failed: false,
        })
    }

    /// Seconds of the run before this process.
    pub fn earlier_seconds(&self) -> f64 {
        self.earlier_seconds
    }

    pub fn facts(&self) -> &RunFacts {
        &self.facts
    }

    pub fn facts_mut(&mut self) -> &mut RunFacts {
        &mut self.facts
    }

    /// Whether a checkpoint of a state with `parameters` trained values is due. At a milestone,
    /// which is an evaluation or the beginning of a stage, it is due unless its cost is more than a
    /// hundredth of the time since the last one.
    pub fn is_due(&self, milestone: bool, parameters: usize) -> bool {
        let since = self.last.elapsed().as_secs_f64();
        let cost = || self.cost.unwrap_or_else(|| estimated_seconds(parameters));
        self.every.is_some_and(|every| since >= every || milestone && since >= 100.0 * cost())
    }

    /// Writes a checkpoint. A failure does not end the run, and is reported once.
    pub fn write(
        &mut self,
        learner: &Learner,
        folder: &OutputFolder,
        logs: &mut Logs,
        seconds: f64,
        listen: &mut dyn FnMut(&Event),
    ) {
        let began = Instant::now();
        let path = folder.checkpoint(learner.steps_of_run());
        let mut write = || {
            self.facts.logs = logs.lengths(&self.facts.logs)?;
            self.facts.peak_rss_bytes = self.facts.peak_rss_bytes.max(peak_rss_bytes().unwrap_or(0));
            self.facts.seconds = seconds;
            learner.state.write_with(Some(&self.facts), &path)
        };
        match write() {
            Ok(()) => folder.remove_checkpoints(self.keep),
            Err(error) if !self.failed => {
                self.failed = true;
                listen(&Event::Warning(&format!("{error}; the run goes on without a new checkpoint")));
            }
            Err(_) => {}
        }
        let cost = began.elapsed().as_secs_f64();
        (self.cost, self.last) = (Some(cost), Instant::now());
        self.facts.checkpoint_seconds += cost;
    }

    /// Writes a last checkpoint, or removes all if a run that ended in this way cannot be
    /// continued.
    pub fn end(
        &mut self,
        learner: &Learner,
        status: Status,
        folder: &OutputFolder,
        logs: &mut Logs,
        seconds: f64,
        listen: &mut dyn FnMut(&Event),
    ) {
        match status {
            Status::Interrupted if self.every.is_some() => self.write(learner, folder, logs, seconds, listen),
            Status::Finished if self.stay => self.write(learner, folder, logs, seconds, listen),
            Status::Finished | Status::Diverged => folder.remove_checkpoints(0),
            // The run can be continued from the last checkpoint, so it stays.
            Status::Failed | Status::Interrupted | Status::Running | Status::Stopped => {}
        }
    }
}

/// Estimated seconds for a first checkpoint on a slow disk: a value and two moments for each
/// parameter.
fn estimated_seconds(parameters: usize) -> f64 {
    const BYTES_PER_SECOND: f64 = 3e8;
    const FLUSH_SECONDS: f64 = 0.02;
    FLUSH_SECONDS + (3 * size_of::<f32>() * parameters) as f64 / BYTES_PER_SECOND
}

/// Applies changes that are allowed; returns whether the run becomes longer.
fn change(settings: &mut RunSettings, changes: &Table, stage: Stage) -> Result<bool> {
    let (mut refused, mut raised) = (Vec::new(), false);
    let method = settings.train.adapter.method;
    for (name, value) in changes {
        let before = definition(name).and_then(|definition| (definition.get)(settings));
        let free = changes_no_result(name) && !FOLDER_SETTINGS.contains(&name.as_str());
        if before.as_ref() == Some(value) || free || RELOCATABLE_SETTINGS.contains(&name.as_str()) {
            continue;
        }
        let grows = before.as_ref().and_then(toml::Value::as_integer) < value.as_integer();
        if RAISABLE_SETTINGS.contains(&name.as_str()) && grows && before.is_some() {
            if stage == Stage::Sample || method == Method::AdaLora {
                let reason = match stage {
                    Stage::Sample => "in the sample stage, whose length depends on it".to_string(),
                    _ => format!("with `method = {method}`, whose ranks follow a schedule"),
                };
                return Err(Error::Usage(format!("`{}` cannot be raised {reason}", name.replace('-', "_"))));
            }
            raised = true;
            continue;
        }
        let before = before.map_or("not given".to_string(), |before| before.to_string());
        refused.push(format!("`{} = {value}` (the run: {before})", name.replace('-', "_")));
    }
    if !refused.is_empty() {
        return Err(Error::Usage(format!(
            "a run is resumed with its own settings, and these differ: {}; leave them out, or train anew",
            refused.join(", ")
        )));
    }
    settings.apply(changes)?;
    settings.validate()?;
    Ok(raised)
}

/// Why a folder has nothing to continue from.
fn no_checkpoint(folder: &Path) -> String {
    let shown = folder.display();
    match Summary::read(folder).map(|summary| summary.status) {
        Ok(Status::Finished) => format!(
            "{shown} has no checkpoint: the run has finished; with `save_total` its last checkpoint stays, and `epochs` can \
             be raised"
        ),
        Ok(Status::Diverged) => format!(
            "{shown} has no checkpoint: the run has diverged, and would again; train anew with a lower `learning_rate`"
        ),
        Ok(status) => format!(
            "{shown} has no checkpoint: the run ({status}) ended before the first one; train anew with `overwrite`"
        ),
        Err(_) => {
            format!("{shown} is not the folder of a run, or has no checkpoint; name the folder of a run")
        }
    }
}
