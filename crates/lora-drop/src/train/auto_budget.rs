//! `--budget auto`: after the sample stage, the smallest budget whose choice of modules raises the
//! loss on held-out rows by no more than its standard error.
//!
//! Each budget is measured with the model that fine-tuning would start from: kept modules have
//! their pairs, the others their best common pair. This model is not trained, so a shared pair is
//! judged before it has learned anything of its own. If the loss without any LoRA is within the
//! standard error too, the rows are uninformative, and everything is kept.

use std::collections::{BTreeMap, BTreeSet};

use super::learner::Learner;
use super::prepare::Prepared;
use super::stage::Hooks;
use crate::assign::assign;
use crate::assignment::{Assignment, Owner};
use crate::data::TaskRows;
use crate::evaluate::{Evaluation, Measuring, RepeatedPasses};
use crate::events::Event;
use crate::score::{BudgetCurve, BudgetPoint, Importance};
use crate::settings::{Selection, TrainSettings};
use crate::{Cancel, Error, Result};

/// Budgets to try, in falling order: fractions of plain LoRA's parameters.
const BUDGETS: [f64; 7] = [0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625];
/// Most held-out rows to measure, and the fewest that suffice.
const MAX_ROWS: usize = 512;
const MIN_ROWS: usize = 32;

/// Picks the held-out rows, evenly spaced among the training rows that are not in the sample.
///
/// # Errors
/// `Error::Usage` if there are too few.
pub fn held_out(prepared: &Prepared, sample: &[usize]) -> Result<Vec<usize>> {
    let sample: BTreeSet<usize> = sample.iter().copied().collect();
    let rest: Vec<usize> = (0..prepared.data.train().len()).filter(|row| !sample.contains(row)).collect();
    if rest.len() < MIN_ROWS {
        return Err(Error::Usage(format!(
            "`budget = auto` decides by rows of train that are not in the sample, at least {MIN_ROWS}, and there are {}; lower \
             `sample_ratio`, or give a budget",
            rest.len()
        )));
    }
    let count = rest.len().min(MAX_ROWS);
    Ok((0..count).map(|place| rest[place * rest.len() / count]).collect())
}

/// Finds the smallest budget down to which the loss stays within one standard error of that with a
/// LoRA for each module. Returns its assignment and the measured curve. If no budget does,
/// everything is kept.
///
/// # Errors
/// Too few rows are held out; losses that are not finite; interrupted.
pub fn choose(
    learner: &mut Learner,
    prepared: &Prepared,
    settings: &TrainSettings,
    (importance, sample): (&Importance, &[usize]),
    hooks: &mut dyn Hooks,
    cancel: &Cancel,
) -> Result<(Assignment, BudgetCurve)> {
    let rows = held_out(prepared, sample)?;
    let sizes = |kind| prepared.sizes(kind, settings);
    let whole = Assignment::all_own(prepared.modules());
    let full = whole.plain_parameters(sizes);
    let tokens: usize = rows.iter().map(|&row| prepared.data.train().length(row)).sum();
    let mut listen = |event: &Event| hooks.on_event(event);
    // An upper bound on the passes: the first budget that is too small ends the stage.
    let mut passes = RepeatedPasses::begin(rows.len(), tokens, 2 + BUDGETS.len(), &mut listen);
    let mut measure = |learner: &mut Learner, assignment: &Assignment| -> Result<Evaluation> {
        let mut hear = |event: &Event| passes.hear(event, &mut listen);
        measure(learner, prepared, settings, assignment, &rows, cancel, &mut hear)
    };
    let found = measure(learner, &whole)?;
    let nothing: Assignment =
        prepared.modules().into_iter().map(|id| (id, Owner::None)).collect::<BTreeMap<_, _>>().into();
    let (loss, tolerance) = (found.loss, found.loss_standard_error);
    let without = measure(learner, &nothing)?.loss;
    let mut curve = BudgetCurve { rows: rows.len(), loss, tolerance, without, points: Vec::new(), kept: 1.0 };
    let mut kept = whole;
    let budgets = if curve.is_uninformative() { &[][..] } else { &BUDGETS[..] };
    for &budget in budgets {
        let selection = Selection::Budget(budget);
        // A budget that is too small for the shared pairs ends the curve.
        let Ok(assignment) =
            assign(importance, selection, settings.selection.scope, settings.selection.rest(), sizes)
        else {
            break;
        };
        let loss = measure(learner, &assignment)?.loss;
        let parameters = assignment.unique_parameters(sizes);
        curve.points.push(BudgetPoint { budget, parameters, share: parameters as f64 / full as f64, loss });
        if loss > curve.loss + tolerance {
            break;
        }
        (kept, curve.kept) = (assignment, budget);
    }
    passes.end(&mut listen);
    listen(&Event::Budget(&curve));
    Ok((kept, curve))
}

/// Measures the model that fine-tuning would begin with under this assignment, on these rows.
fn measure(
    learner: &mut Learner,
    prepared: &Prepared,
    settings: &TrainSettings,
    assignment: &Assignment,
    rows: &[usize],
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Event),
) -> Result<Evaluation> {
    let (bank, parameters) = learner.continuation(settings, assignment)?;
    let table = bank.table(learner.model.layers());
    let micro_tokens = learner.passes().evaluation_tokens();
    let Learner { model, arenas, ranks, .. } = learner;
    let mut measuring = Measuring {
        model,
        parameters: &parameters,
        table: &table,
        micro_tokens,
        memory: arenas.memory(),
        ranks,
        cancel,
        listen,
    };
    let labels = prepared.data.labels();
    match prepared.data.train() {
        TaskRows::Text(train) => {
            let rows: Vec<_> = rows.iter().map(|&row| train[row].clone()).collect();
            measuring.measure(TaskRows::Text(&rows), labels)
        }
        TaskRows::Labelled(train) => {
            let rows: Vec<_> = rows.iter().map(|&row| train[row].clone()).collect();
            measuring.measure(TaskRows::Labelled(&rows), labels)
        }
    }
}
