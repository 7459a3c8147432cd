//! The whole run: sample, score and assign, fine-tune, measure each epoch, keep the best, write everything.

mod baseline;
mod findings;
mod learner;
mod memory;
mod optimiser;
mod output;
pub(crate) mod parts;
mod plan;
mod prepare;
mod reuse;
mod sample;
mod samples;
mod schedule;
mod stage;
mod state;
mod state_file;

use std::path::Path;
use std::time::Instant;

use lora_drop_compute::profile;

use crate::assignment::Assignment;
use crate::engine::thread_pool;
use crate::evaluate::Evaluation;
use crate::evaluate::metrics::Metric;
use crate::events::{EvaluationRecord, Event, Stage};
use crate::forecast::{InUse, PassPlan};
use crate::score::record::Record;
use crate::score::{CRITERIA, Importance};
use crate::settings::{Method, Selection, TrainSettings};
use crate::summary::Summary;
use crate::{Cancel, Error, Result};

pub use learner::Learner;
pub use optimiser::{Course, Optimiser};
pub use plan::plan;
pub use prepare::{Prepared, metric};
pub use sample::SampleStage;
pub use schedule::Schedule;
pub use stage::{Hooks, Next};
pub use state::{Best, Progress, TrainState};

use output::Output;

/// Optimiser steps of a run below which there is a warning.
const FEW_STEPS: usize = 10;

