//! The terminal as a listener: what was found, progress and results on standard error, as a bar
//! where a person sits and as a line now and then where output goes to a file.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report::printable;
use crate::report::terminal::{self, Style};
use lora_drop::events::{Event, GenerationProgress, Stage, StepRecord, TimeLeft};
use lora_drop::format::{counted, fixed, grouped, rate, scientific, time_left};
use lora_drop::run_record::{ModuleNames, module_names};
use lora_drop::score::Importance;
use lora_drop::settings::as_options;

/// Shows a run's events on standard error. It is the one listener that prints; the library itself
/// never does.
pub struct Terminal {
    /// Whether only warnings are shown.
    quiet: bool,
    style: Style,
    names: ModuleNames,
    bar: Option<ProgressBar>,
    stage: Option<StageProgress>,
    left: TimeLeft,
    /// Held back until the assignment is known, to be drawn with it.
    importance: Option<Importance>,
    /// The files of the run, each once.
    written: Vec<PathBuf>,
    /// Whether the last scoring found the ranking stable, which is reported once.
    settled: bool,
}

impl Style {
    /// For text on standard error.
    pub fn stderr() -> Self {
        Style::of(&console::Term::stderr(), console::colors_enabled_stderr())
    }

    /// For text on standard output.
    pub fn stdout() -> Self {
        Style::of(&console::Term::stdout(), console::colors_enabled())
    }

    fn of(term: &console::Term, colours: bool) -> Self {
        Style {
            width: term.size_checked().map_or(80, |(_, columns)| columns as usize),
            colour: colours && term.is_term(),
            terminal: term.is_term(),
        }
    }
}

/// The running stage.
struct StageProgress {
    stage: Stage,
    /// In stage Generate, the number of texts that were reported.
    done: usize,
    pace: Pace,
}

impl Terminal {
    pub fn new(quiet: bool) -> Self {
        Terminal {
            quiet,
            style: Style::stderr(),
            names: ModuleNames::new(),
            bar: None,
            stage: None,
            left: TimeLeft::default(),
            importance: None,
            written: Vec::new(),
            settled: false,
        }
    }

    /// The files that were written so far, each once.
    pub fn written(&self) -> &[PathBuf] {
        &self.written
    }

    /// Shows an event.
    pub fn handle(&mut self, event: &Event) {
        if let Event::Warning(text) = event {
            let text = as_options(text);
            self.print(&format!("{} {text}\n", self.style.warning("warning:")));
        }
        if let Event::Wrote(path) = event
            && !self.written.iter().any(|known| known == path)
        {
            self.written.push(path.to_path_buf());
        }
        if self.quiet {
            return;
        }
        self.left.handle(event);
        match event {
            Event::Downloading { file, done, total } => self.transfer("downloaded", file, *done, *total),
            // Files are listed at the end: the best epoch's are written again and again.
            Event::Warning(_) | Event::Wrote(_) => {}
            Event::Note(text) => self.print(&format!("note: {}\n", as_options(text))),
            Event::Model(facts) => {
                self.names = module_names(&facts.architecture);
                self.print(&terminal::model_facts(facts, self.style));
            }
            Event::Data(facts) => self.print(&terminal::data_facts(facts, self.style)),
            Event::StageStart { stage, steps, rows, tokens } => self.start(*stage, *steps, *rows, *tokens),
            Event::Step(record) => self.step(record),
            Event::Evaluating { done, of } => self.evaluating(*done, *of),
            Event::Generating(progress) => self.generating(*progress),
            Event::Evaluation(record) => self.print(&terminal::evaluation(record, self.style)),
            Event::Baseline(baseline) => self.print(&terminal::baseline(baseline)),
            Event::Memory(estimate) => self.print(&terminal::memory(estimate, self.style)),
            Event::Resumed { stage, steps } => self.print(&terminal::resumed(*stage, *steps)),
            Event::Reusing { blocks } => self.print(&terminal::reusing(*blocks)),
            Event::Rescored { step, tau, settled } => {
                let is_news = *settled && !self.settled;
                self.settled = *settled;
                self.print(&terminal::rescored(*step, *tau, is_news));
            }
            Event::Budget(curve) => self.print(&terminal::budget_curve(curve, self.style)),
            Event::Importance(importance) => self.importance = Some((*importance).clone()),
            Event::Assignment(assignment) => {
                if let Some(importance) = self.importance.take() {
                    self.print(&terminal::importance(&importance, Some(assignment), &self.names, self.style));
                    self.print(&terminal::assignment(assignment, &self.names));
                }
            }
            Event::StageEnd { .. } => self.end(),
        }
    }

    /// Shows what is still held back and removes the bar; to be called when the run is over, however
    /// it ended.
    pub fn finish(&mut self) {
        self.end();
        if let Some(importance) = self.importance.take() {
            self.print(&terminal::importance(&importance, None, &self.names, self.style));
        }
        if !self.quiet {
            self.print(&terminal::written(&self.written, self.style));
        }
    }

