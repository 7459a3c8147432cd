//! A split before tokenisation: its rows with their places, read from files or given in memory.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::columns::{ColumnNames, Columns, LabelColumn, field, not_blank, optional};
use super::dataset::LabelledRow;
use super::error::{Error, Place, Problem, list};
use super::files::{Format, SplitName};
use super::labels::{Label, Labels};
use super::layouts::looks_read;
use super::raw_label::RawLabel;
use super::row_text::RowText;
use super::rows::{ClassNames, Row, Rows};
use super::sample;
use super::sources::HasFile;
use crate::settings::BadRows;
use crate::summary::{LengthRange, SplitFacts};

/// The fraction of train that is held out if there is no dev split.
const HOLD_OUT: f64 = 0.1;

/// A split's rows, of columns `C`: [`RawSplit`] for labelled rows, `RawText` for texts.
#[derive(Clone, Debug, PartialEq)]
pub struct RawRows<C, R> {
    pub name: SplitName,
    /// One file, or the shards in order.
    pub files: Vec<PathBuf>,
    /// The columns, as the first file spells them.
    pub columns: C,
    pub rows: Vec<R>,
    /// Number of rows that are wrong and left out.
    pub left_out: usize,
    /// Number of blank rows that were passed over.
    pub blank: usize,
    /// Columns with values that are not read.
    pub unread: Vec<String>,
    /// Class names by column, from the first file.
    pub class_names: ClassNames,
    /// Warnings about rows that were left out and about columns that are not read.
    pub warnings: Vec<String>,
}

/// A split's labelled rows.
pub type RawSplit = RawRows<Columns, RawRow>;

/// A row's texts and label.
#[derive(Clone, Debug, PartialEq)]
pub struct RawRow {
    pub text: RowText,
    /// None if the row has no label.
    pub label: Option<RawLabel>,
    /// Index into the split's files.
    pub file: usize,
    /// Line in the file, from 1; the row's number if the format has no lines.
    pub line: usize,
}

impl HasFile for RawRow {
    fn file_mut(&mut self) -> &mut usize {
        &mut self.file
    }
}

/// Reading of the rows of one kind.
pub(super) trait ReadRows {
    type Columns: Clone;
    type Row;

    /// Chooses the columns by the first row of a file; `first` are those of the first shard.
    fn choose(&self, row: &Row, file: &Path, first: Option<&Self::Columns>) -> Result<Self::Columns, Error>;

    /// Adds columns that the rows before this one lacked.
    fn grow(&self, columns: &mut Self::Columns, row: &Row, file: &Path);

    /// Reads a row of the file with this index; `None` for a blank row, which is passed over.
    fn read(&self, row: &Row, columns: &Self::Columns, file: usize) -> Result<Option<Self::Row>, Problem>;

    /// Whether a column is read.
    fn reads(&self, columns: &Self::Columns, name: &str) -> bool;

    /// Whether a column that is not read looks as if it should be.
    fn looks_read(&self, columns: &Self::Columns, name: &str) -> bool;
}

impl<C: Clone, R> RawRows<C, R> {
    fn new(name: SplitName, files: Vec<PathBuf>, columns: C, rows: Vec<R>) -> Self {
        let (unread, class_names, warnings) = (Vec::new(), ClassNames::new(), Vec::new());
        RawRows { name, files, columns, rows, left_out: 0, blank: 0, unread, class_names, warnings }
    }

