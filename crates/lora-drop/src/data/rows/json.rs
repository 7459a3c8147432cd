//! JSON Lines, and JSON files with an array of objects.

use std::fmt;
use std::path::Path;

use lora_drop_transformer::json;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{BOM, Error, Lines, Problem, Row, utf8};

/// A row's object. Unlike a `Map`, it refuses a name that occurs twice, which would lose a value.
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

/// Returns the parser's message without the place, with a hint for NaN and Infinity, which Python
/// writes and JSON does not have, and for files that end early.
fn message(error: &serde_json::Error, line: &str) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&place).unwrap_or(&text);
    let rest = line.get(error.column().saturating_sub(1)..).unwrap_or("");
    if ["NaN", "Infinity", "-Infinity", "aN"].iter().any(|word| rest.starts_with(word)) {
        return format!("{text} (NaN and Infinity are not JSON, and a label has to be a finite number)");
    }
    if error.is_eof() { format!("{text} (was it cut off?)") } else { text.to_string() }
}

/// Parses a row's object. The error has the line within the text, from 0, and the problem there.
fn fields(text: &str) -> Result<Map<String, Value>, (usize, Problem)> {
    // Refuses a value that would take far more memory than its text.
    json::check(text.as_bytes()).map_err(|message| (0, Problem::Json { column: 1, message }))?;
    serde_json::from_str::<Fields>(text).map(|Fields(fields)| fields).map_err(|e| problem(&e, text))
}

/// Returns the line within the text, from 0, that an error names, and the problem there.
fn problem(e: &serde_json::Error, text: &str) -> (usize, Problem) {
    let line = e.line().saturating_sub(1);
    let message = message(e, text.lines().nth(line).unwrap_or(""));
    (line, Problem::Json { column: e.column(), message })
}

/// Reads one object a line; blank lines are skipped.
pub(super) fn lines(lines: Lines) -> impl Iterator<Item = Result<Row, Error>> + Send {
    let file = lines.file.clone();
    lines.filter(|line| !matches!(line, Ok((_, text)) if text.trim().is_empty())).map(move |line| {
        let (line, text) = line?;
        let fields = fields(&text).map_err(|(_, problem)| Error::bad_row(&file, line, problem))?;
        Ok(Row { line, fields })
    })
}

const LAYOUT: &str = "a .json file holds an array of objects, or an object with such an array under \"data\" \
                      (one object a line is .jsonl)";

/// Reads the rows of a JSON file, `[{...}, ...]` or `{"data": [{...}, ...]}`, each with the line
/// where it begins.
pub(super) fn array(
    bytes: Vec<u8>,
    path: &Path,
) -> Result<impl Iterator<Item = Result<Row, Error>> + Send + use<>, Error> {
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(borrow)]
        data: Vec<&'a RawValue>,
    }
    let file = path.to_path_buf();
    let mut text = utf8(bytes, path, 1)?;
    if text.starts_with(BOM) {
        text.drain(..BOM.len());
    }
    let rows = match text.trim_start().chars().next() {
        Some('[') => serde_json::from_str(&text),
        Some('{') => serde_json::from_str(&text).map(|Data { data }| data),
        None => return Err(Error::NoRows { path: file }),
        Some(_) => return Err(Error::file(path, LAYOUT)),
    };
    let rows: Vec<&RawValue> = rows.map_err(|e| {
        if e.is_data() {
            return Error::file(path, LAYOUT);
        }
        let (line, problem) = problem(&e, &text);
        Error::row(path, 1 + line, problem)
    })?;
    // Rows are slices of the text, so their offsets are differences of addresses.
    let place = |row: &&RawValue| (row.get().as_ptr().addr() - text.as_ptr().addr(), row.get().len());
    let places: Vec<(usize, usize)> = rows.iter().map(place).collect();
    let (mut line, mut counted) = (1, 0);
    Ok(places.into_iter().map(move |(start, length)| {
        line += text[counted..start].matches('\n').count();
        counted = start;
        match fields(&text[start..start + length]) {
            Ok(fields) => Ok(Row { line, fields }),
            Err((below, problem)) => Err(Error::bad_row(&file, line + below, problem)),
        }
    }))
}