    /// Shows a download or an upload: a bar on a terminal, and at the end a line that begins with
    /// `what`.
    pub fn transfer(&mut self, what: &str, file: &str, done: u64, total: u64) {
        if self.quiet {
            return;
        }
        if self.bar.is_none() && self.style.terminal && done < total {
            let bar = bar(total, "{bar:14} {percent:>3} %  {bytes}/{total_bytes}  {eta} left  {wide_msg}");
            bar.set_message(printable(file, false).into_owned());
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        if done == total {
            self.end();
            self.print(&format!("{what} {file}\n"));
        }
    }

    fn start(&mut self, stage: Stage, steps: usize, rows: usize, tokens: usize) {
        // Evaluations inside training leave its bar where it is.
        if stage == Stage::Evaluate && self.stage.is_some() {
            return;
        }
        self.end();
        let (title, most) = match stage {
            Stage::Sample => ("Training on the sample", "at most "),
            Stage::Train => ("Training", ""),
            Stage::Evaluate => ("Measuring", ""),
            Stage::Generate => ("Generating", ""),
        };
        let mut facts = counted(rows, if stage == Stage::Generate { "text" } else { "row" });
        if steps > 0 {
            facts += &format!(", {most}{}", counted(steps, "step"));
        }
        self.print(&format!("{}: {facts}\n", self.style.bold(title)));
        self.stage = Some(StageProgress { stage, done: 0, pace: Pace::new(Instant::now()) });
        if self.style.terminal {
            let length = match stage {
                Stage::Evaluate => tokens,
                Stage::Generate => rows,
                Stage::Sample | Stage::Train => steps,
            };
            self.bar = Some(bar(length as u64, "{bar:14} {percent:>3} %  {wide_msg}"));
        }
    }

    fn step(&mut self, record: &StepRecord) {
        let Some(stage) = &mut self.stage else {
            return;
        };
        let left = self.left.seconds().unwrap_or(f64::NAN);
        if let Some(bar) = &self.bar {
            bar.set_length(record.steps as u64);
            bar.set_position(record.step as u64);
            bar.set_message(bar_line(record, left, self.style.width.saturating_sub(BAR)));
        } else if stage.pace.is_due(record.step, record.steps, Instant::now()) {
            self.print(&(step_line(record, left) + "\n"));
        }
    }

    fn evaluating(&mut self, done: usize, of: usize) {
        if let Some(bar) = &self.bar {
            if self.stage.as_ref().is_some_and(|stage| stage.stage == Stage::Evaluate) {
                bar.set_position(done as u64);
                return;
            }
            let share = if of == 0 { 100.0 } else { 100.0 * done as f64 / of as f64 };
            bar.set_message(format!("measuring on dev {share:.0} %"));
        }
    }

    fn generating(&mut self, progress: GenerationProgress) {
        if let Some(bar) = &self.bar {
            bar.set_position(progress.done as u64);
            bar.set_message(generation_line(progress));
        } else if let Some(stage) = &mut self.stage
            // One line for finished texts, not for each token.
            && progress.done > stage.done
        {
            stage.done = progress.done;
            if stage.pace.is_due(progress.done, progress.of, Instant::now()) {
                self.print(&(generation_line(progress) + "\n"));
            }
        }
    }

    fn end(&mut self) {
        self.stage = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn print(&self, text: &str) {
        print_above(self.bar.as_ref(), self.style, text);
    }
}

/// A bar on standard error. The tests parse each template; with a wrong one indicatif shows a plain
/// bar.
pub(super) fn bar(length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar
}

/// Prints a text on standard error, above the bar if there is one.
pub(super) fn print_above(bar: Option<&ProgressBar>, style: Style, text: &str) {
    // Where standard error is closed nobody reads, and the work continues.
    let write = || std::io::stderr().write_all(style.fit(text).as_bytes()).unwrap_or_default();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// A step in a line.
fn step_line(r: &StepRecord, seconds_left: f64) -> String {
    format!(
        "step {}/{}  epoch {:.2}  loss {}  lr {}  {} tok/s  {} left",
        grouped(r.step),
        grouped(r.steps),
        r.epoch,
        fixed(r.loss, 4),
        scientific(r.learning_rate),
        rate(r.tokens_per_second),
        time_left(seconds_left)
    )
}

/// Columns that a bar and its percentage take.
const BAR: usize = 22;

/// A step next to a bar, in `room` columns: what does not fit is left out, the speed first.
fn bar_line(r: &StepRecord, seconds_left: f64, room: usize) -> String {
    let step = format!("step {}/{}", grouped(r.step), grouped(r.steps));
    let loss = format!("loss {}", fixed(r.loss, 4));
    let rate = format!("{} tok/s", rate(r.tokens_per_second));
    let left = format!("{} left", time_left(seconds_left));
    let lines =
        [vec![&step, &loss, &rate, &left], vec![&step, &loss, &left], vec![&step, &left], vec![&step]];
    let mut lines = lines.map(|parts| parts.into_iter().cloned().collect::<Vec<_>>().join("  ")).into_iter();
    lines.find(|line| line.chars().count() <= room).unwrap_or_default()
}

/// The writing of texts in a line.
fn generation_line(p: GenerationProgress) -> String {
    format!(
        "text {}/{}  {} tok/s  {} left",
        grouped(p.done),
        grouped(p.of),
        rate(p.tokens_per_second),
        time_left(p.seconds_left)
    )
}

/// Decides when a line is due where there is no bar: at the first and last step, after each tenth
/// of the steps, and 30 seconds after the last line.
struct Pace {
    tenth: usize,
    last: Instant,
}

impl Pace {
    const LONGEST: Duration = Duration::from_secs(30);

    fn new(now: Instant) -> Self {
        Pace { tenth: 0, last: now }
    }

    fn is_due(&mut self, step: usize, steps: usize, now: Instant) -> bool {
        let tenth = (10 * step).checked_div(steps).unwrap_or(0);
        let due = step == 1
            || step == steps
            || tenth > self.tenth
            || now.saturating_duration_since(self.last) >= Self::LONGEST;
        if due {
            self.tenth = tenth;
            self.last = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::samples;

    #[test]
    fn a_step_in_a_line() {
        let mut record = samples::steps(Stage::Train, 2000, 5.0)[1199].clone();
        record.loss = 0.41236;
        assert_eq!(
            step_line(&record, 70.0),
            "step 1,200/2,000  epoch 3.00  loss 0.4124  lr 4.0e-4  2,431 tok/s  1 m 10 s left"
        );
        let whole = "step 1,200/2,000  loss 0.4124  2,431 tok/s  1 h 23 m left";
        assert_eq!(bar_line(&record, 5000.0, 80 - BAR), whole);
        assert_eq!(bar_line(&record, 5000.0, 60 - BAR), "step 1,200/2,000  1 h 23 m left");
        assert_eq!(bar_line(&record, 5000.0, 44), "step 1,200/2,000  loss 0.4124  1 h 23 m left");
        assert_eq!(bar_line(&record, 5000.0, 4), "");
        record.loss = f64::NAN;
        assert!(step_line(&record, f64::NAN).contains("loss –"));
    }

    fn generation() -> GenerationProgress {
        GenerationProgress { done: 8, of: 547, tokens: 900, tokens_per_second: 1234.5, seconds_left: 3725.0 }
    }

    #[test]
    fn the_writing_of_texts_in_a_line() {
        assert_eq!(generation_line(generation()), "text 8/547  1,235 tok/s  1 h 02 m left");
        let begun = GenerationProgress { done: 0, seconds_left: f64::NAN, ..generation() };
        assert_eq!(generation_line(begun), "text 0/547  1,235 tok/s  – left");
    }

    #[test]
    fn lines_come_at_tenths_and_after_half_a_minute() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let due: Vec<usize> = (1..=100).filter(|&s| pace.is_due(s, 100, start)).collect();
        assert_eq!(due, [1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);

        let mut slow = Pace::new(start);
        let after = |s: u64| start + Duration::from_secs(s);
        assert!(slow.is_due(1, 1000, after(1)));
        assert!(!slow.is_due(2, 1000, after(30)));
        assert!(slow.is_due(3, 1000, after(31)));
        assert!(!slow.is_due(4, 1000, after(60)));
        assert!(!slow.is_due(5, 0, after(60)));
    }

    #[test]
    fn a_whole_run_can_be_shown() {
        let record = samples::lora_drop(6, 2);
        for quiet in [true, false] {
            let mut terminal = Terminal::new(quiet);
            let importance = record.importance.as_ref().unwrap();
            terminal.handle(&Event::Model(&record.model));
            terminal.handle(&Event::Data(&record.data));
            terminal.handle(&Event::StageStart {
                stage: Stage::Sample,
                steps: 84,
                rows: 367,
                tokens: 138_600,
            });
            record.steps.iter().take(84).for_each(|s| terminal.handle(&Event::Step(s)));
            terminal.handle(&Event::Rescored { step: 84, tau: 0.97, settled: true });
            terminal.handle(&Event::Reusing { blocks: 2 });
            terminal.handle(&Event::StageEnd { stage: Stage::Sample, seconds: 12.0 });
            terminal.handle(&Event::Importance(importance));
            assert_eq!(terminal.importance.is_some(), !quiet);
            terminal.handle(&Event::Assignment(record.assignment.as_ref().unwrap()));
            terminal.handle(&Event::Warning("something"));
            terminal.handle(&Event::StageStart { stage: Stage::Generate, steps: 0, rows: 9, tokens: 0 });
            terminal.handle(&Event::Generating(generation()));
            terminal.finish();
            assert!(terminal.bar.is_none() && terminal.stage.is_none() && terminal.importance.is_none());
        }
    }
}
