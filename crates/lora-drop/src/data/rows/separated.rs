//! CSV with RFC 4180 quoting, and TSV as in GLUE: without quoting, so a quote is a character like
//! any other.

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{Error, Lines, MOST_BYTES, Problem, Row, too_long};

/// Reads the rows after a TSV file's header; blank lines are skipped.
pub(super) fn tsv(lines: Lines) -> Result<impl Iterator<Item = Result<Row, Error>> + Send, Error> {
    let file = lines.file.clone();
    let split = |text: &str| text.split('\t').map(String::from).collect::<Vec<String>>();
    let filled = lines.filter(|line| !matches!(line, Ok((_, text)) if text.is_empty()));
    table(file, filled.map(move |line| line.map(|(line, text)| (line, split(&text)))))
}

/// Reads the rows after a CSV file's header; blank lines are skipped.
pub(super) fn csv(lines: Lines) -> Result<impl Iterator<Item = Result<Row, Error>> + Send, Error> {
    table(lines.file.clone(), Records { lines })
}

/// Turns records into rows; the first record names the columns.
fn table(
    file: PathBuf,
    mut records: impl Iterator<Item = Result<(usize, Vec<String>), Error>> + Send,
) -> Result<impl Iterator<Item = Result<Row, Error>> + Send, Error> {
    let (line, mut header) = records.next().unwrap_or_else(|| Err(Error::NoRows { path: file.clone() }))?;
    header.iter_mut().for_each(|name| *name = name.trim().to_string());
    let mut seen = HashSet::new();
    if let Some(name) = header.iter().find(|name| !seen.insert(*name)) {
        let message = format!("the header on line {line} names the column {name:?} twice");
        return Err(Error::file(&file, message));
    }
    Ok(records.map(move |record| {
        let (line, values) = record?;
        if values.len() != header.len() {
            let problem = Problem::Fields { seen: values.len(), expected: header.len() };
            return Err(Error::bad_row(&file, line, problem));
        }
        let fields: Map<String, Value> =
            header.iter().cloned().zip(values.into_iter().map(Value::String)).collect();
        Ok(Row { line, fields })
    }))
}

/// Iterator over CSV records, each with the line where it begins. Lines are joined until their
/// quotes are paired, which is where a record of RFC 4180 ends. So line numbers are exact, and a
/// quote that is never closed is found.
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
            let stray = || Error::row(&self.lines.file, line, Problem::StrayQuote);
            return Some(fields(&text).map(|fields| (line, fields)).ok_or_else(stray));
        }
    }
}

/// Splits one record's text into fields. `None` if a line ends outside of quotes, the last quote is
/// not closed, or text follows a closing quote, which means that the quotes do not enclose a field
/// but belong to its text.
fn fields(text: &str) -> Option<Vec<String>> {
    let (mut fields, mut field) = (Vec::new(), String::new());
    let (mut starts, mut quoted) = (true, false);
    let mut characters = text.trim_end_matches('\r').chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.next_if_eq(&'"').is_none() => {
                quoted = false;
                if characters.peek().is_some_and(|&next| next != ',') {
                    return None;
                }
            }
            _ if quoted => field.push(character),
            '"' if starts => quoted = true,
            ',' => fields.push(std::mem::take(&mut field)),
            '\r' | '\n' => return None,
            _ => field.push(character),
        }
        starts = !quoted && character == ',';
    }
    fields.push(field);
    (!quoted).then_some(fields)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::fields;

    #[test]
    fn quotes_of_a_record() {
        let read = |text| fields(text).map(|fields| fields.join("|"));
        assert_eq!(read("a,b c,"), Some("a|b c|".into()));
        assert_eq!(read("\"a, \"\"b\"\"\n\",\"\",c\r"), Some("a, \"b\"\n||c".into()));
        assert_eq!(read("a,d\"\"e\"f\""), Some("a|d\"\"e\"f\"".into()));
        // A text that begins with a quoted word.
        assert_eq!(read("\"a\" b,1"), None);
        assert_eq!(read("\"a\"b\"c\",d"), None);
        assert_eq!(read("a\"\nb\""), None);
        assert_eq!(read("a\rb"), None);
        assert_eq!(read("a\",\"b"), None);
    }

    /// Splits with the csv crate, which closes an open quote at the end; `None` if it sees more
    /// than one record.
    fn reference(text: &str) -> Option<Vec<String>> {
        let mut reader =
            ::csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
        let records: Vec<_> = reader.records().map(|record| record.expect("UTF-8")).collect();
        match &records[..] {
            [one] => Some(one.iter().map(String::from).collect()),
            _ => None,
        }
    }

    /// Whether text follows a closing quote within its field.
    fn text_after_quote(text: &str) -> bool {
        let mut rest = text;
        loop {
            let field = rest.strip_prefix('"');
            if let Some(quoted) = field {
                let ends = quoted.replace("\"\"", "  ").find('"');
                let Some(end) = ends else { return false };
                rest = &quoted[end + 1..];
                if !rest.is_empty() && !rest.starts_with(',') {
                    return !rest.trim_end_matches('\r').is_empty();
                }
            }
            match rest.find(',') {
                Some(comma) => rest = &rest[comma + 1..],
                None => return false,
            }
        }
    }

    proptest! {
        /// Blank lines, which the reference skips, never reach `fields`.
        #[test]
        fn any_record_reads_as_the_reference_reads_it(text in "[a,\"b]([a,\"\r\nb]{0,10}[a,\"b])?\r?") {
            let (expected, closed) = (reference(&text), reference(&format!("{text}\"")));
            match fields(&text) {
                Some(fields) => prop_assert_eq!(Some(fields), expected),
                // The reference drops a closing quote before more text.
                None => prop_assert!(expected.is_none() || expected == closed || text_after_quote(&text)),
            }
        }
    }
}
