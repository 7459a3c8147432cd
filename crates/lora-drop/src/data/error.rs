//! Errors in data: file and line, what was seen, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

use super::files::{Format, SplitName};

/// A row's place: the file and the line, or the row's number if the format has no lines (Parquet).
/// Both count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
}

impl Place {
    /// The place of a line in a file.
    pub fn new(file: &Path, line: usize) -> Self {
        Place { file: file.to_path_buf(), line }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match Format::of(&self.file) {
            Some((Format::Parquet, _)) => "row",
            _ => "line",
        };
        write!(f, "{}, {unit} {}", self.file.display(), self.line)
    }
}

/// Reason why data was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{}: cannot read: {source}", .path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// A row is wrong.
    #[error("{place}: {problem}")]
    Row { place: Place, problem: Problem },
    /// A row is wrong in a way that `bad_rows` may skip.
    #[error("{place}: {problem}; `bad_rows = skip` leaves out such rows")]
    BadRow { place: Place, problem: Box<Problem> },
    /// A file is wrong as a whole: its structure, or a tokenizer's file.
    #[error("{}: {message}", .path.display())]
    File { path: PathBuf, message: String },
    #[error("{}: not a data file; expected .jsonl, .json, .csv, .tsv or .parquet, each also with .gz", .path.display())]
    Format { path: PathBuf },
    #[error(
        "{}: no {split} split; expected a file such as {split}.jsonl, .json, .csv, .tsv or .parquet (each also .gz), found {found}",
        .folder.display()
    )]
    NoSplit { folder: PathBuf, split: SplitName, found: String },
    /// No name is a split's, and several files or folders could be meant.
    #[error("{}: several data sets; give one of them as `data`: {}", .folder.display(), paths(.candidates))]
    Candidates { folder: PathBuf, candidates: Vec<PathBuf> },
    #[error("two files for the {split} split: {} and {}; remove or rename one", .first.display(), .second.display())]
    TwoFiles { split: SplitName, first: PathBuf, second: PathBuf },
    #[error("{}: shard {missing} of {of} is missing", .path.display())]
    MissingShard { path: PathBuf, missing: usize, of: usize },
    #[error("{}: no rows", .path.display())]
    NoRows { path: PathBuf },
    /// The usual names fit no column, or several.
    #[error("{place}: {what}; columns: {}; name it with {options}", list(.columns))]
    Columns { place: Place, what: String, columns: Vec<String>, options: &'static str },
    /// Rows of several sources that cannot be trained on together.
    #[error("{} and {} do not go together: {what}", .one.display(), .other.display())]
    Sources { one: PathBuf, other: PathBuf, what: String },
    #[error("{}: every row has the label {class}; training needs at least two classes", .path.display())]
    OneClass { path: PathBuf, class: String },
    #[error("{}: every row has the label {value}; a regression needs labels that differ", .path.display())]
    OneValue { path: PathBuf, value: f32 },
    #[error("{}: all {rows} rows have more than {max_length} tokens and were dropped; raise `max_length` or use `over_length = truncate`", .path.display())]
    AllDropped { path: PathBuf, rows: usize, max_length: usize },
    #[error("`max_length = {max_length}` leaves no room for text: the tokenizer adds {special} special tokens; give at least {}", special + texts)]
    MaxLength { max_length: usize, special: usize, texts: usize },
    /// Settings that exclude each other.
    #[error("{0}")]
    Options(String),
}

