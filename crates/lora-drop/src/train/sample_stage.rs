//! Stages 1 and 2 of LoRA-drop: plain LoRA trains on the stratified sample until the ranking of the
//! modules settles.
//!
//! The scores cost nothing: the criterion observes the training passes themselves (docs/method.md,
//! step 3), over windows of the sample, and reads the trained values at the window's end. Criteria
//! that need no training have a pass of their own (`probe`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use lora_drop_transformer::{HeadKind, ModuleId, Observations, Observer};

use super::auto_budget;
use super::learner::Learner;
use super::optimiser::LearningRateSchedule;
use super::prepare::Prepared;
use super::probe;
use super::schedule::StageSchedule;
use super::stage::{Hooks, Next};
use super::state::TrainState;
use super::windows::{MAX_STEPS, MIN_STEPS, Windows, window};
use crate::adapter::{BankPair, LM_HEAD_IS_USED, is_scored};
use crate::assign::assign;
use crate::assignment::Assignment;
use crate::data::sample::stratified;
use crate::engine::micro_tokens;
use crate::evaluate::Measuring;
use crate::events::{Event, Stage};
use crate::loaded::{Arithmetic, Loaded};
use crate::ranks::ALONE;
use crate::score::record::Record;
use crate::score::{Criterion, Evidence, HiddenStates, Importance, Window};
use crate::settings::{Basis, Method, Restart, SampleEpochs, ScheduleShape, Scope, Selection, TrainSettings};
use crate::{Cancel, Error, Result};

/// The sample stage of a run: its rows, its windows, and the criterion that scores at their ends.
pub struct SampleStage<'a> {
    prepared: &'a Prepared,
    settings: &'a TrainSettings,
    criterion: &'a dyn Criterion,
    schedule: StageSchedule<'a>,
    windows: Windows,
    /// Real tokens of the sample.
    tokens: usize,
}

impl<'a> SampleStage<'a> {
    /// Draws the sample.
    ///
    /// # Errors
    /// The method has no sample stage, the settings name the layers to keep, or rows have no labels
    /// to stratify by.
    pub fn new(
        prepared: &'a Prepared,
        settings: &'a TrainSettings,
        criterion: &'a dyn Criterion,
    ) -> Result<Self> {
        if !settings.samples() {
            let method = settings.adapter.method.name();
            let problem =
                format!("method {method} with these layers has no sample stage: there is nothing to score");
            return Err(Error::Usage(problem));
        }
        let (schedule, tokens) = schedule(prepared, settings, criterion.observer())?;
        let windows = Windows::new(schedule.steps_per_epoch(), schedule.steps);
        Ok(SampleStage { prepared, settings, criterion, schedule, windows, tokens })
    }

    /// Trains a learner in which every module has its own LoRA, from its state in this stage, and
    /// scores at each window's end, until the ranking is stable. `hooks` are called before the
    /// criterion sees the gradients, and after the scoring.
    ///
    /// # Errors
    /// Those of [`Learner::run`]; scores that are not finite or all zero.
    pub fn run(&self, learner: &mut Learner, hooks: &mut dyn Hooks, cancel: &Cancel) -> Result<()> {
        hooks.on_event(&stage_start(&self.schedule, self.tokens, learner.state.optimiser.steps));
        if self.is_over(&learner.state) {
            return Ok(());
        }
        let mut scoring = Scoring { stage: self, hooks };
        learner.run(&self.schedule, self.prepared.data.train(), &mut scoring, cancel)
    }

    fn is_auto(&self) -> bool {
        self.settings.selection.sample_epochs == SampleEpochs::Auto
    }

    /// Whether the last step's scoring has ended the stage.
    fn is_over(&self, state: &TrainState) -> bool {
        let step = state.optimiser.steps;
        let settled = state.settling.last().is_some_and(|(last, _)| last.settled && last.steps == step);
        step >= self.schedule.steps || self.is_auto() && settled && step >= MIN_STEPS
    }

    /// The scores of the last window, and the assignment by them.
    fn scored(&self, learner: &Learner) -> Result<(Importance, Assignment)> {
        let found = learner.state.settling.last().cloned();
        let (importance, assignment) =
            found.ok_or_else(|| Error::Input("the sample stage made no step".into()))?;
        let (rows, tokens) = (self.schedule.rows.len(), self.tokens);
        let micro_tokens = learner.passes().cut.micro_tokens;
        Ok((Importance { rows, tokens, micro_tokens, ..importance }, assignment))
    }

