//! The table file: tasks, methods and seeds as a user writes them, read with exact complaints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::section::{Part, Section};
use crate::settings::{Reader, Recipe, TomlFile, TrainSettings, unknown_among};
use crate::{Error, Result};

/// The keys of each part of the file, beside the settings of `train`.
const TABLE_KEYS: [&str; 11] = [
    "name",
    "output",
    "seeds",
    "tuning-seeds",
    "reference",
    "score",
    "tolerance",
    "keep",
    "equal",
    "options",
    "tasks",
];
const METHODS: &str = "methods";
const TASK_KEYS: [&str; 1] = ["name"];
const METHOD_KEYS: [&str; 6] = ["name", "vary", "tune", "tasks", "seeds", "prune"];
/// The line that is pruned, and options of `prune`.
const OF: &str = "of";
const PRUNE_KEYS: [&str; 7] =
    [OF, "budget", "by", "equal-ranks", "finetune-steps", "max-rows", "sample-ratio"];

/// The seed of trials where the file names none.
const TUNING_SEED: u64 = 1000;

/// Which of a run's evaluations on dev is its score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// That after the last epoch.
    #[default]
    Last,
    /// The best one, which is optimistic: dev has chosen it.
    Best,
}

/// What stays of a finished cell's model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Adapters stay; whole models, which full fine-tuning writes, are removed once they are measured.
    #[default]
    Adapters,
    All,
    Nothing,
}

/// What all runs of a task have in common with the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Equal {
    /// As many optimiser steps.
    Steps,
    /// As many steps as fit into its seconds, by the seconds per step of a first run that is not reported.
    Seconds,
}

/// A table of tasks × methods × seeds. Every cell's settings were checked as far as they can be without model and data.
#[derive(Clone, Debug)]
pub struct TableFile {
    /// The page's title.
    pub name: String,
    pub output: Option<PathBuf>,
    /// Seeds that are reported.
    pub seeds: Vec<u64>,
    /// Seeds of the trials of `tune`, none of which is reported.
    pub tuning_seeds: Vec<u64>,
    /// The line to which all others are compared.
    pub reference: usize,
    pub score: Score,
    /// How far below the reference a score may be and still do, in the metric's units; None: one standard error.
    pub tolerance: Option<f64>,
    pub keep: Keep,
    /// None: each run has the length that its settings say.
    pub equal: Option<Equal>,
    pub tasks: Vec<Task>,
    pub lines: Vec<Line>,
    options: Recipe,
}

/// A data set and its settings.
#[derive(Clone, Debug)]
pub struct Task {
    pub name: String,
    options: Recipe,
}

/// A method with one choice of what varies: a line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    /// The name in `[[methods]]`.
    pub method: String,
    /// The name and what varies: `LoRA-drop, budget 0.5`.
    pub label: String,
    /// The settings that tell it from other lines of its method.
    pub varied: Table,
    /// Every combination of the values to try; empty where nothing is tuned.
    pub trials: Vec<Table>,
    /// Indices of the tasks that it is for.
    pub tasks: Vec<usize>,
    pub seeds: Vec<u64>,
    /// Where it trains nothing, but prunes another line's adapters.
    pub prune: Option<Prune>,
    options: Recipe,
}

/// The pruning of another line's adapters.
#[derive(Clone, Debug)]
pub struct Prune {
    /// That line's index.
    pub of: usize,
    /// Options of `prune` by name, `vary`'s among them.
    pub options: Table,
}

