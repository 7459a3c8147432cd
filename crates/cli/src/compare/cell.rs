//! A cell of the table: one run, named by a hash of everything that its result depends on.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use toml::Table;
use twox_hash::XxHash3_128;

use super::sources::Sources;
use super::table::{Prune, Score, TableFile, described};
use lora_drop::folder::PRUNE_FILE;
use lora_drop::score::record::Record;
use lora_drop::settings::{Reader, RunSettings, Situation, changes_no_result};
use lora_drop::summary::{Status, Summary};
use lora_drop::{Error, Result};

/// The most letters of a task's or line's name in a folder's name.
const SLUG: usize = 24;

/// The indices of a task and a line.
pub type Place = (usize, usize);

/// What a run is for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    #[default]
    Reported,
    /// A trial of these values.
    Trial(Table),
    /// A run that measures the seconds of a step.
    FirstRun,
}

/// One run of the table.
#[derive(Clone, Debug)]
pub struct Cell {
    pub task: usize,
    pub line: usize,
    pub seed: u64,
    pub purpose: Purpose,
    /// The settings for `train`, as they were given; of a pruned cell those of the cell that it
    /// prunes.
    pub given: Table,
    /// The folder of the cell whose adapter is pruned, where nothing is trained.
    pub pruned: Option<String>,
    /// The name of its folder.
    pub folder: String,
    /// A hash of settings, data, model and the program's version.
    pub digest: String,
}

impl Cell {
    /// A reported cell that trains; `tuned` are the settings that were chosen for it or are tried.
    ///
    /// # Errors
    /// Those of the settings.
    pub fn new(
        table: &TableFile,
        sources: &Sources,
        (task, line): Place,
        seed: u64,
        tuned: &Table,
    ) -> Result<Self> {
        let given = table.given(task, line, seed, tuned)?;
        let settings = table.settings(&given, Path::new("cell"))?;
        let digest = digest(&given, &settings, &sources.hashes(&settings));
        let folder = folder(table, (task, line), seed, &digest);
        Ok(Cell { task, line, seed, purpose: Purpose::Reported, given, pruned: None, folder, digest })
    }

    pub fn place(&self) -> Place {
        (self.task, self.line)
    }

    /// The cell that prunes this one's adapter as a line says.
    pub fn pruned(&self, table: &TableFile, line: usize, prune: &Prune) -> Self {
        let all = format!("{}\n{}", self.digest, prune.options);
        let digest = format!("{:032x}", XxHash3_128::oneshot(all.as_bytes()));
        let folder = folder(table, (self.task, line), self.seed, &digest);
        Cell { line, folder, digest, pruned: Some(self.folder.clone()), ..self.clone() }
    }

    /// Its title in messages: `MRPC · LoRA · seed 0`.
    pub fn title(&self, table: &TableFile) -> String {
        let purpose = match &self.purpose {
            Purpose::Reported => String::new(),
            Purpose::Trial(tried) => {
                format!(" · trial of {}", described(tried))
            }
            Purpose::FirstRun => " · first run, for the seconds of a step".to_string(),
        };
        format!(
            "{} · {} · seed {}{purpose}",
            table.tasks[self.task].name, table.lines[self.line].label, self.seed
        )
    }
}

/// A cell's folder: task, line, seed and the digest's beginning.
fn folder(table: &TableFile, (task, line): Place, seed: u64, digest: &str) -> String {
    let names = [&table.tasks[task].name, &table.lines[line].label].map(|name| slug(name));
    format!("{}_{}_{seed}_{}", names[0], names[1], &digest[..12])
}

/// A hash of what decides a run's results: the settings that the table gives and that are read (so
/// a new option of the program makes no run stale), and the contents of the files that they name,
/// wherever these are.
fn digest(given: &Table, settings: &RunSettings, hashes: &[(&str, u128)]) -> String {
    let situation = Situation::new(settings, Reader::Train);
    let is_file = |name: &str| hashes.iter().any(|(file, _)| *file == name);
    let decides = |name: &str| !is_file(name) && !changes_no_result(name);
    let mut named = settings.to_table();
    named.retain(|name, _| decides(name) && given.contains_key(name) && situation.unread(name).is_none());
    let mut all = vec![env!("CARGO_PKG_VERSION").to_string(), named.to_string()];
    all.extend(hashes.iter().map(|(name, hash)| match *name {
        "model" | "data" => format!("{hash:032x}"),
        name => format!("{name} {hash:032x}"),
    }));
    format!("{:032x}", XxHash3_128::oneshot(all.join("\n").as_bytes()))
}

