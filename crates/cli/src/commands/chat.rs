//! The lines of a conversation: edited, with a history, on a terminal; read as they are from a file
//! or a pipe.

use std::io::{self, BufRead, IsTerminal};
use std::path::Path;

use lora_drop::{Error, Result};
use rustyline::error::ReadlineError;
use rustyline::{Behavior, Config, DefaultEditor};

use super::console::Console;

const HELP: &str = "An empty line or Ctrl-D ends the conversation, Ctrl-C the answer that is being written.";

/// Where lines come from.
pub enum Lines {
    Edited(Box<DefaultEditor>),
    Plain,
}

impl Lines {
    /// Reads lines from standard input; edited if that is a terminal.
    ///
    /// # Errors
    /// `Error::Io` where the terminal cannot be set up.
    pub fn open(console: &Console) -> Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Lines::Plain);
        }
        // Edits on the terminal itself, so that standard output may be a file with the answers
        // alone.
        let config = Config::builder().behavior(Behavior::PreferTerm).auto_add_history(true).build();
        let editor = DefaultEditor::with_config(config).map_err(failed)?;
        console.say(HELP);
        Ok(Lines::Edited(Box::new(editor)))
    }

    /// The next line without the white space around it; None where the conversation ends: with the
    /// input, or at an empty line. Ctrl-C while a line is edited clears it.
    ///
    /// # Errors
    /// `Error::Io` where it cannot be read.
    pub fn next(&mut self, console: &Console) -> Result<Option<String>> {
        let line = match self {
            Lines::Edited(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => break line,
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(failed(error)),
                }
            },
            Lines::Plain => {
                console.say(">");
                let mut line = String::new();
                io::stdin().lock().read_line(&mut line).map_err(|e| Error::io(standard_input(), e))?;
                line
            }
        };
        let line = line.trim();
        Ok((!line.is_empty()).then(|| line.to_string()))
    }
}

fn standard_input() -> &'static Path {
    Path::new("standard input")
}

fn failed(error: ReadlineError) -> Error {
    let error = match error {
        ReadlineError::Io(error) => error,
        other => io::Error::other(other.to_string()),
    };
    Error::io(standard_input(), error)
}
