//! Runs a table: the cells that are not finished yet, several at a time, each written when it is
//! done.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use toml::{Table, Value};

use super::cell::{Cell, CellResult, Measured, Outcome, Place, Purpose};
use super::findings::{Findings, Measurements};
use super::sources::Sources;
use super::statistics::mean;
use super::table::{Equal, Keep, TableFile};
use super::{files, page};
use lora_drop::adapter::{COMPACT_FILE, TOKENIZER_FILES};
use lora_drop::evaluate::metrics::higher_is_better;
use lora_drop::files::{write_bytes_atomically, write_json};
use lora_drop::folder::{FolderLock, check_free, is_being_written};
use lora_drop::hub::Download;
use lora_drop::settings::Restart;
use lora_drop::{Cancel, Error, Result};

/// The folder of cells in the table's output, and the files in a cell's.
const CELLS: &str = "cells";
const RESULT: &str = "result.json";
const SETTINGS: &str = "cell.toml";
const RUN: &str = "run";
/// The setting that `equal` gives.
const MAX_STEPS: &str = "max-steps";
/// The first file to be written; it marks a comparison's folder.
const INDEX: &str = "compare.json";
/// The time between two checks of a folder that another process writes.
const LOOK: Duration = Duration::from_millis(200);

/// A table and its finished cells.
pub struct Comparison {
    pub table: TableFile,
    folder: PathBuf,
    sources: Sources,
    /// Results by the cells' folders.
    results: Mutex<Results>,
    /// Other comparisons' folders, whose finished cells are used as well.
    from: Vec<PathBuf>,
    /// Cells that were made before, because a digest takes time: by task and line, seed, and tuned
    /// settings.
    made: Mutex<BTreeMap<(Place, u64, String), Cell>>,
}

/// How cells are run.
pub struct Run<'a> {
    /// The number of cells that run at a time.
    pub jobs: usize,
    /// Does a cell's work and writes into the folder. Returns `Error::Interrupted` once `cancel` is
    /// raised; any other error is the cell's, and the other cells go on.
    pub work: &'a (dyn Fn(&Work, &Path) -> Result<()> + Sync),
    pub cancel: &'a Cancel,
}

/// What a cell does.
pub enum Work<'a> {
    /// `train` by the settings in this file.
    Train { settings: &'a Path },
    /// `prune` of an adapter by its data, with these options by name.
    Prune { adapter: &'a Path, data: &'a Path, options: &'a Table },
}

/// How many of the cells, including trials, have finished and have failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub finished: usize,
    pub failed: usize,
    pub of: usize,
}

/// A cell began or ended.
pub struct Event<'a> {
    pub cell: &'a Cell,
    /// None: it began.
    pub result: Option<&'a CellResult>,
    pub counts: Counts,
    /// Estimated for the whole table from the mean time of finished cells of the same task and
    /// line, of the task, or of all; None as long as none has finished, and if nothing is left.
    pub seconds_left: Option<f64>,
}

/// Results by their cells' folders.
type Results = BTreeMap<String, CellResult>;

/// The cells of the table.
#[derive(Default)]
struct Wanted {
    cells: Vec<Cell>,
    /// Task and line of each cell whose settings wait for the results of others.
    unknown: Vec<Place>,
}

impl Wanted {
    fn add(&mut self, place: Place, cell: Option<Cell>) {
        match cell {
            Some(cell) => self.cells.push(cell),
            None => self.unknown.push(place),
        }
    }
}

/// Paths and names of the cells' folders in a comparison's output.
fn cells_in(folder: &Path) -> impl Iterator<Item = (PathBuf, String)> {
    let entries = std::fs::read_dir(folder.join(CELLS)).into_iter().flatten().flatten();
    entries.map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))
}

/// Finds the folder with a cell's result in a comparison's output: the one of its name or, if task
/// or line had another name, one with the same seed and digest.
fn place_in(folder: &Path, name: &str) -> Option<PathBuf> {
    let has_result = |place: &PathBuf| place.join(RESULT).is_file();
    let same = || cells_in(folder).filter(|(_, other)| suffix(other) == suffix(name));
    let of_name = Some(folder.join(CELLS).join(name)).filter(has_result);
    of_name.or_else(|| same().map(|(place, _)| place).find(has_result))
}