    /// Reads a split's files (at least one). Rows that are wrong are an error or left out, as
    /// `bad_rows` says.
    ///
    /// # Errors
    /// A file cannot be read or has no rows, and those of `how`.
    pub(super) fn read_files(
        name: SplitName,
        files: &[PathBuf],
        bad_rows: BadRows,
        how: &impl ReadRows<Columns = C, Row = R>,
    ) -> Result<Self, Error> {
        let (mut first, mut rows): (Option<C>, _) = (None, Vec::new());
        let (mut left_out, mut blank) = (LeftOut::default(), Vec::new());
        let (mut unread, mut class_names): (Vec<String>, _) = (Vec::new(), ClassNames::new());
        for (number, file) in files.iter().enumerate() {
            let mut columns: Option<C> = None;
            let (mut any, mut seen) = (false, HashSet::new());
            let rows_of_file = Rows::open(file)?;
            if number == 0 {
                class_names = rows_of_file.class_names.clone();
            }
            for row in rows_of_file {
                any = true;
                let row = match row {
                    Ok(row) => row,
                    Err(error) => {
                        left_out.add(error, bad_rows)?;
                        continue;
                    }
                };
                let columns = match &mut columns {
                    Some(columns) => columns,
                    None => match how.choose(&row, file, first.as_ref()) {
                        Ok(chosen) => columns.insert(chosen),
                        Err(error) => {
                            left_out.add(error, bad_rows)?;
                            continue;
                        }
                    },
                };
                if row.fields.keys().any(|key| !seen.contains(key)) {
                    how.grow(columns, &row, file);
                    seen.extend(row.fields.keys().cloned());
                }
                for (key, value) in &row.fields {
                    let filled =
                        !value.is_null() && value != "" && !value.as_array().is_some_and(Vec::is_empty);
                    if filled && !how.reads(columns, key) && !unread.contains(key) {
                        unread.push(key.clone());
                    }
                }
                match how.read(&row, columns, number) {
                    Ok(Some(read)) => rows.push(read),
                    Ok(None) => blank.push(Place::new(file, row.line)),
                    Err(problem) => {
                        left_out.add(Error::bad_row(file, row.line, problem), bad_rows)?;
                    }
                }
            }
            match columns {
                Some(columns) => drop(first.get_or_insert(columns)),
                None if any => {}
                None => return Err(Error::NoRows { path: file.clone() }),
            }
        }
        let no_rows = || Error::NoRows { path: files.first().cloned().unwrap_or_default() };
        let columns = match first {
            Some(columns) if !rows.is_empty() => columns,
            _ => return Err(left_out.first.unwrap_or_else(no_rows)),
        };
        // A warning for train is enough: the other splits have the same columns.
        let suspicious = |column: &&String| name == SplitName::Train && how.looks_read(&columns, column);
        let suspicious: Vec<String> = unread.iter().filter(suspicious).cloned().collect();
        let warnings = [left_out.warning(name), blank_rows(name, &blank), unread_columns(name, &suspicious)];
        let warnings = warnings.into_iter().flatten().collect();
        let (left_out, blank) = (left_out.count, blank.len());
        let rows = RawRows::new(name, files.to_vec(), columns, rows);
        Ok(RawRows { left_out, blank, unread, class_names, warnings, ..rows })
    }

    /// Builds a split from rows in memory; `read` checks a row and gets its number, from 1.
    ///
    /// # Errors
    /// There are no rows, and those of `read`.
    pub(super) fn in_memory<T>(
        name: SplitName,
        columns: C,
        rows: Vec<T>,
        read: impl Fn(T, usize) -> Result<R, Problem>,
    ) -> Result<Self, Error> {
        let file = PathBuf::from(format!("rows for {name}"));
        if rows.is_empty() {
            return Err(Error::NoRows { path: file });
        }
        let read = |(row, number)| read(row, number).map_err(|e| Error::row(&file, number, e));
        let rows = rows.into_iter().zip(1..).map(read).collect::<Result<_, _>>()?;
        Ok(RawRows::new(name, vec![file], columns, rows))
    }

