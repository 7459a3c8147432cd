//! Rows as files have them: a map from column to value, and the line, whatever the format.

mod json;
#[cfg(feature = "parquet")]
mod parquet;
mod separated;

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::{Error, Problem};
use super::files::{self, Format};

/// One row with all its columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The line where it begins, from 1; the row's number for Parquet.
    pub line: usize,
    /// Values by column, in the file's order. All values of a CSV or TSV file are text.
    pub fields: Map<String, Value>,
}

/// Names of classes in index order, by column.
pub type ClassNames = BTreeMap<String, Vec<String>>;

/// Iterator over a file's rows; a wrong row is an error with its line.
pub struct Rows {
    /// The file's name in errors.
    pub file: PathBuf,
    /// Class names by column, if the file has any.
    pub class_names: ClassNames,
    rows: Box<dyn Iterator<Item = Result<Row, Error>> + Send>,
}

impl Rows {
    /// Opens a file of any known format.
    ///
    /// # Errors
    /// The file is unreadable, empty or of an unknown format, or its header or structure is wrong.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (format, _) = Format::of(path).ok_or_else(|| Error::Format { path: path.to_path_buf() })?;
        let mut class_names = ClassNames::new();
        let lines = || Ok::<_, Error>(Lines::new(files::open(path)?, path));
        let rows: Box<dyn Iterator<Item = Result<Row, Error>> + Send> = match format {
            Format::JsonLines => Box::new(json::lines(lines()?)),
            Format::Json => Box::new(json::array(files::read_all(path)?, path)?),
            Format::Csv => Box::new(separated::csv(lines()?)?),
            Format::Tsv => Box::new(separated::tsv(lines()?)?),
            #[cfg(feature = "parquet")]
            Format::Parquet => {
                let (rows, names) = parquet::rows(files::open_seekable(path)?, path)?;
                class_names = names;
                Box::new(rows)
            }
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => {
                return Err(Error::file(path, "this build has no parquet feature and cannot read Parquet"));
            }
        };
        Ok(Rows { file: path.to_path_buf(), class_names, rows })
    }

    /// Whether a file's name ends as a known format's does.
    pub fn is_known(path: &Path) -> bool {
        Format::of(path).is_some()
    }

    /// JSON Lines from any reader, such as standard input; `name` is its name in errors. A row is
    /// read when it is asked for, and reading can continue after a wrong row.
    pub fn json_lines(reader: impl BufRead + Send + 'static, name: &Path) -> Self {
        let lines = Lines::new(Box::new(reader), name);
        Rows { file: name.to_path_buf(), class_names: ClassNames::new(), rows: Box::new(json::lines(lines)) }
    }
}

impl Iterator for Rows {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rows.next()
    }
}

/// Largest number of bytes of a row's text. Without a limit, a file without line ends, or of
/// another format, would fill the memory.
const MOST_BYTES: usize = 64 << 20;

const BOM: &str = "\u{feff}";

fn too_long() -> Problem {
    Problem::TooLong { most: MOST_BYTES >> 20 }
}

/// Converts bytes, which begin on this line, to text.
///
/// # Errors
/// They are not UTF-8.
fn utf8(bytes: Vec<u8>, file: &Path, line: usize) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let before = &e.as_bytes()[..at];
        let start = before.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        let problem = Problem::NotUtf8 { at: at - start + 1, value: e.as_bytes()[at] };
        Error::row(file, line + before.iter().filter(|&&b| b == b'\n').count(), problem)
    })
}

/// Iterator over a text's lines with their numbers, checked to be UTF-8. Line ends (LF, CRLF) and a
/// byte order mark are removed.
struct Lines {
    file: PathBuf,
    reader: Box<dyn BufRead + Send>,
    line: usize,
    /// Set after a line that was too long to be read to its end.
    ended: bool,
}

impl Lines {
    fn new(reader: Box<dyn BufRead + Send>, file: &Path) -> Self {
        Lines { file: file.to_path_buf(), reader, line: 0, ended: false }
    }
}

impl Iterator for Lines {
    type Item = Result<(usize, String), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let mut bytes = Vec::new();
        match (&mut self.reader).take(MOST_BYTES as u64 + 1).read_until(b'\n', &mut bytes) {
            Ok(0) => return None,
            Ok(read) => {
                self.line += 1;
                self.ended = read > MOST_BYTES;
                if self.ended {
                    return Some(Err(Error::row(&self.file, self.line, too_long())));
                }
            }
            Err(e) => return Some(Err(Error::io(&self.file, e))),
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        Some(utf8(bytes, &self.file, self.line).map(|mut text| {
            if self.line == 1 && text.starts_with(BOM) {
                text.drain(..BOM.len());
            }
            (self.line, text)
        }))
    }
}
