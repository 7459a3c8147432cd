//! The table file: tasks, methods and seeds as a user writes them. Errors name the line.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::section::Section;
use crate::report::words::value_text;
use lora_drop::settings::{Reader, Recipe, RunSettings, TomlFile, unknown_among};
use lora_drop::{Error, Result};

/// The options of `prune` that a method may give.
const PRUNE_OPTIONS: [&str; 8] = [
    "budget",
    "by",
    "equal-ranks",
    "max-rows",
    "sample-ratio",
    "finetune-steps",
    "learning-rate",
    "batch-size",
];

/// The seed of trials where the file names none.
const TUNING_SEED: u64 = 1000;

/// Which of a run's evaluations on dev is its score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// The one after the last epoch.
    #[default]
    Last,
    /// The best one, which is optimistic, because dev has chosen it.
    Best,
}

/// Which weights of a finished cell are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Those of adapters; whole models, which full fine-tuning writes, are removed once they are
    /// measured.
    #[default]
    Adapters,
    All,
    Nothing,
}

/// What is the same in all runs of a task as in the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Equal {
    /// The number of optimiser steps.
    Steps,
    /// The seconds: the number of steps that fit into them, by the seconds per step of a first run
    /// that is not reported.
    Seconds,
}

/// A table of tasks × methods × seeds. Every cell's settings were checked as far as they can be
/// without model and data.
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
    /// How far below the reference a score may be to count as good enough, in the metric's units;
    /// None: one standard error.
    pub tolerance: Option<f64>,
    pub keep: Keep,
    /// None: each run has the length that its settings say.
    pub equal: Option<Equal>,
    pub tasks: Vec<Task>,
    pub lines: Vec<Line>,
    /// The settings of all cells.
    pub options: Recipe,
}

/// A data set and its settings.
#[derive(Clone, Debug)]
pub struct Task {
    pub name: String,
    pub options: Recipe,
}

