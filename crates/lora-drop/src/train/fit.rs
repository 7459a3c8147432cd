//! Fine-tuning, the last stage: each epoch is measured on dev, and the best so far is written.

use std::time::Instant;

use super::RunSink;
use super::adalora::AdaLora;
use super::findings;
use super::learner::Learner;
use super::prepare::Prepared;
use super::schedule::StageSchedule;
use super::sparse::MaskGradients;
use super::stage::{Hooks, Next};
use super::state::{Best, TrainState};
use crate::evaluate::Evaluation;
use crate::evaluate::metrics::Metric;
use crate::events::{EvaluationRecord, Event, Stage};
use crate::settings::{Method, TrainSettings};
use crate::{Cancel, Result, format};

/// Optimiser steps of a run below which there is a warning.
const FEW_STEPS: usize = 10;

/// Fine-tunes on the whole training set, measures each epoch on dev and writes the best so far.
pub fn run(
    learner: &mut Learner,
    prepared: &Prepared,
    settings: &TrainSettings,
    sink: &mut dyn RunSink,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<()> {
    let began = Instant::now();
    let examples = prepared.data.train();
    let before = learner.state.optimiser.steps;
    let schedule = StageSchedule::of_training(settings, examples.len());
    let (rows, steps, batch) = (examples.len(), schedule.steps, settings.optimisation.step_rows());
    let per_epoch = schedule.steps_per_epoch();
    let tokens = (steps - before) * examples.tokens() / per_epoch;
    let start = Event::StageStart { stage: Stage::Train, steps: steps - before, rows, tokens };
    sink.record(&start, listen);
    listen(&start);
    if steps < FEW_STEPS {
        listen(&Event::Warning(&format!(
            "the whole training is {steps} optimiser step{}, which is very few; more `epochs` or a smaller \
             `batch_size` (now {batch} of {rows} rows a step) makes more",
            if steps == 1 { "" } else { "s" },
        )));
    }
    let (method, whole): (Box<dyn Hooks>, usize) = match settings.adapter.method {
        Method::AdaLora => {
            let adalora = AdaLora::new(settings, &learner.bank, steps);
            let whole = adalora.end();
            (Box::new(adalora), whole)
        }
        Method::SparseAdapter => (Box::new(MaskGradients), 0),
        _ => (Box::new(|_: &Event| ()), 0),
    };
    let every = settings.optimisation.eval_steps.unwrap_or(per_epoch);
    let mut epochs =
        Epochs { prepared, settings, steps, per_epoch, every, method, whole, sink, cancel, listen };
    // A run may have been stopped between a step and its evaluation, or where it was to end early.
    let TrainState { progress, optimiser, .. } = &learner.state;
    let next = if progress.evaluated < optimiser.steps && epochs.evaluates_after(optimiser.steps) {
        epochs.evaluate(learner)?
    } else {
        epochs.next(learner)
    };
    if next == Next::Continue {
        learner.run(&schedule, examples, &mut epochs, cancel)?;
    }
    listen(&Event::StageEnd { stage: Stage::Train, seconds: began.elapsed().as_secs_f64() });
    Ok(())
}

/// Hooks of fine-tuning: they evaluate and write the model every `every` steps and after the last
/// step.
struct Epochs<'a> {
    prepared: &'a Prepared,
    settings: &'a TrainSettings,
    /// Number of steps in the run and in an epoch.
    steps: usize,
    per_epoch: usize,
    /// Steps between two evaluations.
    every: usize,
    /// The method's own hooks.
    method: Box<dyn Hooks>,
    /// The step from which on adapters have their final size. An evaluation before it is the best
    /// only until there is one after it.
    whole: usize,
    sink: &'a mut dyn RunSink,
    cancel: &'a Cancel,
    listen: &'a mut (dyn FnMut(&Event) + Send),
}

