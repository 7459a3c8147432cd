//! A TOML file that is checked key by key: its text, its parsed forms, and the line of everything
//! in it.

use std::path::Path;

use toml::de::DeTable;
use toml::{Spanned, Table};

use crate::error::{Error, Result};

/// The text of a TOML file.
pub struct TomlFile {
    /// Name of the file in messages.
    name: String,
    text: String,
}

impl TomlFile {
    /// Reads a file; `what` says in messages what it should be: "a recipe".
    ///
    /// # Errors
    /// `Error::Io`; `Error::Usage` with the line if the text is not UTF-8.
    pub fn read(path: &Path, what: &str) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let text = String::from_utf8(text).map_err(|e| {
            let line = line_of(e.as_bytes(), e.utf8_error().valid_up_to());
            Error::Usage(format!("{}:{line}: not UTF-8; {what} is TOML text", path.display()))
        })?;
        Ok(TomlFile { name: path.display().to_string(), text })
    }

    /// A text that was part of the file `name`.
    pub fn from_text(name: String, text: String) -> Self {
        TomlFile { name, text }
    }

    /// File and line of a byte offset, for messages.
    pub fn at(&self, offset: usize) -> String {
        format!("{}:{}", self.name, line_of(self.text.as_bytes(), offset))
    }

    /// Parses the document twice: with the place of each part, and as plain values.
    ///
    /// # Errors
    /// `Error::Usage` with the line if it is not valid TOML.
    pub fn parse(&self) -> Result<(Spanned<DeTable<'_>>, Table)> {
        let not_toml = |e: toml::de::Error| {
            let place = self.at(e.span().map_or(0, |span| span.start));
            Error::Usage(format!("{place}: not TOML: {}", one_line(e.message())))
        };
        Ok((DeTable::parse(&self.text).map_err(not_toml)?, self.text.parse().map_err(not_toml)?))
    }
}

/// The line number, from 1, of a byte offset.
fn line_of(text: &[u8], offset: usize) -> usize {
    1 + text.iter().take(offset).filter(|byte| **byte == b'\n').count()
}

/// A message of the TOML library without its line feeds.
pub fn one_line(message: &str) -> String {
    message.trim().replace('\n', "; ")
}
