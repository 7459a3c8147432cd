//! JSON Lines in and out of `lora-drop predict`: rows as they arrive, and rows with what was predicted.

use std::io::{BufRead, Read};

use lora_drop::evaluate::{Columns, Prediction};
use lora_drop::{Error, Result};
use serde_json::{Map, Value, json};

/// A longer line is no row of text, and reading it whole would fill the memory.
const LONGEST_LINE: usize = 16 << 20;

/// The usual names of the text columns, as in training data: the first text, and the second of a pair.
const USUAL: [(&str, Option<&str>); 6] = [
    ("sentence1", Some("sentence2")),
    ("premise", Some("hypothesis")),
    ("question", Some("passage")),
    ("question", Some("sentence")),
    ("text", None),
    ("sentence", None),
];

/// One row: its own fields and the texts in them.
pub struct Row {
    pub fields: Map<String, Value>,
    pub texts: (String, Option<String>),
}

/// Reads lines without their ends, one after the other; `None` at the end.
pub fn next_line(input: &mut impl BufRead, name: &str, number: usize) -> Option<Result<Vec<u8>>> {
    let mut line = Vec::new();
    let read = input.take(LONGEST_LINE as u64 + 1).read_until(b'\n', &mut line);
    match read {
        Err(source) => Some(Err(Error::Io { path: name.into(), source })),
        Ok(0) => None,
        Ok(n) if n > LONGEST_LINE => Some(Err(Error::Input(format!(
            "{name}:{number}: the line is longer than {} MiB",
            LONGEST_LINE >> 20
        )))),
        Ok(_) => Some(Ok(line)),
    }
}

/// Reads a line as a row; `None` for an empty line. Errors name the input and the line's number.
pub fn parse(line: &[u8], name: &str, number: usize, columns: &Columns) -> Result<Option<Row>> {
    let wrong = |what: String| Error::Input(format!("{name}:{number}: {what}"));
    let mark: &[u8] = if number == 1 { b"\xef\xbb\xbf" } else { b"" };
    let line = line.strip_prefix(mark).unwrap_or(line).trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    let line = std::str::from_utf8(line)
        .map_err(|e| wrong(format!("not UTF-8 at byte {} of the line", e.valid_up_to() + 1)))?;
    let value: Value = serde_json::from_str(line).map_err(|e| wrong(format!("not JSON: {e}")))?;
    let Value::Object(fields) = value else {
        return Err(wrong("not a JSON object; expected a line such as {\"text\": \"...\"}".to_string()));
    };
    let texts = texts(&fields, columns).map_err(wrong)?;
    Ok(Some(Row { fields, texts }))
}

fn texts(
    fields: &Map<String, Value>,
    columns: &Columns,
) -> std::result::Result<(String, Option<String>), String> {
    let usual = USUAL.iter().find(|(first, second)| {
        fields.contains_key(*first) && second.is_none_or(|second| fields.contains_key(second))
    });
    let (first, second) = match (&columns.text, &columns.pair) {
        (Some(first), second) => (first.as_str(), second.as_deref()),
        (None, given) => {
            let Some((first, second)) = usual else {
                let names: Vec<_> = fields.keys().map(String::as_str).collect();
                return Err(format!(
                    "no text found by the usual names among the fields {}; name it by --text-column",
                    names.join(", ")
                ));
            };
            (*first, given.as_deref().or(*second))
        }
    };
    let text = |column: &str| match fields.get(column) {
        Some(Value::String(text)) if text.trim().is_empty() => {
            Err(format!("the text in {column:?} is empty"))
        }
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("{column:?} is not a text but {}", kind(other))),
        None => Err(format!("no field {column:?}")),
    };
    Ok((text(first)?, second.map(text).transpose()?))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The row's own fields with `label`, `scores` and `logits` behind them; for a regression `value` and `logits`. An own field
