//! What the finished cells show: means over seeds, differences to the reference, the smallest
//! adapter that is good enough, importance and the agreement of rankings.

use std::collections::{BTreeMap, BTreeSet};

use lora_drop_transformer::ModuleKind;
use serde::Serialize;
use toml::{Table, Value};

use super::cell::{Measured, Place};
use super::sources::Sources;
use super::statistics::{Difference, Spread, mean};
use super::table::TableFile;
use lora_drop::Result;
use lora_drop::evaluate::metrics::higher_is_better;
use lora_drop::score::kendall_tau;
use lora_drop::score::record::Record;
use lora_drop::summary::Baseline;

/// Everything that tables and pictures show, of the cells that have finished so far.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// By task, then line; an entry exists once one of its cells has finished.
    pub entries: Vec<Entry>,
    /// One for each line that has finished on every task; empty where tasks' metrics cannot be
    /// averaged.
    pub averages: Vec<Average>,
    /// One for each task on which the reference has finished.
    pub smallest: Vec<Smallest>,
    pub importance: Vec<ImportanceMap>,
    pub agreement: Vec<RankAgreement>,
}

/// A line of the table on a task.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub task: usize,
    pub line: usize,
    pub metric: String,
    pub higher_is_better: bool,
    /// Seed → score.
    pub scores: BTreeMap<u64, f64>,
    pub score: Spread,
    /// Mean over seeds of `Measured::parameters`, and its share of the reference's.
    pub parameters: f64,
    pub share: Option<f64>,
    /// Mean share of what plain LoRA of the same modules and rank has; None of methods without
    /// adapters.
    pub retained: Option<f64>,
    /// Mean of `Measured::seconds`, and of the sample stage in it.
    pub seconds: f64,
    pub selection_seconds: f64,
    /// The largest of the seeds.
    pub peak_memory_bytes: u64,
    /// Mean optimiser steps, with those of the sample stage.
    pub steps: f64,
    /// The baseline on dev, if the mean over seeds is not better.
    pub no_better_than: Option<Baseline>,
    /// Score minus the reference's on the same seeds; None for the reference, and if no seed has
    /// both.
    pub difference: Option<Difference>,
    /// The settings that trials chose.
    pub tuned: Option<Table>,
}

impl Entry {
    /// How much better the score is than the reference's, in the metric's units; None for the
    /// reference, and if no seed has both.
    pub fn gain(&self) -> Option<f64> {
        let sign = if self.higher_is_better { 1.0 } else { -1.0 };
        self.difference.map(|difference| sign * difference.mean)
    }
}

/// A line over all tasks.
#[derive(Clone, Debug, Serialize)]
pub struct Average {
    pub line: usize,
    /// The mean of the tasks' means.
    pub score: f64,
    pub parameters: f64,
    pub share: Option<f64>,
    pub seconds: f64,
    /// Difference over all pairs of a task and a seed.
    pub difference: Option<Difference>,
}

/// The line with the fewest parameters that is not below the reference by more than the tolerance.
#[derive(Clone, Debug, Serialize)]
pub struct Smallest {
    pub task: usize,
    /// The reference's own line if no smaller one is good enough.
    pub line: usize,
    /// In the metric's units.
    pub tolerance: f64,
}

/// Importance I by layer and task, as the mean over the seeds of one line: the first whose scores
/// are by this criterion.
#[derive(Clone, Debug, Serialize)]
pub struct ImportanceMap {
    pub criterion: String,
    pub line: usize,
    pub tasks: Vec<usize>,
    pub kinds: Vec<KindImportance>,
}

/// A module type in an importance map.
#[derive(Clone, Debug, Serialize)]
pub struct KindImportance {
    /// The architecture's name.
    pub name: String,
    /// Layer → importance on each of the map's tasks.
    pub layers: BTreeMap<usize, Vec<Option<f64>>>,
}

/// Kendall's tau between the rankings of pairs of runs on a task.
#[derive(Clone, Debug, Serialize)]
pub struct RankAgreement {
    pub task: usize,
    pub line: usize,
    /// The line of the other sample ratio; None: between this line's seeds.
    pub other: Option<usize>,
    pub mean: f64,
    pub least: f64,
    pub pairs: usize,
}

/// Measurements of the finished cells that are reported, by task, line and seed.
pub(super) type Measurements<'a> = BTreeMap<Place, BTreeMap<u64, &'a Measured>>;

impl Findings {
    /// Compares these results; `tuned` are the settings that trials chose.
    ///
    /// # Errors
    /// An importance.json that is not one of the cell's model.
    pub(super) fn new(
        table: &TableFile,
        sources: &Sources,
        results: &Measurements,
        tuned: &BTreeMap<Place, Table>,
    ) -> Result<Self> {
        let entries = entries(table, results, tuned);
        // The model as the table names it: the summary of a resumed run has a whole path.
        let model = |(task, line): Place| -> Result<String> {
            let trial = tuned.get(&(task, line)).cloned().unwrap_or_default();
            let given = table.given(task, line, 0, &trial)?;
            Ok(given.get("model").and_then(Value::as_str).unwrap_or_default().to_string())
        };
        let models = results.keys().map(|&place| Ok((place, model(place)?))).collect::<Result<Models>>()?;
        let records = records(&models, sources, results)?;
        Ok(Findings {
            averages: averages(table, &entries),
            smallest: smallest(table, &entries),
            importance: importance(&records, &models, sources),
            agreement: agreement(table, &records)?,
            entries,
        })
    }

