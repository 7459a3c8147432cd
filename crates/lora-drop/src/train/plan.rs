//! Plans a run without training: its parameters and steps, and estimates of memory and time.

use lora_drop_compute::gemm::measure_peak;

use super::prepare::Prepared;
use super::{first_assignment, load, sample_stage, sparse};
use crate::assign::assign;
use crate::engine::thread_pool;
use crate::events::Event;
use crate::score::Importance;
use crate::settings::{Method, Restart, RunSettings, Selection, SelectionSettings, TrainSettings};
use crate::summary::Plan;
use crate::{Cancel, Result};

/// Share of the kernel's peak that whole steps reach here (docs/performance.md).
const SHARE_OF_PEAK: f64 = 0.75;

/// Reads and checks the inputs of a run, and estimates its sizes, memory and time.
///
/// # Errors
/// Those of settings, model and data, as in a run.
pub fn plan(settings: &RunSettings, listen: &mut (dyn FnMut(&Event) + Send)) -> Result<Plan> {
    settings.validate()?;
    settings.check_output()?;
    let train = &settings.train;
    thread_pool(train.compute.threads)?.install(|| {
        let prepared = Prepared::read(settings, false, &Cancel::new(), listen)?;
        let first = first_assignment(&prepared, train)?;
        let (learner, passes) = load(&prepared, train, &first, true, &mut |_| {})?;
        let memory = passes.estimate;
        let config = &prepared.model.config;

        let examples = prepared.data.train();
        let batch = train.optimisation.step_rows();
        let per_epoch = examples.len().div_ceil(batch);
        let train_tokens = examples.tokens();
        let dev_tokens = prepared.data.dev().tokens();
        let forward = 2.0 * config.block_parameters() as f64;
        let backward = match train.adapter.method {
            Method::Full => 2.0 * forward,
            Method::Head => 0.0,
            _ => forward,
        };
        let (sample_rows, sample_steps) = match train.samples() {
            true => {
                let (rows, steps) = sample_stage::rows_and_steps(&prepared, train)?;
                (rows.len(), steps)
            }
            false => (0, 0),
        };
        let steps = match train.optimisation.restart {
            Restart::Continue => train.steps(examples.len()) - sample_steps,
            Restart::Fresh => train.steps(examples.len()),
        };
        let of_step = batch.min(sample_rows) as f64;
        let sample_tokens = sample_steps as f64 * of_step * train_tokens as f64 / examples.len() as f64;
        let epochs = train.epochs_over(examples.len()) as f64;
        let tokens = steps * train_tokens / per_epoch;
        let work =
            (tokens as f64 + sample_tokens) * (forward + backward) + epochs * dev_tokens as f64 * forward;
        let full = first.plain_parameters(|kind| prepared.sizes(kind, train));
        let lora = lora_parameters(&prepared, train, full, learner.bank.unique_parameters())?;
        Ok(Plan {
            method: train.adapter.method.name().to_string(),
            trainable_parameters: learner.state.parameters.count() - learner.bank.unique_parameters()
                + lora.1,
            lora_parameters: lora,
            lora_parameters_full: full,
            sample_rows,
            sample_steps,
            train_rows: examples.len(),
            train_steps: steps,
            train_tokens: tokens,
            memory_bytes: memory.total,
            memory,
            seconds: work / (SHARE_OF_PEAK * measure_peak(train.compute.dtype.precision(), 0.1)),
            data: prepared.data.facts().clone(),
            model: prepared.facts,
        })
    })
}

/// Fewest and most values in unique pairs after the choice of modules. `full` is their number in
/// plain LoRA, `first` the number that a run begins with.
fn lora_parameters(
    prepared: &Prepared,
    train: &TrainSettings,
    full: usize,
    first: usize,
) -> Result<(usize, usize)> {
    let sizes = |kind| prepared.sizes(kind, train);
    let SelectionSettings { scope, unselected, .. } = train.selection;
    match train.adapter.method {
        Method::LoraDrop => {}
        Method::AdaLora => {
            // AdaLoRA keeps as many triplets as plain LoRA has ranks in total, in whatever modules.
            let modules = prepared.modules().len();
            let sizes = || prepared.target_kinds.iter().map(|&kind| sizes(kind).own);
            return Ok((modules * sizes().min().unwrap_or(0), modules * sizes().max().unwrap_or(0)));
        }
        Method::SparseAdapter => {
            let kept = sparse::count(full, train);
            return Ok((kept, kept));
        }
        _ => return Ok((first, first)),
    }
    // With equally important modules a threshold keeps the most values. `assign` also refuses a
    // rule that can never be met.
    let scores = prepared.modules().into_iter().map(|module| (module, 1.0)).collect();
    let even = Importance::from_scores(&scores, scope);
    let even = assign(&even, train.selection.rule(), scope, train.selection.rest(), sizes)?;
    let even = even.unique_parameters(sizes);
    let layers = prepared.model.config.layers;
    let keeping = |kept: usize| -> usize {
        prepared.target_kinds.iter().map(|&kind| sizes(kind).total(kept, layers, unselected)).sum()
    };
    Ok(match train.selection.rule() {
        Selection::TopK(_) | Selection::Layers(_) => (even, even),
        Selection::Budget(budget) => {
            let least = keeping(usize::from(!unselected.shares()));
            (least.min(even), (budget * full as f64) as usize)
        }
        Selection::Auto if unselected.shares() => (keeping(0), full),
        Selection::Auto => {
            (prepared.target_kinds.iter().map(|&kind| sizes(kind).own).min().unwrap_or(0), full)
        }
        Selection::Threshold(t) if t >= 1.0 => (even, even),
        Selection::Threshold(_) => (even.min(keeping(1)), even),
    })
}
