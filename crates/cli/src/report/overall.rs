//! Progress over many runs: a bar below the lines that report on each.

use std::time::Duration;

use indicatif::ProgressBar;

use super::progress::{bar, print_above};
use super::terminal::Style;

/// Shows on standard error how many runs are done. Without a terminal there are only the lines.
pub struct Overall {
    quiet: bool,
    style: Style,
    bar: Option<ProgressBar>,
}

impl Overall {
    /// Progress over this number of runs; the bar appears with the first `set`.
    pub fn new(quiet: bool, runs: usize) -> Self {
        let style = Style::stderr();
        let shown = !quiet && style.terminal && runs > 0;
        let bar = shown.then(|| bar(runs as u64, "{bar:14} {percent:>3} %  {elapsed}  {wide_msg}"));
        Overall { quiet, style, bar }
    }

    /// Sets the number of runs that are done, and the text next to the bar.
    pub fn set(&self, done: usize, message: String) {
        if let Some(bar) = &self.bar {
            // The clock goes on between two runs.
            bar.enable_steady_tick(Duration::from_secs(1));
            bar.set_position(done as u64);
            bar.set_message(message);
        }
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            print_above(self.bar.as_ref(), self.style, &format!("{text}\n"));
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
