//! A split before tokenising: texts and labels with their places.

use std::path::{Path, PathBuf};

use super::columns::{ColumnNames, Columns, LabelColumn, field};
use super::dataset::LabelledRow;
use super::error::{Error, Problem};
use super::files::SplitName;
use super::labels::{Label, LabelReader, Labels, RawLabel};
use super::rows::{Row, Rows};

/// A row's texts and label.
#[derive(Clone, Debug, PartialEq)]
pub struct RawRow {
    pub text: String,
    pub pair: Option<String>,
    pub label: Option<RawLabel>,
    /// Index into the split's files.
    pub file: usize,
    pub line: usize,
}

/// A split's rows.
#[derive(Clone, Debug, PartialEq)]
pub struct RawSplit {
    pub name: SplitName,
    /// One, or the shards in order.
    pub files: Vec<PathBuf>,
    /// As the first file spells them.
    pub columns: Columns,
    pub rows: Vec<RawRow>,
}

impl RawSplit {
    /// Reads a split's files (one at least). Labels may be missing from test, from the other splits
    /// not.
    ///
    /// # Errors
    /// A file cannot be read, or one of its rows is odd (see [`Problem`]), or there are no rows.
    pub fn read(name: SplitName, files: &[PathBuf], named: &ColumnNames) -> Result<Self, Error> {
        let needed = if name == SplitName::Test { LabelColumn::Optional } else { LabelColumn::Required };
        let mut split: Option<RawSplit> = None;
        for (number, file) in files.iter().enumerate() {
            let mut columns: Option<Columns> = None;
            let rows = Rows::open(file)?;
            let textual = rows.textual;
            for row in rows {
                let row = row?;
                let columns = match &columns {
                    Some(columns) => columns,
                    // Shards follow the first one's choice.
                    None => {
                        let named =
                            split.as_ref().map_or_else(|| named.clone(), |split| split.columns.names());
                        columns.insert(Columns::choose(&row, file, &named, needed)?)
                    }
                };
                let read = || -> Result<RawRow, Problem> {
                    let (text, pair) = columns.texts(&row)?;
                    let label = match &columns.label {
                        Some(column) => RawLabel::of(field(&row, column)?, column, textual)?,
                        None => None,
                    };
                    Ok(RawRow {
                        text: text.into(),
                        pair: pair.map(Into::into),
                        label,
                        file: number,
                        line: row.line,
                    })
                };
                let read = read().map_err(|problem| Error::row(file, row.line, problem))?;
                split
                    .get_or_insert_with(|| RawSplit {
                        name,
                        files: files.to_vec(),
                        columns: columns.clone(),
                        rows: Vec::new(),
                    })
                    .rows
                    .push(read);
            }
            if columns.is_none() {
                return Err(Error::NoRows { path: file.clone() });
            }
        }
        split.ok_or_else(|| Error::NoRows { path: files.first().cloned().unwrap_or_default() })
    }

    /// A split of rows in memory, numbered from 1.
    ///
    /// # Errors
    /// There are none; a text is empty; the first row is a pair and another is not.
    pub(crate) fn of_rows(name: SplitName, rows: Vec<LabelledRow>) -> Result<Self, Error> {
        let file = PathBuf::from(format!("rows for {name}"));
        let Some(first) = rows.first() else { return Err(Error::NoRows { path: file }) };
        let pairs = first.pair.is_some();
        let columns = Columns {
            text: "text".to_string(),
            pair: pairs.then(|| "pair".to_string()),
            label: Some("label".to_string()),
        };
        let read = |(number, row): (usize, LabelledRow)| {
            let LabelledRow { text, pair, label } = row;
            let texts =
                [("text", Some(text)), ("pair", pair)].map(|(name, text)| (name.to_string(), text.into()));
            let row = Row { line: number + 1, fields: texts.into_iter().collect() };
            let (text, pair) = columns.texts(&row).map_err(|problem| Error::row(&file, row.line, problem))?;
            let (text, pair) = (text.to_string(), pair.map(str::to_string));
            Ok(RawRow { text, pair, label: Some(label), file: 0, line: row.line })
        };
        let rows = rows.into_iter().enumerate().map(read).collect::<Result<_, Error>>()?;
        Ok(RawSplit { name, files: vec![file], columns, rows })
    }

    /// The file that a row stands in.
    pub fn file_of(&self, row: &RawRow) -> &Path {
        &self.files[row.file]
    }

    /// The label column's name, `label` where there is none.
    pub fn label_column(&self) -> &str {
        self.columns.label.as_deref().unwrap_or("label")
    }

    /// Every row's label under `labels`; None if this is a test split without labels: no such
    /// column, or nothing but null or -1 in it, as GLUE has it.
    ///
    /// # Errors
    /// A label is missing or is not one of `labels`.
    pub fn labels(&self, labels: &Labels) -> Result<Option<Vec<Label>>, Error> {
        let known = labels.names().iter().any(|name| name == "-1");
        let none = |label: &Option<RawLabel>| label.as_ref().is_none_or(|l| l.is_minus_one() && !known);
        if self.name == SplitName::Test && self.rows.iter().all(|row| none(&row.label)) {
            return Ok(None);
        }
        let reader = LabelReader::new(labels);
        let read = self.rows.iter().map(|row| {
            let label =
                row.label.as_ref().ok_or_else(|| Problem::NoLabel { column: self.label_column().into() });
            label.and_then(|label| reader.read(label)).map_err(|p| Error::row(self.file_of(row), row.line, p))
        });
        read.collect::<Result<_, _>>().map(Some)
    }
}