/// Seed and digest at the end of the name of a cell's folder.
fn suffix(name: &str) -> &str {
    name.rmatch_indices('_').nth(1).map_or(name, |(at, _)| &name[at + 1..])
}

fn result_in(folder: &Path, name: &str) -> Option<CellResult> {
    let text = std::fs::read(place_in(folder, name)?.join(RESULT)).ok()?;
    serde_json::from_slice(&text).ok()
}

fn measured<'a>(results: &'a Results, cell: &Cell) -> Option<&'a Measured> {
    results.get(&cell.folder)?.measured()
}

impl Comparison {
    /// Reads all models and data once, and finds the cells that are finished in `folder` and in the
    /// folders of other comparisons, `from`.
    ///
    /// # Errors
    /// Those of models and data; `Error::Usage` where `folder` holds something else, or one of
    /// `from` is no comparison's.
    pub fn open(
        table: TableFile,
        folder: &Path,
        from: &[PathBuf],
        cancel: &Cancel,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<Self> {
        check_free(folder, &[INDEX, CELLS], "a comparison")?;
        if let Some(other) = from.iter().find(|other| !other.join(CELLS).is_dir()) {
            let shown = other.display();
            return Err(Error::Usage(format!(
                "{shown} is not the output of `compare`: it has no folder cells"
            )));
        }
        let mut sources = Sources::default();
        for (index, line) in table.lines.iter().enumerate() {
            for &task in &line.tasks {
                for tried in line.tried() {
                    let given = table.given(task, index, 0, &tried)?;
                    sources.add(&table.settings(&given, folder)?, cancel, progress)?;
                }
            }
        }
        let comparison = Comparison {
            table,
            folder: folder.to_path_buf(),
            sources,
            results: Mutex::default(),
            from: from.to_vec(),
            made: Mutex::default(),
        };
        comparison.load()?;
        Ok(comparison)
    }

    /// The table's output folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs the cells that are not finished, trials first, and writes the tables and the page after
    /// each. Failed ones are tried again.
    ///
    /// # Errors
    /// `Error::Interrupted`; `Error::Usage` where another process works in the folder; `Error::Io`
    /// where it cannot be written.
    pub fn run(&self, run: &Run, listen: &mut dyn FnMut(&Event)) -> Result<Counts> {
        let _lock = FolderLock::acquire(&self.folder)?;
        self.write_files()?;
        // A finished cell may lead to further cells: those that waited for trials, those that prune
        // it.
        let mut attempted = BTreeSet::new();
        loop {
            self.load()?;
            let open = self.open_cells(&attempted)?;
            if open.is_empty() {
                break;
            }
            self.run_cells(open, run, &mut attempted, listen)?;
        }
        self.write_files()
    }

    /// Writes the tables and the page from what is finished, and runs nothing.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn write(&self) -> Result<Counts> {
        let _lock = FolderLock::acquire(&self.folder)?;
        self.write_files()
    }

    /// The progress of the table.
    pub fn counts(&self) -> Result<Counts> {
        self.counts_where(|_| true)
    }

    /// The progress of a line on a task.
    pub fn counts_of(&self, task: usize, line: usize) -> Result<Counts> {
        self.counts_where(|place| place == (task, line))
    }

    fn counts_where(&self, of: impl Fn(Place) -> bool) -> Result<Counts> {
        let results = self.results();
        let mut wanted = self.wanted(&results)?;
        wanted.cells.retain(|cell| of(cell.place()));
        wanted.unknown.retain(|place| of(*place));
        let mut counts = Counts { of: wanted.cells.len() + wanted.unknown.len(), ..Counts::default() };
        for cell in &wanted.cells {
            match results.get(&cell.folder).map(|result| &result.outcome) {
                Some(Outcome::Finished(_)) => counts.finished += 1,
                Some(Outcome::Failed { .. }) => counts.failed += 1,
                None => {}
            }
        }
        Ok(counts)
    }

