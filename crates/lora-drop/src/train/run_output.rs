//! What a run writes: recipe and log from the start, adapter, report and summary at each measured
//! epoch.
//!
//! Files that belong together are committed together (`OutputFolder`). A run that replaces an
//! earlier one commits nothing before its first measured epoch: until then the earlier run is worth
//! more.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::checkpoint::{Checkpoints, StoppedRun};
use super::learner::Learner;
use super::logs::Logs;
use super::prepare::Prepared;
use super::state::Best;
use super::{RunSink, adalora, sparse};
use crate::adapter::{COMPACT_FILE, FloatType, write_checkpoint};
use crate::card::{Card, Form};
use crate::data::TaskData;
use crate::data::text::TextKind;
use crate::estimate::Passes;
use crate::events::{EvaluationRecord, Event, Stage, StepRecord, TimeLeft};
use crate::files::{write_bytes_atomically, write_json};
use crate::folder::{Contents, OutputFolder};
use crate::machine::Machine;
use crate::run_record::{Page, RunRecord, module_names};
use crate::score::record::Record;
use crate::settings::{ClassWeights, Method, Place, RECIPE, RunSettings};
use crate::summary::{MemoryEstimate, Status, Summary};
use crate::{Error, Result, finite, hub, rss};

const IMPORTANCE: &str = "importance.json";
const SUMMARY: &str = "summary.json";
/// Files whose sizes the summary reports.
const MODEL_FILES: [&str; 3] = ["adapter_model.safetensors", COMPACT_FILE, "model.safetensors"];

/// The output of a run that is under way.
pub struct RunOutput<'a> {
    prepared: &'a Prepared,
    settings: &'a RunSettings,
    page: Option<Page<'a>>,
    /// The settings with the values that the run decided, as in recipe.toml.
    resolved: RunSettings,
    estimate: MemoryEstimate,
    machine: Machine,
    began: Instant,
    folder: OutputFolder,
    checkpoints: Checkpoints,
    logs: Logs,
    left: TimeLeft,
    steps: Vec<StepRecord>,
    evaluations: Vec<EvaluationRecord>,
    /// Sizes of the model's files, as they were last written.
    sizes: BTreeMap<String, u64>,
}

impl<'a> RunOutput<'a> {
    /// Opens the output folder, and writes the recipe, an empty log and a first summary; or opens
    /// the folder of a stopped run as it was at its checkpoint.
    ///
    /// # Errors
    /// Those of `OutputFolder::open` or `resume`, of the log, and of the disk.
    pub fn begin(
        prepared: &'a Prepared,
        settings: &'a RunSettings,
        page: Option<Page<'a>>,
        learner: &Learner,
        stopped: Option<&StoppedRun>,
        (estimate, mut checkpoints, began): (MemoryEstimate, Checkpoints, Instant),
        listen: &mut dyn FnMut(&Event),
    ) -> Result<Self> {
        let Place { output, overwrite, .. } = &settings.place;
        let folder = match stopped {
            Some(stopped) => {
                let logs = stopped.facts.logs.names();
                OutputFolder::resume(output, &logs, &[RECIPE, IMPORTANCE])?
            }
            None => OutputFolder::open(output, *overwrite, Contents::Run)?,
        };
        if let Some(note) = folder.kept_card() {
            listen(&Event::Warning(&note));
        }
        let resolved = resolved(prepared, settings, learner.passes());
        let facts = checkpoints.facts_mut();
        if stopped.is_none_or(|stopped| stopped.raised) {
            facts.recipe = settings.to_recipe(&resolved, &prepared.situation);
        }
        write_bytes_atomically(&folder.staging().join(RECIPE), facts.recipe.as_bytes())?;
        let lengths = stopped.map(|stopped| &stopped.facts.logs);
        let (logs, steps, evaluations) = Logs::begin(settings, &folder, lengths, &facts.recipe)?;
        let sizes = MODEL_FILES.iter().filter_map(|name| {
            let found = std::fs::metadata(output.join(name)).ok().filter(|_| !folder.replaces())?;
            Some((name.to_string(), found.len()))
        });
        let mut output = RunOutput {
            sizes: sizes.collect(),
            checkpoints,
            prepared,
            settings,
            page,
            resolved,
            estimate,
            machine: Machine::of_this(settings.train.compute.dtype.precision()),
            began,
            folder,
            logs,
            left: TimeLeft::default(),
            steps,
            evaluations,
        };
        output.write_progress(learner, output.summary(learner, Status::Running, None))?;
        output.commit_if_new(listen)?;
        Ok(output)
    }