    /// Scores the window that ends with this step; returns the importance and the assignment by it.
    fn score(&self, learner: &Learner) -> Result<(Importance, Assignment)> {
        let (settings, prepared, state) = (self.settings, self.prepared, &learner.state);
        let scores = self.criterion.scores(&evidence(learner, &HiddenStates::default(), settings));
        let steps = state.optimiser.steps;
        let window = self.schedule.window(steps - self.windows.length..steps, prepared.data.train());
        let (importance, assignment) =
            importance_and_assignment(&scores, prepared, settings, self.criterion)?;
        Ok((Importance { steps, window, ..importance }, assignment))
    }
}

/// Hooks that score at the end of each window.
struct Scoring<'a> {
    stage: &'a SampleStage<'a>,
    hooks: &'a mut dyn Hooks,
}

impl Hooks for Scoring<'_> {
    fn after_gradients(&mut self, learner: &mut Learner) -> Result<()> {
        self.hooks.after_gradients(learner)?;
        let TrainState { parameters, observations, .. } = &mut learner.state;
        self.stage.criterion.after_gradients(&learner.bank, parameters, observations);
        Ok(())
    }

    fn after_step(&mut self, learner: &mut Learner) -> Result<Next> {
        let step = learner.state.optimiser.steps;
        if self.stage.windows.ends(step) {
            let (importance, assignment) = self.stage.score(learner)?;
            if let Some(agreement) = learner.state.settling.observe(importance, assignment) {
                let (tau, settled) = (agreement.tau, agreement.settled);
                self.hooks.on_event(&Event::Rescored { step, tau, settled });
            }
        }
        if self.stage.windows.begins(step) {
            learner.state.observations = Observations::new();
        }
        let next = self.hooks.after_step(learner)?;
        Ok(if self.stage.is_over(&learner.state) { Next::Stop } else { next })
    }

    fn on_event(&mut self, event: &Event) {
        self.hooks.on_event(event);
    }
}

/// Runs the sample stage, or what the criterion needs instead, and puts the importance into the
/// learner's progress.
///
/// # Errors
/// Those of [`SampleStage`].
pub fn run(
    prepared: &Prepared,
    settings: &TrainSettings,
    criterion: &dyn Criterion,
    learner: &mut Learner,
    hooks: &mut dyn Hooks,
    cancel: &Cancel,
) -> Result<(Importance, Assignment)> {
    let began = Instant::now();
    // Seconds of the stage before the run was stopped.
    let before = learner.state.seconds;
    let trains = criterion.basis() == Basis::Training;
    let (importance, assignment) = if trains {
        let stage = SampleStage::new(prepared, settings, criterion)?;
        stage.run(learner, hooks, cancel)?;
        let (importance, assignment) = stage.scored(learner)?;
        if settings.selection.rule() == Selection::Auto {
            let scored = (&importance, &stage.schedule.rows[..]);
            let (assignment, curve) =
                auto_budget::choose(learner, prepared, settings, scored, hooks, cancel)?;
            (Importance { curve: Some(curve), ..importance }, assignment)
        } else {
            (importance, assignment)
        }
    } else {
        let (scores, facts) = probe::run(prepared, settings, criterion, learner, hooks, cancel)?;
        let (importance, assignment) = importance_and_assignment(&scores, prepared, settings, criterion)?;
        (Importance { modules: importance.modules, ..facts }, assignment)
    };
    let seconds = before + began.elapsed().as_secs_f64();
    let progress = &mut learner.state.progress;
    (progress.importance, progress.sample_seconds) = (Some(importance.clone()), seconds);
    if trains {
        hooks.on_event(&Event::StageEnd { stage: Stage::Sample, seconds });
    }
    if trains && settings.selection.sample_epochs == SampleEpochs::Auto && !importance.settled {
        hooks.on_event(&Event::Warning(&format!(
            "the ranking of the modules was not stable after {} steps on the sample; a larger `sample_ratio` or \
             `sample_epochs` N trains longer",
            importance.steps
        )));
    }
    hooks.on_event(&Event::Importance(&importance));
    hooks.on_event(&Event::Assignment(&assignment));
    Ok((importance, assignment))
}

