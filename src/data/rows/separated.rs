//! CSV with RFC 4180 quoting, and TSV as GLUE has it: no quoting, so a quote is a character like any other.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Error, Lines, MOST_BYTES, Problem, Row, too_long};

/// The rows below a TSV file's header; blank lines are passed over.
pub(super) fn tsv(lines: Lines) -> Result<impl Iterator<Item = Result<Row, Error>> + Send, Error> {
    let file = lines.file.clone();
    let split = |text: &str| text.split('\t').map(String::from).collect::<Vec<String>>();
    let filled = lines.filter(|line| !matches!(line, Ok((_, text)) if text.is_empty()));
    table(file, filled.map(move |line| line.map(|(line, text)| (line, split(&text)))))
}

/// The rows below a CSV file's header; blank lines are passed over.
pub(super) fn csv(lines: Lines) -> Result<impl Iterator<Item = Result<Row, Error>> + Send, Error> {
    table(lines.file.clone(), Records { lines })
}

/// Makes rows of records: the first names the columns.
fn table(
    file: PathBuf,
    mut records: impl Iterator<Item = Result<(usize, Vec<String>), Error>> + Send,
) -> Result<impl Iterator<Item = Result<Row, Error>> + Send, Error> {
    let (line, header) = records.next().unwrap_or_else(|| Err(Error::NoRows { path: file.clone() }))?;
    for (i, name) in header.iter().enumerate() {
        if header[..i].contains(name) {
            let message = format!("the header on line {line} names the column `{name}` twice");
            return Err(Error::file(&file, message));
        }
    }
    Ok(records.map(move |record| {
        let (line, values) = record?;
        if values.len() != header.len() {
            let problem = Problem::Fields { seen: values.len(), expected: header.len() };
            return Err(Error::row(&file, line, problem));
        }
        let fields: Map<String, Value> =
            header.iter().cloned().zip(values.into_iter().map(Value::String)).collect();
        Ok(Row { line, fields })
    }))
}

/// CSV records with the line that each begins on. Lines are joined until their quotes are paired, which is where a record
/// of RFC 4180 ends; this gives exact lines and finds the quote that is never closed.
struct Records {
    lines: Lines,
}

impl Iterator for Records {
    type Item = Result<(usize, Vec<String>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (line, mut text) = match self.lines.next()? {
                Ok((_, text)) if text.is_empty() => continue,
                Ok(first) => first,
                Err(e) => return Some(Err(e)),
            };
            let quotes = |text: &str| text.bytes().filter(|&b| b == b'"').count();
            let mut open = quotes(&text) % 2 == 1;
            while open {
                match self.lines.next() {
                    Some(Ok((_, more))) if text.len() + more.len() > MOST_BYTES => {
                        return Some(Err(Error::row(&self.lines.file, line, too_long())));
                    }
                    Some(Ok((_, more))) => {
                        open = quotes(&more) % 2 == 0;
                        text.push('\n');
                        text.push_str(&more);
                    }
                    Some(Err(e)) => return Some(Err(e)),
                    None => return Some(Err(Error::row(&self.lines.file, line, Problem::OpenQuote))),
                }
            }
            return Some(record(&text, &self.lines.file, line).map(|fields| (line, fields)));
        }
    }
}

/// Parses the text of one record.
fn record(text: &str, file: &Path, line: usize) -> Result<Vec<String>, Error> {
    let stray = || Error::row(file, line, Problem::StrayQuote);
    let mut reader = ::csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(text.len().clamp(1, 1 << 13))
        .from_reader(text.as_bytes());
    let mut fields = ::csv::StringRecord::new();
    let some = reader.read_record(&mut fields).map_err(|_| stray())?;
    // More than one record: the quotes that held the lines together were not around a field.
    if !some || reader.read_record(&mut ::csv::StringRecord::new()).map_err(|_| stray())? {
        return Err(stray());
    }
    Ok(fields.iter().map(String::from).collect())
}
