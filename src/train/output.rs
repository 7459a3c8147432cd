//! The output folder of a run: the adapter at each best epoch, the log as it grows, the rest at the end.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use lora_drop_transformer::ModelConfig;

use super::learner::Learner;
use super::prepare::Prepared;
use super::{Fit, deciding};
use crate::adapter::{AdapterFile, COMPACT_FILE, write_checkpoint};
use crate::assign::Assignment;
use crate::events::{EvaluationRecord, Event, StepRecord};
use crate::files::write_bytes_atomically;
use crate::forecast::Passes;
use crate::report::{MetricsLog, RunRecord, module_names, write_report};
use crate::score::Importance;
use crate::score::record::Record;
use crate::settings::{Method, Task, TrainSettings};
use crate::summary::{MemoryForecast, Summary};
use crate::{Error, Result, memory};

/// Files that can be large enough for their size to matter to those who store many.
const MODEL_FILES: [&str; 3] = ["adapter_model.safetensors", COMPACT_FILE, "model.safetensors"];

/// Writes the model as it is now: PEFT's adapter and the compact one, or after full fine-tuning a checkpoint.
pub fn save_best(
    prepared: &Prepared,
    settings: &TrainSettings,
    learner: &Learner,
    listen: &mut dyn FnMut(&Event),
) -> Result<()> {
    let (folder, config) = (&settings.output, &prepared.model.config);
    let parameters = &learner.parameters;
    if settings.method == Method::Full {
        let values = |name: &str, _: &[usize]| {
            let id = parameters.find(name);
            let id = id.ok_or_else(|| Error::Input(format!("{name} is no weight of this model")))?;
            Ok(Cow::Borrowed(parameters.value(id)))
        };
        write_checkpoint(config, &prepared.model.path, folder, prepared.data.labels(), values)?;
        listen(&Event::Wrote(&folder.join("model.safetensors")));
        return Ok(());
    }
    let mut file =
        AdapterFile::from_bank(&learner.bank, parameters, config.architecture(), settings.lora_dropout);
    file.labels = prepared.data.labels().and_then(|labels| serde_json::to_value(labels).ok());
    file.base = settings.model.clone();
    file.metadata = BTreeMap::from([
        ("version".to_string(), env!("CARGO_PKG_VERSION").to_string()),
        ("method".to_string(), settings.method.name().to_string()),
        ("seed".to_string(), settings.seed.to_string()),
    ]);
    if !file.modules.is_empty() {
        file.write_peft(folder, config.layers())?;
        listen(&Event::Wrote(&folder.join("adapter_config.json")));
        listen(&Event::Wrote(&folder.join("adapter_model.safetensors")));
    }
    file.write_compact(&folder.join(COMPACT_FILE))?;
    listen(&Event::Wrote(&folder.join(COMPACT_FILE)));
    Ok(())
}

/// Writes importance.json.
pub fn write_importance(
    prepared: &Prepared,
    settings: &TrainSettings,
    importance: &Importance,
    assignment: &Assignment,
    listen: &mut dyn FnMut(&Event),
) -> Result<()> {
    let record = Record {
        importance: importance.clone(),
        assignment: assignment.clone(),
        scope: settings.scope,
        selection: settings.selection(),
        unselected: settings.unselected,
    };
    let document = record.to_json(|kind| prepared.short_name(kind));
    write_json(&settings.output.join("importance.json"), &document, listen)
}

fn write_json(path: &Path, value: &impl serde::Serialize, listen: &mut dyn FnMut(&Event)) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
    write_bytes_atomically(path, (text + "\n").as_bytes())?;
    listen(&Event::Wrote(path));
    Ok(())
}

/// What the run has told so far: metrics.jsonl, and the same records for the report.
pub struct RunLog {
    file: MetricsLog,
    steps: Vec<StepRecord>,
    evaluations: Vec<EvaluationRecord>,
    /// The first failure to write the log; reported at the next chance.
    failed: Option<Error>,
}

impl RunLog {
    pub fn create(folder: &Path) -> Result<Self> {
        let file = MetricsLog::create(&folder.join("metrics.jsonl"))?;
        Ok(RunLog { file, steps: Vec::new(), evaluations: Vec::new(), failed: None })
    }

    pub fn record(&mut self, event: &Event) {
        match event {
            Event::Step(step) => self.steps.push((*step).clone()),
            Event::Evaluation(evaluation) => self.evaluations.push((*evaluation).clone()),
            _ => return,
        }
        if self.failed.is_none() {
            self.failed = self.file.handle(event).err();
        }
    }
}

/// The sample stage's part in the results.
pub struct Stages {
    pub importance: Importance,
    pub seconds: f64,
}

