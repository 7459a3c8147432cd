//! Running a table: cells that are not finished yet, several at a time, each written when it is done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use toml::Table;

use super::cell::{Cell, CellResult, Measured, Outcome};
use super::findings::{Findings, Measurements};
use super::sources::Sources;
use super::statistics::mean;
use super::table::{Keep, Score, TableFile};
use super::{files, page};
use crate::adapter::COMPACT_FILE;
use crate::evaluate::metrics::Metric;
use crate::files::write_bytes_atomically;
use crate::folder::{FolderLock, check_free, is_being_written};
use crate::hub::Download;
use crate::{Cancel, Error, Result};

/// The folder of cells in the table's output, and the files in a cell's.
const CELLS: &str = "cells";
const RESULT: &str = "result.json";
const SETTINGS: &str = "cell.toml";
const RUN: &str = "run";
/// The first file to be written, by which a comparison's folder is known.
const INDEX: &str = "compare.json";
/// Between two looks at a folder that another process writes.
const LOOK: Duration = Duration::from_millis(200);

/// A table with what is finished of it.
pub struct Comparison {
    pub table: TableFile,
    folder: PathBuf,
    sources: Sources,
    /// By the cells' folders.
    results: Mutex<BTreeMap<String, CellResult>>,
    /// Other comparisons' folders, whose finished cells are used as well.
    from: Vec<PathBuf>,
    /// Cells that were made once, for a digest takes its time: by task, line and seed, and what is tuned.
    made: Mutex<BTreeMap<(Place, u64, bool, String), Cell>>,
}

/// A task's and a line's index.
type Place = (usize, usize);

/// How cells are run.
pub struct Run<'a> {
    /// How many at a time.
    pub jobs: usize,
    /// Trains by the settings in the file into the folder. `Error::Interrupted` once `cancel` is raised; every other error is the
    /// cell's, and the others go on.
    pub train: &'a (dyn Fn(&Path, &Path) -> Result<()> + Sync),
    pub cancel: &'a Cancel,
}

/// How many of the cells, trials counted, have finished and have failed.
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
    /// Of the whole table, from the mean time of finished cells of the same task and line, of the task, or of all; None as long as
    /// none has finished.
    pub seconds_left: Option<f64>,
}

/// What trials have led to.
enum Choice {
    /// There is nothing to choose, or this was chosen.
    Settings(Table),
    /// Some trials are still to be made.
    Waiting,
    /// No value has finished on all tuning seeds.
    Failed,
}

