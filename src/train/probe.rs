//! What criteria see of a model before anything is trained: its first gradients or its hidden states, on the sample.

use std::collections::BTreeMap;
use std::time::Instant;

use lora_drop_transformer::{Context, LoraTable, ModuleId};

use super::learner::Learner;
use super::optimiser::Course;
use super::prepare::Prepared;
use super::sample::{evidence, sample};
use super::schedule::Schedule;
use super::stage::Hooks;
use crate::data::TaskRows;
use crate::data::batch::{self, PackedBatch};
use crate::data::text::PackedTexts;
use crate::engine::{sequences, text_sequences};
use crate::events::{Event, Stage};
use crate::score::{Criterion, HiddenStates, Importance, Window};
use crate::settings::{Basis, TrainSettings};
use crate::{Cancel, Result};

/// Rows whose hidden states are looked at, at most: CKA compares each with each.
const MOST_ROWS: usize = 512;

/// The scores by a criterion for which nothing trains, and what they rest on.
///
/// # Errors
/// `Error::Interrupted` soon after `cancel` was raised; no sample can be drawn.
pub fn run(
    prepared: &Prepared,
    settings: &TrainSettings,
    criterion: &dyn Criterion,
    learner: &mut Learner,
    hooks: &mut dyn Hooks,
    cancel: &Cancel,
) -> Result<(BTreeMap<ModuleId, f64>, Importance)> {
    let examples = prepared.data.train();
    let mut rows = match criterion.basis() {
        Basis::Order => Vec::new(),
        _ => sample(prepared, settings)?,
    };
    if criterion.basis() == Basis::HiddenStates {
        let every = rows.len().div_ceil(MOST_ROWS).max(1);
        rows = rows.into_iter().step_by(every).collect();
    }
    let tokens = rows.iter().map(|&row| examples.length(row)).sum();
    let began = Instant::now();
    if !rows.is_empty() {
        hooks.tell(&Event::StageStart { stage: Stage::Evaluate, steps: 0, rows: rows.len(), tokens });
    }
    let mut hidden_states = HiddenStates::default();
    let told = Told { hooks, cancel, done: 0, of: tokens };
    match criterion.basis() {
        Basis::HiddenStates => see_states(learner, examples, &rows, &mut hidden_states, told)?,
        Basis::Gradients => see_gradients(learner, prepared, settings, criterion, &rows, told)?,
        Basis::Training | Basis::Order => {}
    }
    if !rows.is_empty() {
        hooks.tell(&Event::StageEnd { stage: Stage::Evaluate, seconds: began.elapsed().as_secs_f64() });
    }
    let scores = criterion.scores(&evidence(learner, &hidden_states, settings));
    let window = Window { steps: 0, rows: rows.len(), tokens };
    let micro_tokens = learner.passes().cut.micro_tokens;
    let facts = Importance { rows: rows.len(), tokens, micro_tokens, window, ..Importance::default() };
    Ok((scores, facts))
}

/// How far a pass over the rows is.
struct Told<'a> {
    hooks: &'a mut dyn Hooks,
    cancel: &'a Cancel,
    /// Tokens.
    done: usize,
    of: usize,
}

impl Told<'_> {
    fn advance(&mut self, tokens: usize) {
        self.done += tokens;
        self.hooks.tell(&Event::Evaluating { done: self.done, of: self.of });
    }
}

/// The gradients of each batch of the sample, without an update.
fn see_gradients(
    learner: &mut Learner,
    prepared: &Prepared,
    settings: &TrainSettings,
    criterion: &dyn Criterion,
    rows: &[usize],
    mut told: Told,
) -> Result<()> {
    let examples = prepared.data.train();
    let course = Course::of_run(settings, examples.len());
    let observer = criterion.observer();
    let schedule =
        Schedule { settings, stage: Stage::Sample, rows: rows.to_vec(), steps: 0, course, observer };
    for step in batch::steps(&schedule.order(0), settings.step_rows()) {
        let (_, tokens) = learner.gradients(&schedule, examples, step, told.cancel)?;
        let state = &mut learner.state;
        criterion.after_gradients(&learner.bank, &state.parameters, &mut state.observations);
        told.advance(tokens);
    }
    Ok(())
}

/// The hidden states of the model without LoRA.
fn see_states(
    learner: &mut Learner,
    examples: TaskRows,
    rows: &[usize],
    seen: &mut HiddenStates,
    mut told: Told,
) -> Result<()> {
    let lengths: Vec<usize> = rows.iter().map(|&row| examples.length(row)).collect();
    let micro_tokens = learner.passes().evaluation_tokens();
    let Learner { model, state, workplaces, .. } = learner;
    let table = LoraTable::empty(model.layers());
    for part in batch::evaluation_batches(&lengths, micro_tokens) {
        let part: Vec<usize> = part.into_iter().map(|i| rows[i]).collect();
        let context = Context::new(state.parameters.read(), &table, workplaces.memory(), told.cancel.flag());
        match examples {
            TaskRows::Labelled(examples) => {
                let batch = PackedBatch::of_rows(examples, &part);
                let sequences = sequences(&batch);
                model.net.hidden_states(context, sequences, |level, states| {
                    seen.add(level, sequences.offsets, states);
                })?;
            }
            TaskRows::Text(examples) => {
                let batch = PackedTexts::pack(examples, part.iter().copied());
                let sequences = text_sequences(&batch);
                model.net.hidden_states(context, sequences, |level, states| {
                    seen.add(level, sequences.offsets, states);
                })?;
            }
        }
        told.advance(part.iter().map(|&row| examples.length(row)).sum());
    }
    Ok(())
}
