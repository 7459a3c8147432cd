//! Where text goes: results to standard output, everything for people on the way to standard error.

use std::io::Write;
use std::path::Path;

use lora_drop::report::terminal::Style;
use lora_drop::report::{Terminal, Verbosity};
use lora_drop::{Error, Result};
use serde::Serialize;

/// The `--json` of commands that end in a table.
#[derive(clap::Args)]
pub struct Form {
    /// Print one JSON object on standard output instead of the table
    #[arg(long)]
    pub json: bool,
}

/// Writes for one command.
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
            say(line);
        }
    }

    /// Something that is no error, if there is anything to note.
    pub fn note(&self, text: Option<String>) {
        if let Some(text) = text {
            self.say(format_args!("note: {text}"));
        }
    }

    /// The listener that shows a run's events.
    pub fn terminal(&self) -> Terminal {
        Terminal::new(if self.quiet { Verbosity::Quiet } else { Verbosity::Normal })
    }

    /// A command's result: the object as JSON, or the text of its table.
    pub fn result(&self, form: &Form, object: &impl Serialize, table: impl FnOnce() -> String) -> Result<()> {
        if form.json {
            let text = serde_json::to_string_pretty(object)
                .map_err(|e| Error::Input(format!("a result that JSON cannot hold: {e}")))?;
            self.print(&format!("{text}\n"))
        } else {
            self.print(&Style::stdout().fit(&table()))
        }
    }

    /// Text on standard output; `Error::Io` where it cannot be written.
    pub fn print(&self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|e| Error::io(Path::new("standard output"), e))
    }
}

/// A line for people on standard error. Where that is closed nobody reads, and the exit code still tells.
pub fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{}", Style::stderr().fit(&line.to_string()));
}

/// Lines of names and values, the values below each other.
pub fn rows(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_below_each_other() {
        assert_eq!(rows(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }
}