    /// What the finished cells show.
    pub fn findings(&self) -> Result<Findings> {
        let results = self.results();
        let mut measurements = Measurements::new();
        let wanted = self.wanted(&results)?.cells;
        for cell in wanted.iter().filter(|cell| cell.purpose == Purpose::Reported) {
            if let Some(measured) = measured(&results, cell) {
                measurements.entry(cell.place()).or_default().insert(cell.seed, measured);
            }
        }
        let mut tuned = BTreeMap::new();
        for place in self.places() {
            let settings = self.tuned(place, &results)?.filter(|settings| !settings.is_empty());
            tuned.extend(settings.map(|settings| (place, settings)));
        }
        Findings::new(&self.table, &self.sources, &measurements, &tuned)
    }

    /// The number of finished cells in the folder that do not belong to this table: they have other
    /// settings, data, models or versions.
    pub fn foreign_cells(&self) -> Result<usize> {
        let cells = self.wanted(&self.results())?.cells;
        let own: BTreeSet<&str> = cells.iter().map(|cell| suffix(&cell.folder)).collect();
        let others = cells_in(&self.folder)
            .filter(|(place, name)| !own.contains(suffix(name)) && place.join(RESULT).is_file());
        Ok(others.count())
    }

    fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tasks and lines in the order in which they are run: one task after the other.
    fn places(&self) -> impl Iterator<Item = Place> {
        let lines = &self.table.lines;
        let of_task = move |task| (0..lines.len()).filter(move |&line| lines[line].tasks.contains(&task));
        (0..self.table.tasks.len()).flat_map(move |task| of_task(task).map(move |line| (task, line)))
    }