/// of such a name is kept as `input_NAME`.
pub fn predicted(row: Row, prediction: Prediction) -> Value {
    let found = if prediction.index.is_some() {
        let scores: Map<_, _> =
            prediction.scores.iter().map(|(class, score)| (class.clone(), json!(score))).collect();
        vec![("label", json!(prediction.label)), ("scores", Value::Object(scores))]
    } else {
        vec![("value", json!(prediction.logits.first()))]
    };
    let found: Vec<_> = found.into_iter().chain([("logits", json!(prediction.logits))]).collect();
    let mut out = Map::new();
    for (name, value) in row.fields {
        let taken = found.iter().any(|(new, _)| *new == name);
        out.insert(if taken { format!("input_{name}") } else { name }, value);
    }
    out.extend(found.into_iter().map(|(name, value)| (name.to_string(), value)));
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUND: Columns = Columns { text: None, pair: None, label: None };

    fn texts_of(line: &str) -> (String, Option<String>) {
        parse(line.as_bytes(), "in", 1, &FOUND).unwrap().unwrap().texts
    }

    fn complaint(line: &[u8], columns: &Columns) -> String {
        match parse(line, "in.jsonl", 7, columns) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{line:?} was taken"),
        }
    }

    #[test]
    fn texts_are_found_by_the_usual_names() {
        assert_eq!(texts_of(r#"{"text": "a", "id": 1}"#), ("a".into(), None));
        assert_eq!(
            texts_of("\u{feff}{\"sentence2\": \"b\", \"sentence1\": \"a\"}\r\n"),
            ("a".into(), Some("b".into()))
        );
        assert!(parse(b" \n", "in", 3, &FOUND).unwrap().is_none());
    }

    #[test]
    fn columns_can_be_named() {
        let columns = Columns { text: Some("x".into()), pair: Some("y".into()), label: None };
        let row = parse(br#"{"x": "a", "y": "b", "text": "c"}"#, "in", 1, &columns).unwrap().unwrap();
        assert_eq!(row.texts, ("a".into(), Some("b".into())));
        assert_eq!(complaint(br#"{"x": "a"}"#, &columns), "in.jsonl:7: no field \"y\"");
    }

    #[test]
    fn bad_lines_name_input_and_line() {
        for (line, expected) in [
            (&b"{\"text\": "[..], "not JSON"),
            (b"[1]", "not a JSON object"),
            (b"{\"text\": 3}", "\"text\" is not a text but a number"),
            (b"{\"text\": \" \"}", "is empty"),
            (b"{\"body\": \"x\"}", "--text-column"),
            (b"{\"text\": \"\xff\"}", "not UTF-8 at byte 11"),
        ] {
            let message = complaint(line, &FOUND);
            assert!(message.starts_with("in.jsonl:7: ") && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn lines_end_at_line_feeds_and_have_a_limit() {
        let mut input = &b"ab\ncd"[..];
        assert_eq!(next_line(&mut input, "in", 1).unwrap().unwrap(), b"ab\n");
        assert_eq!(next_line(&mut input, "in", 2).unwrap().unwrap(), b"cd");
        assert!(next_line(&mut input, "in", 3).is_none());
        let mut endless = std::io::BufReader::new(std::io::repeat(b'x'));
        let message = next_line(&mut endless, "in", 1).unwrap().unwrap_err().to_string();
        assert!(message.contains("in:1: the line is longer"), "{message}");
    }

    #[test]
    fn own_fields_are_kept() {
        let row = |line: &str| parse(line.as_bytes(), "in", 1, &FOUND).unwrap().unwrap();
        let prediction = |index, logits: &[f32]| Prediction {
            label: "b".into(),
            index,
            scores: vec![("a".into(), 0.25), ("b".into(), 0.75)],
            logits: logits.to_vec(),
        };
        let out = predicted(row(r#"{"text": "t", "label": "a", "id": 9}"#), prediction(Some(1), &[0.0, 1.5]));
        assert_eq!(
            out.to_string(),
            r#"{"text":"t","input_label":"a","id":9,"label":"b","scores":{"a":0.25,"b":0.75},"logits":[0.0,1.5]}"#
        );
        let out = predicted(row(r#"{"text": "t"}"#), prediction(None, &[3.5]));
        assert_eq!(out.to_string(), r#"{"text":"t","value":3.5,"logits":[3.5]}"#);
    }
}
