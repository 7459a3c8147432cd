//! Stages 1 and 2 of LoRA-drop: plain LoRA trains on the stratified sample until the ranking of the modules settles.
//!
//! The scores cost nothing: the training passes themselves collect Σ z zᵀ of each module (docs/method.md, step 3), over
//! windows of the sample, and B is taken as it is at the window's end.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use lora_drop_transformer::{Context, ModuleId, ModuleKind, Moments, Parameters};

use super::learner::{Learner, Next, Schedule, StageResult};
use super::optimiser::Course;
use super::prepare::Prepared;
use crate::adapter::{LoraBank, is_scored};
use crate::assign::assign;
use crate::assignment::Assignment;
use crate::data::batch::{self, PackedBatch};
use crate::data::sample::stratified;
use crate::data::text::PackedTexts;
use crate::data::{Label, TaskRows};
use crate::engine::{micro_tokens, sequences, texts};
use crate::events::{Event, Stage};
use crate::loaded::{Arithmetic, Loaded};
use crate::score::{Importance, Settling, Window, lora_output_score};
use crate::settings::{SampleEpochs, Schedule as Shape, Scope, Selection, TrainSettings};
use crate::{Cancel, Error, Result};

/// Steps between two scorings, at least: whole epochs of the sample where it is small.
const WINDOW: usize = 12;
/// With `auto`: the least and the most optimiser steps, see docs/method.md for the measurements.
const LEAST_STEPS: usize = 48;
const MOST_STEPS: usize = 120;
/// Settled: the assignment as at the scoring before, with Kendall's tau at least this.
const TAU: f64 = 0.8;
const AGREEMENTS: usize = 1;

/// What the sample stage found.
pub struct Scored {
    pub importance: Importance,
    pub assignment: Assignment,
    pub seconds: f64,
}

/// Draws the sample, trains on it a learner in which every module has a LoRA of its own, scores and assigns.
pub fn run(
    prepared: &Prepared,
    settings: &TrainSettings,
    learner: &mut Learner,
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Event),
) -> Result<Scored> {
    let began = Instant::now();
    let examples = prepared.data.train();
    let (rows, most) = extent(prepared, settings)?;
    let batch = settings.batch_size * settings.grad_accumulation;
    let per_epoch = rows.len().div_ceil(batch);
    let auto = settings.sample_epochs == SampleEpochs::Auto;
    let epochs = most.div_ceil(per_epoch);
    let windows = Windows::new(per_epoch, most);
    // How long the stage lasts is not known, so the rate stays where the warm-up has brought it.
    let warmup = Course::new(settings.schedule, settings.warmup_ratio, most.min(LEAST_STEPS)).warmup_steps;
    let course = Course { schedule: Shape::Constant, warmup_steps: warmup, steps: most };
    let schedule = Schedule { settings, stage: Stage::Sample, rows: &rows, batch, epochs, course };
    let tokens: usize = rows.iter().map(|&row| examples.length(row)).sum();
    let passed = tokens * most / per_epoch;
    listen(&Event::StageStart { stage: Stage::Sample, steps: most, rows: rows.len(), tokens: passed });

    let mut settling = Settling::new(settings.scope, TAU, AGREEMENTS);
    let mut moments = Moments::new();
    let mut found: Option<(Importance, Assignment)> = None;
    let mut history = Vec::new();
    let mut after = |learner: &mut Learner,
                     done: StageResult,
                     moments: Option<&mut Moments>,
                     listen: &mut dyn FnMut(&Event)| {
        let step = done.steps;
        let (Some(moments), at) = (moments, windows.at(step)) else { return Ok(Next::GoOn) };
        match at {
            At::Within => return Ok(Next::GoOn),
            At::Start => {
                *moments = Moments::new();
                return Ok(Next::GoOn);
            }
            At::End => {}
        }
        let (mut importance, assignment) = score(learner, moments, prepared, settings)?;
        *moments = Moments::new();
        let agreement = settling.observe(&importance, &assignment);
        let settled = agreement.is_some_and(|a| a.settled);
        if let Some(agreement) = agreement {
            history.push((step, agreement.tau));
            listen(&Event::Rescored { step, tau: agreement.tau, settled });
        }
        importance.steps = step;
        importance.window = schedule.extent(settings.seed, step - windows.length..step, examples);
        importance.settled = settled;
        found = Some((importance, assignment));
        let enough = step >= most || auto && settled && step >= LEAST_STEPS;
        Ok(if enough { Next::Enough } else { Next::GoOn })
    };
    learner.run(&schedule, examples, Some(&mut moments), cancel, listen, &mut after)?;
    let (mut importance, assignment) =
        found.ok_or_else(|| Error::Input("the sample stage made no step".into()))?;
    importance.rows = rows.len();
    importance.tokens = tokens;
    importance.micro_tokens = learner.passes().cut.micro_tokens;
    importance.history = history;
    let seconds = began.elapsed().as_secs_f64();
    listen(&Event::StageEnd { stage: Stage::Sample, seconds });
    if auto && !importance.settled {
        listen(&Event::Warning(&format!(
            "the ranking of the modules had not settled after {} steps on the sample; a larger --sample-ratio or \
             --sample-epochs N trains longer",
            importance.steps
        )));
    }
    listen(&Event::Importance(&importance));
    listen(&Event::Assignment(&assignment));
    Ok(Scored { importance, assignment, seconds })
}

