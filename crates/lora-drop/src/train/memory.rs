//! Plans a run's memory: the sizes of all passes to come, cut so that `--memory-limit` is kept.

use std::collections::BTreeSet;

use lora_drop_transformer::{AdapterTable, Parameters, PassSize, SavePolicy};

use super::learner::{self, Learner};
use super::prepare::Prepared;
use super::sample_stage;
use super::shared_parts::exchange_bytes;
use crate::Result;
use crate::assignment::{Assignment, Sizes};
use crate::data::{TaskRows, batch};
use crate::estimate::{BaselineRss, PassMemory, PassPlan, Passes, Process, pass_size};
use crate::events::Stage;
use crate::settings::{Basis, Method, Selection, TrainSettings, Unselected};

/// Epochs whose cut into micro-batches is examined; later ones rarely have larger parts.
const MAX_EPOCHS: usize = 20;
/// Bytes of a row besides its tokens, and of a token: its id, and its type or whether it is
/// learned.
const ROW_BYTES: usize = size_of::<crate::data::Example>();
const LABELLED_TOKEN_BYTES: usize = 8;
const TEXT_TOKEN_BYTES: usize = 5;

/// Plans the passes of a learner that is newly loaded, and estimates the run's memory. `before` is
/// what was in use before it was loaded; with `train` false the sample stage is all that follows.
///
/// # Errors
/// `Error::Usage` where `--memory-limit` cannot be kept.
pub fn plan(
    prepared: &Prepared,
    settings: &TrainSettings,
    learner: &Learner,
    before: BaselineRss,
    train: bool,
) -> Result<PassPlan> {
    let data = &prepared.data;
    let splits = [data.train(), data.dev()];
    let mut used = vec![false; prepared.model.config.vocab_size];
    splits.iter().for_each(|&rows| mark_tokens(rows, &mut used));
    let process = Process {
        model: &learner.model,
        table: &learner.table,
        config: &prepared.model.config,
        before,
        data: splits.iter().map(|&rows| row_bytes(rows)).sum(),
        used: &used,
        longest: splits.iter().flat_map(|rows| rows.lengths()).max().unwrap_or(0),
        parameters: learner.state.parameters.count() + added_by_sharing(prepared, settings),
        method_state_bytes: method_state_bytes(settings, learner),
    };
    let stages = stages(prepared, settings, train)?;
    let shared = shared_table(prepared, settings, learner)?;
    let dev = data.dev().lengths();
    let memory = |passes: Passes| -> PassMemory {
        let shared = shared.as_ref();
        let mut peak = PeakPasses {
            learner,
            shared,
            passes,
            memory: PassMemory::default(),
            concurrent_tokens: 0,
            step_parts: 0,
        };
        for (stage, rows, steps) in &stages {
            peak.include_stage(data.train(), *stage, rows, *steps, settings);
        }
        let every_token = settings.samples() && settings.selection.criterion.basis() == Basis::HiddenStates;
        if every_token || settings.selection.rule() == Selection::Auto {
            // The rows that will be measured are among these.
            let lengths = data.train().lengths();
            for rows in batch::evaluation_batches(&lengths, passes.evaluation_tokens()) {
                let size = pass_size(data.train(), &rows, SavePolicy::Nothing);
                peak.include_pass(1, PassSize { every_token, ..size });
            }
        }
        if train {
            let batches = batch::evaluation_batches(&dev, passes.evaluation_tokens());
            for rows in batches {
                peak.include_pass(1, pass_size(data.dev(), &rows, SavePolicy::Nothing));
            }
        }
        let cached = if train {
            cached_output_bytes(learner, settings, data.train().len(), peak.concurrent_tokens)
        } else {
            0
        };
        let exchanged = exchange_bytes(&learner.ranks, learner.state.parameters.count(), peak.step_parts);
        PassMemory { extra_bytes: cached + exchanged, ..peak.memory }
    };
    let (limit, given) = (settings.compute.memory_limit, settings.compute.micro_tokens);
    process.choose(limit, given, settings.compute.recompute, memory)
}

/// The largest passes so far.
struct PeakPasses<'a> {
    learner: &'a Learner,
    /// The last stage's table, if its passes may take more memory.
    shared: Option<&'a AdapterTable>,
    passes: Passes,
    memory: PassMemory,
    /// Most tokens of concurrent parts.
    concurrent_tokens: usize,
    /// Most parts of a step.
    step_parts: usize,
}