/// Turns a name into a part of a folder's name: letters, digits and dots, the rest dashes.
fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    let dashes: String = name.chars().map(plain).collect();
    let words: Vec<&str> = dashes.split('-').filter(|word| !word.is_empty()).collect();
    let slug: String = words.join("-").chars().take(SLUG).collect();
    // A name that begins with a dot would be hidden.
    slug.trim_matches(['-', '.']).to_string()
}

/// The result of a cell, as in its result.json.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CellResult {
    pub digest: String,
    pub task: String,
    /// The line's label.
    pub method: String,
    pub seed: u64,
    #[serde(default)]
    pub purpose: Purpose,
    /// The settings that were given to `train`.
    pub settings: Table,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a cell's run ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    Finished(Box<Measured>),
    /// The next `compare` runs it again.
    Failed {
        error: String,
    },
}

impl CellResult {
    pub fn new(cell: &Cell, table: &TableFile, outcome: Outcome) -> Self {
        CellResult {
            digest: cell.digest.clone(),
            task: table.tasks[cell.task].name.clone(),
            method: table.lines[cell.line].label.clone(),
            seed: cell.seed,
            purpose: cell.purpose.clone(),
            settings: cell.given.clone(),
            outcome,
        }
    }

    /// What the run measured, where it has finished.
    pub fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            Outcome::Finished(measured) => Some(measured),
            Outcome::Failed { .. } => None,
        }
    }
}

/// What a finished run measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The deciding metric after the last epoch, and at the best one.
    pub last: f64,
    pub best: f64,
    /// All metrics after the last epoch.
    pub last_metrics: Value,
    pub summary: Summary,
    /// The document of importance.json; None of methods that score nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance: Option<Value>,
}

impl Measured {
    /// The deciding metric as the table counts it.
    pub fn score(&self, which: Score) -> f64 {
        match which {
            Score::Last => self.last,
            Score::Best => self.best,
        }
    }

    /// Reads the files of a finished run; `name` gives the module types' names in its
    /// importance.json.
    ///
    /// # Errors
    /// `Error::Io` and `Error::Input` with the file: the run has not finished, or a file is not
    /// what it should be.
    pub fn read(run: &Path, name: impl Fn(lora_drop_transformer::ModuleKind) -> String) -> Result<Self> {
        let summary = Summary::read(run)?;
        if summary.status != Status::Finished {
            let status = summary.status.name();
            return Err(Error::Input(format!("{}: the run is {status}, not finished", run.display())));
        }
        let path = run.join("metrics.jsonl");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let mut last_metrics = Value::Null;
        for line in text.lines() {
            let line: Value = serde_json::from_str(line)
                .map_err(|e| Error::Input(format!("{}: not a line of a run's log: {e}", path.display())))?;
            if line["event"] == "evaluation" {
                last_metrics = line["metrics"].clone();
            }
        }
        let metric = &summary.metric;
        let missing = || Error::Input(format!("{}: no evaluation has {metric}", path.display()));
        let last = last_metrics[metric].as_f64().ok_or_else(missing)?;
        let best = summary.metrics.get(metric).copied().ok_or_else(missing)?;
        let path = run.join("importance.json");
        let importance = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io(&path, e)),
            Ok(text) => {
                let document: Value = serde_json::from_slice(&text)
                    .map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
                Record::from_json(&document, name)?;
                Some(document)
            }
        };
        Ok(Measured { last, best, last_metrics, summary, importance })
    }

    /// Reads the files of `prune`, which pruned this run's adapter: its costs are added to the run's.
    ///
    /// # Errors
    /// `Error::Io` and `Error::Input` with the file.
    pub fn pruned(&self, output: &Path) -> Result<Self> {
        let path = output.join(PRUNE_FILE);
        let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let refuse = |problem: &dyn std::fmt::Display| Error::Input(format!("{}: {problem}", path.display()));
        let found: Pruning = serde_json::from_slice(&text).map_err(|e| refuse(&e))?;
        let kept = found.chosen.and_then(|number| found.points.get(number));
        let kept = kept.ok_or_else(|| refuse(&"no budget was chosen"))?;
        let trained = found.finetuned.as_ref();
        let dev = trained.map(|trained| &trained.dev).or(kept.dev.as_ref());
        let metrics = dev.ok_or_else(|| refuse(&"dev was not measured"))?.metrics.clone();
        let metric = &self.summary.metric;
        let score = metrics.get(metric).copied().ok_or_else(|| refuse(&format!("dev has no {metric}")))?;
        let mut measured = Measured {
            last: score,
            best: score,
            last_metrics: serde_json::json!(metrics),
            importance: None,
            ..self.clone()
        };
        let summary = &mut measured.summary;
        let own = found.scoring_seconds + found.algebra_seconds;
        summary.trainable_parameters =
            summary.trainable_parameters - summary.lora_parameters + kept.parameters;
        summary.lora_parameters = kept.parameters;
        summary.retained_ratio = kept.parameters as f64 / summary.lora_parameters_full.max(1) as f64;
        let (steps, further) = trained.map_or((0, 0.0), |trained| (trained.steps, trained.seconds));
        summary.sample_seconds += own;
        summary.train_seconds += further;
        summary.total_seconds += own + found.measuring_seconds + further;
        summary.steps += steps;
        summary.metrics = metrics;
        Ok(measured)
    }

    /// Values that were added to the model or trained in it, without the head: unique adapter pairs,
    /// all weights after full fine-tuning, none where only the head was trained.
    pub fn parameters(&self) -> usize {
        match self.summary.method.as_str() {
            "full" => self.summary.trainable_parameters,
            "head" => 0,
            _ => self.summary.lora_parameters,
        }
    }

    /// The number of steps, at least one, that fit into `seconds` at this run's seconds per step and
    /// with its sample stage. `counted` is whether the sample stage's steps are included.
    pub fn steps_within(&self, seconds: f64, counted: bool) -> usize {
        let steps = self.summary.steps - self.summary.sample_steps;
        let each = self.summary.train_seconds / steps.max(1) as f64;
        let steps = ((seconds - self.summary.sample_seconds) / each).max(1.0);
        steps.round() as usize + if counted { self.summary.sample_steps } else { 0 }
    }

    /// Seconds of training with the selection, without reading and evaluation.
    pub fn seconds(&self) -> f64 {
        self.summary.sample_seconds + self.summary.train_seconds
    }
}

