//! What a labelled row has to be read: a text, a pair of texts, or words.

use std::borrow::Cow;

/// A row's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowText {
    One(String),
    Pair(String, String),
    /// At least one.
    Words(Vec<String>),
}

impl RowText {
    /// Whether it is given as words.
    pub fn is_words(&self) -> bool {
        matches!(self, RowText::Words(_))
    }

    /// The text, both texts of a pair, or the words with spaces between them.
    pub fn texts(&self) -> Vec<Cow<'_, str>> {
        match self {
            RowText::One(text) => vec![text.into()],
            RowText::Pair(first, second) => vec![first.into(), second.into()],
            RowText::Words(words) => vec![words.join(" ").into()],
        }
    }

    /// The words, which white space separates in a text; None for a pair.
    pub fn words(&self) -> Option<Vec<&str>> {
        match self {
            RowText::One(text) => Some(text.split_whitespace().collect()),
            RowText::Words(words) => Some(words.iter().map(String::as_str).collect()),
            RowText::Pair(..) => None,
        }
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
