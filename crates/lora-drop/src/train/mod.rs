//! Training: the whole run from files ([`run`]) or in memory ([`Training`]): sample, score and
//! assign, fine-tune, measure each epoch, keep the best. [`Learner`], [`StageSchedule`] and
//! [`Hooks`] are the loop for code that trains by steps.

mod activation_cache;
mod adalora;
mod auto_budget;
mod baseline;
mod checkpoint;
mod findings;
mod finetune;
mod fit;
mod learner;
mod logs;
mod memory;
mod optimiser;
mod parts;
mod plan;
pub(crate) mod prepare;
mod probe;
mod run_output;
mod sample_stage;
mod samples;
mod schedule;
mod shared_parts;
mod sparse;
mod stage;
mod state;
mod state_file;
mod training;
mod windows;

use std::path::{Path, PathBuf};
use std::time::Instant;

use lora_drop_compute::profile;

use crate::assignment::{Assignment, Owner};
use crate::engine::thread_pool;
use crate::estimate::{BaselineRss, PassPlan};
use crate::events::{Event, Stage};
use crate::rank_agreement;
use crate::ranks::Ranks;
use crate::run_record::Page;
use crate::score::record::Record;
use crate::score::{Criterion, Importance, criterion};
use crate::settings::{Method, RunSettings, Selection, TrainSettings};
use crate::summary::Summary;
use crate::{Cancel, Error, Result};

pub use crate::engine::Cut;
pub use crate::estimate::Passes;
pub(crate) use checkpoint::RELOCATABLE_SETTINGS;
pub use checkpoint::StoppedRun;
pub use finetune::{FinetunedAdapter, finetune_adapter};
pub use learner::Learner;
pub use optimiser::{LearningRateSchedule, Optimiser};
pub use plan::plan;
pub use prepare::{Prepared, metric};
pub use sample_stage::SampleStage;
pub use schedule::StageSchedule;
pub use stage::{Hooks, Next};
pub use state::{Best, Progress, TrainState};
pub use training::{TrainedAdapter, Training};

use checkpoint::Checkpoints;
use run_output::RunOutput;
use training::InMemory;