impl PeakPasses<'_> {
    /// Includes the passes of a stage of `steps` steps over these rows.
    fn include_stage(
        &mut self,
        rows: TaskRows,
        stage: Stage,
        of: &[usize],
        steps: usize,
        settings: &TrainSettings,
    ) {
        let saves = SavePolicy::of_training(self.passes.recompute);
        let scored = stage == Stage::Sample && settings.adapter.method == Method::LoraDrop;
        let batch = settings.optimisation.step_rows();
        let per_epoch = of.len().div_ceil(batch);
        for epoch in 0..steps.div_ceil(per_epoch).min(MAX_EPOCHS) {
            let order = batch::epoch_order(of, settings.optimisation.seed, stage as u64, epoch as u64);
            for step in batch::steps(&order, batch).take(steps - epoch * per_epoch) {
                let lengths: Vec<usize> = step.iter().map(|&row| rows.length(row)).collect();
                let groups = self.passes.cut.groups(&lengths);
                self.step_parts = self.step_parts.max(groups.iter().map(Vec::len).sum());
                for group in groups {
                    let workers = group.len().min(self.passes.cut.concurrent);
                    for slots in group {
                        let part: Vec<usize> = slots.into_iter().map(|slot| step[slot]).collect();
                        let size = PassSize { scored, ..pass_size(rows, &part, saves) };
                        self.include_pass(workers, size);
                        self.concurrent_tokens = self.concurrent_tokens.max(workers * size.tokens);
                    }
                }
            }
        }
    }

    /// Includes a pass of this size, with the learner's LoRA dropout, on the first `workers`
    /// workers.
    fn include_pass(&mut self, workers: usize, size: PassSize) {
        let lora_dropout = size.saves != SavePolicy::Nothing && self.learner.has_lora_dropout();
        let size = PassSize { lora_dropout, ..size };
        for table in [Some(&self.learner.table), self.shared].into_iter().flatten() {
            self.memory.include(workers, &self.learner.model, table, &size);
        }
    }
}

/// Table of all modules with shared pairs, as the sample stage may leave them; None if that takes
/// no more memory than the table that the run begins with.
fn shared_table(
    prepared: &Prepared,
    settings: &TrainSettings,
    learner: &Learner,
) -> Result<Option<AdapterTable>> {
    if !settings.samples() || settings.selection.rest() == Unselected::Share.into() {
        return Ok(None);
    }
    let shared = Assignment::keeping(&BTreeSet::new(), prepared.modules(), settings.selection.rest());
    let bank = learner::bank(&learner.model, settings, &shared, &mut Parameters::new())?;
    Ok(Some(bank.table(learner.model.layers())))
}

/// Most trained values that a choice of modules may have beyond those of one pair for each.
fn added_by_sharing(prepared: &Prepared, settings: &TrainSettings) -> usize {
    if !settings.samples() || !settings.selection.unselected.shares() {
        return 0;
    }
    let of_kind = |&kind| {
        let Sizes { own, shared, each } = prepared.sizes(kind, settings);
        (shared + prepared.model.config.layers * each).saturating_sub(own)
    };
    prepared.target_kinds.iter().map(of_kind).sum()
}

/// Bytes of constants, and of what a method stores for each value of its adapters.
fn method_state_bytes(settings: &TrainSettings, learner: &Learner) -> u64 {
    let of_value = match settings.adapter.method {
        // The averages of sensitivity and uncertainty.
        Method::AdaLora => 2 * size_of::<f64>(),
        // Whether the value is kept.
        Method::SparseAdapter => size_of::<f64>(),
        _ => 0,
    };
    let constants = size_of::<f32>() * learner.state.parameters.constants();
    (constants + of_value * learner.bank.unique_parameters()) as u64
}

/// Bytes of the lower blocks' output that concurrent passes read, if it may be saved over the
/// epochs.
fn cached_output_bytes(learner: &Learner, settings: &TrainSettings, rows: usize, tokens: usize) -> usize {
    let possible = settings.epochs_over(rows) > 1
        && settings.compute.activation_cache > 0.0
        && match settings.adapter.method {
            Method::LoraDrop => !settings.selection.unselected.shares() && learner.has_constant_blocks(),
            Method::Head => learner.has_constant_blocks(),
            _ => false,
        };
    if possible { size_of::<f32>() * tokens * learner.model.config.hidden_size } else { 0 }
}

/// The stages, with the rows that they train on and the most steps that they make.
fn stages(
    prepared: &Prepared,
    settings: &TrainSettings,
    train: bool,
) -> Result<Vec<(Stage, Vec<usize>, usize)>> {
    let mut stages = Vec::new();
    if settings.samples() {
        let (rows, steps) = sample_stage::rows_and_steps(prepared, settings)?;
        let steps = match settings.selection.criterion.basis() {
            Basis::Gradients => rows.len().div_ceil(settings.optimisation.step_rows()),
            _ => steps,
        };
        if steps > 0 {
            stages.push((Stage::Sample, rows, steps));
        }
    }
    if train {
        let rows: Vec<usize> = (0..prepared.data.train().len()).collect();
        let steps = settings.steps(rows.len());
        stages.push((Stage::Train, rows, steps));
    }
    Ok(stages)
}

fn mark_tokens(rows: TaskRows, used: &mut [bool]) {
    let mut mark = |ids: &[u32]| ids.iter().for_each(|&id| used[id as usize] = true);
    match rows {
        TaskRows::Labelled(rows) => rows.iter().for_each(|row| mark(&row.ids)),
        TaskRows::Text(rows) => rows.iter().for_each(|row| mark(&row.ids)),
    }
}

fn row_bytes(rows: TaskRows) -> u64 {
    let token = match rows {
        TaskRows::Labelled(_) => LABELLED_TOKEN_BYTES,
        TaskRows::Text(_) => TEXT_TOKEN_BYTES,
    };
    (ROW_BYTES * rows.len() + token * rows.tokens()) as u64
}
