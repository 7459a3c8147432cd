//! The rows of a run, for either kind of task: labelled rows for a head, or texts to learn.

use super::files::SplitFiles;
use super::text::{RawTexts, Targets, TextColumns, TextDataset, TextExample, TextKind, TextProblem};
use super::{
    Columns, Dataset, Error, Example, Label, LabelColumn, Labels, Problem, RawDataset, Rows, SplitName,
};
use crate::reading::Reading;
use crate::settings::{DataSource, RowSettings};
use crate::summary::DataFacts;

/// A data set to train on.
#[derive(Clone, Debug)]
pub enum TaskData {
    /// Labelled rows, for a model with a head.
    Labelled(Box<Dataset>),
    /// Texts, for a decoder that predicts tokens.
    Text(Box<TextDataset>),
}

/// A data set before tokenisation.
#[derive(Clone, Debug)]
pub enum RawTask {
    Labelled(Box<RawDataset>),
    Text(Box<RawTexts>),
}

/// Tokenised rows of a split, as in [`TaskData`].
#[derive(Clone, Copy)]
pub enum TaskRows<'a> {
    Labelled(&'a [Example]),
    Text(&'a [TextExample]),
}

impl TaskData {
    /// The rows of train.
    pub fn train(&self) -> TaskRows<'_> {
        match self {
            TaskData::Labelled(data) => TaskRows::Labelled(&data.train.examples),
            TaskData::Text(data) => TaskRows::Text(&data.train.examples),
        }
    }

    /// The rows of dev.
    pub fn dev(&self) -> TaskRows<'_> {
        match self {
            TaskData::Labelled(data) => TaskRows::Labelled(&data.dev.examples),
            TaskData::Text(data) => TaskRows::Text(&data.dev.examples),
        }
    }

    /// Drops what training does not read once the facts are reported: test, and the texts of dev.
    pub(crate) fn forget_unread(&mut self) {
        match self {
            TaskData::Labelled(data) => data.test = None,
            TaskData::Text(data) => (data.test, data.dev.rows) = (None, Vec::new()),
        }
    }

    /// Facts about the data, for reports.
    pub fn facts(&self) -> &DataFacts {
        match self {
            TaskData::Labelled(data) => &data.facts,
            TaskData::Text(data) => &data.facts,
        }
    }

    /// Warnings for the user.
    pub fn warnings(&self) -> &[String] {
        match self {
            TaskData::Labelled(data) => &data.warnings,
            TaskData::Text(data) => &data.warnings,
        }
    }

    /// The meaning of the labels; `None` for texts.
    pub fn labels(&self) -> Option<&Labels> {
        match self {
            TaskData::Labelled(data) => Some(&data.labels),
            TaskData::Text(_) => None,
        }
    }

    /// Special tokens that end the texts to learn, the most frequent first; empty for labelled
    /// rows.
    pub fn ends(&self) -> &[u32] {
        match self {
            TaskData::Labelled(_) => &[],
            TaskData::Text(data) => &data.train.ends,
        }
    }

    /// Returns the labels by which the sample of train is stratified; texts all have the same one.
    /// `None` if rows have no labels.
    pub(crate) fn strata(&self) -> Option<Vec<Label>> {
        match self {
            TaskData::Labelled(data) => data.train.labels(),
            TaskData::Text(data) => Some(vec![Label::Class(0); data.train.examples.len()]),
        }
    }
}

impl TaskRows<'_> {
    /// Number of rows.
    pub fn len(self) -> usize {
        match self {
            TaskRows::Labelled(rows) => rows.len(),
            TaskRows::Text(rows) => rows.len(),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Number of tokens of a row.
    pub fn length(self, row: usize) -> usize {
        match self {
            TaskRows::Labelled(rows) => rows[row].ids.len(),
            TaskRows::Text(rows) => rows[row].ids.len(),
        }
    }

    /// Number of tokens of every row.
    pub fn lengths(self) -> Vec<usize> {
        (0..self.len()).map(|row| self.length(row)).collect()
    }

    /// Number of tokens of all rows.
    pub fn tokens(self) -> usize {
        self.lengths().iter().sum()
    }
}

/// Returns the label column of rows that may be meant for a head: the first row of a source's train
/// has a text and a label, and is neither a prompt with a completion nor a conversation.
///
/// # Errors
/// There is no train file, or its first row cannot be read.
pub(crate) fn label_beside_text(sources: &[DataSource], rows: &RowSettings) -> Result<Option<String>, Error> {
    let Reading { columns: labelled, texts, .. } = Reading::of(rows, Vec::new());
    for source in sources {
        let found = SplitFiles::find(source.place())?;
        let Some(file) = found.of(SplitName::Train)?.first() else { continue };
        let Some(row) = Rows::open(file)?.next().transpose()? else { continue };
        let as_texts = TextColumns::choose(&row, file, &texts, Targets::Required);
        let only_words = as_texts.is_err() && Columns::has_words(&row);
        match as_texts {
            Ok(columns) if columns.kind != TextKind::Text => continue,
            Err(error @ Error::Row { problem: Problem::Text(TextProblem::Parts { .. }), .. }) => {
                return Err(error);
            }
            _ => {}
        }
        let columns = Columns::choose(&row, file, &labelled, LabelColumn::Required);
        let columns = if only_words { Ok(columns?) } else { columns };
        if let Some(label) = columns.ok().and_then(|columns| columns.label) {
            return Ok(Some(label));
        }
    }
    Ok(None)
}