    /// Writes how the run has ended, and returns its summary.
    ///
    /// # Errors
    /// The error that ended a run without a measured epoch; those of the disk for a run that has
    /// finished.
    pub fn finish(
        mut self,
        learner: &Learner,
        outcome: Result<()>,
        listen: &mut dyn FnMut(&Event),
    ) -> Result<Summary> {
        let (status, error) = match &outcome {
            Ok(()) => (Status::Finished, None),
            Err(Error::Interrupted) => (Status::Interrupted, None),
            Err(error @ Error::NotFinite(_)) => (Status::Diverged, Some(error.to_string())),
            Err(error) => (Status::Failed, Some(error.to_string())),
        };
        self.logs.flush(listen);
        let seconds = self.seconds();
        let RunOutput { checkpoints, folder, logs, .. } = &mut self;
        checkpoints.end(learner, status, folder, logs, seconds, listen);
        let summary = self.summary(learner, status, error);
        let best = &learner.state.progress.best;
        let written = match best {
            Some(_) => self.write_facts(learner, summary.clone()).and_then(|summary| {
                wrote(&self.commit()?, listen);
                Ok(summary)
            }),
            None => self.write_progress(learner, summary.clone()).and_then(|summary| {
                self.commit_if_new(listen)?;
                Ok(summary)
            }),
        };
        self.logs.end(if written.is_ok() { status } else { Status::Failed }, listen);
        match outcome {
            Ok(()) => written,
            Err(error) if best.is_none() => Err(error),
            // The run's own end is reported, even if it could not be written.
            Err(_) => Ok(written.unwrap_or(summary)),
        }
    }

    /// Writes the model as it is now: the adapter in PEFT's format and in the compact one, or after
    /// full fine-tuning a checkpoint.
    fn write_model(&mut self, learner: &Learner) -> Result<()> {
        let (prepared, settings, folder) = (self.prepared, self.settings, self.folder.staging());
        let (parameters, config) = (&learner.state.parameters, &prepared.model.config);
        finite::check_parameters(parameters)?;
        if settings.train.adapter.method == Method::Full {
            let values = |name: &str, _: &[usize]| {
                let id = parameters.find(name);
                let id = id.ok_or_else(|| Error::Input(format!("{name} is not a weight of this model")))?;
                Ok(Cow::Borrowed(parameters.value(id)))
            };
            let (model, labels) = (&prepared.model.path, prepared.data.labels());
            let ends = prepared.data.ends();
            write_checkpoint(config, model, &folder, labels, ends, &|_| FloatType::F32, values)?;
        } else {
            let mut file = learner.adapter_file(prepared, &settings.train);
            file.base = hub::plain(&self.resolved.place.model).to_string();
            file.metadata = BTreeMap::from([
                ("version".to_string(), env!("CARGO_PKG_VERSION").to_string()),
                ("method".to_string(), settings.train.adapter.method.name().to_string()),
                ("seed".to_string(), settings.train.optimisation.seed.to_string()),
            ]);
            if !file.modules.is_empty() {
                file.write_peft(&folder, config.layers)?;
            }
            file.write_compact(&folder.join(COMPACT_FILE))?;
        }
        for name in MODEL_FILES {
            if let Ok(found) = std::fs::metadata(folder.join(name)) {
                self.sizes.insert(name.to_string(), found.len());
            }
        }
        Ok(())
    }

