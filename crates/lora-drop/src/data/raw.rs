//! A split before tokenising: its rows with their places, read from files or given in memory.

use std::path::{Path, PathBuf};

use super::columns::{ColumnNames, Columns, LabelColumn, field, not_blank};
use super::dataset::LabelledRow;
use super::error::{Error, Problem};
use super::files::{Format, SplitName};
use super::labels::{Label, Labels, RawLabel};
use super::rows::{Row, Rows};
use super::sample;
use crate::summary::SplitFacts;

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
}

/// A split's labelled rows.
pub type RawSplit = RawRows<Columns, RawRow>;

/// A row's texts and label.
#[derive(Clone, Debug, PartialEq)]
pub struct RawRow {
    /// The text, or the first text of a pair.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// None if the row has no label.
    pub label: Option<RawLabel>,
    /// Index into the split's files.
    pub file: usize,
    /// Line in the file, from 1; the row's number if the format has no lines.
    pub line: usize,
}

impl<C: Clone, R> RawRows<C, R> {
    /// Reads a split's files (at least one). `choose` chooses the columns by a file's first row,
    /// and is given the first file's choice for each shard after it. `read` gets a row, its columns
    /// and its file's index.
    ///
    /// # Errors
    /// A file cannot be read or has no rows, and those of `choose` and `read`.
    pub(super) fn read_files(
        name: SplitName,
        files: &[PathBuf],
        choose: impl Fn(&Row, &Path, Option<&C>) -> Result<C, Error>,
        read: impl Fn(&Row, &C, usize) -> Result<R, Problem>,
    ) -> Result<Self, Error> {
        let (mut first, mut rows) = (None, Vec::new());
        for (number, file) in files.iter().enumerate() {
            let mut columns: Option<C> = None;
            for row in Rows::open(file)? {
                let row = row?;
                let columns = match &columns {
                    Some(columns) => columns,
                    None => columns.insert(choose(&row, file, first.as_ref())?),
                };
                rows.push(read(&row, columns, number).map_err(|e| Error::row(file, row.line, e))?);
            }
            let columns = columns.ok_or_else(|| Error::NoRows { path: file.clone() })?;
            first.get_or_insert(columns);
        }
        let columns = first.ok_or_else(|| Error::NoRows { path: PathBuf::new() })?;
        Ok(RawRows { name, files: files.to_vec(), columns, rows })
    }

    /// A split of rows in memory; `read` checks a row and is given its number, from 1.
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
        Ok(RawRows { name, files: vec![file], columns, rows })
    }

    /// Moves the rows of train that stand in for dev into a split of their own; `labels` are those
    /// of all rows. None if there are too few rows.
    pub(super) fn hold_out(&mut self, labels: &[Label]) -> Option<Self> {
        let mut held = vec![false; self.rows.len()];
        sample::hold_out(labels, HOLD_OUT).into_iter().for_each(|row| held[row] = true);
        let mut held = held.into_iter();
        let dev: Vec<R> = self.rows.extract_if(.., |_| held.next() == Some(true)).collect();
        let (files, columns) = (self.files.clone(), self.columns.clone());
        (!dev.is_empty()).then(|| RawRows { name: SplitName::Dev, files, columns, rows: dev })
    }

    /// The facts that rows of all kinds have: `examples` are the lengths of what the rows became,
    /// `lengths` those of the rows before they were cut to `limit`, all in tokens.
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
            longest: lengths.last().copied().unwrap_or(0),
            over_long: lengths.iter().filter(|&&length| length > limit).count(),
            ..SplitFacts::default()
        }
    }
}

impl RawSplit {
    /// Reads a split's files (at least one). Rows of test may lack labels.
    ///
    /// # Errors
    /// A file cannot be read or has no rows, or a row is wrong (see [`Problem`]).
    pub fn read(name: SplitName, files: &[PathBuf], named: &ColumnNames) -> Result<Self, Error> {
        let needed = if name == SplitName::Test { LabelColumn::Optional } else { LabelColumn::Required };
        let choose = |row: &Row, file: &Path, first: Option<&Columns>| {
            let first = first.map(Columns::names);
            Columns::choose(row, file, first.as_ref().unwrap_or(named), needed)
        };
        let read = |row: &Row, columns: &Columns, file: usize| {
            let (text, pair) = columns.texts(row)?;
            let textual = matches!(Format::of(&files[file]), Some((Format::Csv | Format::Tsv, _)));
            let label = match &columns.label {
                Some(column) => RawLabel::of(field(row, column)?, column, textual)?,
                None => None,
            };
            Ok(RawRow { text: text.into(), pair: pair.map(Into::into), label, file, line: row.line })
        };
        RawRows::read_files(name, files, choose, read)
    }

    /// A split of rows in memory, numbered from 1.
    ///
    /// # Errors
    /// There are none; a text is empty; the first row is a pair and another is not.
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
            Ok(RawRow { text, pair: pair.filter(|_| pairs), label: Some(label), file: 0, line })
        })
    }

    /// The file that a row was read from.
    pub fn file_of(&self, row: &RawRow) -> &Path {
        &self.files[row.file]
    }

    /// The label column's name, `label` if there is none.
    pub fn label_column(&self) -> &str {
        self.columns.label.as_deref().unwrap_or("label")
    }

    /// Every row's label under `labels`. None for a test split without labels: one without the
    /// column, or with nothing but null or -1 in it, as in GLUE.
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
            let label =
                row.label.as_ref().ok_or_else(|| Problem::NoLabel { column: self.label_column().into() });
            label.and_then(&reader).map_err(|p| Error::row(self.file_of(row), row.line, p))
        });
        read.collect::<Result<_, _>>().map(Some)
    }
}
