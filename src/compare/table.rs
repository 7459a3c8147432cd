//! The table file: tasks, methods and seeds as a user writes them, read with exact complaints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use crate::settings::{Reader, Recipe, TomlFile, TrainSettings, check_table, one_line, unknown_among};
use crate::{Error, Result};

/// The keys of each part of the file, beside the settings of `train`.
const TABLE_KEYS: [&str; 10] = [
    "name",
    "output",
    "seeds",
    "tuning-seeds",
    "reference",
    "score",
    "tolerance",
    "keep",
    "options",
    "tasks",
];
const METHODS: &str = "methods";
const TASK_KEYS: [&str; 1] = ["name"];
const METHOD_KEYS: [&str; 5] = ["name", "vary", "tune", "tasks", "seeds"];

/// Settings that belong to the whole table, and where they are given instead.
const OF_THE_TABLE: [(&str, &str); 4] = [
    ("output", "each cell has a folder of its own in the table's output"),
    ("seed", "give the table's seeds"),
    ("threads", "give --threads to `compare`, which shares them among its jobs"),
    ("overwrite", "a finished cell is never written again"),
];

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
    options: Recipe,
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
            let of_method = Line::read_all(&file, part, &names, &seeds)?;
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
            tasks,
            lines,
            options,
        };
        table.check_cells().map_err(|problem| Error::Usage(format!("{}: {problem}", path.display())))?;
        Ok(table)
    }

    /// The settings that `train` is given for a cell, by name, with those of a trial above them.
    pub fn given(&self, task: usize, line: usize, seed: u64, trial: &Table) -> Result<Table> {
        let line = &self.lines[line];
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

    /// The lines of one `[[methods]]`: one for each combination of what it varies.
    fn read_all(file: &TomlFile, part: Part, tasks: &[&str], seeds: &[u64]) -> Result<Vec<Self>> {
        let mut section = Section::options(file, part, &METHOD_KEYS)?;
        let method = section.name()?;
        let [variants, mut trials] = ["vary", "tune"].map(|key| section.combinations(key));
        let variants = variants?;
        if trials.as_ref().is_ok_and(|trials| trials.len() == 1 && trials[0].is_empty()) {
            trials = Ok(Vec::new());
        }
        let trials = trials?;
        let of_tasks = match section.take::<Vec<String>>("tasks")? {
            None => (0..tasks.len()).collect(),
            Some(wanted) => {
                let find = |name: &String| {
                    tasks.iter().position(|task| task == name).ok_or_else(|| {
                        section
                            .error("tasks", &format!("there is no task {name:?}, only {}", tasks.join(", ")))
                    })
                };
                let found: BTreeSet<usize> = wanted.iter().map(find).collect::<Result<_>>()?;
                found.into_iter().collect::<Vec<_>>()
            }
        };
        let own_seeds = section.seeds("seeds")?.unwrap_or_else(|| seeds.to_vec());
        if let Some(seed) = own_seeds.iter().find(|seed| !seeds.contains(seed)) {
            let problem =
                format!("{seed} is not among the table's seeds, so nothing could be compared with it");
            return Err(section.error("seeds", &problem));
        }
        let options = Recipe::from_table(section.rest)?;
        let line = |varied: Table| Line {
            label: std::iter::once(method.clone()).chain(described(&varied)).collect::<Vec<_>>().join(", "),
            method: method.clone(),
            varied,
            trials: trials.clone(),
            tasks: of_tasks.clone(),
            seeds: own_seeds.clone(),
            options: options.clone(),
        };
        Ok(variants.into_iter().map(line).collect())
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

/// A table of the file with its plain values, and the offset at which it stands.
type Part<'a> = (Spanned<DeTable<'a>>, Table);

/// A table of the file: its own keys, to be taken one by one, and the settings of `train` beside them.
struct Section<'a> {
    file: &'a TomlFile,
    start: usize,
    /// The offset of each key.
    places: BTreeMap<String, usize>,
    parsed: BTreeMap<String, Spanned<DeValue<'a>>>,
    own: Table,
    rest: Table,
}

impl<'a> Section<'a> {
    fn new(file: &'a TomlFile, table: Spanned<DeTable<'a>>, values: Table, own: &[&str]) -> Result<Self> {
        Ok(Self::split(file, (table, values), own).0)
    }

    /// A table that may have settings of `train`; they are checked.
    fn options(file: &'a TomlFile, part: Part<'a>, own: &[&str]) -> Result<Self> {
        let (section, others) = Self::split(file, part, own);
        for (name, advice) in OF_THE_TABLE {
            if section.rest.contains_key(name) {
                return Err(section.error(name, &format!("no setting of a single cell: {advice}")));
            }
        }
        check_table(others, &section.rest, own, &|offset| file.at(offset))?;
        Ok(section)
    }