    /// Writes the summary, and the report too once it has scores or results to show; returns the
    /// summary as it was written.
    fn write_progress(&mut self, learner: &Learner, summary: Summary) -> Result<Summary> {
        let progress = &learner.state.progress;
        match progress.importance.is_some() || progress.best.is_some() {
            true => self.write_facts(learner, summary),
            false => self.write_summary(summary),
        }
    }

    /// Writes report, card and summary; returns the summary as it was written.
    fn write_facts(&mut self, learner: &Learner, summary: Summary) -> Result<Summary> {
        let (prepared, progress) = (self.prepared, &learner.state.progress);
        // Moved into the record and back: the steps of a long run are many.
        let (steps, evaluations) = (take(&mut self.steps), take(&mut self.evaluations));
        let record = RunRecord {
            summary,
            settings: self.resolved.clone(),
            model: prepared.facts.clone(),
            data: prepared.data.facts().clone(),
            module_names: module_names(&prepared.model.config.model_type),
            importance: progress.importance.clone(),
            assignment: (!prepared.target_kinds.is_empty()).then(|| progress.assignment.clone()),
            steps,
            evaluations,
            dev: progress.best.as_ref().map(|best| best.dev.clone()).unwrap_or_default(),
            seconds_left: self.left.seconds(),
        };
        let page = self.page.map(|page| page(&record));
        let card = progress.best.is_some().then(|| {
            let form = match self.settings.train.adapter.method {
                Method::Full => Form::Model,
                _ if learner.bank.modules().values().any(Option::is_some) => Form::Peft,
                _ => Form::Compact,
            };
            let (labels, base) = (prepared.data.labels(), &prepared.model.path);
            Card::of_run(&record, labels, form, base, &self.settings.place.output)
        });
        (self.steps, self.evaluations) = (record.steps, record.evaluations);
        if let Some(page) = page {
            write_bytes_atomically(&self.folder.staging().join("report.html"), page.as_bytes())?;
        }
        if let Some(card) = card {
            self.folder.stage_card(&card)?;
        }
        self.write_summary(record.summary)
    }

    /// Writes the summary with the list of the run's files; returns it as it was written.
    fn write_summary(&self, mut summary: Summary) -> Result<Summary> {
        let names = self.folder.names()?.into_iter().chain([SUMMARY.to_string()]);
        summary.outputs = BTreeSet::from_iter(names).into_iter().collect();
        write_json(&self.folder.staging().join(SUMMARY), &summary)?;
        Ok(summary)
    }

    fn commit(&mut self) -> Result<Vec<PathBuf>> {
        let paths = self.folder.commit()?;
        self.logs.moved(&paths);
        Ok(paths)
    }

    /// Commits unless that would replace an earlier run.
    fn commit_if_new(&mut self, listen: &mut dyn FnMut(&Event)) -> Result<()> {
        if !self.folder.replaces() {
            wrote(&self.commit()?, listen);
        }
        Ok(())
    }

    /// Seconds of the run, including those of its earlier processes.
    fn seconds(&self) -> f64 {
        self.checkpoints.earlier_seconds() + self.began.elapsed().as_secs_f64()
    }