/// Returns the sample's rows, and the most optimiser steps of the stage; none for a fixed order or
/// without a sample stage. If the steps count as the run's, `auto` takes at most a quarter of
/// these.
///
/// # Errors
/// `Error::Usage` if the given epochs leave the run no further step.
pub fn rows_and_steps(prepared: &Prepared, settings: &TrainSettings) -> Result<(Vec<usize>, usize)> {
    if settings.selection.criterion.basis() == Basis::Order || !settings.samples() {
        return Ok((Vec::new(), 0));
    }
    let rows = draw_sample(prepared, settings)?;
    if settings.selection.rule() == Selection::Auto {
        auto_budget::held_out(prepared, &rows)?;
    }
    let per_epoch = rows.len().div_ceil(settings.optimisation.step_rows());
    if settings.selection.criterion.basis() != Basis::Training {
        return Ok((rows, 0));
    }
    let whole = match settings.optimisation.restart {
        Restart::Continue => settings.steps(prepared.data.train().len()),
        Restart::Fresh => usize::MAX,
    };
    let steps = match settings.selection.sample_epochs {
        SampleEpochs::Epochs(n) if n * per_epoch >= whole => {
            return Err(Error::Usage(format!(
                "`sample_epochs = {n}` makes {} steps on the sample, but with `restart = continue` these are a part of the \
                 run's {whole}; give fewer `sample_epochs`, more `epochs`, or `restart = fresh`",
                n * per_epoch
            )));
        }
        SampleEpochs::Epochs(n) => n * per_epoch,
        // A SparseAdapter ranks no modules, so there is nothing to settle.
        SampleEpochs::Auto if settings.adapter.method == Method::SparseAdapter => {
            let window = window(per_epoch);
            (MIN_STEPS.div_ceil(window) * window).min(whole.div_ceil(4))
        }
        SampleEpochs::Auto => {
            let most = MAX_STEPS.min(whole.div_ceil(4));
            let window = window(per_epoch).min(most);
            most / window * window
        }
    };
    Ok((rows, steps))
}

/// The sample stage's schedule, and the real tokens of the sample.
pub(super) fn schedule<'a>(
    prepared: &Prepared,
    settings: &'a TrainSettings,
    observer: Option<&'a dyn Observer>,
) -> Result<(StageSchedule<'a>, usize)> {
    let (rows, steps) = rows_and_steps(prepared, settings)?;
    let tokens = rows.iter().map(|&row| prepared.data.train().length(row)).sum();
    let lr_schedule = lr_schedule(prepared, settings, steps);
    Ok((StageSchedule { settings, stage: Stage::Sample, rows, steps, lr_schedule, observer }, tokens))
}

/// The event that the stage begins with, after `done` of its steps.
pub(super) fn stage_start(schedule: &StageSchedule, tokens: usize, done: usize) -> Event<'static> {
    let (rows, steps) = (schedule.rows.len(), schedule.steps - done.min(schedule.steps));
    let tokens = tokens * steps / schedule.steps_per_epoch();
    Event::StageStart { stage: Stage::Sample, steps, rows, tokens }
}

/// The evidence that a criterion scores by.
pub(super) fn evidence<'a>(
    learner: &'a Learner,
    hidden_states: &'a HiddenStates,
    settings: &TrainSettings,
) -> Evidence<'a> {
    let Learner { bank, state, .. } = learner;
    let TrainState { parameters, observations, .. } = state;
    Evidence { bank, parameters, observations, hidden_states, seed: settings.optimisation.seed }
}

/// Turns scores into shares, and into an assignment by the settings' rule.
fn importance_and_assignment(
    scores: &BTreeMap<ModuleId, f64>,
    prepared: &Prepared,
    settings: &TrainSettings,
    criterion: &dyn Criterion,
) -> Result<(Importance, Assignment)> {
    let advice = match criterion.basis() {
        Basis::Training => {
            ": nothing was learned on the sample; train longer (`sample_epochs`, `sample_ratio`) or with a higher \
             `learning_rate`"
        }
        _ => "; choose by another `criterion`",
    };
    let all_zero =
        |kind: &str| format!("the {} scores of every {kind} are all zero{advice}", criterion.name());
    let importance = ranked(scores, prepared, settings.selection.scope, all_zero)?;
    let sizes = |kind| prepared.sizes(kind, settings);
    let assignment = assign(
        &importance,
        settings.selection.rule(),
        settings.selection.scope,
        settings.selection.rest(),
        sizes,
    )?;
    Ok((importance, assignment))
}