    /// The cell with these settings. Its digest is computed once.
    fn cell(&self, place: Place, seed: u64, tuned: &Table, purpose: Purpose) -> Result<Cell> {
        let key = (place, seed, tuned.to_string());
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let cell = match made.entry(key) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(new) => {
                let cell = Cell::new(&self.table, &self.sources, place, seed, tuned)?;
                new.insert(cell).clone()
            }
        };
        Ok(Cell { purpose, ..cell })
    }

    /// The cells to run: trials and first runs, then the reported cells, one seed after the other,
    /// so that a table that is stopped has complete columns.
    fn wanted(&self, results: &Results) -> Result<Wanted> {
        let mut wanted = Wanted::default();
        let lines = &self.table.lines;
        for place in self.places() {
            for trial in &lines[place.1].trials {
                for &seed in &self.table.tuning_seeds {
                    wanted.add(place, self.trial(place, seed, trial, results)?);
                }
            }
            if self.table.equal == Some(Equal::Seconds) && self.has_length_of_reference(place) {
                wanted.add(place, Some(self.first_run(place)?));
            }
        }
        for &seed in &self.table.seeds {
            for place in self.places().filter(|place| lines[place.1].seeds.contains(&seed)) {
                let cell = match &lines[place.1].prune {
                    None => self.reported(place, seed, results)?,
                    Some(prune) => {
                        let trained = self.reported((place.0, prune.of), seed, results)?;
                        let trained = trained.filter(|cell| measured(results, cell).is_some());
                        trained.map(|cell| cell.pruned(&self.table, place.1, prune))
                    }
                };
                wanted.add(place, cell);
            }
        }
        Ok(wanted)
    }

    /// The known cells that are neither finished nor attempted.
    fn open_cells(&self, attempted: &BTreeSet<String>) -> Result<Vec<Cell>> {
        let results = self.results();
        let mut open = self.wanted(&results)?.cells;
        open.retain(|cell| measured(&results, cell).is_none() && !attempted.contains(&cell.folder));
        Ok(open)
    }

    /// A cell that trains and is reported; None as long as its settings wait for others.
    fn reported(&self, place: Place, seed: u64, results: &Results) -> Result<Option<Cell>> {
        let Some(mut settings) = self.tuned(place, results)? else { return Ok(None) };
        let Some(length) = self.length(place, seed, results)? else { return Ok(None) };
        settings.extend(length);
        self.cell(place, seed, &settings, Purpose::Reported).map(Some)
    }

    fn trial(&self, place: Place, seed: u64, trial: &Table, results: &Results) -> Result<Option<Cell>> {
        let Some(length) = self.length(place, seed, results)? else { return Ok(None) };
        let mut settings = trial.clone();
        settings.extend(length);
        self.cell(place, seed, &settings, Purpose::Trial(trial.clone())).map(Some)
    }

    /// The trial whose mean score over the tuning seeds is the best, among equals the first; no
    /// settings where nothing is tuned, None as long as a trial has not finished.
    fn tuned(&self, place: Place, results: &Results) -> Result<Option<Table>> {
        let trials = &self.table.lines[place.1].trials;
        if trials.is_empty() {
            return Ok(Some(Table::new()));
        }
        let mut best: Option<(f64, &Table)> = None;
        for trial in trials {
            let mut scores = Vec::new();
            for &seed in &self.table.tuning_seeds {
                let cell = self.trial(place, seed, trial, results)?;
                let result = cell.and_then(|cell| results.get(&cell.folder));
                let Some(result) = result else { return Ok(None) };
                scores.extend(result.measured().map(|measured| {
                    let score = measured.score(self.table.score);
                    if higher_is_better(&measured.summary.metric) { score } else { -score }
                }));
            }
            let score = mean(scores.iter().copied());
            let complete = scores.len() == self.table.tuning_seeds.len();
            if complete && best.is_none_or(|(known, _)| score > known) {
                best = Some((score, trial));
            }
        }
        Ok(best.map(|(_, trial)| trial.clone()))
    }

    /// Whether the table gives a line the reference's steps or seconds.
    fn has_length_of_reference(&self, place: Place) -> bool {
        let line = &self.table.lines[place.1];
        self.table.equal.is_some() && place.1 != self.table.reference && line.prune.is_none()
    }

    /// The setting that gives a cell the length of the reference's with the same seed, or with its
    /// first seed if it does not have this one. An empty table if each run has its own length; None
    /// as long as the reference's run has not finished.
    fn length(&self, place: Place, seed: u64, results: &Results) -> Result<Option<Table>> {
        if !self.has_length_of_reference(place) {
            return Ok(Some(Table::new()));
        }
        let seeds = &self.table.lines[self.table.reference].seeds;
        let mut reference = None;
        for &seed in seeds.iter().filter(|own| **own == seed).chain(seeds) {
            let cell = self.reported((place.0, self.table.reference), seed, results)?;
            reference = reference.or(cell.and_then(|cell| measured(results, &cell)));
        }
        let Some(reference) = reference else { return Ok(None) };
        let steps = match self.table.equal {
            Some(Equal::Seconds) => {
                let first = self.first_run(place)?;
                let Some(own) = measured(results, &first) else { return Ok(None) };
                let settings = self.table.settings(&first.given, &self.folder)?;
                let counted =
                    settings.train.samples() && settings.train.optimisation.restart == Restart::Continue;
                own.steps_within(reference.seconds(), counted)
            }
            _ => reference.summary.steps,
        };
        let steps = Value::Integer(i64::try_from(steps).unwrap_or(i64::MAX));
        Ok(Some(Table::from_iter([(MAX_STEPS.to_string(), steps)])))
    }

    /// A line's run at its own length, which measures the seconds of its steps.
    fn first_run(&self, place: Place) -> Result<Cell> {
        let line = &self.table.lines[place.1];
        self.cell(place, line.seeds[0], &line.tried()[0], Purpose::FirstRun)
    }

    /// Reads the results of cells that are not known yet, and of the cells that these lead to. A
    /// result that cannot be read counts as not finished. From other comparisons only finished
    /// cells are taken.
    fn load(&self) -> Result<()> {
        let read = |folder: &Path, cell: &Cell| {
            result_in(folder, &cell.folder).filter(|result| result.digest == cell.digest)
        };
        let finished = |result: &CellResult| result.measured().is_some();
        let mut results = self.results();
        loop {
            let mut cells = self.wanted(&results)?.cells;
            cells.retain(|cell| !results.contains_key(&cell.folder));
            let found = cells.into_iter().filter_map(|cell| {
                let own = read(&self.folder, &cell);
                let other = || self.from.iter().filter_map(|folder| read(folder, &cell)).find(finished);
                let result = own.clone().filter(finished).or_else(other).or(own)?;
                Some((cell.folder, result))
            });
            let found: Vec<(String, CellResult)> = found.collect();
            if found.is_empty() {
                return Ok(());
            }
            results.extend(found);
        }
    }

    /// Runs these cells. `attempted` are the folders of those that have ended since the command
    /// began.
    fn run_cells(
        &self,
        cells: Vec<Cell>,
        run: &Run,
        attempted: &mut BTreeSet<String>,
        listen: &mut dyn FnMut(&Event),
    ) -> Result<()> {
        let workers = run.jobs.clamp(1, cells.len());
        let (queue, stop) = (Mutex::new(VecDeque::from(cells)), AtomicBool::new(false));
        let (send, receive) = channel();
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let send = send.clone();
                let (queue, stop) = (&queue, &stop);
                scope.spawn(move || self.work(queue, stop, run, &send));
            }
            drop(send);
            let mut running: BTreeMap<String, Instant> = BTreeMap::new();
            let mut outcome = Ok(());
            for (cell, ended) in receive {
                let result = match ended {
                    None => {
                        running.insert(cell.folder.clone(), Instant::now());
                        None
                    }
                    Some(Ok(result)) => {
                        running.remove(&cell.folder);
                        attempted.insert(cell.folder.clone());
                        self.results().insert(cell.folder.clone(), result.clone());
                        Some(result)
                    }
                    Some(Err(error)) => {
                        stop.store(true, Ordering::SeqCst);
                        // The error to report is the first one that is not an interruption.
                        if outcome.is_ok() || matches!(outcome, Err(Error::Interrupted)) {
                            outcome = Err(error);
                        }
                        continue;
                    }
                };
                let counts = if result.is_some() { self.write_files() } else { self.counts() };
                let reported = counts.and_then(|counts| {
                    let seconds_left = self.seconds_left(attempted, &running, run.jobs)?;
                    listen(&Event { cell: &cell, result: result.as_ref(), counts, seconds_left });
                    Ok(())
                });
                if let Err(error) = reported {
                    stop.store(true, Ordering::SeqCst);
                    outcome = Err(error);
                }
            }
            outcome
        })
    }

    /// Takes cells from the queue until it is empty or `stop` is set.
    fn work(
        &self,
        queue: &Mutex<VecDeque<Cell>>,
        stop: &AtomicBool,
        run: &Run,
        send: &Sender<(Cell, Option<Result<CellResult>>)>,
    ) {
        while !stop.load(Ordering::SeqCst) {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(cell) = next else { return };
            // Cannot fail: the receiver lives as long as the workers.
            _ = send.send((cell.clone(), None));
            let ended = run.cancel.check().and_then(|()| self.run_cell(&cell, run));
            _ = send.send((cell, Some(ended)));
        }
    }

    /// Runs a cell and writes its result; a failure of the run is a result, too.
    fn run_cell(&self, cell: &Cell, run: &Run) -> Result<CellResult> {
        let folder = self.folder.join(CELLS).join(&cell.folder);
        let output = folder.join(RUN);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let settings = folder.join(SETTINGS);
        let prune = self.table.lines[cell.line].prune.as_ref();
        let (what, values) = match (&cell.pruned, prune) {
            (Some(trained), Some(prune)) => {
                (format!("Options of `prune` for the adapter of {trained}"), &prune.options)
            }
            _ => ("Settings for `train`".to_string(), &cell.given),
        };
        let text =
            toml::to_string(values).map_err(|e| Error::Input(format!("{}: {e}", settings.display())))?;
        let text = format!("# {what}, as `lora-drop compare` gives them.\n{text}");
        write_bytes_atomically(&settings, text.as_bytes())?;
        let read = || self.read(cell, &output);
        let data = self.table.settings(&cell.given, &output)?.place.data;
        let measured = loop {
            // A run whose `compare` was killed may still be going. Its result is this cell's.
            while is_being_written(&output) {
                run.cancel.check()?;
                std::thread::sleep(LOOK);
            }
            let ended = read().or_else(|_| {
                let work = match (&cell.pruned, prune) {
                    (Some(trained), Some(prune)) => Work::Prune {
                        adapter: &self.cell_folder(trained).join(RUN),
                        data: data.single().ok_or_else(|| {
                            Error::Usage(format!("`data = {data}`: `prune` reads one data set, not several"))
                        })?,
                        options: &prune.options,
                    },
                    _ => Work::Train { settings: &settings },
                };
                (run.work)(&work, &output).and_then(|()| read())
            });
            // Another process may have locked the folder after the check above.
            if ended.is_ok() || !is_being_written(&output) {
                break ended;
            }
        };
        let outcome = match measured {
            Ok(measured) => Outcome::Finished(Box::new(measured)),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => Outcome::Failed { error: error.to_string() },
        };
        let result = CellResult::new(cell, &self.table, outcome);
        write_json(&folder.join(RESULT), &result)?;
        if let Some(measured) = result.measured() {
            self.remove_models(measured, &output)?;
        }
        Ok(result)
    }

    /// Reads the result of a cell's run from its folder.
    fn read(&self, cell: &Cell, output: &Path) -> Result<Measured> {
        if let Some(trained) = &cell.pruned {
            let results = self.results();
            let trained = results.get(trained).and_then(CellResult::measured);
            let missing = || Error::Input("the adapter that is to be pruned was not trained".to_string());
            return trained.ok_or_else(missing)?.pruned(output);
        }
        let settings = self.table.settings(&cell.given, output)?;
        Measured::read(output, |kind| self.sources.module_name(&settings.place.model, kind))
    }

    /// The folder of a finished cell: here, or in another comparison's output.
    fn cell_folder(&self, name: &str) -> PathBuf {
        let mut all = std::iter::once(&self.folder).chain(&self.from);
        let finished = |folder: &&PathBuf| result_in(folder, name).is_some_and(|r| r.measured().is_some());
        let found = all.find(finished).and_then(|folder| place_in(folder, name));
        found.unwrap_or_else(|| self.folder.join(CELLS).join(name))
    }

    /// Removes the models that are not to be kept.
    fn remove_models(&self, measured: &Measured, output: &Path) -> Result<()> {
        let mut names = Vec::new();
        if self.table.keep != Keep::All && measured.summary.method == "full" {
            names.extend(["model.safetensors", "config.json"]);
            names.extend(TOKENIZER_FILES);
        }
        if self.table.keep == Keep::Nothing {
            names.extend(["adapter_model.safetensors", COMPACT_FILE]);
        }
        for path in names.iter().map(|name| output.join(name)) {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&path, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Estimates `Event::seconds_left`.
    fn seconds_left(
        &self,
        attempted: &BTreeSet<String>,
        running: &BTreeMap<String, Instant>,
        jobs: usize,
    ) -> Result<Option<f64>> {
        let results = self.results();
        let wanted = self.wanted(&results)?;
        let known: Vec<(Place, f64)> = wanted
            .cells
            .iter()
            .filter_map(|cell| Some((cell.place(), measured(&results, cell)?.summary.total_seconds)))
            .collect();
        let mean_where = |of: &dyn Fn(Place) -> bool| {
            // The mean of no times is not a number.
            let times = known.iter().filter(|(place, _)| of(*place)).map(|(_, time)| *time);
            Some(mean(times)).filter(|mean| mean.is_finite())
        };
        let estimate = |(task, line): Place| {
            mean_where(&|place| place == (task, line))
                .or_else(|| mean_where(&|place| place.0 == task))
                .or_else(|| mean_where(&|_| true))
        };
        let is_open = |cell: &&Cell| measured(&results, cell).is_none() && !attempted.contains(&cell.folder);
        let open = wanted.cells.iter().filter(is_open).map(|cell| {
            let begun = running.get(&cell.folder).map_or(0.0, |began| began.elapsed().as_secs_f64());
            Some((estimate(cell.place())? - begun).max(0.0))
        });
        let left = open.chain(wanted.unknown.iter().map(|place| estimate(*place)));
        let left: Option<Vec<f64>> = left.collect();
        let left = left.filter(|left| !left.is_empty());
        Ok(left.map(|left| left.iter().sum::<f64>() / jobs as f64))
    }

    fn write_files(&self) -> Result<Counts> {
        let (findings, counts) = (self.findings()?, self.counts()?);
        let known = self.results();
        let cells = self.wanted(&known)?.cells;
        let results: Vec<(&Cell, &CellResult)> =
            cells.iter().filter_map(|cell| Some((cell, known.get(&cell.folder)?))).collect();
        let table = &self.table;
        write_json(&self.folder.join(INDEX), &files::index(table, &findings, &results, counts))?;
        for (name, text) in [
            ("table.csv", files::csv(table, &results)),
            ("table.md", files::markdown(table, &findings, counts)),
            ("compare.html", page::render(table, &findings, &results, counts)),
        ] {
            write_bytes_atomically(&self.folder.join(name), text.as_bytes())?;
        }
        Ok(counts)
    }
}