/// Problem with a row.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    #[error("not UTF-8: byte {at} of the line is 0x{value:02x}; save the file as UTF-8")]
    NotUtf8 { at: usize, value: u8 },
    #[error(
        "longer than {most} MiB, the limit of a row; is it a file of another format, or without ends of line?"
    )]
    TooLong { most: usize },
    #[error("bad JSON at column {column}: {message}")]
    Json { column: usize, message: String },
    #[error("{seen} fields, but the header names {expected}")]
    Fields { seen: usize, expected: usize },
    #[error("a quote is opened here and never closed; double a quote that belongs to the text")]
    OpenQuote,
    #[error(
        "a quote stands inside a field that is not quoted; quote the field and double the quote, or use .tsv, which takes quotes as they are"
    )]
    StrayQuote,
    #[error("cannot read the row: {0}")]
    Parquet(String),
    #[error(
        "no column {column:?}; columns: {}; name another one, or give rows with the columns that the model was trained on",
        list(.columns)
    )]
    NoColumn { column: String, columns: Vec<String> },
    #[error("{column:?} is {seen}, expected text")]
    TextType { column: String, seen: &'static str },
    #[error("a word in {column:?} is {seen}, expected text")]
    WordType { column: String, seen: &'static str },
    #[error("{column:?} has no text: {seen}; remove the row or fill it in")]
    NoText { column: String, seen: &'static str },
    #[error("{column:?} is {seen}, expected a label (number, boolean, text, or a list of them)")]
    LabelType { column: String, seen: &'static str },
    #[error("{column:?} has no label; remove the row or fill it in")]
    NoLabel { column: String },
    #[error("label {seen} is not a finite number")]
    LabelNotFinite { seen: String },
    #[error(
        "label {seen} is {kind}, but line {other_line} has {other_kind} ({other}); labels are all numbers, all booleans or all text"
    )]
    LabelMixed {
        seen: String,
        kind: &'static str,
        other: String,
        other_kind: &'static str,
        other_line: usize,
    },
    #[error("label {seen} is not one of the {} labels in training: {}", .known.len(), list(.known))]
    LabelUnknown { seen: String, known: Vec<String> },
    #[error("label {seen} has a fraction, so it is not a class; give `task = regression`")]
    LabelFraction { seen: String },
    #[error(
        "label {seen} is a list, and a row has one label; give `task = multi-label` for rows of several classes"
    )]
    LabelOfList { seen: String },
    #[error(
        "label {seen} has something else than classes, or 0 and 1 for each class; several numbers cannot be learned"
    )]
    LabelFractions { seen: String },
    #[error("label {seen} has a class twice; if it is a 0 or 1 for each class, all rows need as many")]
    LabelTwice { seen: String },
    #[error("label {seen} is a list, but not as JSON; write it with double quotes: [\"a\", \"b\"]")]
    LabelList { seen: String },
    #[error("label {seen} is not a list with a tag for each word; give the words' tags as a list")]
    TagsType { seen: String },
    #[error("the number of words is {words}, that of tags {tags}; each word has one tag")]
    TagCount { words: usize, tags: usize },
    #[error("the row has words, and labels of whole rows need a text; name its column with `text_column`")]
    Words,
    #[error("a pair of texts, and words with tags are a single one; leave out `pair_column`")]
    PairOfWords,
    #[error("label {seen} is not a number; this is a regression")]
    LabelNotNumber { seen: String },
    #[error(
        "{}{tokens} tokens, but the limit is {max_length}; raise `max_length`, or use `over_length = truncate` or `drop`",
        if *.partly_counted { "at least " } else { "" }
    )]
    OverLong { tokens: usize, partly_counted: bool, max_length: usize },
    #[error("the tokenizer finds no token in this text")]
    NoTokens,
    #[error(
        "token {token:?} has number {id}, but the model's vocabulary has {vocabulary}; the tokenizer belongs to another model"
    )]
    Vocabulary { token: String, id: u32, vocabulary: usize },
    #[error(
        "the tokenizer gives a token the type {kind}, but the model knows {known} (type_vocab_size in its config.json); the \
         tokenizer belongs to another model"
    )]
    TokenType { kind: u32, known: usize },
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// A problem that only rows for text generation have.
    #[error(transparent)]
    Text(#[from] super::text::TextProblem),
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn file(path: &Path, message: impl Into<String>) -> Self {
        Error::File { path: path.to_path_buf(), message: message.into() }
    }

    /// Whether only this row is wrong and the rows after it can be read.
    pub(super) fn is_of_row(&self) -> bool {
        let no_column = matches!(self, Error::Row { problem: Problem::NoColumn { .. }, .. });
        no_column || matches!(self, Error::BadRow { .. } | Error::Columns { .. })
    }

    /// Returns the message for a row that was skipped, without advice.
    pub(super) fn without_advice(&self) -> String {
        match self {
            Error::BadRow { place, problem } => format!("{place}: {problem}"),
            other => other.to_string(),
        }
    }

    /// Builds the error of a wrong row that may be skipped.
    pub fn bad_row(file: &Path, line: usize, problem: Problem) -> Self {
        Error::BadRow { place: Place::new(file, line), problem: Box::new(problem) }
    }

    pub(crate) fn row(file: &Path, line: usize, problem: Problem) -> Self {
        Error::Row { place: Place::new(file, line), problem }
    }
}

impl From<Error> for crate::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Io { path, source } => crate::Error::Io { path, source },
            Error::Options(message) => crate::Error::Usage(message),
            other => crate::Error::Data(other),
        }
    }
}

/// Lists paths for a message.
fn paths(paths: &[PathBuf]) -> String {
    list(&paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>())
}

/// Lists names for a message, at most twenty of them.
pub(crate) fn list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    if names.is_empty() {
        return "none".into();
    }
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    let more =
        if names.len() > SHOWN { format!(", and {} more", names.len() - SHOWN) } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