/// Runs everything that the settings ask for and writes the output folder; `page` makes the text of
/// its report.html, once the modules are scored, at each evaluation and at the end.
///
/// Raising `cancel` ends the run within a part of a step. However it ends, the best epoch measured
/// so far is complete in the output folder, and the summary's status and error say what happened. A
/// `profile::Recorder` that records on the calling thread gets all optimiser steps.
///
/// # Errors
/// Those of settings, model and data; and whatever ended a run before its first epoch was measured:
/// a run that was to be replaced is then unchanged.
pub fn run(
    settings: &RunSettings,
    page: Option<Page>,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Summary> {
    let summary = run_on(&Ranks::default(), settings, page, cancel, listen)?;
    Ok(summary.expect("the first rank has a summary"))
}

/// Continues a stopped run in its folder; the result is bit-identical to that of a run that was not
/// stopped. Takes and returns what `run` does.
///
/// # Errors
/// Those of `run`; the model or the data differ from the run's; the checkpoint does not fit them.
pub fn resume(
    run: &StoppedRun,
    page: Option<Page>,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Summary> {
    let summary = resume_on(&Ranks::default(), run, page, cancel, listen)?;
    Ok(summary.expect("the first rank has a summary"))
}

/// Does what `run` does, together with the other ranks of a job, all of which call it. Results are
/// bit-identical to those of one process, except after full fine-tuning, where they depend on the
/// number of ranks. The first rank alone writes the output folder, has a page, and returns the
/// summary.
///
/// Raising `cancel` on one rank ends the run on all, after the same step. An error on one is an
/// error on all.
///
/// # Errors
/// Those of `run`, and `Error::Ranks` where ranks differ, one has failed or the exchange has.
pub fn run_on(
    ranks: &Ranks,
    settings: &RunSettings,
    page: Option<Page>,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Option<Summary>> {
    let checked = settings.validate().and_then(|()| match ranks.is_first() {
        true => settings.check_output(),
        false => Ok(()),
    });
    ranks.agree(checked)?;
    install(ranks, settings, page, None, cancel, listen)
}

/// Does what `resume` does, together with the other ranks of a job. Their number may differ from
/// that of the stopped run. All ranks read the checkpoint.
///
/// # Errors
/// Those of `resume` and `run_on`.
pub fn resume_on(
    ranks: &Ranks,
    run: &StoppedRun,
    page: Option<Page>,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Option<Summary>> {
    install(ranks, &run.settings, page, Some(run), cancel, listen)
}

fn install(
    ranks: &Ranks,
    settings: &RunSettings,
    page: Option<Page>,
    stopped: Option<&StoppedRun>,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Option<Summary>> {
    let began = Instant::now();
    let pool = ranks.agree(thread_pool(ranks.threads(settings.train.compute.threads)))?;
    profile::install(&pool, || run_here(ranks, settings, page, (stopped, began), cancel, listen))
}

fn run_here(
    ranks: &Ranks,
    settings: &RunSettings,
    page: Option<Page>,
    (stopped, began): (Option<&StoppedRun>, Instant),
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Option<Summary>> {
    rank_agreement::on_settings(ranks, settings, cancel, listen)?;
    let mut prepared = ranks.agree(Prepared::read(settings, false, cancel, listen))?;
    prepared.ranks = ranks.clone();
    rank_agreement::on_sources(ranks, &prepared, cancel)?;
    let first = ranks.agree(first_assignment(&prepared, &settings.train))?;
    let (mut learner, plan) = load_alike(ranks, &prepared, &settings.train, &first, listen)?;
    learner.use_plan(&plan);
    let criterion = criterion(settings.train.selection.criterion);
    if let Some(stopped) = stopped {
        ranks.agree(learner.restore(&settings.train, criterion, &stopped.path))?;
        listen(&Event::Resumed { stage: learner.state.stage, steps: learner.state.optimiser.steps });
    }
    rank_agreement::on_start(ranks, &learner.state.parameters)?;
    let run_stages =
        |learner: &mut Learner, sink: &mut dyn RunSink, listen: &mut (dyn FnMut(&Event) + Send)| {
            ranks.agree(stages(learner, &prepared, &settings.train, criterion, sink, cancel, listen))
        };
    if !ranks.is_first() {
        let mut in_memory = ranks.agree(InMemory::new(false))?;
        return run_stages(&mut learner, &mut in_memory, listen).map(|()| None);
    }
    let output = Checkpoints::new(&prepared, settings, stopped, cancel, listen).and_then(|checkpoints| {
        let facts = (plan.estimate, checkpoints, began);
        RunOutput::begin(&prepared, settings, page, &learner, stopped, facts, listen)
    });
    let mut output = ranks.agree(output)?;
    let outcome = run_stages(&mut learner, &mut output, listen);
    output.finish(&learner, outcome, listen).map(Some)
}

/// Loads the model as `load` does, with steps cut as on the first rank: under `memory_limit` the
/// cut depends on the memory and the threads of a process.
///
/// # Errors
/// Those of `load` on any rank.
fn load_alike(
    ranks: &Ranks,
    prepared: &Prepared,
    settings: &TrainSettings,
    assignment: &Assignment,
    listen: &mut dyn FnMut(&Event),
) -> Result<(Learner, PassPlan)> {
    let loaded = ranks.agree(load(prepared, settings, assignment, true, listen))?;
    let cut = (loaded.1.passes.cut.micro_tokens, loaded.1.passes.recompute);
    let first = ranks.exchange(Ok(cut))?.remove(0);
    if cut == first {
        return ranks.agree(Ok(loaded));
    }
    let mut settings = settings.clone();
    (settings.compute.micro_tokens, settings.compute.recompute) = (Some(first.0), first.1);
    ranks.agree(load(prepared, &settings, assignment, true, listen))
}

/// Takes what a run produces: into its output folder, or into memory.
trait RunSink {
    /// Folder for files that are removed when the run ends.
    fn scratch(&self) -> PathBuf;

    /// Records an event.
    fn record(&mut self, event: &Event, listen: &mut dyn FnMut(&Event));

    /// Takes the scores.
    ///
    /// # Errors
    /// Those of the disk.
    fn save_scores(
        &mut self,
        learner: &Learner,
        record: &Record,
        listen: &mut dyn FnMut(&Event),
    ) -> Result<()>;

    /// Takes the results of an evaluation and, if it is the best so far, the model as it is now.
    /// Returns the paths of the files that were written.
    ///
    /// # Errors
    /// `Error::NotFinite` where a trained value is infinite or NaN; those of the disk. The best
    /// epoch then stays the previous one.
    fn save_evaluation(&mut self, learner: &mut Learner, best: Option<Best>) -> Result<Vec<PathBuf>>;

    /// Called after each step, and with `milestone` after an evaluation and where a stage begins:
    /// writes a checkpoint if it is time for one.
    fn checkpoint_if_due(&mut self, learner: &Learner, milestone: bool, listen: &mut dyn FnMut(&Event));
}

/// Hooks of the stages before fine-tuning, which are not evaluated.
struct SinkHooks<'a> {
    sink: &'a mut dyn RunSink,
    listen: &'a mut (dyn FnMut(&Event) + Send),
}

impl Hooks for SinkHooks<'_> {
    fn after_step(&mut self, learner: &mut Learner) -> Result<Next> {
        self.sink.checkpoint_if_due(learner, false, self.listen);
        Ok(Next::Continue)
    }

    fn on_event(&mut self, event: &Event) {
        self.sink.record(event, self.listen);
        (self.listen)(event);
    }
}

/// Everything between loading and the end: sample, score and assign where the method does, then
/// fine-tune.
fn stages(
    learner: &mut Learner,
    prepared: &Prepared,
    settings: &TrainSettings,
    criterion: &dyn Criterion,
    sink: &mut dyn RunSink,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<()> {
    if learner.state.progress.baseline.is_none() {
        baseline::measure(learner, prepared, cancel, listen)?;
    }
    if learner.state.progress.importance.is_none()
        && let Some(record) = prepared.scores(settings)
    {
        listen(&Event::Importance(&record.importance));
        listen(&Event::Assignment(&record.assignment));
        learner.state.progress.importance = Some(record.importance.clone());
        sink.save_scores(learner, record, listen)?;
    }
    if learner.state.stage == Stage::Sample {
        let mut hooks = SinkHooks { sink: &mut *sink, listen: &mut *listen };
        if settings.adapter.method == Method::SparseAdapter {
            sparse::run(prepared, settings, learner, &mut hooks, cancel)?;
        } else {
            let (importance, assignment) =
                sample_stage::run(prepared, settings, criterion, learner, &mut hooks, cancel)?;
            let record = Record::new(&settings.selection, criterion, importance, assignment);
            learner.state.progress.assignment = record.assignment.clone();
            learner.begin_training(settings, &record.assignment)?;
            sink.save_scores(learner, &record, listen)?;
        }
        sink.checkpoint_if_due(learner, true, listen);
    }
    match learner.cache_lower_blocks(settings, prepared.data.train().len(), &sink.scratch()) {
        Ok(0) => {}
        Ok(blocks) => listen(&Event::Reusing { blocks }),
        Err(error) => listen(&Event::Warning(&format!(
            "{error}; the lower blocks are computed in each epoch, as with `activation_cache = 0`"
        ))),
    }
    fit::run(learner, prepared, settings, sink, cancel, listen)
}

/// The assignment that a run starts with: that of given scores, of an adapter or of named layers,
/// or one pair for each module (for each module type if the method ties pairs).
fn first_assignment(prepared: &Prepared, settings: &TrainSettings) -> Result<Assignment> {
    if let Some(record) = prepared.scores(settings) {
        return Ok(record.assignment.clone());
    }
    if let Some(adapter) = &prepared.init_adapter
        && settings.selection.keep_layers.is_none()
    {
        let mut assignment = adapter.assignment();
        for module in prepared.modules() {
            assignment.owners.entry(module).or_insert(Owner::None);
        }
        return Ok(assignment);
    }
    match (settings.adapter.method, settings.selection.rule()) {
        (Method::LoraDrop, Selection::Layers(layers)) => {
            Assignment::of_layers(prepared.modules(), &layers, settings.selection.rest())
        }
        (method, _) if method.ties_pairs() => Ok(Assignment::all_shared(prepared.modules())),
        _ => Ok(Assignment::all_own(prepared.modules())),
    }
}

/// Loads the model with the LoRAs that it starts with, and plans the memory of what follows: the
/// whole run, or with `train` false the sample stage alone.
fn load(
    prepared: &Prepared,
    settings: &TrainSettings,
    assignment: &Assignment,
    train: bool,
    listen: &mut dyn FnMut(&Event),
) -> Result<(Learner, PassPlan)> {
    let before = BaselineRss::measure();
    let learner = Learner::new(prepared, settings, assignment)?;
    let plan = memory::plan(prepared, settings, &learner, before, train)?;
    listen(&Event::Memory(&plan.estimate));
    Ok((learner, plan))
}

/// Runs the sample stage and the scoring alone, or with `adapter` scores that adapter. Writes
/// importance.json into the output folder and nothing else.
///
/// # Errors
/// Those of settings, model, data and adapter; a method without scores; scores that are not finite;
/// interrupted.
pub fn score(
    settings: &RunSettings,
    adapter: Option<&Path>,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<(Importance, Assignment)> {
    settings.validate()?;
    if let Selection::Layers(_) = settings.train.selection.rule() {
        let message =
            "`keep_layers` needs no scores; give `threshold`, `top_k` or `budget` to see a choice by them";
        return Err(Error::Usage(message.to_string()));
    }
    settings.check_importance()?;
    thread_pool(settings.train.compute.threads)?.install(|| {
        let prepared = Prepared::read(settings, adapter.is_some(), cancel, listen)?;
        let criterion = criterion(settings.train.selection.criterion);
        let (importance, assignment) = match adapter {
            None => {
                let all = Assignment::all_own(prepared.modules());
                let (mut learner, plan) = load(&prepared, &settings.train, &all, false, listen)?;
                learner.use_plan(&plan);
                sample_stage::run(
                    &prepared,
                    &settings.train,
                    criterion,
                    &mut learner,
                    &mut |event: &Event| listen(event),
                    cancel,
                )?
            }
            Some(adapter) => {
                sample_stage::score_adapter(&prepared, &settings.train, criterion, adapter, cancel, listen)?
            }
        };
        std::fs::create_dir_all(&settings.place.output).map_err(|e| Error::io(&settings.place.output, e))?;
        settings.check_importance()?;
        let path = settings.place.output.join("importance.json");
        let record = Record::new(&settings.train.selection, criterion, importance, assignment);
        run_output::write_importance(&prepared, &record, &path)?;
        listen(&Event::Wrote(&path));
        Ok((record.importance, record.assignment))
    })
}