/// Runs everything that the settings ask for and writes the output folder.
///
/// Raising `cancel` ends the run within a part of a step. Whatever ends it, the best epoch that was measured by then is whole in
/// the output folder, and the summary's status and error say what happened; where no epoch was measured, that is the error, and
/// a run that was to be replaced is still there. A `profile::Recorder` that records on the calling thread gets all optimiser
/// steps.
pub fn run(
    settings: &TrainSettings,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Summary> {
    let began = Instant::now();
    settings.validate()?;
    settings.check_output()?;
    profile::install(&thread_pool(settings.threads)?, || run_here(settings, began, cancel, listen))
}

fn run_here(
    settings: &TrainSettings,
    began: Instant,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Summary> {
    let prepared = Prepared::read(settings, false, cancel, listen)?;
    let first = first_assignment(&prepared, settings)?;
    let (mut learner, plan) = load(&prepared, settings, &first, true, listen)?;
    learner.settle(&plan);
    let mut output = Output::begin(&prepared, settings, &learner, plan.forecast, began, listen)?;
    let outcome = stages(&mut learner, &prepared, settings, &mut output, cancel, listen);
    output.finish(&learner, outcome, listen)
}

/// Everything between loading and the end: sample, score and assign where the method does, then fine-tune.
fn stages(
    learner: &mut Learner,
    prepared: &Prepared,
    settings: &TrainSettings,
    output: &mut Output,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<()> {
    baseline::measure(learner, prepared, cancel, listen)?;
    if learner.state.stage == Stage::Sample {
        let mut both = |event: &Event| {
            output.record(event, listen);
            listen(event);
        };
        let criterion = CRITERIA[0];
        let (importance, assignment) =
            sample::run(prepared, settings, criterion, learner, &mut both, cancel)?;
        let record = Record::new(settings, criterion, importance, assignment);
        learner.state.progress.assignment = record.assignment.clone();
        output.scored(learner, &record, listen)?;
        learner.begin_training(settings, &record.assignment)?;
    }
    match learner.reuse_below(settings, prepared.data.train().len(), &output.scratch()) {
        Ok(0) => {}
        Ok(blocks) => listen(&Event::Reusing { blocks }),
        Err(error) => listen(&Event::Warning(&format!(
            "{error}; the lower blocks are computed in each epoch, as with --activation-cache 0"
        ))),
    }
    fit(learner, prepared, settings, output, cancel, listen)
}

/// The LoRAs that a run starts with: those that named layers leave, or one for each module.
fn first_assignment(prepared: &Prepared, settings: &TrainSettings) -> Result<Assignment> {
    match (settings.method, settings.selection()) {
        (Method::LoraDrop, Selection::Layers(layers)) => {
            Assignment::of_layers(prepared.modules(), &layers, settings.unselected)
        }
        _ => Ok(Assignment::all_own(prepared.modules())),
    }
}

/// Loads the model with the LoRAs that it starts with, and plans the memory of what follows: the whole run, or with `train`
/// false the sample stage alone.
fn load(
    prepared: &Prepared,
    settings: &TrainSettings,
    assignment: &Assignment,
    train: bool,
    listen: &mut dyn FnMut(&Event),
) -> Result<(Learner, PassPlan)> {
    let before = InUse::measure();
    let learner = Learner::new(prepared, settings, assignment)?;
    let plan = memory::plan(prepared, settings, &learner, before, train)?;
    listen(&Event::Memory(&plan.forecast));
    Ok((learner, plan))
}

/// Fine-tunes on the whole training set, measures each epoch on dev and writes the best so far.
fn fit(
    learner: &mut Learner,
    prepared: &Prepared,
    settings: &TrainSettings,
    output: &mut Output,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<()> {
    let began = Instant::now();
    let examples = prepared.data.train();
    let schedule = Schedule::of_training(settings, examples.len());
    let (rows, steps, batch) = (examples.len(), schedule.steps(), settings.step_rows());
    let tokens = settings.epochs * examples.tokens();
    listen(&Event::StageStart { stage: Stage::Train, steps, rows, tokens });
    if steps < FEW_STEPS {
        listen(&Event::Warning(&format!(
            "the whole training is {steps} optimiser step{}, which is hardly enough to learn from; more --epochs or a smaller \
             --batch-size (now {batch} of {rows} rows a step) makes more",
            if steps == 1 { "" } else { "s" },
        )));
    }
    let per_epoch = schedule.steps_per_epoch();
    let mut epochs = Epochs { prepared, settings, per_epoch, output, cancel, listen };
    learner.run(&schedule, examples, &mut epochs, cancel)?;
    listen(&Event::StageEnd { stage: Stage::Train, seconds: began.elapsed().as_secs_f64() });
    Ok(())
}

/// The hooks of fine-tuning: each epoch is measured and written.
struct Epochs<'a, 'o> {
    prepared: &'a Prepared,
    settings: &'a TrainSettings,
    /// In steps.
    per_epoch: usize,
    output: &'a mut Output<'o>,
    cancel: &'a Cancel,
    listen: &'a mut (dyn FnMut(&Event) + Send),
}

impl Hooks for Epochs<'_, '_> {
    fn after_step(&mut self, learner: &mut Learner) -> Result<Next> {
        let (prepared, step) = (self.prepared, learner.state.optimiser.steps);
        if !step.is_multiple_of(self.per_epoch) {
            return Ok(Next::GoOn);
        }
        let epoch = step / self.per_epoch;
        let found = learner.measure(prepared, self.cancel, self.listen)?;
        let progress = &mut learner.state.progress;
        progress.evaluate_seconds += found.seconds;
        let is_best = progress.best.as_ref().is_none_or(|best| better(&found, best, prepared.metric));
        self.tell(&Event::Evaluation(&EvaluationRecord {
            epoch,
            step,
            loss: found.loss,
            metrics: found.metrics.clone(),
            best: is_best,
            only_class: prepared.data.labels().and_then(|l| found.answers.only_class(l.names())),
        }));
        let mut best = None;
        if is_best {
            let began = Instant::now();
            let (settings, answers) = (self.settings, &found.answers);
            let dev = findings::of(learner, prepared, settings, answers, self.cancel, self.listen);
            learner.state.progress.evaluate_seconds += began.elapsed().as_secs_f64();
            best = Some(Best { epoch, loss: found.loss, metrics: found.metrics, dev });
        }
        let written = self.output.epoch(learner, best)?;
        written.iter().for_each(|path| self.tell(&Event::Wrote(path)));
        Ok(Next::GoOn)
    }

    fn tell(&mut self, event: &Event) {
        self.output.record(event, self.listen);
        (self.listen)(event);
    }
}

/// Whether an evaluation is better than the best so far: by the metric that decides, and where that is the same, by the loss.
fn better(found: &Evaluation, best: &Best, metric: Metric) -> bool {
    let value = |metrics: &[(String, f64)]| {
        let found = metrics.iter().find(|(name, _)| name == metric.name());
        let sign = if metric.higher_is_better() { 1.0 } else { -1.0 };
        found.map_or(f64::NEG_INFINITY, |(_, value)| sign * *value)
    };
    let (now, before) = (value(&found.metrics), value(&best.metrics));
    now > before || now == before && found.loss < best.loss
}

/// The sample stage and the scoring alone: stages 1 and 2, or with `adapter` the scoring of that adapter as it
/// is. Writes importance.json into the output folder, and touches nothing else there.
pub fn score(
    settings: &TrainSettings,
    adapter: Option<&Path>,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<(Importance, Assignment)> {
    settings.validate()?;
    if let Selection::Layers(_) = settings.selection() {
        let message =
            "--keep-layers needs no scores; give --threshold, --top-k or --budget to see a choice by them";
        return Err(Error::Usage(message.to_string()));
    }
    settings.check_importance()?;
    thread_pool(settings.threads)?.install(|| {
        let prepared = Prepared::read(settings, adapter.is_some(), cancel, listen)?;
        let criterion = CRITERIA[0];
        let (importance, assignment) = match adapter {
            None => {
                let all = Assignment::all_own(prepared.modules());
                let (mut learner, plan) = load(&prepared, settings, &all, false, listen)?;
                learner.settle(&plan);
                sample::run(
                    &prepared,
                    settings,
                    criterion,
                    &mut learner,
                    &mut |event: &Event| listen(event),
                    cancel,
                )?
            }
            Some(adapter) => sample::score_adapter(&prepared, settings, criterion, adapter, cancel, listen)?,
        };
        std::fs::create_dir_all(&settings.output).map_err(|e| Error::io(&settings.output, e))?;
        settings.check_importance()?;
        let path = settings.output.join("importance.json");
        let record = Record::new(settings, criterion, importance, assignment);
        output::write_importance(&prepared, &record, &path)?;
        listen(&Event::Wrote(&path));
        Ok((record.importance, record.assignment))
    })
}