    /// Moves rows of train into a dev split; `labels` are those of all rows. `None` if there are
    /// too few rows.
    pub(super) fn hold_out(&mut self, labels: &[Label]) -> Option<Self> {
        let mut held = vec![false; self.rows.len()];
        sample::hold_out(labels, HOLD_OUT).into_iter().for_each(|row| held[row] = true);
        let mut held = held.into_iter();
        let dev: Vec<R> = self.rows.extract_if(.., |_| held.next() == Some(true)).collect();
        let (files, columns) = (self.files.clone(), self.columns.clone());
        let rows = RawRows::new(SplitName::Dev, files, columns, dev);
        let dev = RawRows { class_names: self.class_names.clone(), ..rows };
        (!dev.rows.is_empty()).then_some(dev)
    }

    /// Returns the facts that rows of all kinds have: `examples` are the lengths of the resulting
    /// examples, `lengths` those of the rows before they were cut to `limit`, all in tokens.
    pub(super) fn facts(
        &self,
        examples: impl Iterator<Item = usize>,
        mut lengths: Vec<usize>,
        limit: usize,
    ) -> SplitFacts {
        lengths.sort_unstable();
        let (rows, tokens) = examples.fold((0, 0), |(rows, tokens), length| (rows + 1, tokens + length));
        SplitFacts {
            name: self.name.to_string(),
            file: match &self.files[..] {
                [file] => file.display().to_string(),
                shards => format!("{} and {} more", shards[0].display(), shards.len() - 1),
            },
            rows,
            tokens,
            shortest: lengths.first().copied().unwrap_or(0),
            median_length: lengths.get(lengths.len() / 2).copied().unwrap_or(0),
            length_95: lengths.get(lengths.len() * 95 / 100).copied().unwrap_or(0),
            longest: lengths.last().copied().unwrap_or(0),
            lengths: length_ranges(&lengths),
            over_long: lengths.iter().filter(|&&length| length > limit).count(),
            ..SplitFacts::default()
        }
    }
}

/// Largest number of ranges in a histogram of lengths.
const RANGES: usize = 10;

/// Builds a histogram of sorted lengths: ranges of one width up to about the 98th percentile, and
/// longer rows in the last range.
fn length_ranges(lengths: &[usize]) -> Vec<LengthRange> {
    let Some(&longest) = lengths.last() else { return Vec::new() };
    let most = lengths[lengths.len() * 98 / 100].max(1);
    // 1, 2, 5, 10, 20, 50, ...
    let steps = (0..).flat_map(|power| [1, 2, 5].map(|step| step * 10_usize.pow(power)));
    let width = steps.into_iter().find(|&width| most.div_ceil(width) <= RANGES).unwrap_or(most);
    let count = most.div_ceil(width);
    let range = |i: usize| {
        let last = i + 1 == count;
        let (from, to) = (i * width + 1, if last { longest } else { (i + 1) * width });
        let below = |limit: usize| lengths.partition_point(|&length| length < limit);
        LengthRange { from, to, rows: below(to + 1) - if i == 0 { 0 } else { below(from) } }
    };
    let first = lengths[0].saturating_sub(1) / width;
    (first..count).map(range).collect()
}

/// Wrong rows that were left out.
#[derive(Default)]
pub struct LeftOut {
    /// Error of the first one.
    first: Option<Error>,
    count: usize,
    /// Messages of the first ones.
    shown: Vec<String>,
}

impl LeftOut {
    /// Records a row that is left out.
    ///
    /// # Errors
    /// The error itself, if rows are not to be left out, or if it concerns more than a single row.
    pub fn add(&mut self, error: Error, bad_rows: BadRows) -> Result<(), Error> {
        if bad_rows == BadRows::Error || !error.is_of_row() {
            return Err(error);
        }
        self.count += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(error.without_advice());
        }
        self.first.get_or_insert(error);
        Ok(())
    }

    /// Takes the error of the first of these rows.
    pub fn take_first(&mut self) -> Option<Error> {
        self.first.take()
    }

    /// Returns a warning for the user; `None` if no row was left out.
    pub fn warning(&self, of: impl Display) -> Option<String> {
        let rows = rows(self.count);
        (self.count > 0).then(|| format!("{of}: {rows} left out: {}", first_of(&self.shown, self.count)))
    }
}

