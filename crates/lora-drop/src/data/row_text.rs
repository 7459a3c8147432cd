//! The text of a labelled row: a text, a pair of texts, or words.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::columns::{ColumnNames, Columns, LabelColumn};
use super::error::{Error, Problem};
use super::rows::Row;
use crate::reading::Reading;
use crate::settings::Task;

/// A row's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowText {
    One(String),
    Pair(String, String),
    /// At least one word.
    Words(Vec<String>),
}

impl RowText {
    /// Whether the text is given as words.
    pub fn is_words(&self) -> bool {
        matches!(self, RowText::Words(_))
    }

    /// Returns the text, both texts of a pair, or the words with spaces between them.
    pub fn texts(&self) -> Vec<Cow<'_, str>> {
        match self {
            RowText::One(text) => vec![text.into()],
            RowText::Pair(first, second) => vec![first.into(), second.into()],
            RowText::Words(words) => vec![words.join(" ").into()],
        }
    }

    /// Returns the words, which white space separates in a text; `None` for a pair.
    pub fn words(&self) -> Option<Vec<&str>> {
        match self {
            RowText::One(text) => Some(text.split_whitespace().collect()),
            RowText::Words(words) => Some(words.iter().map(String::as_str).collect()),
            RowText::Pair(..) => None,
        }
    }
}

/// Reads the texts of rows whose labels are to be predicted. The first row chooses the columns.
#[derive(Clone, Debug)]
pub struct TextReader {
    /// Name of the input in errors.
    name: PathBuf,
    named: ColumnNames,
    /// Whether a row may have either words or a text, in a column other than the training data's.
    any_text: bool,
    columns: Option<Columns>,
}

impl TextReader {
    /// `task` is the model's, `None` without a head for labels; `reading` says how its rows are
    /// read.
    pub fn new(name: &Path, task: Option<Task>, reading: &Reading) -> Self {
        let any_text = task == Some(Task::TokenClassification) && !reading.given.contains(&"text-column");
        let named = ColumnNames { task, ..reading.columns.clone() };
        TextReader { name: name.to_path_buf(), named, any_text, columns: None }
    }

    /// Returns the row's text, pair of texts or words.
    ///
    /// # Errors
    /// No column is a text's; the row has no value there, or one of another type.
    pub fn read(&mut self, row: &Row) -> Result<RowText, Error> {
        let lacks = |column: &String| !row.fields.contains_key(column);
        let columns = match &self.columns {
            Some(columns) if !(self.any_text && lacks(&columns.text)) => columns,
            _ => {
                let mut named = self.named.clone();
                named.text.take_if(|column| self.any_text && lacks(column));
                self.columns.insert(Columns::choose(row, &self.name, &named, LabelColumn::Optional)?)
            }
        };
        let text = columns.text(row).and_then(|text| {
            let empty = || Problem::NoText { column: columns.text.clone(), seen: "an empty list" };
            text.ok_or_else(empty)
        });
        text.map_err(|problem| Error::bad_row(&self.name, row.line, problem))
    }
}

impl From<(String, Option<String>)> for RowText {
    fn from((text, pair): (String, Option<String>)) -> Self {
        match pair {
            Some(pair) => RowText::Pair(text, pair),
            None => RowText::One(text),
        }
    }
}