    fn split(file: &'a TomlFile, (table, mut rest): Part<'a>, own: &[&str]) -> (Self, Spanned<DeTable<'a>>) {
        let span = table.span();
        let places =
            table.get_ref().keys().map(|key| (key.get_ref().to_string(), key.span().start)).collect();
        let mut table = table.into_inner();
        let (mut parsed, mut values) = (BTreeMap::new(), Table::new());
        for &key in own {
            parsed.extend(table.remove(key).map(|value| (key.to_string(), value)));
            values.extend(rest.remove(key).map(|value| (key.to_string(), value)));
        }
        let section = Section { file, start: span.start, places, parsed, own: values, rest };
        (section, Spanned::new(span, table))
    }

    fn refuse_others(&self, known: &[&str]) -> Result<()> {
        match self.rest.keys().next() {
            Some(key) if TrainSettings::keys().contains(&key.as_str()) => {
                Err(self
                    .error(key, "a setting of `train`; it belongs into [options], [[tasks]] or [[methods]]"))
            }
            Some(key) => Err(Error::Usage(format!("{}: {}", self.at(key), unknown_among(key, known)))),
            None => Ok(()),
        }
    }

    fn at(&self, key: &str) -> String {
        self.file.at(self.places.get(key).copied().unwrap_or(self.start))
    }

    fn error(&self, key: &str, problem: &str) -> Error {
        Error::Usage(format!("{}: {key}: {problem}", self.at(key)))
    }

    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        let value = self.own.remove(key).map(|value| value.try_into());
        value.transpose().map_err(|e: toml::de::Error| self.error(key, &one_line(e.message())))
    }

    fn name(&mut self) -> Result<String> {
        let name: Option<String> = self.take("name")?;
        let name = name.filter(|name| !name.trim().is_empty());
        name.ok_or_else(|| self.error("name", "is missing; the tables and pictures need one"))
    }

    /// A list of seeds, none of them twice.
    fn seeds(&mut self, key: &str) -> Result<Option<Vec<u64>>> {
        let seeds: Option<Vec<u64>> = self.take(key)?;
        let Some(seeds) = seeds else { return Ok(None) };
        let different: BTreeSet<u64> = seeds.iter().copied().collect();
        if seeds.is_empty() || different.len() < seeds.len() {
            return Err(self.error(key, "expected a list of different seeds, at least one"));
        }
        Ok(Some(seeds))
    }

    /// Every combination of the values that a table of lists has: one empty combination where there is no such table.
    fn combinations(&mut self, key: &str) -> Result<Vec<Table>> {
        let lists: Table = self.take(key)?.unwrap_or_default();
        let mut combinations = vec![Table::new()];
        for (name, values) in lists {
            if let Some((_, advice)) = OF_THE_TABLE.iter().find(|(setting, _)| *setting == name) {
                return Err(self.error(key, &format!("{name} is no setting of a single cell: {advice}")));
            }
            let list = values.as_array().filter(|list| !list.is_empty());
            let list = list.ok_or_else(|| self.error(key, &format!("{name}: expected a list of values")))?;
            for value in list {
                let one = Table::from_iter([(name.clone(), value.clone())]);
                let checked = Recipe::from_table(one).and_then(Recipe::recorded);
                checked.map_err(|error| self.error(key, &format!("{name}: {error}")))?;
            }
            let with = |before: &Table, value: &Value| {
                let mut combination = before.clone();
                combination.insert(name.clone(), value.clone());
                combination
            };
            combinations =
                combinations.iter().flat_map(|before| list.iter().map(|value| with(before, value))).collect();
        }
        Ok(combinations)
    }

    /// A table within this one.
    fn part(&mut self, key: &str) -> Result<Option<Part<'a>>> {
        match (self.parsed.remove(key), self.own.remove(key)) {
            (Some(value), Some(Value::Table(values))) => Ok(table_of(value).map(|table| (table, values))),
            (None, None) => Ok(None),
            _ => Err(self.error(key, &format!("expected a table [{key}]"))),
        }
    }

    /// The tables of a list, at least one.
    fn parts(&mut self, key: &str) -> Result<Vec<Part<'a>>> {
        let wrong = format!("expected at least one table [[{key}]]");
        let (parsed, values) = match (self.parsed.remove(key), self.own.remove(key)) {
            (Some(parsed), Some(Value::Array(values))) => (parsed.into_inner(), values),
            _ => return Err(self.error(key, &wrong)),
        };
        let DeValue::Array(parsed) = parsed else { return Err(self.error(key, &wrong)) };
        let both = std::iter::zip(parsed, values).map(|(parsed, values)| match (table_of(parsed), values) {
            (Some(table), Value::Table(values)) => Ok((table, values)),
            _ => Err(self.error(key, &wrong)),
        });
        let parts = both.collect::<Result<Vec<_>>>()?;
        if parts.is_empty() { Err(self.error(key, &wrong)) } else { Ok(parts) }
    }

    fn check_unique(&self, key: &str, names: &[&str]) -> Result<()> {
        let mut seen = BTreeSet::new();
        match names.iter().find(|name| !seen.insert(**name)) {
            Some(name) => Err(self.error(key, &format!("there are two of the name {name:?}"))),
            None => Ok(()),
        }
    }
}

fn table_of(value: Spanned<DeValue<'_>>) -> Option<Spanned<DeTable<'_>>> {
    let span = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Some(Spanned::new(span, table)),
        _ => None,
    }
}