/// The settings with what model, data and the plan of memory have decided where nothing was given.
fn resolved(prepared: &Prepared, settings: &TrainSettings, passes: Passes) -> TrainSettings {
    let config = &prepared.model.config;
    let mut resolved = settings.clone();
    // With more threads or on another system the limit might choose otherwise, to other bits.
    resolved.recompute = passes.recompute;
    resolved.micro_tokens = Some(passes.cut.micro_tokens);
    resolved.target_modules = prepared.kinds.iter().map(|&kind| prepared.short_name(kind)).collect();
    resolved.metric = Some(prepared.metric.name().to_string());
    resolved.task = Some(match prepared.data.labels() {
        None => Task::Text,
        Some(labels) if labels.is_regression() => Task::Regression,
        Some(_) => Task::Classification,
    });
    match config {
        ModelConfig::Encoder(config) => {
            // The setting is the head's dropout too: where the model's head has its own, the model has to say both.
            if config.head_dropout() == config.hidden_dropout {
                resolved.hidden_dropout.get_or_insert(config.hidden_dropout);
            }
            resolved.attention_dropout.get_or_insert(config.attention_dropout);
        }
        ModelConfig::Decoder(config) => {
            resolved.attention_dropout.get_or_insert(config.attention_dropout);
        }
    }
    resolved
}

/// A run whose training is over.
pub struct Finished<'a> {
    pub prepared: &'a Prepared,
    pub settings: &'a TrainSettings,
    pub learner: &'a Learner,
    pub assignment: Assignment,
    pub stages: Option<Stages>,
    pub fit: Fit,
    pub forecast: MemoryForecast,
    pub began: Instant,
    pub startup_seconds: f64,
}

impl Finished<'_> {
    /// Writes what is not there yet, summary.json last: a folder that has one is complete.
    pub fn write(self, log: RunLog, listen: &mut dyn FnMut(&Event)) -> Result<Summary> {
        let RunLog { file, steps, evaluations, failed } = log;
        if let Some(error) = failed {
            return Err(error);
        }
        file.finish()?;
        let (prepared, settings) = (self.prepared, self.settings);
        let recipe = settings.output.join("recipe.toml");
        write_bytes_atomically(
            &recipe,
            resolved(prepared, settings, self.learner.passes()).to_recipe()?.as_bytes(),
        )?;
        listen(&Event::Wrote(&recipe));
        let mut summary = self.summary();
        for name in MODEL_FILES {
            if let Ok(found) = std::fs::metadata(settings.output.join(name)) {
                summary.files.insert(name.to_string(), found.len());
            }
        }
        let record = RunRecord {
            summary: summary.clone(),
            settings: resolved(prepared, settings, self.learner.passes()),
            model: prepared.facts.clone(),
            data: prepared.data.facts().clone(),
            module_names: module_names(prepared.model.config.model_type()),
            importance: self.stages.map(|stages| stages.importance),
            assignment: (!prepared.kinds.is_empty()).then_some(self.assignment),
            steps,
            evaluations,
        };
        let report = settings.output.join("report.html");
        write_report(&report, &record)?;
        listen(&Event::Wrote(&report));
        write_json(&settings.output.join("summary.json"), &summary, listen)?;
        Ok(summary)
    }

    fn summary(&self) -> Summary {
        let (prepared, settings, fit) = (self.prepared, self.settings, &self.fit);
        let (best_epoch, best) = &fit.best;
        let size = |kind| prepared.pair_size(kind, settings.rank);
        let lora = self.learner.bank.unique_parameters();
        let full = self.assignment.plain_parameters(size);
        let kept = self.assignment.kept().into_iter();
        let sample = self.stages.as_ref();
        debug_assert!(deciding(best, prepared.metric).is_finite());
        Summary {
            version: env!("CARGO_PKG_VERSION").to_string(),
            method: settings.method.name().to_string(),
            model: settings.model.clone(),
            data: settings.data.display().to_string(),
            seed: settings.seed,
            status: if fit.interrupted { "interrupted" } else { "finished" }.to_string(),
            metrics: best.metrics.iter().cloned().collect(),
            metric: prepared.metric.name().to_string(),
            best_epoch: *best_epoch,
            epochs: settings.epochs,
            trainable_parameters: self.learner.parameters.count(),
            lora_parameters: lora,
            lora_parameters_full: full,
            retained_ratio: if full == 0 { 0.0 } else { lora as f64 / full as f64 },
            kept: kept.map(|(kind, layers)| (prepared.short_name(kind), layers)).collect(),
            train_tokens: fit.result.tokens,
            train_tokens_per_second: fit.result.tokens as f64 / fit.result.seconds.max(1e-9),
            sample_steps: sample.map_or(0, |s| s.importance.steps),
            sample_settled: sample.is_some_and(|s| s.importance.settled),
            sample_seconds: sample.map_or(0.0, |s| s.seconds),
            train_seconds: fit.result.seconds,
            evaluate_seconds: fit.evaluate_seconds,
            startup_seconds: self.startup_seconds,
            total_seconds: self.began.elapsed().as_secs_f64(),
            peak_rss_bytes: memory::peak_rss_bytes().unwrap_or(0),
            memory: Some(self.forecast.clone()),
            activation_bytes: self.learner.workplaces.used_bytes() as u64,
            threads: rayon::current_num_threads(),
            files: BTreeMap::new(),
        }
    }
}