/// The sample's rows, and optimiser steps that the stage makes at most; none where the layers are named.
pub fn extent(prepared: &Prepared, settings: &TrainSettings) -> Result<(Vec<usize>, usize)> {
    if let Selection::Layers(_) = settings.selection() {
        return Ok((Vec::new(), 0));
    }
    let rows = stratified(&train_labels(prepared)?, settings.sample_ratio, settings.seed);
    let steps = match settings.sample_epochs {
        SampleEpochs::Epochs(n) => n * rows.len().div_ceil(settings.batch_size * settings.grad_accumulation),
        SampleEpochs::Auto => {
            let window = window(rows.len().div_ceil(settings.batch_size * settings.grad_accumulation));
            MOST_STEPS / window * window
        }
    };
    Ok((rows, steps))
}

/// Steps between scorings: whole epochs, or even parts of a long one.
fn window(per_epoch: usize) -> usize {
    if per_epoch >= 2 * WINDOW {
        per_epoch.div_ceil(per_epoch / WINDOW)
    } else {
        per_epoch * WINDOW.div_ceil(per_epoch)
    }
}

/// The steps that scores cover: whole windows, the last of which ends with the stage. Where the stage is no whole number of
/// windows, its first steps are in none, so that no score comes from less.
struct Windows {
    /// In steps.
    length: usize,
    /// Steps before the first window.
    ahead: usize,
}

/// What a step is to the windows.
#[derive(Debug, PartialEq)]
enum At {
    Within,
    /// A window starts behind it, the first.
    Start,
    End,
}

impl Windows {
    fn new(per_epoch: usize, most: usize) -> Self {
        let length = window(per_epoch).min(most);
        Windows { length, ahead: most % length }
    }

    fn at(&self, step: usize) -> At {
        match step.checked_sub(self.ahead) {
            Some(0) => At::Start,
            Some(done) if done.is_multiple_of(self.length) => At::End,
            _ => At::Within,
        }
    }
}

/// Scores an adapter as it is, on the sample: one forward pass collects the moments.
pub fn score_adapter(
    prepared: &Prepared,
    settings: &TrainSettings,
    adapter: &Path,
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Event),
) -> Result<(Importance, Assignment)> {
    let Loaded { model, parameters, bank, table, mut memory, .. } =
        Loaded::open(&settings.model, Some(adapter), Arithmetic::of(settings))?;
    if !is_scored(bank.method()) {
        return Err(Error::Usage(format!(
            "{}: a {} adapter, whose output is not s·B A x alone, and scores are of that; train one with --method lora",
            adapter.display(),
            bank.method().title()
        )));
    }
    let examples = prepared.data.train();
    let rows = stratified(&train_labels(prepared)?, settings.sample_ratio, settings.seed);
    let lengths: Vec<usize> = rows.iter().map(|&row| examples.length(row)).collect();
    let began = Instant::now();
    let (mut moments, mut done, of) = (Moments::new(), 0, lengths.iter().sum());
    listen(&Event::StageStart { stage: Stage::Evaluate, steps: 0, rows: rows.len(), tokens: of });
    if model.outputs.is_some() != prepared.data.labels().is_some() {
        let (has, task) = match model.outputs {
            Some(_) => ("a head", "classification or regression"),
            None => ("no head", "text"),
        };
        return Err(Error::Usage(format!(
            "{}: the adapter has {has}, so it is scored on rows for --task {task}",
            adapter.display()
        )));
    }
    let micro_tokens = micro_tokens(&model);
    for part in batch::evaluation_batches(&lengths, micro_tokens) {
        let part: Vec<usize> = part.into_iter().map(|i| rows[i]).collect();
        let (values, memory, stop) = (parameters.read(), &mut memory, cancel.flag());
        let context = Context { values, table: &table, moments: Some(&mut moments), memory, stop };
        match examples {
            TaskRows::Text(examples) => {
                let batch = PackedTexts::pack(examples, part.iter().copied());
                model.net.losses(context, texts(&batch)).map(drop)?;
            }
            TaskRows::Labelled(examples) => {
                let batch = PackedBatch::of_rows(examples, &part);
                model.net.outputs(context, sequences(&batch)).map(drop)?;
            }
        }
        done += part.iter().map(|&row| examples.length(row)).sum::<usize>();
        listen(&Event::Evaluating { done, of });
    }
    listen(&Event::StageEnd { stage: Stage::Evaluate, seconds: began.elapsed().as_secs_f64() });
    let scores = scores(&bank, &parameters, &moments);
    check_finite(&scores, prepared)?;
    if let Some(kind) = unlearned(&scores, settings.scope) {
        return Err(Error::Input(format!(
            "{}: the LoRA outputs of every {} are all zero: nothing was learned there, so nothing can be ranked",
            adapter.display(),
            prepared.short_name(kind)
        )));
    }
    let mut importance = Importance::from_scores(&scores, settings.scope);
    (importance.rows, importance.tokens, importance.micro_tokens) = (rows.len(), of, micro_tokens);
    importance.window = Window { steps: 0, rows: rows.len(), tokens: of };
    let size = |kind| {
        let pair = bank.pairs().iter().find(|pair| pair.kind == kind);
        pair.map_or(0, |pair| pair.parameters())
    };
    let assignment = assign(&importance, settings.selection(), settings.scope, settings.unselected, size)?;
    listen(&Event::Importance(&importance));
    listen(&Event::Assignment(&assignment));
    Ok((importance, assignment))
}