/// Number of places that a warning shows.
const SHOWN: usize = 5;

fn rows(count: usize) -> String {
    if count == 1 { "1 row is".into() } else { format!("{count} rows are") }
}

/// Joins the messages shown, and says how many of `count` are missing.
fn first_of(messages: &[String], count: usize) -> String {
    let shown = messages.join("; ");
    match count - messages.len() {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// Returns the warning about blank rows that were passed over.
fn blank_rows(split: SplitName, blank: &[Place]) -> Option<String> {
    let shown: Vec<String> = blank.iter().take(SHOWN).map(Place::to_string).collect();
    let rows = rows(blank.len());
    (!blank.is_empty())
        .then(|| format!("{split}: {rows} blank and passed over: {}", first_of(&shown, blank.len())))
}

/// Returns the warning about columns that are not read.
fn unread_columns(split: SplitName, columns: &[String]) -> Option<String> {
    let (word, verb) = if columns.len() == 1 { ("column", "is") } else { ("columns", "are") };
    (!columns.is_empty()).then(|| {
        format!(
            "{split}: the {word} {} {verb} not read; if the model should see the text, put it into a column that is",
            list(columns)
        )
    })
}

/// Labelled rows, with the columns that the user named.
struct Labelled<'a> {
    split: SplitName,
    files: &'a [PathBuf],
    named: &'a ColumnNames,
}

impl Labelled<'_> {
    /// Rows of test may lack labels.
    fn needed(&self) -> LabelColumn {
        if self.split == SplitName::Test { LabelColumn::Optional } else { LabelColumn::Required }
    }
}

impl ReadRows for Labelled<'_> {
    type Columns = Columns;
    type Row = RawRow;

    fn choose(&self, row: &Row, file: &Path, first: Option<&Columns>) -> Result<Columns, Error> {
        let first = first.map(Columns::names);
        Columns::choose(row, file, first.as_ref().unwrap_or(self.named), self.needed())
    }

    fn grow(&self, columns: &mut Columns, row: &Row, file: &Path) {
        columns.grow(row, file, self.named);
    }

    fn read(&self, row: &Row, columns: &Columns, file: usize) -> Result<Option<RawRow>, Problem> {
        let Some(text) = columns.text(row)? else { return Ok(None) };
        let textual = matches!(Format::of(&self.files[file]), Some((Format::Csv | Format::Tsv, _)));
        let label = match &columns.label {
            Some(column) if self.needed() == LabelColumn::Required => {
                let label = RawLabel::of(field(row, column)?, column, textual)?;
                Some(label.ok_or_else(|| Problem::NoLabel { column: column.clone() })?)
            }
            column => {
                let value = optional(row, column.as_ref()).unwrap_or(&Value::Null);
                RawLabel::of(value, column.as_deref().unwrap_or_default(), textual)?
            }
        };
        if let (RowText::Words(words), Some(RawLabel::List(tags))) = (&text, &label)
            && words.len() != tags.len()
        {
            return Err(Problem::TagCount { words: words.len(), tags: tags.len() });
        }
        Ok(Some(RawRow { text, label, file, line: row.line }))
    }

    fn reads(&self, columns: &Columns, name: &str) -> bool {
        columns.reads(name)
    }

    fn looks_read(&self, columns: &Columns, name: &str) -> bool {
        self.named.text.is_none() && looks_read(name, columns.rows())
    }
}

impl RawSplit {
    /// Reads a split's files (at least one). Rows of test may lack labels.
    ///
    /// # Errors
    /// A file cannot be read or has no rows, or a row is wrong (see [`Problem`]) and not left out.
    pub fn read(
        name: SplitName,
        files: &[PathBuf],
        named: &ColumnNames,
        bad_rows: BadRows,
    ) -> Result<Self, Error> {
        RawRows::read_files(name, files, bad_rows, &Labelled { split: name, files, named })
    }