/// The schedule of the learning rate over the sample stage, which makes `most` steps at most.
fn lr_schedule(prepared: &Prepared, settings: &TrainSettings, most: usize) -> LearningRateSchedule {
    match settings.optimisation.restart {
        // One schedule over both stages.
        Restart::Continue => LearningRateSchedule::of_run(settings, prepared.data.train().len()),
        // The length of the stage is not known in advance, so the rate stays constant after the
        // warm-up.
        Restart::Fresh => {
            let (shape, ratio) = (ScheduleShape::Constant, settings.optimisation.warmup_ratio);
            LearningRateSchedule {
                steps: most,
                ..LearningRateSchedule::new(shape, ratio, most.min(MIN_STEPS))
            }
        }
    }
}

/// The scores that the settings name, and the choice by them; None where they name none.
///
/// # Errors
/// `Error::Io` or `Error::Input` with the file: it is no importance.json, or its scores are those of
/// other modules than the run adapts.
pub fn scores_from_file(prepared: &Prepared, settings: &TrainSettings) -> Result<Option<Record>> {
    let Some(path) = settings.selection.scores.as_deref().filter(|_| chooses_by_scores(settings)) else {
        return Ok(None);
    };
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let document = serde_json::from_slice(&text)
        .map_err(|e| Error::file(path, format!("not an importance.json of lora-drop: {e}")))?;
    let name = |kind| prepared.short_name(kind);
    let record = Record::from_json(&document, name).map_err(|e| Error::file(path, e))?;
    let scores: BTreeMap<ModuleId, f64> = record
        .importance
        .modules
        .iter()
        .map(|m| (ModuleId { layer: m.layer, kind: m.kind }, m.score))
        .collect();
    let modules = prepared.modules();
    let shown = |id: &ModuleId| format!("layer {} {}", id.layer, name(id.kind));
    if let Some(id) = modules.iter().find(|id| !scores.contains_key(id)) {
        let problem = format!(
            "there is no score of {}, which the run adapts; give the `target_modules` that were scored, or another file",
            shown(id)
        );
        return Err(Error::file(path, problem));
    }
    if let Some(id) = scores.keys().find(|id| !modules.contains(id)) {
        let problem = format!(
            "there is a score of {}, which the run does not adapt; give the `target_modules` that were scored, or another \
             file",
            shown(id)
        );
        return Err(Error::file(path, problem));
    }
    let all_zero = |kind: &str| format!("{}: the scores of every {kind} are all zero", path.display());
    let importance = ranked(&scores, prepared, settings.selection.scope, all_zero)?;
    let importance = Importance { modules: importance.modules, ..record.importance };
    let assignment = assign(
        &importance,
        settings.selection.rule(),
        settings.selection.scope,
        settings.selection.rest(),
        |kind| prepared.sizes(kind, settings),
    )?;
    let (selection, scope, rest) =
        (settings.selection.rule(), settings.selection.scope, settings.selection.rest());
    Ok(Some(Record { importance, assignment, selection, scope, rest, ..record }))
}

/// Whether modules are chosen by scores.
fn chooses_by_scores(settings: &TrainSettings) -> bool {
    settings.adapter.method == Method::LoraDrop && settings.selection.keep_layers.is_none()
}