impl Comparison {
    /// Reads all models and data once, and finds the cells that are finished in `folder` and in the folders of other
    /// comparisons, `from`.
    ///
    /// # Errors
    /// Those of models and data; `Error::Usage` where `folder` holds something else, or one of `from` is no comparison's.
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
                "--from {shown} is not the output of `compare`: it has no folder cells"
            )));
        }
        let mut sources = Sources::default();
        for (index, line) in table.lines.iter().enumerate() {
            for &task in &line.tasks {
                let given = table.given(task, index, 0, &Table::new())?;
                sources.add(&table.settings(&given, folder)?, cancel, progress)?;
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
        comparison.load(&comparison.trials()?);
        comparison.load(&comparison.reported()?.0);
        Ok(comparison)
    }

    /// The table's output folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs the cells that are not finished, trials first, and writes the tables and the page after each. Failed ones are tried
    /// again.
    ///
    /// # Errors
    /// `Error::Interrupted`; `Error::Usage` where another process works in the folder; `Error::Io` where it cannot be written.
    pub fn run(&self, run: &Run, listen: &mut dyn FnMut(&Event)) -> Result<Counts> {
        let _lock = FolderLock::take(&self.folder)?;
        self.write_files()?;
        self.run_cells(self.trials()?, run, listen)?;
        let reported = self.reported()?.0;
        self.load(&reported);
        self.run_cells(reported, run, listen)?;
        self.write_files()?;
        self.counts()
    }

    /// Writes the tables and the page from what is finished, and runs nothing.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn write(&self) -> Result<Counts> {
        let _lock = FolderLock::take(&self.folder)?;
        self.write_files()?;
        self.counts()
    }

    /// The cells that are known by now, trials first, with what is finished of them. Cells that wait for trials are not.
    pub fn cells(&self) -> Result<Vec<(Cell, Option<CellResult>)>> {
        let results = self.results();
        let cells = self.trials()?.into_iter().chain(self.reported_with(&results)?.0);
        Ok(cells
            .map(|cell| (results.get(&cell.folder).cloned(), cell))
            .map(|(result, cell)| (cell, result))
            .collect())
    }

    /// How far the table is.
    pub fn counts(&self) -> Result<Counts> {
        let results = self.results();
        let (reported, unknown) = self.reported_with(&results)?;
        let mut counts = Counts { of: unknown, ..Counts::default() };
        for cell in self.trials()?.iter().chain(&reported) {
            counts.of += 1;
            match results.get(&cell.folder).map(|result| &result.outcome) {
                Some(Outcome::Finished(_)) => counts.finished += 1,
                Some(Outcome::Failed { .. }) => counts.failed += 1,
                None => {}
            }
        }
        Ok(counts)
    }

    /// What the finished cells say.
    pub fn findings(&self) -> Result<Findings> {
        let results = self.results();
        let mut measurements = Measurements::new();
        let reported = self.reported_with(&results)?.0;
        for cell in &reported {
            if let Some(result) = results.get(&cell.folder) {
                measurements.entry((cell.task, cell.line)).or_default().insert(cell.seed, result);
            }
        }
        let mut tuned = BTreeMap::new();
        for (task, line) in self.places() {
            if let Choice::Settings(settings) = self.choice((task, line), &results)?
                && !settings.is_empty()
            {
                tuned.insert((task, line), settings);
            }
        }
        Findings::new(&self.table, &self.sources, &measurements, &tuned)
    }

    /// Finished cells in the folder that are none of this table: of other settings, data, models or versions.
    pub fn strangers(&self) -> Result<usize> {
        let own: BTreeSet<String> = self.cells()?.into_iter().map(|(cell, _)| cell.folder).collect();
        let entries = std::fs::read_dir(self.folder.join(CELLS)).into_iter().flatten().flatten();
        let others = entries.filter(|entry| {
            !own.contains(&*entry.file_name().to_string_lossy()) && entry.path().join(RESULT).is_file()
        });
        Ok(others.count())
    }

    fn results(&self) -> MutexGuard<'_, BTreeMap<String, CellResult>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tasks and lines in the order in which they are run: a task after the other.
    fn places(&self) -> impl Iterator<Item = Place> {
        let lines = &self.table.lines;
        let of_task = move |task| (0..lines.len()).filter(move |&line| lines[line].tasks.contains(&task));
        (0..self.table.tasks.len()).flat_map(move |task| of_task(task).map(move |line| (task, line)))
    }

    fn cell(&self, place: Place, seed: u64, tuned: &Table, is_trial: bool) -> Result<Cell> {
        let key = (place, seed, is_trial, tuned.to_string());
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = made.get(&key) {
            return Ok(cell.clone());
        }
        let cell = Cell::new(&self.table, &self.sources, (place.0, place.1, seed), tuned, is_trial)?;
        made.insert(key, cell.clone());
        Ok(cell)
    }

    fn trials(&self) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        for (task, line) in self.places() {
            for trial in &self.table.lines[line].trials {
                for &seed in &self.table.tuning_seeds {
                    cells.push(self.cell((task, line), seed, trial, true)?);
                }
            }
        }
        Ok(cells)
    }

    fn reported(&self) -> Result<(Vec<Cell>, usize)> {
        self.reported_with(&self.results())
    }

    /// The cells that are reported, a seed after the other, so that a table that is stopped has whole columns; and how many are
    /// not known because their trials are not finished.
    fn reported_with(&self, results: &BTreeMap<String, CellResult>) -> Result<(Vec<Cell>, usize)> {
        let (mut cells, mut unknown) = (Vec::new(), 0);
        let mut choices = BTreeMap::new();
        for place in self.places() {
            choices.insert(place, self.choice(place, results)?);
        }
        for &seed in &self.table.seeds {
            for (task, line) in
                self.places().filter(|(_, line)| self.table.lines[*line].seeds.contains(&seed))
            {
                match &choices[&(task, line)] {
                    Choice::Settings(tuned) => {
                        cells.push(self.cell((task, line), seed, tuned, false)?);
                    }
                    Choice::Waiting | Choice::Failed => unknown += 1,
                }
            }
        }
        Ok((cells, unknown))
    }

    /// The trial whose mean score over the tuning seeds is the best; among equals the first.
    fn choice(&self, place: Place, results: &BTreeMap<String, CellResult>) -> Result<Choice> {
        let trials = &self.table.lines[place.1].trials;
        if trials.is_empty() {
            return Ok(Choice::Settings(Table::new()));
        }
        let mut best: Option<(f64, &Table)> = None;
        for trial in trials {
            let mut scores = Vec::new();
            for &seed in &self.table.tuning_seeds {
                let cell = self.cell(place, seed, trial, true)?;
                let Some(result) = results.get(&cell.folder) else { return Ok(Choice::Waiting) };
                scores.extend(result.measured().map(|measured| {
                    let score = if self.table.score == Score::Last { measured.last } else { measured.best };
                    let higher = measured.summary.metric.parse().is_ok_and(Metric::higher_is_better);
                    if higher { score } else { -score }
                }));
            }
            let score = mean(&scores);
            if scores.len() == self.table.tuning_seeds.len() && best.is_none_or(|(known, _)| score > known) {
                best = Some((score, trial));
            }
        }
        Ok(best.map_or(Choice::Failed, |(_, trial)| Choice::Settings(trial.clone())))
    }

    /// Reads the results of cells that are not known yet. What cannot be read is not finished. Of other comparisons only finished
    /// cells are taken.
    fn load(&self, cells: &[Cell]) {
        let read = |folder: &Path, cell: &Cell| -> Option<CellResult> {
            let text = std::fs::read(folder.join(CELLS).join(&cell.folder).join(RESULT)).ok()?;
            serde_json::from_slice(&text).ok().filter(|result: &CellResult| result.digest == cell.digest)
        };
        let mut results = self.results();
        for cell in cells.iter().filter(|cell| !results.contains_key(&cell.folder)).collect::<Vec<_>>() {
            let own = read(&self.folder, cell);
            let finished = |result: &CellResult| result.measured().is_some();
            let found = own
                .clone()
                .filter(finished)
                .or_else(|| self.from.iter().filter_map(|folder| read(folder, cell)).find(finished));
            results.extend(found.or(own).map(|result| (cell.folder.clone(), result)));
        }
    }

    fn run_cells(&self, cells: Vec<Cell>, run: &Run, listen: &mut dyn FnMut(&Event)) -> Result<()> {
        let is_open =
            |cell: &Cell| self.results().get(&cell.folder).is_none_or(|result| result.measured().is_none());
        let open: VecDeque<Cell> = cells.into_iter().filter(is_open).collect();
        let workers = run.jobs.clamp(1, open.len().max(1));
        let mut waiting: Vec<Cell> = open.iter().cloned().collect();
        let (queue, stop) = (Mutex::new(open), AtomicBool::new(false));
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
                    Some(ended) => {
                        running.remove(&cell.folder);
                        waiting.retain(|other| other.folder != cell.folder);
                        match ended {
                            Ok(result) => {
                                self.results().insert(cell.folder.clone(), result.clone());
                                Some(result)
                            }
                            Err(error) => {
                                stop.store(true, Ordering::SeqCst);
                                // The end that is to be told is the first that was not asked for.
                                if outcome.is_ok() || matches!(outcome, Err(Error::Interrupted)) {
                                    outcome = Err(error);
                                }
                                continue;
                            }
                        }
                    }
                };
                let written = if result.is_some() { self.write_files() } else { Ok(()) };
                let told = written.and_then(|()| self.counts()).map(|counts| {
                    let seconds_left = self.seconds_left(&waiting, &running, run.jobs);
                    listen(&Event { cell: &cell, result: result.as_ref(), counts, seconds_left });
                });
                if let Err(error) = told {
                    stop.store(true, Ordering::SeqCst);
                    outcome = Err(error);
                }
            }
            outcome
        })
    }

    /// Takes cells from the queue until it is empty, or something has ended the whole.
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
            // The other side is there as long as this runs.
            _ = send.send((cell.clone(), None));
            let ended = run.cancel.check().and_then(|()| self.run_cell(&cell, run));
            _ = send.send((cell, Some(ended)));
        }
    }

    /// Runs a cell and writes its result; what fails in the run is a result as well.
    fn run_cell(&self, cell: &Cell, run: &Run) -> Result<CellResult> {
        let folder = self.folder.join(CELLS).join(&cell.folder);
        let output = folder.join(RUN);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let settings = folder.join(SETTINGS);
        let text =
            toml::to_string(&cell.given).map_err(|e| Error::Input(format!("{}: {e}", settings.display())))?;
        let text =
            format!("# The settings of this cell, as `lora-drop compare` gives them to `train`.\n{text}");
        write_bytes_atomically(&settings, text.as_bytes())?;
        // A run whose `compare` was killed may still be under way. What it finishes is this cell's.
        while is_being_written(&output) {
            run.cancel.check()?;
            std::thread::sleep(LOOK);
        }
        let measured = match self.measured(cell, &output) {
            Ok(measured) => Ok(measured),
            Err(_) => (run.train)(&settings, &output).and_then(|()| self.measured(cell, &output)),
        };
        let outcome = match measured {
            Ok(measured) => Outcome::Finished(Box::new(measured)),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => Outcome::Failed { error: error.to_string() },
        };
        let result = CellResult::new(cell, &self.table, outcome);
        files::write_json(&folder.join(RESULT), &result)?;
        if result.measured().is_some() {
            self.tidy(&output)?;
        }
        Ok(result)
    }

    fn measured(&self, cell: &Cell, output: &Path) -> Result<Measured> {
        let settings = self.table.settings(&cell.given, output)?;
        Measured::read(output, |kind| self.sources.module_name(&settings.model, kind))
    }

    /// Removes the models that are not to be kept.
    fn tidy(&self, output: &Path) -> Result<()> {
        let names: &[&str] = match self.table.keep {
            Keep::All => &[],
            Keep::Adapters => &["model.safetensors"],
            Keep::Nothing => &["model.safetensors", "adapter_model.safetensors", COMPACT_FILE],
        };
        for path in names.iter().map(|name| output.join(name)) {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&path, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// See `Event::seconds_left`. `waiting` are the cells of this part of the table that have not ended, running ones counted.
    fn seconds_left(
        &self,
        waiting: &[Cell],
        running: &BTreeMap<String, Instant>,
        jobs: usize,
    ) -> Option<f64> {
        let results = self.results();
        let known: Vec<(Place, f64)> = self
            .trials()
            .ok()?
            .into_iter()
            .chain(self.reported_with(&results).ok()?.0)
            .filter_map(|cell| {
                let measured = results.get(&cell.folder)?.measured()?;
                Some(((cell.task, cell.line), measured.summary.total_seconds))
            })
            .collect();
        let mean_where = |of: &dyn Fn(Place) -> bool| {
            let times: Vec<f64> =
                known.iter().filter(|(place, _)| of(*place)).map(|(_, time)| *time).collect();
            (!times.is_empty()).then(|| mean(&times))
        };
        let estimate = |task: usize, line: usize| {
            mean_where(&|place| place == (task, line))
                .or_else(|| mean_where(&|place| place.0 == task))
                .or_else(|| mean_where(&|_| true))
        };
        let mut seconds = 0.0;
        for cell in waiting {
            let begun = running.get(&cell.folder).map_or(0.0, |began| began.elapsed().as_secs_f64());
            seconds += (estimate(cell.task, cell.line)? - begun).max(0.0);
        }
        // Cells that wait for the choice of their settings.
        for (task, line) in self.places() {
            if matches!(self.choice((task, line), &results), Ok(Choice::Waiting)) {
                seconds += estimate(task, line)? * self.table.lines[line].seeds.len() as f64;
            }
        }
        let trials = waiting.iter().any(|cell| cell.trial.is_some());
        if trials {
            let open = self.reported_with(&results).ok()?.0;
            for cell in open.iter().filter(|cell| !results.contains_key(&cell.folder)) {
                seconds += estimate(cell.task, cell.line)?;
            }
        }
        Some(seconds / jobs as f64)
    }

    fn write_files(&self) -> Result<()> {
        let (findings, counts) = (self.findings()?, self.counts()?);
        let cells = self.cells()?;
        let results: Vec<(&Cell, &CellResult)> =
            cells.iter().filter_map(|(cell, result)| Some((cell, result.as_ref()?))).collect();
        let table = &self.table;
        files::write_json(&self.folder.join(INDEX), &files::index(table, &findings, &results, counts))?;
        for (name, text) in [
            ("table.csv", files::csv(table, &results)),
            ("table.md", files::markdown(table, &findings, counts)),
            ("compare.html", page::render(table, &findings, &results, counts)?),
        ] {
            write_bytes_atomically(&self.folder.join(name), text.as_bytes())?;
        }
        Ok(())
    }
}
