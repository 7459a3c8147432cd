//! Where text goes: results to standard output, everything else for people to standard error.

use std::io::{self, Write};
use std::path::Path;

use crate::report::terminal::Style;
use crate::report::{Overall, Terminal, printable};
use lora_drop::events::Event;
use lora_drop::hub::Download;
use lora_drop::model::locate;
use lora_drop::settings::{Place, as_options};
use lora_drop::{Error, Result};
use serde::Serialize;

use super::interrupt::Interrupt;

/// The `--json` of commands that end in a table.
#[derive(clap::Args)]
pub struct Form {
    /// Print one JSON object on standard output instead of the table
    #[arg(long)]
    pub json: bool,
}

/// The output of a command.
pub struct Console {
    quiet: bool,
}

impl Console {
    pub fn new(quiet: bool) -> Self {
        Console { quiet }
    }

    /// A line for people, on standard error, unless --quiet.
    pub fn say(&self, line: impl std::fmt::Display) {
        if !self.quiet {
            eprint_line(line);
        }
    }

    /// Prints a note, if there is one.
    pub fn note(&self, text: Option<String>) {
        if let Some(text) = text {
            self.say(format_args!("note: {text}"));
        }
    }

    /// Prints a warning, if there is one.
    pub fn warn(&self, text: Option<String>) {
        if let Some(text) = text {
            self.terminal().handle(&Event::Warning(&text));
        }
    }

    /// Prints notes.
    pub fn notes(&self, texts: impl IntoIterator<Item = String>) {
        texts.into_iter().for_each(|text| self.note(Some(text)));
    }

    /// The listener that shows a run's events.
    pub fn terminal(&self) -> Terminal {
        Terminal::new(self.quiet)
    }

    /// Progress over this number of runs.
    pub fn overall(&self, runs: usize) -> Overall {
        Overall::new(self.quiet, runs)
    }

    /// A command's result: the object as JSON, or the text of its table.
    pub fn result(&self, form: &Form, object: &impl Serialize, table: impl FnOnce() -> String) -> Result<()> {
        if form.json {
            let text = serde_json::to_string_pretty(object)
                .map_err(|e| Error::Input(format!("a result that JSON cannot hold: {e}")))?;
            self.raw(&format!("{text}\n"))
        } else {
            self.print(&table())
        }
    }

    /// Text for programs on standard output, whose lines stay whole; `Error::Io` where it cannot be
    /// written.
    pub fn raw(&self, text: &str) -> Result<()> {
        write_out(&mut Results::new(), text)
    }

    /// Text for people on standard output; `Error::Io` where it cannot be written.
    pub fn print(&self, text: &str) -> Result<()> {
        write_out(&mut io::stdout(), &Style::stdout().fit(text))
    }

    /// Shows the progress of a download, which `work` reports.
    pub fn downloading<T>(
        &self,
        interrupt: &Interrupt,
        work: impl FnOnce(&mut dyn FnMut(Download<'_>)) -> Result<T>,
    ) -> Result<T> {
        let mut terminal = self.terminal();
        let found = work(&mut |part| {
            interrupt.keeps_download();
            terminal.handle(&Event::Downloading { file: part.file, done: part.done, total: part.total });
        });
        terminal.finish();
        found
    }

    /// Downloads the model if it is a name on the hub that is not in the cache.
    pub fn fetch(&self, model: &str, interrupt: &Interrupt) -> Result<()> {
        self.downloading(interrupt, |progress| locate(model, &interrupt.cancel, progress)).map(drop)
    }

    /// Finds the data that is on the hub, as `fetch` does with a model.
    ///
    /// # Errors
    /// Those of [`DataSources::locate_all`](lora_drop::settings::DataSources::locate_all).
    pub fn fetch_data(&self, place: &mut Place, interrupt: &Interrupt) -> Result<()> {
        let Place { data, data_config, .. } = place;
        self.downloading(interrupt, |progress| {
            data.locate_all(data_config.as_deref(), &interrupt.cancel, progress)
        })
    }
}

fn write_out(out: &mut dyn Write, text: &str) -> Result<()> {
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Error::io(Path::new("standard output"), e))
}

/// Standard output for texts and JSON: a file or another program gets the bytes as they are, a
/// terminal what can be shown safely. Each write has whole characters.
pub struct Results {
    out: io::Stdout,
    terminal: bool,
}

impl Results {
    pub fn new() -> Self {
        let out = io::stdout();
        Results { terminal: io::IsTerminal::is_terminal(&out), out }
    }
}

impl Write for Results {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.terminal {
            return self.out.write(bytes);
        }
        self.out.write_all(printable(&String::from_utf8_lossy(bytes), false).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Prints a line on standard error. Where that is closed, only the exit code is left.
pub fn eprint_line(line: impl std::fmt::Display) {
    let line = as_options(&line.to_string());
    let _ = writeln!(io::stderr(), "{}", Style::stderr().fit(&line));
}
