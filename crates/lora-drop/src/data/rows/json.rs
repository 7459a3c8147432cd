//! JSON Lines, and JSON files with an array of objects.

use std::fmt;
use std::path::{Path, PathBuf};

use lora_drop_transformer::json;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::{BOM, Error, Lines, Problem, Row};

/// A row's object. Unlike a `Map`, it refuses a name that comes twice, where one value would be
/// lost.
struct Fields(Map<String, Value>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with the row's columns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Fields, A::Error> {
                let mut fields = Map::new();
                while let Some(name) = access.next_key::<String>()? {
                    if fields.contains_key(&name) {
                        return Err(serde::de::Error::custom(format!("the column {name:?} occurs twice")));
                    }
                    fields.insert(name, access.next_value()?);
                }
                Ok(Fields(fields))
            }
        }
        input.deserialize_map(Object)
    }
}

/// The error's own words, without the place within the text that was parsed, and with help where
/// Python's writer has put what is no JSON.
fn message(error: &serde_json::Error, line: &str) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&place).unwrap_or(&text);
    let rest = line.get(error.column().saturating_sub(1)..).unwrap_or("");
    if ["NaN", "Infinity", "-Infinity", "aN"].iter().any(|word| rest.starts_with(word)) {
        return format!("{text} (NaN and Infinity are not JSON, and a label has to be a finite number)");
    }
    text.to_string()
}

/// Refuses a value that would take far more memory than text.
fn check(text: &[u8]) -> Result<(), Problem> {
    json::check(text).map_err(|message| Problem::Json { column: 1, message })
}

/// One object a line; blank lines are passed over.
pub(super) fn lines(lines: Lines) -> impl Iterator<Item = Result<Row, Error>> + Send {
    let file = lines.file.clone();
    lines.filter(|line| !matches!(line, Ok((_, text)) if text.trim().is_empty())).map(move |line| {
        let (line, text) = line?;
        let row = |problem| Error::row(&file, line, problem);
        check(text.as_bytes()).map_err(row)?;
        match serde_json::from_str::<Fields>(&text) {
            Ok(Fields(fields)) => Ok(Row { line, fields }),
            Err(e) => {
                let problem = Problem::Json { column: e.column(), message: message(&e, &text) };
                Err(row(problem))
            }
        }
    })
}

/// The rows of a JSON file, `[{...}, ...]` or `{"data": [{...}, ...]}`, parsed one by one so that
/// each has its line.
pub(super) fn array(bytes: Vec<u8>, path: &Path) -> Result<Array, Error> {
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let before = &e.as_bytes()[..at];
        let start = before.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        let problem = Problem::NotUtf8 { at: at - start + 1, value: e.as_bytes()[at] };
        Error::row(path, 1 + before.iter().filter(|&&b| b == b'\n').count(), problem)
    })?;
    let at = if text.starts_with(BOM) { BOM.len() } else { 0 };
    let mut array = Array { file: path.to_path_buf(), text, at, line: 1, state: State::First };
    array.open()?;
    Ok(array)
}

/// A place in the text, moving on row by row.
pub(super) struct Array {
    file: PathBuf,
    text: String,
    at: usize,
    line: usize,
    state: State,
}

#[derive(PartialEq)]
enum State {
    /// After the opening bracket.
    First,
    /// After a row.
    Next,
    /// The array has ended, or a row was bad: there is no telling where the next begins.
    Done,
}

const LAYOUT: &str = "a .json file holds an array of objects, or an object with such an array under \"data\" \
                      (one object a line is .jsonl)";

impl Array {
    /// Goes to the array's opening bracket, through the object around it if there is one.
    fn open(&mut self) -> Result<(), Error> {
        match self.peek() {
            Some(b'[') => {
                self.at += 1;
                return Ok(());
            }
            Some(b'{') => self.at += 1,
            None => return Err(Error::NoRows { path: self.file.clone() }),
            Some(_) => return Err(Error::file(&self.file, LAYOUT)),
        }
        while self.peek() == Some(b'"') {
            let (_, name): (_, String) = self.parse()?;
            if self.peek() != Some(b':') {
                return Err(self.unexpected("a colon"));
            }
            self.at += 1;
            if name == "data" && self.peek() == Some(b'[') {
                self.at += 1;
                return Ok(());
            }
            let _: (_, Value) = self.parse()?;
            if self.peek() != Some(b',') {
                break;
            }
            self.at += 1;
        }
        Err(Error::file(&self.file, LAYOUT))
    }

    /// The next byte that is no white space; lines are counted on the way.
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(byte @ (b' ' | b'\t' | b'\r' | b'\n')) = bytes.get(self.at) {
            self.line += usize::from(*byte == b'\n');
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    /// Reads one value from here and moves after it; gives the line that it began on, too.
    fn parse<T: for<'de> Deserialize<'de>>(&mut self) -> Result<(usize, T), Error> {
        let (rest, line) = (&self.text[self.at..], self.line);
        if let Err(problem) = check(rest.as_bytes()) {
            // Of a value whose end is missing everything after it was counted: what is broken is
            // said first. To pass over a value takes no memory.
            return Err(match serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>().next() {
                Some(Err(e)) => self.broken(&e),
                _ => Error::row(&self.file, line, problem),
            });
        }
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<T>();
        match stream.next() {
            Some(Ok(value)) => {
                let end = stream.byte_offset();
                self.line += rest[..end].bytes().filter(|&b| b == b'\n').count();
                self.at += end;
                Ok((line, value))
            }
            Some(Err(e)) => Err(self.broken(&e)),
            None => Err(self.unexpected("a value")),
        }
    }

    /// The error of a value from here on that is not JSON.
    fn broken(&self, e: &serde_json::Error) -> Error {
        let below = e.line().saturating_sub(1);
        let text = self.text[self.at..].lines().nth(below).unwrap_or("");
        let problem = Problem::Json { column: e.column(), message: message(e, text) };
        Error::row(&self.file, self.line + below, problem)
    }

    fn unexpected(&self, expected: &str) -> Error {
        let start = self.text[..self.at].rfind('\n').map_or(0, |i| i + 1);
        let seen = match self.text[self.at..].chars().next() {
            Some(c) => format!("expected {expected}, found {c:?}"),
            None => format!("expected {expected}, but the file ends (was it cut off?)"),
        };
        Error::row(&self.file, self.line, Problem::Json { column: self.at - start + 1, message: seen })
    }

    fn row(&mut self) -> Result<Option<Row>, Error> {
        match (self.peek(), &self.state) {
            (Some(b']'), _) => return Ok(None),
            (Some(b','), State::Next) => {
                self.at += 1;
                self.peek();
            }
            (_, State::Next) => return Err(self.unexpected("a comma or the array's end")),
            _ => {}
        }
        let (line, Fields(fields)) = self.parse()?;
        Ok(Some(Row { line, fields }))
    }
}

impl Iterator for Array {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Done {
            return None;
        }
        let row = self.row().transpose();
        self.state = if matches!(row, Some(Ok(_))) { State::Next } else { State::Done };
        row
    }
}
