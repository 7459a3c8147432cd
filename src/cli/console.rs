//! Where text goes: results to standard output, everything for people on the way to standard error.

use std::io::Write;
use std::path::Path;

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
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// A line that --quiet does not hold back.
    pub fn warn(&self, line: impl std::fmt::Display) {
        let _ = writeln!(std::io::stderr(), "warning: {line}");
    }

    /// A command's result: the object as JSON, or the text of its table.
    pub fn result(&self, form: &Form, object: &impl Serialize, table: impl FnOnce() -> String) -> Result<()> {
        if form.json {
            let text = serde_json::to_string_pretty(object)
                .map_err(|e| Error::Input(format!("a result that JSON cannot hold: {e}")))?;
            self.print(&format!("{text}\n"))
        } else {
            self.print(&table())
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

/// Lines of names and values, the values below each other.
pub fn rows(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// A number with commas between its thousands.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit that leaves a number of at least one.
pub fn bytes(number: u64) -> String {
    let mut value = number as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    if unit == "B" { format!("{number} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0, 999, 1000, 1_234_567].map(grouped).each_ref().map(|s| s.as_str())
        );
    }

    #[test]
    fn bytes_have_a_unit() {
        assert_eq!([999, 1000, 2_450_000_000].map(bytes), ["999 B", "1.0 kB", "2.5 GB"]);
    }

    #[test]
    fn values_stand_below_each_other() {
        assert_eq!(rows(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }
}