impl TableFile {
    /// Reads a table file. Paths in it are relative to the current directory, as in recipes.
    ///
    /// # Errors
    /// `Error::Io`; `Error::Usage` with file and line for what is no TOML, an unknown key or a wrong value, and with method
    /// and task for settings that do not go together.
    pub fn read(path: &Path) -> Result<Self> {
        let file = TomlFile::read(path, "a table")?;
        let (document, values) = file.parse()?;
        let known = [&TABLE_KEYS[..], &[METHODS]].concat();
        let mut head = Section::new(&file, document, values, &known)?;
        head.refuse_others(&known)?;

        let options = head.part("options")?.map(|part| Section::options(&file, part, &[])).transpose()?;
        let options = options.map_or(Ok(Recipe::default()), |section| Recipe::from_table(section.rest))?;
        let tasks = head.parts("tasks")?.into_iter().map(|part| Task::read(&file, part));
        let tasks = tasks.collect::<Result<Vec<_>>>()?;
        let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
        head.check_unique("tasks", &names)?;

        let seeds = head.seeds("seeds")?.unwrap_or_else(|| vec![0, 1, 2]);
        let tuning_seeds = head.seeds("tuning-seeds")?.unwrap_or_else(|| vec![TUNING_SEED]);
        if let Some(seed) = tuning_seeds.iter().find(|seed| seeds.contains(seed)) {
            let problem =
                format!("{seed} is among the seeds too; what is chosen by a seed is not reported on it");
            return Err(head.error("tuning-seeds", &problem));
        }
        let mut lines = Vec::new();
        let mut methods = BTreeSet::new();
        for part in head.parts(METHODS)? {
            let of_method = Line::read_all(&file, part, &names, (&seeds, &lines))?;
            if !of_method.iter().all(|line| methods.insert(line.label.clone())) {
                let problem = format!("there are two of the name {:?}", of_method[0].method);
                return Err(head.error(METHODS, &problem));
            }
            lines.extend(of_method);
        }
        let reference = head.take::<String>("reference")?;
        let reference = reference.map_or(Ok(0), |name| {
            find_line(&lines, &name).map_err(|problem| head.error("reference", &problem))
        })?;
        let tolerance: Option<f64> = head.take("tolerance")?;
        if let Some(tolerance) = tolerance.filter(|tolerance| !(*tolerance >= 0.0 && tolerance.is_finite())) {
            return Err(head.error(
                "tolerance",
                &format!("{tolerance}; it must be 0 or greater, in the metric's units"),
            ));
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let table = TableFile {
            name: head.take("name")?.unwrap_or(stem),
            output: head.take("output")?,
            seeds,
            tuning_seeds,
            reference,
            score: head.take("score")?.unwrap_or_default(),
            tolerance,
            keep: head.take("keep")?.unwrap_or_default(),
            equal: head.take("equal")?,
            tasks,
            lines,
            options,
        };
        let pruned = table.lines.iter().any(|line| line.prune.is_some());
        if pruned && table.keep == Keep::Nothing {
            return Err(head.error("keep", "\"nothing\" would remove the adapters that are to be pruned"));
        }
        if table.equal.is_some() && table.lines[reference].tasks.len() < table.tasks.len() {
            return Err(
                head.error("equal", "the reference has to be for all tasks, for its length is theirs")
            );
        }
        if table.lines[reference].prune.is_some() {
            return Err(
                head.error("reference", "a pruned line cannot be the reference: name one that trains")
            );
        }
        table.check_cells().map_err(|problem| Error::Usage(format!("{}: {problem}", path.display())))?;
        Ok(table)
    }

    /// The settings that `train` is given for a cell, by name, with those of a trial above them; of a pruned line those of the
    /// line that it prunes.
    pub fn given(&self, task: usize, line: usize, seed: u64, trial: &Table) -> Result<Table> {
        let line = &self.lines[line];
        if let Some(prune) = &line.prune {
            return self.given(task, prune.of, seed, trial);
        }
        let mut recipe = self.options.clone();
        recipe.overlay(self.tasks[task].options.clone());
        recipe.overlay(line.options.clone());
        let seed = i64::try_from(seed).unwrap_or(i64::MAX);
        let own = [("seed".to_string(), Value::Integer(seed))];
        for above in [line.varied.clone(), trial.clone(), Table::from_iter(own)] {
            recipe.overlay(Recipe::from_table(above)?);
        }
        Ok(recipe.given().clone())
    }

    /// The settings of a cell whose run is written to `output`.
    ///
    /// # Errors
    /// Those of `Recipe::settings`.
    pub fn settings(&self, given: &Table, output: &Path) -> Result<TrainSettings> {
        let mut given = given.clone();
        given.insert("output".to_string(), Value::String(output.display().to_string()));
        Ok(Recipe::from_table(given)?.settings(Reader::Train)?.0)
    }

    /// The settings that the file gives all cells.
    pub(super) fn options(&self) -> &Table {
        self.options.given()
    }

    fn check_cells(&self) -> std::result::Result<(), String> {
        for (index, line) in self.lines.iter().enumerate() {
            let none = [Table::new()];
            let trials = if line.trials.is_empty() { &none[..] } else { &line.trials };
            for (&task, trial) in
                line.tasks.iter().flat_map(|task| trials.iter().map(move |trial| (task, trial)))
            {
                let given = self.given(task, index, 0, trial);
                given.and_then(|given| self.settings(&given, Path::new("cell"))).map_err(|error| {
                    format!("method {:?} on task {:?}: {error}", line.label, self.tasks[task].name)
                })?;
            }
        }
        Ok(())
    }
}

impl Task {
    /// The settings that the file gives it.
    pub(super) fn options(&self) -> &Table {
        self.options.given()
    }

    fn read(file: &TomlFile, part: Part) -> Result<Self> {
        let mut section = Section::options(file, part, &TASK_KEYS)?;
        let name = section.name()?;
        Ok(Task { name, options: Recipe::from_table(section.rest)? })
    }
}

impl Line {
    /// The settings that the file gives its method, without what varies.
    pub(super) fn options(&self) -> &Table {
        self.options.given()
    }

