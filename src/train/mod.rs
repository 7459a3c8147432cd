//! The whole run: sample, score and assign, fine-tune, measure each epoch, keep the best, write everything.

mod learner;
mod memory;
mod optimiser;
mod output;
pub(crate) mod parts;
mod plan;
mod prepare;
mod reuse;
mod sample;

use std::path::Path;
use std::time::Instant;

use lora_drop_compute::profile;

use crate::assign::Assignment;
use crate::engine::thread_pool;
use crate::evaluate::Evaluation;
use crate::evaluate::metrics::Metric;
use crate::events::{EvaluationRecord, Event, Stage};
use crate::forecast::{InUse, PassPlan};
use crate::score::Importance;
use crate::settings::{Method, Selection, TrainSettings};
use crate::summary::Summary;
use crate::{Cancel, Error, Result};

pub use learner::{Learner, StageResult};
pub use optimiser::{Course, Optimiser};
pub use plan::plan;
pub use prepare::{Prepared, metric};
pub use sample::{Scored, scores};

use learner::{Next, Schedule};
use output::{Finished, RunLog, Stages};

/// Runs everything that the settings ask for and writes the output folder.
///
/// Raising `cancel` ends the run within a part of a step. If an epoch had been measured by then, its state is
/// in the output folder and the summary says `interrupted`; otherwise the error is `Interrupted`. A
/// `profile::Recorder` that records on the calling thread gets all optimiser steps.
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
    let prepared = Prepared::read(settings, listen)?;
    let selection = (settings.method == Method::LoraDrop).then(|| settings.selection());
    let first = first_assignment(&prepared, settings)?;
    let (mut learner, plan) = load(&prepared, settings, &first, true, listen)?;
    learner.settle(&plan);
    let forecast = plan.forecast;
    settings.prepare_output()?;
    let mut log = RunLog::create(&settings.output)?;
    listen(&Event::Wrote(&settings.output.join("metrics.jsonl")));
    let mut first_step = None;
    let mut both = |event: &Event| {
        if let Event::Step(_) = event {
            first_step.get_or_insert_with(|| began.elapsed());
        }
        log.record(event);
        listen(event);
    };

    let (scored, assignment) = match selection {
        None | Some(Selection::Layers(_)) => (None, first),
        Some(_) => {
            let scored = sample::run(&prepared, settings, &mut learner, cancel, &mut both)?;
            let assignment = scored.assignment.clone();
            (Some(scored), assignment)
        }
    };
    if let Some(scored) = &scored {
        output::write_importance(&prepared, settings, &scored.importance, &assignment, &mut both)?;
        learner.begin_again(&prepared, settings, &assignment)?;
    }
    let stages = scored.map(|s| Stages { importance: s.importance, seconds: s.seconds });
    let reused = learner.reuse_below(settings, prepared.data.train().len())?;
    if reused > 0 {
        both(&Event::Reusing { blocks: reused });
    }
    let fit = fit(&mut learner, &prepared, settings, cancel, &mut both)?;
    let startup_seconds = first_step.unwrap_or_default().as_secs_f64();
    let finished = Finished {
        prepared: &prepared,
        settings,
        learner: &learner,
        assignment,
        stages,
        fit,
        forecast,
        began,
        startup_seconds,
    };
    finished.write(log, listen)
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

/// What fine-tuning did.
pub struct Fit {
    pub result: StageResult,
    /// The epoch of the best measurement, from 1, and that measurement.
    pub best: (usize, Evaluation),
    /// Whether `cancel` ended it.
    pub interrupted: bool,
    pub evaluate_seconds: f64,
}

/// Fine-tunes on the whole training set, measures each epoch on dev and writes the best so far.
fn fit(
    learner: &mut Learner,
    prepared: &Prepared,
    settings: &TrainSettings,
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Event),
) -> Result<Fit> {
    let began = Instant::now();
    let examples = prepared.data.train();
    let rows: Vec<usize> = (0..examples.len()).collect();
    let batch = settings.batch_size * settings.grad_accumulation;
    let per_epoch = rows.len().div_ceil(batch);
    let steps = settings.epochs * per_epoch;
    let course = Course::new(settings.schedule, settings.warmup_ratio, steps);
    let schedule = Schedule { stage: Stage::Train, rows: &rows, batch, epochs: settings.epochs, course };
    let tokens = settings.epochs * examples.tokens();
    listen(&Event::StageStart { stage: Stage::Train, steps, rows: rows.len(), tokens });

    let mut best: Option<(usize, Evaluation)> = None;
    let mut evaluate_seconds = 0.0;
    let mut after =
        |learner: &mut Learner, step: usize, _: Option<&mut _>, listen: &mut dyn FnMut(&Event)| {
            if !step.is_multiple_of(per_epoch) {
                return Ok(Next::GoOn);
            }
            let epoch = step / per_epoch;
            let found = learner.measure(prepared, cancel, listen)?;
            evaluate_seconds += found.seconds;
            let value = |e: &Evaluation| deciding(e, prepared.metric);
            let is_best = best.as_ref().is_none_or(|(_, before)| value(&found) > value(before));
            listen(&Event::Evaluation(&EvaluationRecord {
                epoch,
                step,
                loss: found.loss,
                metrics: found.metrics.clone(),
                best: is_best,
            }));
            if is_best {
                output::save_best(prepared, settings, learner, listen)?;
                best = Some((epoch, found));
            }
            Ok(Next::GoOn)
        };
    let outcome = learner.run(&schedule, settings, examples, None, cancel, listen, &mut after);
    let (result, interrupted) = match outcome {
        (result, Ok(())) => (result, false),
        (result, Err(Error::Interrupted)) if best.is_some() => (result, true),
        (_, Err(error)) => return Err(error),
    };
    let best = best.ok_or_else(|| Error::Input("no epoch was measured".into()))?;
    listen(&Event::StageEnd { stage: Stage::Train, seconds: began.elapsed().as_secs_f64() });
    Ok(Fit { result, best, interrupted, evaluate_seconds })
}

/// The value of the metric that decides, so that more is better.
fn deciding(evaluation: &Evaluation, metric: Metric) -> f64 {
    let found = evaluation.metrics.iter().find(|(name, _)| name == metric.name());
    let sign = if metric.higher_is_better() { 1.0 } else { -1.0 };
    found.map_or(f64::NEG_INFINITY, |(_, value)| sign * *value)
}

/// The sample stage and the scoring alone: stages 1 and 2, or with `adapter` the scoring of that adapter as it
/// is. Writes importance.json into the output folder.
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
    settings.check_output()?;
    thread_pool(settings.threads)?.install(|| {
        let prepared = Prepared::read(settings, listen)?;
        let (importance, assignment) = match adapter {
            None => {
                let all = Assignment::all_own(prepared.modules());
                let (mut learner, plan) = load(&prepared, settings, &all, false, listen)?;
                learner.settle(&plan);
                let scored = sample::run(&prepared, settings, &mut learner, cancel, listen)?;
                (scored.importance, scored.assignment)
            }
            Some(adapter) => sample::score_adapter(&prepared, settings, adapter, cancel, listen)?,
        };
        settings.prepare_output()?;
        output::write_importance(&prepared, settings, &importance, &assignment, listen)?;
        Ok((importance, assignment))
    })
}
