//! The rows of a run, of either task: labelled for a head, or texts of which tokens are learned.

use super::text::{TextDataset, TextExample};
use super::{Dataset, Example, Label, Labels};
use crate::summary::DataFacts;

/// A data set to train on.
#[derive(Clone, Debug)]
pub enum TaskData {
    Labelled(Box<Dataset>),
    Text(Box<TextDataset>),
}

/// Tokenised rows of a split.
#[derive(Clone, Copy)]
pub enum TaskRows<'a> {
    Labelled(&'a [Example]),
    Text(&'a [TextExample]),
}

impl TaskData {
    pub fn train(&self) -> TaskRows<'_> {
        match self {
            TaskData::Labelled(data) => TaskRows::Labelled(&data.train.examples),
            TaskData::Text(data) => TaskRows::Text(&data.train.examples),
        }
    }

    pub fn dev(&self) -> TaskRows<'_> {
        match self {
            TaskData::Labelled(data) => TaskRows::Labelled(&data.dev.examples),
            TaskData::Text(data) => TaskRows::Text(&data.dev.examples),
        }
    }

    pub fn facts(&self) -> &DataFacts {
        match self {
            TaskData::Labelled(data) => &data.facts,
            TaskData::Text(data) => &data.facts,
        }
    }

    pub fn warnings(&self) -> &[String] {
        match self {
            TaskData::Labelled(data) => &data.warnings,
            TaskData::Text(data) => &data.warnings,
        }
    }

    /// What the labels mean; texts have none.
    pub fn labels(&self) -> Option<&Labels> {
        match self {
            TaskData::Labelled(data) => Some(&data.labels),
            TaskData::Text(_) => None,
        }
    }

    /// The labels by which a sample of train is drawn evenly: texts are all alike. None where rows lack them.
    pub fn strata(&self) -> Option<Vec<Label>> {
        match self {
            TaskData::Labelled(data) => data.train.labels(),
            TaskData::Text(data) => Some(vec![Label::Class(0); data.train.examples.len()]),
        }
    }
}

impl TaskRows<'_> {
    pub fn len(self) -> usize {
        match self {
            TaskRows::Labelled(rows) => rows.len(),
            TaskRows::Text(rows) => rows.len(),
        }
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Tokens of a row.
    pub fn length(self, row: usize) -> usize {
        match self {
            TaskRows::Labelled(rows) => rows[row].ids.len(),
            TaskRows::Text(rows) => rows[row].ids.len(),
        }
    }

    /// Tokens of every row.
    pub fn lengths(self) -> Vec<usize> {
        (0..self.len()).map(|row| self.length(row)).collect()
    }

    /// Tokens of all rows.
    pub fn tokens(self) -> usize {
        self.lengths().iter().sum()
    }
}