/// A method with one choice of what varies: a line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    /// The name in `[[methods]]`.
    pub method: String,
    /// The name and what varies: `LoRA-drop, budget 0.5`.
    pub label: String,
    /// The settings that distinguish it from other lines of its method.
    pub varied: Table,
    /// Every combination of the values to try; empty where nothing is tuned.
    pub trials: Vec<Table>,
    /// Indices of its tasks.
    pub tasks: Vec<usize>,
    pub seeds: Vec<u64>,
    /// Set if the line trains nothing and prunes another line's adapters.
    pub prune: Option<Prune>,
    /// The settings of its method, without what varies.
    pub options: Recipe,
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
    /// `Error::Io`; `Error::Usage` with file and line for what is no TOML, an unknown key or a
    /// wrong value, and with method and task for settings that do not go together.
    pub fn read(path: &Path) -> Result<Self> {
        let file = TomlFile::read(path, "a table")?;
        let mut head = Section::new(&file, file.parse()?.0);
        let options = head.part("options")?.map_or(Ok(Recipe::default()), |mut part| part.settings())?;
        let tasks = head.parts("tasks")?.into_iter().map(Task::read).collect::<Result<Vec<_>>>()?;
        let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
        if let Some((_, name)) = names.iter().enumerate().find(|(task, name)| names[..*task].contains(name)) {
            return Err(head.error("tasks", &format!("two have the name {name:?}")));
        }

        let seeds = head.seeds("seeds")?.unwrap_or_else(|| vec![0, 1, 2]);
        let tuning_seeds = head.seeds("tuning-seeds")?.unwrap_or_else(|| vec![TUNING_SEED]);
        if let Some(seed) = tuning_seeds.iter().find(|seed| seeds.contains(seed)) {
            let problem =
                format!("{seed} is among the seeds too; what is chosen by a seed is not reported on it");
            return Err(head.error("tuning-seeds", &problem));
        }
        let mut lines = Vec::new();
        let mut methods = BTreeSet::new();
        for part in head.parts("methods")? {
            let of_method = Line::read_all(part, &names, &seeds, &lines)?;
            if !of_method.iter().all(|line| methods.insert(line.label.clone())) {
                let problem = format!("two have the name {:?}", of_method[0].method);
                return Err(head.error("methods", &problem));
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
        head.refuse_others()?;
        let reference = &table.lines[table.reference];
        if table.keep == Keep::Nothing && table.lines.iter().any(|line| line.prune.is_some()) {
            return Err(head.error("keep", "\"nothing\" would remove the adapters that are to be pruned"));
        }
        if table.equal.is_some() && reference.tasks.len() < table.tasks.len() {
            return Err(head.error("equal", "the reference must be for all tasks, as it sets their length"));
        }
        if reference.prune.is_some() {
            let problem = "a pruned line cannot be the reference: name one that trains";
            return Err(head.error("reference", problem));
        }
        table.check_cells().map_err(|problem| Error::Usage(format!("{}: {problem}", path.display())))?;
        Ok(table)
    }

    /// The settings that `train` is given for a cell, by name, overlaid with those of a trial; for
    /// a pruned line, those of the line that it prunes.
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
    pub fn settings(&self, given: &Table, output: &Path) -> Result<RunSettings> {
        let mut given = given.clone();
        given.insert("output".to_string(), Value::String(output.display().to_string()));
        Ok(Recipe::from_table(given)?.settings(Reader::Train)?.0)
    }

    fn check_cells(&self) -> std::result::Result<(), String> {
        for (index, line) in self.lines.iter().enumerate() {
            let tried = line.tried();
            for (&task, trial) in
                line.tasks.iter().flat_map(|task| tried.iter().map(move |trial| (task, trial)))
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
    fn read(mut section: Section) -> Result<Self> {
        Ok(Task { name: section.name()?, options: section.settings()? })
    }
}

impl Line {
    /// The settings that are tried: a single empty table where nothing is tuned.
    pub fn tried(&self) -> Vec<Table> {
        if self.trials.is_empty() { vec![Table::new()] } else { self.trials.clone() }
    }

    /// The lines of one `[[methods]]`: one for each combination of what it varies. `before` are the
    /// lines above it.
    fn read_all(mut section: Section, tasks: &[&str], seeds: &[u64], before: &[Line]) -> Result<Vec<Self>> {
        let method = section.name()?;
        let prune = Prune::read(&mut section, before)?;
        let variants = section.combinations("vary", prune.as_ref().map(|_| &PRUNE_OPTIONS[..]))?;
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
        let options = section.settings()?;
        if prune.is_some() && (!trials.is_empty() || !options.given().is_empty()) {
            let problem = "a pruned adapter is already trained: options of `train` and `tune` belong to the method \
                           that trains it";
            return Err(section.error("prune", problem));
        }
        let line = |varied: Table| Line {
            label: match varied.is_empty() {
                true => method.clone(),
                false => format!("{method}, {}", described(&varied)),
            },
            method: method.clone(),
            trials: trials.clone(),
            tasks: of_tasks.clone(),
            seeds: own_seeds.clone(),
            prune: prune.as_ref().map(|prune| prune.with(&varied)),
            varied,
            options: options.clone(),
        };
        let lines: Vec<Line> = variants.into_iter().map(line).collect();
        let prunes = lines.iter().filter_map(|line| line.prune.as_ref());
        if prunes.into_iter().any(|prune| !prune.options.contains_key("budget")) {
            return Err(section.error("prune", "budget is missing, the share of the parameters that stay"));
        }
        Ok(lines)
    }
}

impl Prune {
    fn read(section: &mut Section, before: &[Line]) -> Result<Option<Self>> {
        let Some(mut options) = section.take::<Table>("prune")? else { return Ok(None) };
        let refuse = |problem: &str| Err(section.error("prune", problem));
        let Some(Value::String(name)) = options.remove("of") else {
            return refuse("of is missing, the name of the method whose adapters are pruned");
        };
        if let Some(key) = options.keys().find(|key| !PRUNE_OPTIONS.contains(&key.as_str())) {
            return refuse(&unknown_among(key, &PRUNE_OPTIONS));
        }
        let of = match find_line(before, &name) {
            Ok(of) => of,
            Err(problem) => return refuse(&format!("of: {problem}, above this one")),
        };
        if before[of].prune.is_some() {
            return refuse(&format!("of: {name:?} is pruned itself"));
        }
        Ok(Some(Prune { of, options }))
    }

    fn with(&self, varied: &Table) -> Self {
        let mut options = self.options.clone();
        options.extend(varied.clone());
        Prune { of: self.of, options }
    }
}

/// Settings in words: `budget 0.5, rank 4`.
pub(super) fn described(settings: &Table) -> String {
    let each = settings.iter().map(|(name, value)| format!("{name} {}", value_text(value, "+")));
    each.collect::<Vec<_>>().join(", ")
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

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str = "[[tasks]]\nname = \"A\"\nmodel = \"m\"\ndata = \"d\"\n";
    const METHOD: &str = "[[methods]]\nname = \"LoRA\"\nmethod = \"lora\"\n";

    fn read(text: &str) -> Result<TableFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.toml");
        std::fs::write(&path, text).unwrap();
        TableFile::read(&path)
    }

    fn complaint(text: &str) -> String {
        match read(text) {
            Err(Error::Usage(message)) => message,
            other => panic!("expected a usage error, got {other:?}"),
        }
    }

    #[test]
    fn a_small_table_has_defaults() {
        let table = read(&format!("{TASK}{METHOD}")).unwrap();
        assert_eq!((table.name.as_str(), &table.seeds[..]), ("table", &[0, 1, 2][..]));
        assert_eq!((table.score, table.keep, table.reference), (Score::Last, Keep::Adapters, 0));
        assert_eq!((table.output.is_none(), table.tolerance, table.equal), (true, None, None));
        let line = &table.lines[0];
        assert_eq!((line.label.as_str(), &line.tasks[..], &line.seeds), ("LoRA", &[0][..], &table.seeds));
        assert!(line.trials.is_empty());
    }

    #[test]
    fn later_parts_win_and_what_loses_its_meaning_is_left_out() {
        let options = "[options]\nepochs = 2\nrank = 4\nthreshold = 0.8\nlearning-rate = 1e-3\n";
        let methods = "[[methods]]\nname = \"half\"\nbudget = 0.5\nlearning-rate = 3e-3\n[[methods]]\nname = \"head\"\nmethod = \"head\"\n";
        let table = read(&format!("{options}{TASK}epochs = 5\n{METHOD}{methods}")).unwrap();
        let given = |line| table.given(0, line, 7, &Table::new()).unwrap();
        let text = |line| given(line).to_string();
        assert_eq!(given(0)["epochs"].as_integer(), Some(5));
        assert_eq!(given(0)["seed"].as_integer(), Some(7));
        assert!(text(0).contains("rank = 4") && !text(0).contains("threshold"), "{}", text(0));
        assert!(text(1).contains("budget = 0.5") && !text(1).contains("threshold"), "{}", text(1));
        assert_eq!(given(1)["learning-rate"].as_float(), Some(3e-3));
        assert!(!text(2).contains("rank"), "{}", text(2));
        let tried = Table::from_iter([("learning-rate".to_string(), Value::Float(0.5))]);
        assert_eq!(table.given(0, 1, 0, &tried).unwrap()["learning-rate"].as_float(), Some(0.5));
    }

    #[test]
    fn varied_settings_make_lines_and_tuned_settings_make_trials() {
        let method = "[[methods]]\nname = \"drop\"\nvary = { budget = [0.5, 0.25], rank = [8, 4] }\n\
                      tune = { learning-rate = [5e-4, 1e-3] }\nseeds = [1]\n";
        let table =
            read(&format!("reference = \"drop, budget 0.5, rank 4\"\n{TASK}{METHOD}{method}")).unwrap();
        let labels: Vec<&str> = table.lines.iter().map(|line| line.label.as_str()).collect();
        let expected = [
            "LoRA",
            "drop, budget 0.5, rank 8",
            "drop, budget 0.5, rank 4",
            "drop, budget 0.25, rank 8",
            "drop, budget 0.25, rank 4",
        ];
        assert_eq!(labels, expected);
        assert_eq!((table.reference, &table.lines[1].seeds[..]), (2, &[1][..]));
        let rates: Vec<String> = table.lines[4].trials.iter().map(|trial| trial.to_string()).collect();
        assert_eq!(rates, ["learning-rate = 0.0005\n", "learning-rate = 0.001\n"]);
    }

    #[test]
    fn a_pruned_line_has_the_settings_of_what_it_prunes() {
        let pruned = "[[methods]]\nname = \"pruned\"\nprune = { of = \"LoRA\", by = \"svd\" }\nvary = { budget = [0.5, 0.25] }\n";
        let table = read(&format!("{TASK}{METHOD}rank = 4\n{pruned}")).unwrap();
        assert_eq!(table.lines[2].label, "pruned, budget 0.25");
        let prune = table.lines[2].prune.as_ref().unwrap();
        assert_eq!((prune.of, prune.options.to_string()), (0, "budget = 0.25\nby = \"svd\"\n".to_string()));
        assert_eq!(
            table.given(0, 2, 1, &Table::new()).unwrap(),
            table.given(0, 0, 1, &Table::new()).unwrap()
        );
        for (line, expected) in [
            ("prune = { of = \"LoRA\" }", "budget is missing"),
            ("prune = { budget = 0.5 }", "of is missing"),
            ("prune = { of = \"Lora\", budget = 0.5 }", "there is no line \"Lora\"; the lines are \"LoRA\""),
            ("prune = { of = \"LoRA\", budgets = 0.5 }", "did you mean \"budget\"?"),
            (
                "prune = { of = \"LoRA\", budget = 0.5 }\nrank = 2",
                "already trained: options of `train` and `tune` belong to the method that trains it",
            ),
            ("prune = { of = \"LoRA\" }\nvary = { rank = [1] }", "unknown key \"rank\""),
        ] {
            let message = complaint(&format!("{TASK}{METHOD}[[methods]]\nname = \"p\"\n{line}\n"));
            assert!(message.contains("table.toml:") && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn wrong_tables_name_the_place_and_what_is_known() {
        let both = format!("{TASK}{METHOD}");
        for (text, expected) in [
            (format!("sedds = [1]\n{both}"), "table.toml:1: unknown key \"sedds\"; did you mean \"seeds\"?"),
            (format!("rank = 4\n{both}"), "table.toml:1: rank: a setting of `train`; it belongs in [options]"),
            (format!("seeds = []\n{both}"), "table.toml:1: seeds: expected a list of different seeds"),
            (format!("seeds = [1, 1]\n{both}"), "different seeds"),
            (format!("seeds = [-1]\n{both}"), "table.toml:1: seeds: invalid value"),
            (format!("seeds = [1]\ntuning-seeds = [1]\n{both}"), "table.toml:2: tuning-seeds: 1 is among the seeds too"),
            (format!("score = \"mean\"\n{both}"), "table.toml:1: score: unknown variant `mean`"),
            (format!("keep = \"some\"\n{both}"), "keep: unknown variant"),
            (format!("equal = \"epochs\"\n{both}"), "equal: unknown variant"),
            (format!("tolerance = -0.1\n{both}"), "tolerance: -0.1; it must be 0 or greater"),
            (format!("reference = \"lora\"\n{both}"), "reference: there is no line \"lora\"; the lines are \"LoRA\""),
            (format!("[option]\nrank = 4\n{both}"), "unknown key \"option\"; did you mean \"options\"?"),
            (format!("[options]\nrnk = 4\n{both}"), "table.toml:2: unknown key \"rnk\"; did you mean \"rank\"?"),
            (format!("[options]\nrank = \"four\"\n{both}"), "table.toml:2: rank: expected a whole number, found \"four\""),
            (format!("[options]\nrank = 0\n{both}"), "table.toml:2: `rank` is 0"),
            (format!("[options]\nseed = 4\n{both}"), "table.toml:2: seed: not a setting of a single cell: give the table's seeds"),
            (format!("[options]\nthreads = 4\n{both}"), "give `threads`"),
            (format!("options = 3\n{both}"), "options: expected a table [options]"),
            (METHOD.to_string(), "tasks: expected at least one table [[tasks]]"),
            (TASK.to_string(), "methods: expected at least one table [[methods]]"),
            (format!("{TASK}{TASK}{METHOD}"), "tasks: two have the name \"A\""),
            (format!("{both}{METHOD}"), "methods: two have the name \"LoRA\""),
            (format!("[[tasks]]\ndata = \"d\"\n{METHOD}"), "table.toml:1: name: is missing"),
            (format!("{TASK}nme = 3\n{METHOD}"), "table.toml:5: unknown key \"nme\"; did you mean \"name\"?"),
            (format!("{both}tasks = [\"B\"]\n"), "tasks: there is no task \"B\", only A"),
            (format!("{both}seeds = [9]\n"), "seeds: 9 is not among the table's seeds"),
            (format!("{both}vary = {{ rank = 4 }}\n"), "vary: rank: expected a list of values"),
            (format!("{both}vary = {{ rnk = [4] }}\n"), "vary: unknown key \"rnk\"; did you mean \"rank\"?"),
            (format!("{both}vary = {{ rank = [\"a\"] }}\n"), "vary: `rank`: expected a whole number"),
            (format!("{both}tune = {{ seed = [4] }}\n"), "tune: seed is not a setting of a single cell"),
            (format!("{both}budget = 0.5\n"), "method \"LoRA\" on task \"A\": `budget` has no effect with `method = lora`"),
            (format!("[[tasks]]\nname = \"A\"\ndata = \"d\"\n{METHOD}"), "`model` is missing"),
            (format!("equal = \"steps\"\n{both}[[tasks]]\nname = \"B\"\nmodel = \"m\"\ndata = \"e\"\n[[methods]]\nname = \"r\"\n").replace("method = \"lora\"", "method = \"lora\"\ntasks = [\"A\"]"), "equal: the reference must be for all tasks"),
            ("name = ".to_string(), "table.toml:1: not TOML"),
        ] {
            let message = complaint(&text);
            assert!(message.contains(expected), "{message}\nis not: {expected}");
        }
    }
}