fn train_labels(prepared: &Prepared) -> Result<Vec<Label>> {
    prepared.data.strata().ok_or_else(|| Error::Input("the train split has rows without labels".into()))
}

/// g of every module of the bank (docs/method.md, step 3).
pub fn scores(bank: &LoraBank, parameters: &Parameters, moments: &Moments) -> BTreeMap<ModuleId, f64> {
    let modules = bank.modules().keys();
    let scored = modules.filter_map(|&module| {
        let (pair, moment) = (bank.pair_of(module)?, moments.get(module)?);
        // The moments are of z = s·A x, so the scale is in them already.
        Some((module, lora_output_score(parameters.value(pair.lora.b), moment, 1.0)))
    });
    scored.collect()
}

fn check_finite(scores: &BTreeMap<ModuleId, f64>, prepared: &Prepared) -> Result<()> {
    match scores.iter().find(|(_, score)| !score.is_finite()) {
        None => Ok(()),
        Some((module, score)) => Err(Error::NotFinite(format!(
            "the score of layer {}'s {} is {score}: its LoRA's output is too large for a number; try a lower \
             --learning-rate",
            module.layer,
            prepared.short_name(module.kind)
        ))),
    }
}

/// A module type whose scores are all zero, so that its modules have no order; with one ranking for all, if all scores are.
fn unlearned(scores: &BTreeMap<ModuleId, f64>, scope: Scope) -> Option<ModuleKind> {
    let learned = |kind| scores.iter().any(|(id, &g)| g != 0.0 && (scope == Scope::Layer || id.kind == kind));
    scores.keys().map(|id| id.kind).find(|&kind| !learned(kind))
}

/// Scores from the moments and the LoRA as it is now, and the assignment that follows.
pub fn score(
    learner: &Learner,
    moments: &Moments,
    prepared: &Prepared,
    settings: &TrainSettings,
) -> Result<(Importance, Assignment)> {
    let scores = scores(&learner.bank, &learner.parameters, moments);
    check_finite(&scores, prepared)?;
    if let Some(kind) = unlearned(&scores, settings.scope) {
        return Err(Error::Input(format!(
            "the LoRA outputs of every {} are all zero: nothing was learned on the sample; train longer (--sample-epochs, \
             --sample-ratio) or with a higher --learning-rate",
            prepared.short_name(kind)
        )));
    }
    let importance = Importance::from_scores(&scores, settings.scope);
    let size = |kind| prepared.adapter_size(kind, settings.rank);
    let assignment = assign(&importance, settings.selection(), settings.scope, settings.unselected, size)?;
    Ok((importance, assignment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_whole_epochs_or_even_parts() {
        assert_eq!(window(1), 12);
        assert_eq!(window(5), 15);
        assert_eq!(window(12), 12);
        assert_eq!(window(20), 20);
        assert_eq!(window(24), 12);
        assert_eq!(window(211), 13);
    }

    /// Over all lengths of an epoch: every scoring covers a full window, windows do not overlap, and the last ends with the stage.
    #[test]
    fn no_score_comes_from_less_than_a_full_window() {
        for per_epoch in 1..=400 {
            let auto = MOST_STEPS / window(per_epoch) * window(per_epoch);
            assert!(auto >= LEAST_STEPS, "{per_epoch}");
            for most in [auto, per_epoch, 2 * per_epoch, 3 * per_epoch, 7 * per_epoch] {
                let windows = Windows::new(per_epoch, most);
                let (mut covered, mut scored) = (0, 0);
                for step in 1..=most {
                    covered += 1;
                    match windows.at(step) {
                        At::Within => {}
                        At::Start => covered = 0,
                        At::End => {
                            assert_eq!(covered, windows.length, "{per_epoch} steps an epoch, {most} in all");
                            (covered, scored) = (0, step);
                        }
                    }
                }
                assert_eq!(scored, most, "{per_epoch} steps an epoch");
                // Short epochs are in windows as wholes, so that each row counts as often as any other.
                let whole = per_epoch >= 2 * WINDOW || windows.length.is_multiple_of(per_epoch);
                assert!(whole && (windows.length >= WINDOW || windows.length == most), "{per_epoch}");
            }
        }
    }
}