    fn summary(&self, learner: &Learner, status: Status, error: Option<String>) -> Summary {
        let facts = self.checkpoints.facts();
        let (prepared, settings, state) = (self.prepared, self.settings, &learner.state);
        let progress = &state.progress;
        let sizes = |kind| prepared.sizes(kind, &settings.train);
        let lora = adapter_parameters(learner, settings);
        let full = progress.assignment.plain_parameters(sizes);
        // With a method that ties pairs, no module has a pair of its own to keep.
        let kept =
            progress.assignment.kept().into_iter().filter(|_| !settings.train.adapter.method.ties_pairs());
        let importance = progress.importance.as_ref();
        let (tokens, seconds) = match state.stage {
            Stage::Train => (state.tokens, state.seconds),
            _ => (0, 0.0),
        };
        Summary {
            version: env!("CARGO_PKG_VERSION").to_string(),
            method: settings.train.adapter.method.name().to_string(),
            model: settings.place.model.clone(),
            data: settings.place.data.to_string(),
            seed: settings.train.optimisation.seed,
            status,
            error,
            metrics: progress.best.iter().flat_map(|best| best.metrics.iter().cloned()).collect(),
            metric: prepared.metric.name().to_string(),
            best_epoch: progress.best.as_ref().map_or(0.0, |best| best.epoch),
            epochs: settings.train.epochs_over(prepared.data.train().len()),
            steps: learner.steps_of_run(),
            trainable_parameters: state.parameters.count() - learner.bank.unique_parameters() + lora,
            lora_parameters: lora,
            lora_parameters_full: full,
            retained_ratio: if full == 0 { 0.0 } else { lora as f64 / full as f64 },
            kept: kept.map(|(kind, layers)| (prepared.short_name(kind), layers)).collect(),
            train_tokens: tokens,
            train_tokens_per_second: tokens as f64 / seconds.max(1e-9),
            sample_steps: progress.sample_steps,
            sample_settled: progress.sample_steps > 0 && importance.is_some_and(|i| i.settled),
            sample_seconds: progress.sample_seconds,
            train_seconds: seconds,
            evaluate_seconds: progress.evaluate_seconds + progress.baseline_seconds,
            startup_seconds: (facts.startup_seconds - progress.baseline_seconds).max(0.0),
            checkpoint_seconds: facts.checkpoint_seconds,
            total_seconds: self.seconds(),
            peak_rss_bytes: rss::peak_rss_bytes().unwrap_or(0).max(facts.peak_rss_bytes),
            memory: Some(self.estimate.clone()),
            activation_bytes: learner.arenas.used_bytes() as u64,
            threads: rayon::current_num_threads(),
            baseline: progress.baseline.clone(),
            machine: Some(self.machine.clone()),
            date: chrono::Local::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, false),
            files: self.sizes.clone(),
            outputs: Vec::new(),
        }
    }
}

impl RunSink for RunOutput<'_> {
    fn scratch(&self) -> PathBuf {
        self.folder.scratch()
    }

    /// Records the event and logs it.
    fn record(&mut self, event: &Event, listen: &mut dyn FnMut(&Event)) {
        match event {
            Event::Step(step) => {
                if self.steps.is_empty() {
                    self.checkpoints.facts_mut().startup_seconds = self.seconds();
                }
                self.steps.push((*step).clone());
            }
            Event::Evaluation(evaluation) => self.evaluations.push((*evaluation).clone()),
            _ => {}
        }
        self.left.handle(event);
        self.logs.handle(event, listen);
    }

    fn save_scores(
        &mut self,
        learner: &Learner,
        record: &Record,
        listen: &mut dyn FnMut(&Event),
    ) -> Result<()> {
        write_importance(self.prepared, record, &self.folder.staging().join(IMPORTANCE))?;
        self.write_progress(learner, self.summary(learner, Status::Running, None))?;
        self.commit_if_new(listen)
    }

    /// Commits report and summary and, if the evaluation is the best so far, the model.
    fn save_evaluation(&mut self, learner: &mut Learner, best: Option<Best>) -> Result<Vec<PathBuf>> {
        let Some(best) = best else {
            self.write_facts(learner, self.summary(learner, Status::Running, None))?;
            return self.commit();
        };
        let staged = self.folder.staged()?;
        let before = learner.state.progress.best.replace(best);
        let written = self
            .write_model(learner)
            .and_then(|()| self.write_facts(learner, self.summary(learner, Status::Running, None)))
            .and_then(|_| self.commit());
        if written.is_err() {
            learner.state.progress.best = before;
            self.folder.discard(&staged);
        }
        written
    }

    fn checkpoint_if_due(&mut self, learner: &Learner, milestone: bool, listen: &mut dyn FnMut(&Event)) {
        if self.checkpoints.is_due(milestone, learner.state.parameters.count()) {
            let seconds = self.seconds();
            let RunOutput { checkpoints, folder, logs, .. } = self;
            checkpoints.write(learner, folder, logs, seconds, listen);
        }
    }
}