    pub fn entry(&self, task: usize, line: usize) -> Option<&Entry> {
        self.entries.iter().find(|entry| (entry.task, entry.line) == (task, line))
    }

    /// The task's entries in the table's order.
    pub fn of_task(&self, task: usize) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.task == task)
    }
}

fn entries(table: &TableFile, results: &Measurements, tuned: &BTreeMap<Place, Table>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (&(task, line), measured) in results {
        let scores: BTreeMap<u64, f64> =
            measured.iter().map(|(&seed, &cell)| (seed, cell.score(table.score))).collect();
        let Some(spread) = Spread::of(&scores.values().copied().collect::<Vec<_>>()) else { continue };
        let over = |of: &dyn Fn(&Measured) -> f64| mean(measured.values().map(|m| of(m)));
        let metric = measured.values().next().map_or(String::new(), |cell| cell.summary.metric.clone());
        entries.push(Entry {
            task,
            line,
            higher_is_better: higher_is_better(&metric),
            metric,
            scores,
            score: spread,
            parameters: over(&|m| m.parameters() as f64),
            share: None,
            retained: measured
                .values()
                .all(|m| m.summary.lora_parameters_full > 0)
                .then(|| over(&|m| m.summary.retained_ratio)),
            seconds: over(&|m| m.seconds()),
            selection_seconds: over(&|m| m.summary.sample_seconds),
            peak_memory_bytes: measured.values().map(|m| m.summary.peak_rss_bytes).max().unwrap_or(0),
            no_better_than: no_better_than(measured),
            steps: over(&|m| m.summary.steps as f64),
            difference: None,
            tuned: tuned.get(&(task, line)).cloned(),
        });
    }
    let references: BTreeMap<usize, Entry> =
        entries.iter().filter(|e| e.line == table.reference).map(|e| (e.task, e.clone())).collect();
    for entry in &mut entries {
        let Some(reference) = references.get(&entry.task) else { continue };
        entry.share = (reference.parameters > 0.0).then(|| entry.parameters / reference.parameters);
        if entry.line != table.reference && entry.metric == reference.metric {
            entry.difference = Difference::of(&pairs(entry, reference));
        }
    }
    entries
}

/// The baseline of a task's runs, if it is at least as good as the mean of their results.
fn no_better_than(measured: &BTreeMap<u64, &Measured>) -> Option<Baseline> {
    let baseline = measured.values().next()?.summary.baseline.clone()?;
    let values: Option<Vec<f64>> =
        measured.values().map(|cell| cell.last_metrics.get(&baseline.name)?.as_f64()).collect();
    let reached = mean(values?);
    let better =
        if higher_is_better(&baseline.name) { reached > baseline.value } else { reached < baseline.value };
    (!better).then_some(baseline)
}

/// The differences to the reference on the seeds that both have.
fn pairs(entry: &Entry, reference: &Entry) -> Vec<f64> {
    let both = entry.scores.iter().filter_map(|(seed, score)| Some(score - reference.scores.get(seed)?));
    both.collect()
}

fn averages(table: &TableFile, entries: &[Entry]) -> Vec<Average> {
    let higher = entries.iter().all(|entry| entry.higher_is_better);
    if table.tasks.len() < 2 || !higher {
        return Vec::new();
    }
    let of_line = |line: usize| entries.iter().filter(move |entry| entry.line == line);
    let over = |line: usize, of: fn(&Entry) -> f64| mean(of_line(line).map(of));
    let complete = |line: usize| of_line(line).count() == table.tasks.len();
    let reference = complete(table.reference).then(|| over(table.reference, |entry| entry.parameters));
    let average = |line: usize| {
        let differences: Vec<f64> = of_line(line)
            .filter(|entry| entry.line != table.reference)
            .filter_map(|entry| {
                let of_task = |other: &&Entry| (other.task, other.line) == (entry.task, table.reference);
                Some(pairs(entry, entries.iter().find(of_task)?))
            })
            .flatten()
            .collect();
        let parameters = over(line, |entry| entry.parameters);
        Average {
            line,
            score: over(line, |entry| entry.score.mean),
            parameters,
            share: reference.filter(|all| *all > 0.0).map(|all| parameters / all),
            seconds: over(line, |entry| entry.seconds),
            difference: Difference::of(&differences),
        }
    };
    (0..table.lines.len()).filter(|&line| complete(line)).map(average).collect()
}

