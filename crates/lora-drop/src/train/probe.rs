//! What criteria see of a model before anything is trained: its first gradients or its hidden
//! states, on the sample.

use std::collections::BTreeMap;
use std::time::Instant;

use lora_drop_transformer::{AdapterTable, ModuleId, Observations};

use super::learner::Learner;
use super::optimiser::LearningRateSchedule;
use super::prepare::Prepared;
use super::sample_stage::{draw_sample, evidence};
use super::schedule::StageSchedule;
use super::stage::Hooks;
use crate::data::TaskRows;
use crate::data::batch;
use crate::evaluate::Measuring;
use crate::events::{Event, Stage};
use crate::score::{Criterion, HiddenStates, Importance, Window};
use crate::settings::{Basis, TrainSettings};
use crate::{Cancel, Result};

/// Most rows whose hidden states are compared: CKA compares every row with every other.
const MAX_ROWS: usize = 512;

/// Computes the scores of a criterion that needs no training. Also returns which rows and tokens
/// they rest on.
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
    // Discards what an interrupted probe has seen.
    learner.state.observations = Observations::new();
    let examples = prepared.data.train();
    let mut rows = match criterion.basis() {
        Basis::Order => Vec::new(),
        _ => draw_sample(prepared, settings)?,
    };
    if criterion.basis() == Basis::HiddenStates {
        let every = rows.len().div_ceil(MAX_ROWS).max(1);
        rows = rows.into_iter().step_by(every).collect();
    }
    let tokens = rows.iter().map(|&row| examples.length(row)).sum();
    let mut hidden_states = HiddenStates::default();
    match criterion.basis() {
        Basis::HiddenStates => {
            let collected =
                collect_hidden_states(learner, examples, &rows, &mut hidden_states, hooks, cancel);
            learner.ranks.agree(collected)?;
        }
        Basis::Gradients => {
            observe_gradients(learner, settings, criterion, (examples, &rows), hooks, cancel)?
        }
        Basis::Training | Basis::Order => {}
    }
    let scores = criterion.scores(&evidence(learner, &hidden_states, settings));
    let window = Window { steps: 0, rows: rows.len(), tokens };
    let micro_tokens = learner.passes().cut.micro_tokens;
    let facts = Importance { rows: rows.len(), tokens, micro_tokens, window, ..Importance::default() };
    Ok((scores, facts))
}

/// Shows the criterion the gradients of each batch of the rows, without an update.
fn observe_gradients(
    learner: &mut Learner,
    settings: &TrainSettings,
    criterion: &dyn Criterion,
    (examples, rows): (TaskRows, &[usize]),
    hooks: &mut dyn Hooks,
    cancel: &Cancel,
) -> Result<()> {
    let began = Instant::now();
    let (mut done, of) = (0, rows.iter().map(|&row| examples.length(row)).sum());
    hooks.on_event(&Event::StageStart { stage: Stage::Evaluate, steps: 0, rows: rows.len(), tokens: of });
    let (lr_schedule, observer) =
        (LearningRateSchedule::of_run(settings, examples.len()), criterion.observer());
    let schedule = StageSchedule {
        settings,
        stage: Stage::Sample,
        rows: rows.to_vec(),
        steps: 0,
        lr_schedule,
        observer,
    };
    for step in batch::steps(&schedule.order(0), settings.optimisation.step_rows()) {
        let (_, tokens) = learner.gradients(&schedule, examples, step, cancel)?;
        let state = &mut learner.state;
        criterion.after_gradients(&learner.bank, &state.parameters, &mut state.observations);
        done += tokens;
        hooks.on_event(&Event::Evaluating { done, of });
    }
    hooks.on_event(&Event::StageEnd { stage: Stage::Evaluate, seconds: began.elapsed().as_secs_f64() });
    Ok(())
}

/// Collects the hidden states of the model without LoRA. Every rank computes all of them: the
/// passes are few, and the states are larger than their inputs, so exchanging them would not pay.
fn collect_hidden_states(
    learner: &mut Learner,
    examples: TaskRows,
    rows: &[usize],
    seen: &mut HiddenStates,
    hooks: &mut dyn Hooks,
    cancel: &Cancel,
) -> Result<()> {
    let micro_tokens = learner.passes().evaluation_tokens();
    let Learner { model, state, arenas, ranks, .. } = learner;
    let (parameters, table) = (&state.parameters, &AdapterTable::empty(model.layers()));
    let (memory, listen) = (arenas.memory(), &mut |event: &Event| hooks.on_event(event));
    let mut measuring = Measuring { model, parameters, table, micro_tokens, memory, ranks, cancel, listen };
    measuring.passes(examples, rows, |context, packed| {
        let sequences = packed.sequences();
        model.net.hidden_states(context, sequences, |level, states| {
            seen.add(level, sequences.offsets, states);
        })
    })
}