/// Scores an adapter as it is, on the sample: one forward pass is observed.
pub fn score_adapter(
    prepared: &Prepared,
    settings: &TrainSettings,
    criterion: &dyn Criterion,
    adapter: &Path,
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Event),
) -> Result<(Importance, Assignment)> {
    if !criterion.scores_adapters() {
        return Err(Error::Usage(format!(
            "`criterion = {}` scores a model before or during training; a trained adapter is scored by output or size",
            criterion.name()
        )));
    }
    let Loaded { model, parameters, bank, table, mut memory, .. } =
        Loaded::open(&prepared.model.name, Some(adapter), Arithmetic::of(&settings.compute))?;
    if !is_scored(bank.method()) {
        return Err(Error::Usage(format!(
            "{}: a {} adapter cannot be scored, as its output is not s·B A x alone; train one with `method = lora`",
            adapter.display(),
            bank.method().title()
        )));
    }
    if bank.pair_of(ModuleId::LM_HEAD).is_some() {
        return Err(Error::Usage(format!("{}: {LM_HEAD_IS_USED}", adapter.display())));
    }
    let examples = prepared.data.train();
    let rows = draw_sample(prepared, settings)?;
    if model.head.map(|head| head.kind) != prepared.data.labels().map(|labels| labels.head().kind) {
        let (has, task) = match model.head.map(|head| head.kind) {
            Some(HeadKind::Sequence) => ("a head", "classification, multi-label or regression"),
            Some(HeadKind::Token) => ("a head for words", "token-classification"),
            None => ("no head", "text"),
        };
        return Err(Error::Usage(format!(
            "{}: the adapter has {has}, so it is scored on rows for `task = {task}`",
            adapter.display()
        )));
    }
    let micro_tokens = micro_tokens(&model);
    let (model, parameters, table, memory, ranks) = (&model, &parameters, &table, &mut memory, &ALONE);
    let mut measuring = Measuring { model, parameters, table, micro_tokens, memory, ranks, cancel, listen };
    let observations = match criterion.observer() {
        Some(observer) => measuring.observe(examples, &rows, observer)?,
        None => Observations::new(),
    };
    let (hidden_states, seed) = (&HiddenStates::default(), settings.optimisation.seed);
    let evidence = Evidence { bank: &bank, parameters, observations: &observations, hidden_states, seed };
    let scores = criterion.scores(&evidence);
    let all_zero = |kind: &str| {
        format!(
            "{}: the scores of every {kind} are all zero: nothing was learned there, so nothing can be ranked",
            adapter.display()
        )
    };
    let mut importance = ranked(&scores, prepared, settings.selection.scope, all_zero)?;
    let tokens = rows.iter().map(|&row| examples.length(row)).sum();
    (importance.rows, importance.tokens, importance.micro_tokens) = (rows.len(), tokens, micro_tokens);
    importance.window = Window { steps: 0, rows: rows.len(), tokens };
    if settings.selection.rule() == Selection::Auto {
        let problem = "`budget = auto` is chosen after a sample stage; `lora-drop prune `budget = auto`` reduces a trained adapter";
        return Err(Error::Usage(problem.to_string()));
    }
    let rank = |pair: &BankPair| pair.lora.rank;
    if matches!(settings.selection.rule(), Selection::Budget(_))
        && !bank.pairs().is_sorted_by(|x, y| rank(x) == rank(y))
    {
        return Err(Error::Usage(format!(
            "{}: its pairs have different ranks, but `budget` needs pairs of the same rank; give `threshold` or `top_k`",
            adapter.display()
        )));
    }
    // A score only shows what would be kept, so shared pairs are taken to have the others' size.
    let sizes = |kind| {
        let pair = bank.pairs().iter().find(|pair| pair.kind == kind);
        pair.map_or(0, |pair| pair.parameters()).into()
    };
    let rest = settings.selection.unselected.into();
    let assignment = assign(&importance, settings.selection.rule(), settings.selection.scope, rest, sizes)?;
    listen(&Event::Importance(&importance));
    listen(&Event::Assignment(&assignment));
    Ok((importance, assignment))
}

/// The rows of the stratified sample.
pub(super) fn draw_sample(prepared: &Prepared, settings: &TrainSettings) -> Result<Vec<usize>> {
    let strata = prepared.data.strata();
    let strata = strata.ok_or_else(|| Error::Input("the train split has rows without labels".into()))?;
    Ok(stratified(&strata, settings.selection.sample_ratio, settings.optimisation.seed))
}

/// The importance of modules with these scores.
///
/// # Errors
/// `Error::NotFinite` for a score that is infinite or NaN; `Error::Input` if all scores of a module
/// type, or with one ranking of all modules, are zero, so that they have no order. `all_zero` makes
/// its message.
fn ranked(
    scores: &BTreeMap<ModuleId, f64>,
    prepared: &Prepared,
    scope: Scope,
    all_zero: impl Fn(&str) -> String,
) -> Result<Importance> {
    if let Some((module, score)) = scores.iter().find(|(_, score)| !score.is_finite()) {
        return Err(Error::NotFinite(format!(
            "the score of layer {}'s {} is {score}: it is too large for a number; try a lower `learning_rate`",
            module.layer,
            prepared.short_name(module.kind)
        )));
    }
    let learned = |kind| scores.iter().any(|(id, &g)| g != 0.0 && (scope == Scope::Layer || id.kind == kind));
    match scores.keys().map(|id| id.kind).find(|&kind| !learned(kind)) {
        Some(kind) => Err(Error::Input(all_zero(&prepared.short_name(kind)))),
        None => Ok(Importance::from_scores(scores, scope)),
    }
}