fn smallest(table: &TableFile, entries: &[Entry]) -> Vec<Smallest> {
    let references = entries.iter().filter(|entry| entry.line == table.reference);
    references
        .map(|reference| {
            let tolerance = table.tolerance.or(reference.score.standard_error()).unwrap_or(0.0);
            let does = |entry: &&Entry| entry.gain().is_some_and(|gain| gain >= -tolerance);
            let smaller = entries
                .iter()
                .filter(|entry| entry.task == reference.task && entry.parameters < reference.parameters)
                .filter(does)
                .min_by(|a, b| {
                    a.parameters
                        .total_cmp(&b.parameters)
                        .then(b.gain().partial_cmp(&a.gain()).unwrap_or(std::cmp::Ordering::Equal))
                });
            let line = smaller.map_or(reference.line, |entry| entry.line);
            Smallest { task: reference.task, line, tolerance }
        })
        .collect()
}

/// The scorings by task, line and seed.
type Records = BTreeMap<Place, BTreeMap<u64, Record>>;

/// The names of the models by task and line.
type Models = BTreeMap<Place, String>;

fn records(models: &Models, sources: &Sources, results: &Measurements) -> Result<Records> {
    let mut records = Records::new();
    for (&place, seeds) in results {
        for (&seed, measured) in seeds {
            if let Some(document) = &measured.importance {
                let record = Record::from_json(document, |kind| sources.module_name(&models[&place], kind))?;
                records.entry(place).or_default().insert(seed, record);
            }
        }
    }
    Ok(records)
}

fn importance(records: &Records, models: &Models, sources: &Sources) -> Vec<ImportanceMap> {
    // Criterion → its line: the first in the table that has scores by it on any task.
    let all = records.iter().flat_map(|((_, line), seeds)| seeds.values().map(move |record| (*line, record)));
    let mut lines: Vec<(usize, &str)> = all.map(|(line, record)| (line, record.criterion.as_str())).collect();
    lines.sort();
    let mut known = BTreeSet::new();
    lines.retain(|(_, criterion)| known.insert(*criterion));
    let map = |(line, criterion): (usize, &str)| {
        let of_line: Vec<(usize, &BTreeMap<u64, Record>)> = records
            .iter()
            .filter(|((_, l), _)| *l == line)
            .map(|((task, _), seeds)| (*task, seeds))
            .collect();
        let mut kinds: BTreeMap<ModuleKind, KindImportance> = BTreeMap::new();
        for (column, (task, seeds)) in of_line.iter().enumerate() {
            let model = &models[&(*task, line)];
            let mut values: BTreeMap<(ModuleKind, usize), Vec<f64>> = BTreeMap::new();
            for module in seeds.values().flat_map(|record| &record.importance.modules) {
                values.entry((module.kind, module.layer)).or_default().push(module.importance);
            }
            for ((kind, layer), values) in values {
                let new =
                    || KindImportance { name: sources.module_name(model, kind), layers: BTreeMap::new() };
                let layers = &mut kinds.entry(kind).or_insert_with(new).layers;
                layers.entry(layer).or_insert_with(|| vec![None; of_line.len()])[column] = Some(mean(values));
            }
        }
        ImportanceMap {
            criterion: criterion.to_string(),
            line,
            tasks: of_line.iter().map(|(task, _)| *task).collect(),
            kinds: kinds.into_values().collect(),
        }
    };
    lines.into_iter().map(map).collect()
}

fn agreement(table: &TableFile, records: &Records) -> Result<Vec<RankAgreement>> {
    let tau = |a: &Record, b: &Record| kendall_tau(&a.importance, &b.importance, a.scope);
    let mut found = Vec::new();
    let mut add = |(task, line): Place, other: Option<usize>, taus: Vec<f64>| {
        if !taus.is_empty() {
            let least = taus.iter().copied().fold(f64::INFINITY, f64::min);
            found.push(RankAgreement {
                task,
                line,
                other,
                mean: mean(taus.iter().copied()),
                least,
                pairs: taus.len(),
            });
        }
    };
    for (&place, seeds) in records {
        let all: Vec<&Record> = seeds.values().collect();
        let pairs = all.iter().enumerate().flat_map(|(i, a)| all[i + 1..].iter().map(move |b| (*a, *b)));
        add(place, None, pairs.map(|(a, b)| tau(a, b)).collect());
    }
    // Lines whose settings differ in the sample ratio and in nothing else.
    let ratio_apart = |(task, line): Place| -> Result<(Option<Value>, Table)> {
        let mut given = table.given(task, line, 0, &Table::new())?;
        Ok((given.remove("sample-ratio"), given))
    };
    for (&(task, line), seeds) in records {
        for (&(_, other), others) in records.range((task, line + 1)..(task + 1, 0)) {
            let (own, its) = (ratio_apart((task, line))?, ratio_apart((task, other))?);
            if own.1 == its.1 && own.0 != its.0 {
                let both = seeds.iter().filter_map(|(seed, a)| Some(tau(a, others.get(seed)?)));
                add((task, line), Some(other), both.collect());
            }
        }
    }
    Ok(found)
}