    /// The lines of one `[[methods]]`: one for each combination of what it varies. `before` are the lines above it.
    fn read_all(
        file: &TomlFile,
        part: Part,
        tasks: &[&str],
        (seeds, before): (&[u64], &[Line]),
    ) -> Result<Vec<Self>> {
        let mut section = Section::options(file, part, &METHOD_KEYS)?;
        let method = section.name()?;
        let prune = Prune::read(&mut section, before)?;
        let variants = section.combinations("vary", prune.as_ref().map(|_| &PRUNE_KEYS[1..]))?;
        let mut trials = section.combinations("tune", None)?;
        // Without `tune` there is one combination, of nothing.
        trials.retain(|trial| !trial.is_empty());
        let base = prune.as_ref().map(|prune| &before[prune.of]);
        let all: Vec<usize> = base.map_or_else(|| (0..tasks.len()).collect(), |base| base.tasks.clone());
        let names = section.take::<Vec<String>>("tasks")?;
        let of_tasks = names.map_or(Ok(all.clone()), |names| {
            let find = |name: &String| all.iter().copied().find(|&task| tasks[task] == name);
            let known = || all.iter().map(|&task| tasks[task]).collect::<Vec<_>>().join(", ");
            let found = names.iter().map(|name| {
                find(name).ok_or_else(|| {
                    section.error("tasks", &format!("there is no task {name:?}, only {}", known()))
                })
            });
            found.collect::<Result<BTreeSet<_>>>().map(Vec::from_iter)
        })?;
        let seeds = base.map_or(seeds, |base| &base.seeds);
        let own_seeds = section.seeds("seeds")?.unwrap_or_else(|| seeds.to_vec());
        if let Some(seed) = own_seeds.iter().find(|seed| !seeds.contains(seed)) {
            let problem =
                format!("{seed} is not among the table's seeds, so nothing could be compared with it");
            return Err(section.error("seeds", &problem));
        }
        let options = Recipe::from_table(std::mem::take(&mut section.rest))?;
        if prune.is_some() && (!trials.is_empty() || !options.given().is_empty()) {
            let problem =
                "what is pruned was trained before: options of `train` and tune belong to its own method";
            return Err(section.error("prune", problem));
        }
        let line = |varied: Table| Line {
            label: std::iter::once(method.clone()).chain(described(&varied)).collect::<Vec<_>>().join(", "),
            method: method.clone(),
            trials: trials.clone(),
            tasks: of_tasks.clone(),
            seeds: own_seeds.clone(),
            prune: prune.as_ref().map(|prune| prune.with(&varied)),
            varied,
            options: options.clone(),
        };
        let lines: Vec<Line> = variants.into_iter().map(line).collect();
        if lines
            .iter()
            .filter_map(|line| line.prune.as_ref())
            .any(|prune| !prune.options.contains_key("budget"))
        {
            return Err(section.error("prune", "budget is missing, the share of the parameters that stay"));
        }
        Ok(lines)
    }
}

impl Prune {
    fn read(section: &mut Section, before: &[Line]) -> Result<Option<Self>> {
        let Some(mut options) = section.take::<Table>("prune")? else { return Ok(None) };
        if let Some(key) = options.keys().find(|key| !PRUNE_KEYS.contains(&key.as_str())) {
            return Err(section.error("prune", &unknown_among(key, &PRUNE_KEYS)));
        }
        let Some(Value::String(name)) = options.remove(OF) else {
            return Err(
                section.error("prune", "of is missing, the name of the method whose adapters are pruned")
            );
        };
        let of = find_line(before, &name);
        let of = of.map_err(|problem| section.error("prune", &format!("of: {problem}, above this one")))?;
        if before[of].prune.is_some() {
            return Err(section.error("prune", &format!("of: {name:?} is pruned itself")));
        }
        Ok(Some(Prune { of, options }))
    }

    fn with(&self, varied: &Table) -> Self {
        let mut options = self.options.clone();
        options.extend(varied.clone());
        Prune { of: self.of, options }
    }
}

/// Settings in words: `budget 0.5`.
pub(super) fn described(settings: &Table) -> impl Iterator<Item = String> {
    settings.iter().map(|(name, value)| format!("{name} {}", shown(value)))
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(shown).collect::<Vec<_>>().join("+"),
        // 0.0005 and not 5e-4, which is how `toml` reads and `f64` writes both.
        Value::Float(number) => number.to_string(),
        other => other.to_string(),
    }
}

/// The line of this label, or the only one of the method of this name.
fn find_line(lines: &[Line], name: &str) -> std::result::Result<usize, String> {
    if let Some(line) = lines.iter().position(|line| line.label == name) {
        return Ok(line);
    }
    let of_method: Vec<usize> = (0..lines.len()).filter(|&line| lines[line].method == name).collect();
    match of_method.as_slice() {
        [line] => Ok(*line),
        _ => {
            let labels: Vec<String> = lines.iter().map(|line| format!("{:?}", line.label)).collect();
            let what =
                if of_method.is_empty() { "there is no line" } else { "several lines are of the method" };
            Err(format!("{what} {name:?}; the lines are {}", labels.join(", ")))
        }
    }
}
