//! Progress over many runs: a bar below the lines that say what has come of each.

use std::time::Duration;

use indicatif::ProgressBar;

use super::Verbosity;
use super::progress::{bar, write};
use super::terminal::Style;

/// Shows on standard error how many runs are done. Where that is no terminal there are lines alone.
pub struct Overall {
    verbosity: Verbosity,
    style: Style,
    bar: Option<ProgressBar>,
}

impl Overall {
    /// Progress over this number of runs; the bar appears with the first `set`.
    pub fn new(verbosity: Verbosity, runs: usize) -> Self {
        let style = Style::stderr();
        let shown = verbosity == Verbosity::Normal && style.terminal && runs > 0;
        let bar = shown.then(|| bar(runs as u64, "{bar:14} {percent:>3} %  {elapsed}  {wide_msg}"));
        Overall { verbosity, style, bar }
    }

    /// So many are done; what is said beside the bar.
    pub fn set(&self, done: usize, message: String) {
        if let Some(bar) = &self.bar {
            // The time that has passed goes on between two runs.
            bar.enable_steady_tick(Duration::from_secs(1));
            bar.set_position(done as u64);
            bar.set_message(message);
        }
    }

    /// A line above the bar.
    pub fn line(&self, text: &str) {
        if self.verbosity == Verbosity::Quiet {
            return;
        }
        let text = self.style.fit(&format!("{text}\n"));
        match &self.bar {
            Some(bar) => bar.suspend(|| write(&text)),
            None => write(&text),
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