/// Number of values in the adapters. For a method that prunes, number of those that are left:
/// AdaLoRA's triplets, a SparseAdapter's values.
fn adapter_parameters(learner: &Learner, settings: &RunSettings) -> usize {
    let Learner { bank, state, .. } = learner;
    match (settings.train.adapter.method, state.stage) {
        (Method::AdaLora, _) => adalora::kept(bank, &state.observations),
        (Method::SparseAdapter, Stage::Train) => sparse::kept(bank, &state.observations),
        _ => bank.unique_parameters(),
    }
}

fn wrote(paths: &[PathBuf], listen: &mut dyn FnMut(&Event)) {
    paths.iter().for_each(|path| listen(&Event::Wrote(path)));
}

/// Writes importance.json to `path`.
pub fn write_importance(prepared: &Prepared, record: &Record, path: &Path) -> Result<()> {
    write_json(path, &record.to_json(|kind| prepared.short_name(kind)))
}

/// Records the names of the columns that were found, because the model has learned from them: rows
/// without the second text of a pair do not fit a model of pairs.
fn record_columns(data: &TaskData, settings: &mut RunSettings) {
    let facts = data.facts();
    let (text, pair) = (Some(facts.text_column.clone()), facts.pair_column.clone());
    match data {
        TaskData::Labelled(_) => {
            (settings.rows.text_column, settings.rows.pair_column) = (text, pair);
            settings.rows.label_column = Some(facts.label_column.clone());
        }
        TaskData::Text(data) if data.kind == TextKind::Completion => {
            (settings.rows.prompt_column, settings.rows.completion_column) = (text, pair);
        }
        // A text or a conversation is the whole row, and the model also writes text for rows with a
        // prompt.
        TaskData::Text(_) => {}
    }
}

/// Returns the settings with the values that model, data and memory plan decided where none was
/// given.
fn resolved(prepared: &Prepared, settings: &RunSettings, passes: Passes) -> RunSettings {
    let config = &prepared.model.config;
    let mut resolved = settings.clone();
    // A recipe is read from other folders too, so paths are absolute. A name on the hub stays as it
    // is.
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let model = absolute(Path::new(&settings.place.model));
    if let Some(model) = model.to_str().filter(|_| model.exists()) {
        resolved.place.model = model.to_string();
    }
    resolved.place.data = settings.place.data.absolute();
    resolved.place.metrics_file = settings.place.metrics_file.as_deref().map(absolute);
    resolved.train.selection.scores = settings.train.selection.scores.as_deref().map(absolute);
    if let Some(ClassWeights::File(path)) = &mut resolved.rows.class_weights {
        *path = absolute(path);
    }
    resolved.train.adapter.init_adapter = settings.train.adapter.init_adapter.as_deref().map(absolute);
    // With more threads or on another system, `memory_limit` might choose passes that round
    // differently.
    resolved.train.compute.recompute = passes.recompute;
    resolved.train.compute.micro_tokens = Some(passes.cut.micro_tokens);
    resolved.train.adapter.target_modules =
        prepared.target_kinds.iter().map(|&kind| prepared.short_name(kind)).collect();
    resolved.train.optimisation.metric = Some(prepared.metric);
    resolved.rows.task = prepared.situation.task;
    resolved.rows.max_length = Some(settings.rows.row_tokens(config.max_tokens()));
    record_columns(&prepared.data, &mut resolved);
    // The setting applies to the head's dropout too, so it is recorded only if the model has the
    // same dropout for both.
    if !config.architecture.is_decoder() && config.head_dropout == config.hidden_dropout {
        resolved.train.optimisation.hidden_dropout.get_or_insert(config.hidden_dropout);
    }
    resolved.train.optimisation.attention_dropout.get_or_insert(config.attention_dropout);
    resolved
}