impl Hooks for Epochs<'_> {
    fn after_gradients(&mut self, learner: &mut Learner) -> Result<()> {
        self.method.after_gradients(learner)
    }

    fn after_step(&mut self, learner: &mut Learner) -> Result<Next> {
        self.method.after_step(learner)?;
        if self.evaluates_after(learner.state.optimiser.steps) {
            return self.evaluate(learner);
        }
        self.sink.checkpoint_if_due(learner, false, self.listen);
        Ok(Next::Continue)
    }

    fn on_event(&mut self, event: &Event) {
        self.sink.record(event, self.listen);
        (self.listen)(event);
    }
}

impl Epochs<'_> {
    /// Whether dev is evaluated after this step.
    fn evaluates_after(&self, step: usize) -> bool {
        step.is_multiple_of(self.every) || step == self.steps
    }

    /// Measures the model on dev, and writes it if it is the best so far.
    fn evaluate(&mut self, learner: &mut Learner) -> Result<Next> {
        let (prepared, step) = (self.prepared, learner.state.optimiser.steps);
        let epoch = step as f64 / self.per_epoch as f64;
        let found = learner.measure(prepared, self.cancel, self.listen)?;
        let progress = &mut learner.state.progress;
        progress.evaluate_seconds += found.seconds;
        let is_best = progress.best.as_ref().is_none_or(|best| {
            let first = step >= self.whole && best.step < self.whole;
            first || better(&found, best, prepared.metric)
        });
        let (metrics, best) = (found.metrics.clone(), is_best);
        let only_class = prepared.data.labels().and_then(|l| found.answers.only_class(l.names()));
        let record = EvaluationRecord { epoch, step, loss: found.loss, metrics, best, only_class };
        let best = if is_best {
            let began = Instant::now();
            let (settings, answers) = (self.settings, &found.answers);
            let dev = findings::collect(learner, prepared, settings, answers, self.cancel, self.listen);
            learner.state.progress.evaluate_seconds += began.elapsed().as_secs_f64();
            // Findings that were cut short are not written: the run that continues this one
            // evaluates again.
            self.cancel.check()?;
            Some(Best { epoch, step, loss: found.loss, metrics: found.metrics, dev })
        } else {
            None
        };
        self.on_event(&Event::Evaluation(&record));
        let written = self.sink.save_evaluation(learner, best)?;
        written.iter().for_each(|path| self.on_event(&Event::Wrote(path)));
        learner.state.progress.evaluated = step;
        self.sink.checkpoint_if_due(learner, true, self.listen);
        Ok(self.next(learner))
    }

    /// Ends training, with a note, if the best evaluation is too long ago.
    fn next(&mut self, learner: &Learner) -> Next {
        let TrainState { progress, optimiser, .. } = &learner.state;
        let step = optimiser.steps;
        let (Some(best), Some(patience)) = (&progress.best, self.settings.optimisation.early_stopping) else {
            return Next::Continue;
        };
        let since = (step / self.every).saturating_sub(best.step / self.every);
        if since < patience || step < self.whole || step == self.steps {
            return Next::Continue;
        }
        let (what, best) = match self.settings.optimisation.eval_steps {
            Some(_) => ("evaluation since step", best.step.to_string()),
            None => ("epoch since epoch", format::epoch(best.epoch)),
        };
        self.on_event(&Event::Note(&format!("training stops: no {what} {best} was better on dev")));
        Next::Stop
    }
}

/// Whether an evaluation is better than the best so far: by the metric that decides, and where that
/// is the same, by the loss.
fn better(found: &Evaluation, best: &Best, metric: Metric) -> bool {
    let value = |metrics: &[(String, f64)]| {
        let found = metrics.iter().find(|(name, _)| name == metric.name());
        let sign = if metric.higher_is_better() { 1.0 } else { -1.0 };
        found.map_or(f64::NEG_INFINITY, |(_, value)| sign * *value)
    };
    let (now, before) = (value(&found.metrics), value(&best.metrics));
    now > before || now == before && found.loss < best.loss
}
