//! Stages 1 and 2 of LoRA-drop: plain LoRA trains on the stratified sample until the ranking of the modules settles.
//!
//! The scores cost nothing: the training passes themselves collect Σ z zᵀ of each module (paper.md, step 3), over
//! windows of the sample, and B is taken as it is at the window's end.

use std::collections::BTreeMap;
use std::time::Instant;

use lora_drop_transformer::{ModuleId, Moments};

use super::learner::{Learner, Next, Schedule};
use super::optimiser::Course;
use super::prepare::Prepared;
use crate::assign::{Assignment, assign};
use crate::data::sample::stratified;
use crate::events::{Event, Stage};
use crate::score::{Importance, Settling, lora_output_score};
use crate::settings::{SampleEpochs, Schedule as Course_, TrainSettings};
use crate::{Cancel, Error, Result};

/// Steps between two scorings, at least: whole epochs of the sample where it is small.
const WINDOW: usize = 12;
/// With `auto`: the least and the most optimiser steps, see docs/method.md for the measurements.
const LEAST_STEPS: usize = 48;
const MOST_STEPS: usize = 240;
/// Settled: the assignment unchanged twice in a row, with Kendall's tau at least this.
const TAU: f64 = 0.9;
const AGREEMENTS: usize = 2;

/// What the sample stage found.
pub struct Scored {
    pub importance: Importance,
    pub assignment: Assignment,
    /// The trained sample stage, for `--restart continue`.
    pub learner: Learner,
    pub seconds: f64,
}

/// Draws the sample, trains LoRA on it, scores and assigns.
pub fn run(
    prepared: &Prepared,
    settings: &TrainSettings,
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Event),
) -> Result<Scored> {
    let began = Instant::now();
    let examples = &prepared.data.train.examples;
    let labels = prepared.data.train.labels().ok_or_else(|| Error::Input("train has no labels".into()))?;
    let rows = stratified(&labels, settings.sample_ratio, settings.seed);
    let batch = settings.batch_size * settings.grad_accumulation;
    let per_epoch = rows.len().div_ceil(batch);
    let auto = settings.sample_epochs == SampleEpochs::Auto;
    let epochs = match settings.sample_epochs {
        SampleEpochs::Epochs(n) => n,
        SampleEpochs::Auto => MOST_STEPS.div_ceil(per_epoch),
    };
    let most = if auto { MOST_STEPS } else { epochs * per_epoch };
    let window = window(per_epoch).min(most);
    let all = Assignment::all_own(prepared.modules());
    let mut learner = Learner::new(prepared, settings, &all)?;
    // How long the stage lasts is not known, so the rate stays where the warm-up has brought it.
    let warmup = Course::new(settings.schedule, settings.warmup_ratio, most.min(LEAST_STEPS)).warmup_steps;
    let course = Course { schedule: Course_::Constant, warmup_steps: warmup, steps: most };
    let schedule = Schedule { stage: Stage::Sample, rows: &rows, batch, epochs, course };
    let tokens = rows.iter().map(|&row| examples[row].ids.len()).sum();
    listen(&Event::StageStart { stage: Stage::Sample, steps: most, rows: rows.len(), tokens });

    let mut settling = Settling::new(settings.scope, TAU, AGREEMENTS);
    let mut moments = Moments::new();
    let mut found: Option<(Importance, Assignment)> = None;
    let mut history = Vec::new();
    let mut after = |learner: &mut Learner, step: usize, moments: Option<&mut Moments>, listen: &mut dyn FnMut(&Event)| {
        let Some(moments) = moments.filter(|_| step.is_multiple_of(window) || step == most) else {
            return Ok(Next::GoOn);
        };
        let (mut importance, assignment) = score(learner, moments, prepared, settings)?;
        *moments = Moments::new();
        let agreement = settling.observe(&importance, &assignment);
        let settled = agreement.is_some_and(|a| a.settled);
        if let Some(agreement) = agreement {
            history.push((step, agreement.tau));
            listen(&Event::Rescored { step, tau: agreement.tau, settled });
        }
        importance.steps = step;
        importance.settled = settled;
        found = Some((importance, assignment));
        let enough = step >= most || auto && settled && step >= LEAST_STEPS;
        Ok(if enough { Next::Enough } else { Next::GoOn })
    };
    learner.run(&schedule, settings, examples, Some(&mut moments), cancel, listen, &mut after).1?;
    let (mut importance, assignment) =
        found.ok_or_else(|| Error::Input("the sample stage made no step".into()))?;
    importance.rows = rows.len();
    importance.tokens = tokens;
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
    Ok(Scored { importance, assignment, learner, seconds })
}

/// Steps between scorings: whole epochs, or even parts of a long one.
fn window(per_epoch: usize) -> usize {
    if per_epoch >= 2 * WINDOW {
        per_epoch.div_ceil(per_epoch / WINDOW)
    } else {
        per_epoch * WINDOW.div_ceil(per_epoch)
    }
}

/// Scores from the moments and the LoRA as it is now, and the assignment that follows.
pub fn score(
    learner: &Learner,
    moments: &Moments,
    prepared: &Prepared,
    settings: &TrainSettings,
) -> Result<(Importance, Assignment)> {
    let mut scores: BTreeMap<ModuleId, f64> = BTreeMap::new();
    for module in prepared.modules() {
        let (Some(pair), Some(moment)) = (learner.bank.pair_of(module), moments.get(module)) else { continue };
        // The moments are of z = s·A x, so the scale is in them already.
        scores.insert(module, lora_output_score(learner.parameters.value(pair.lora.b), moment, 1.0));
    }
    let importance = Importance::from_scores(&scores, settings.scope);
    let size = |kind| prepared.pair_size(kind, settings.rank);
    let assignment = assign(&importance, settings.selection(), settings.scope, settings.unselected, size)?;
    Ok((importance, assignment))
}

#[cfg(test)]
mod tests {
    use super::window;

    #[test]
    fn windows_are_whole_epochs_or_even_parts() {
        assert_eq!(window(1), 12);
        assert_eq!(window(5), 15);
        assert_eq!(window(12), 12);
        assert_eq!(window(20), 20);
        assert_eq!(window(24), 12);
        assert_eq!(window(211), 13);
    }
}