    /// Builds a split from rows in memory, numbered from 1.
    ///
    /// # Errors
    /// There are no rows; a text is empty; the first row is a pair and another is not.
    pub(crate) fn of_rows(name: SplitName, rows: Vec<LabelledRow>) -> Result<Self, Error> {
        let pairs = rows.first().is_some_and(|row| row.pair.is_some());
        let pair = pairs.then(|| "pair".to_string());
        let columns = Columns { text: "text".to_string(), pair, label: Some("label".to_string()) };
        RawRows::in_memory(name, columns, rows, |row, line| {
            let LabelledRow { text, pair, label } = row;
            not_blank(&text, "text")?;
            match (&pair, pairs) {
                (Some(pair), true) => drop(not_blank(pair, "pair")?),
                (None, true) => return Err(Problem::NoText { column: "pair".into(), seen: "null" }),
                (_, false) => {}
            }
            let text = (text, pair.filter(|_| pairs)).into();
            Ok(RawRow { text, label: Some(label), file: 0, line })
        })
    }

    /// Returns the file that a row was read from.
    pub fn file_of(&self, row: &RawRow) -> &Path {
        &self.files[row.file]
    }

    /// Returns the label column's name, `label` if there is none.
    pub fn label_column(&self) -> &str {
        self.columns.label.as_deref().unwrap_or("label")
    }

    /// Returns a row's label. Numbers in a list are replaced by the names that the file gives them,
    /// if all these names are among `known`, or `known` is empty.
    pub(super) fn label_of<'a>(&self, row: &'a RawRow, known: &[String]) -> Option<Cow<'a, RawLabel>> {
        let label = row.label.as_ref()?;
        let names = self.columns.label.as_ref().and_then(|column| self.class_names.get(column));
        let names = names.filter(|names| known.is_empty() || names.iter().all(|name| known.contains(name)));
        let (RawLabel::List(list), Some(names)) = (label, names) else { return Some(Cow::Borrowed(label)) };
        let name = |item: &RawLabel| match item.integer().and_then(|n| names.get(usize::try_from(n).ok()?)) {
            Some(name) => RawLabel::Text(name.clone()),
            None => item.clone(),
        };
        Some(Cow::Owned(RawLabel::List(list.iter().map(name).collect())))
    }

    /// Returns the file's class names of the label column in their order, if it has them and labels
    /// are lists.
    pub(super) fn names_of_lists(&self) -> Option<&[String]> {
        let lists = self.rows.iter().any(|row| matches!(row.label, Some(RawLabel::List(_))));
        let names = self.class_names.get(self.columns.label.as_ref()?)?;
        lists.then_some(names)
    }

    /// Returns every row's label under `labels`; `None` for a test split without labels, which
    /// lacks the column or has nothing but null or -1 in it, as in GLUE.
    ///
    /// # Errors
    /// A label is missing or is not one of `labels`.
    pub fn labels(&self, labels: &Labels) -> Result<Option<Vec<Label>>, Error> {
        let known = labels.names().iter().any(|name| name == "-1");
        let none = |label: &Option<RawLabel>| label.as_ref().is_none_or(|l| l.is_minus_one() && !known);
        if self.name == SplitName::Test && self.rows.iter().all(|row| none(&row.label)) {
            return Ok(None);
        }
        let reader = labels.reader();
        let read = self.rows.iter().map(|row| {
            let label = self
                .label_of(row, labels.names())
                .ok_or_else(|| Problem::NoLabel { column: self.label_column().into() });
            let label = label.and_then(|label| {
                let read = reader(&label)?;
                match (&read, row.text.words()) {
                    (Label::Tags(tags), Some(words)) if tags.len() != words.len() => {
                        Err(Problem::TagCount { words: words.len(), tags: tags.len() })
                    }
                    _ => Ok(read),
                }
            });
            label.map_err(|p| Error::row(self.file_of(row), row.line, p))
        });
        read.collect::<Result<_, _>>().map(Some)
    }
}