/// The part of prune.json that is a result.
#[derive(Deserialize)]
struct Pruning {
    points: Vec<Point>,
    chosen: Option<usize>,
    finetuned: Option<Finetuned>,
    scoring_seconds: f64,
    algebra_seconds: f64,
    measuring_seconds: f64,
}

#[derive(Deserialize)]
struct Point {
    parameters: usize,
    dev: Option<Dev>,
}

#[derive(Deserialize)]
struct Finetuned {
    steps: usize,
    seconds: f64,
    dev: Dev,
}

#[derive(Deserialize)]
struct Dev {
    metrics: std::collections::BTreeMap<String, f64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use lora_drop::settings::{LogTo, Method};

    #[test]
    fn names_become_folders() {
        for (name, folder) in [
            ("MRPC", "mrpc"),
            ("LoRA-drop, budget 0.5", "lora-drop-budget-0.5"),
            ("../../etc", "etc"),
            ("Übung: größer", "bung-gr-er"),
            ("a long name that goes on and on", "a-long-name-that-goes-on"),
        ] {
            assert_eq!(slug(name), folder);
        }
    }

    #[test]
    fn the_digest_is_of_what_decides_the_result() {
        let settings = RunSettings::new("m", "d", "o");
        let given = ["model", "data", "output", "log-to", "metrics-file", "threads", "token-cache"];
        let given = given.into_iter().chain(["method", "epochs", "sample-ratio"]);
        let given = Table::from_iter(given.map(|name| (name.to_string(), true.into())));
        let by = |settings: &RunSettings, [model, data]: [u128; 2]| {
            digest(&given, settings, &[("model", model), ("data", data)])
        };
        let of = |settings: &RunSettings| by(settings, [1, 2]);
        let first = of(&settings);
        let changed = |change: &dyn Fn(&mut RunSettings)| {
            let mut settings = settings.clone();
            change(&mut settings);
            settings
        };
        let elsewhere = changed(&|settings| {
            settings.place = RunSettings::new("other/m", "e", "p").place;
            (settings.place.log_to, settings.place.metrics_file) =
                (vec![LogTo::TensorBoard], Some("f".into()));
            (settings.train.compute.threads, settings.rows.token_cache) = (7, 0.0);
        });
        assert_eq!(of(&elsewhere), first);
        assert_ne!(by(&settings, [1, 3]), first);
        assert_ne!(by(&settings, [3, 2]), first);
        assert_ne!(of(&changed(&|settings| settings.train.optimisation.epochs = 4)), first);
        // The table does not give this setting.
        assert_eq!(of(&changed(&|settings| settings.train.adapter.rank = 4)), first);
        // A setting that plain LoRA does not read does not change its digest.
        let lora = changed(&|settings| settings.train.adapter.method = Method::Lora);
        let mut other = lora.clone();
        other.train.selection.sample_ratio = 0.5;
        assert_eq!(of(&other), of(&lora));
    }
}
