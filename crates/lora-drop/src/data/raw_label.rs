//! Labels as read from files.

use std::fmt;

use lora_drop_transformer::json;
use serde_json::Value;

use super::columns::type_name;
use super::error::Problem;

/// A label as read from a file, before the task is known.
#[derive(Clone, Debug, PartialEq)]
pub enum RawLabel {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    /// The classes of a row that may have several, or the tags of its words.
    List(Vec<RawLabel>),
}

impl RawLabel {
    /// Reads a field's label; `None` if there is none (null, or a blank text). White space around a
    /// text is ignored. In `textual` files, CSV and TSV, a label that looks like a number is one,
    /// and a JSON list is a list.
    ///
    /// # Errors
    /// The field is an object, a number that does not fit, or a list of something else than labels.
    pub fn of(value: &Value, column: &str, textual: bool) -> Result<Option<Self>, Problem> {
        let wrong = |seen| Problem::LabelType { column: column.into(), seen };
        Ok(Some(match value {
            Value::Null => return Ok(None),
            Value::Bool(b) => RawLabel::Bool(*b),
            Value::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => RawLabel::Int(n),
                (None, Some(x)) if n.is_f64() => RawLabel::Float(x),
                _ => return Err(wrong("an integer that is too large")),
            },
            Value::String(text) if textual => match text.trim() {
                "" => return Ok(None),
                text => match (text.parse(), text.parse::<f64>()) {
                    (Ok(n), _) => RawLabel::Int(n),
                    (_, Ok(x)) if x.is_finite() => RawLabel::Float(x),
                    _ if text.starts_with('[') => match json::from_slice::<Value>(text.as_bytes()) {
                        Ok(list) => return RawLabel::of(&list, column, false),
                        // Python's form of a list of texts.
                        Err(_) if text.starts_with("['") => {
                            return Err(Problem::LabelList { seen: text.chars().take(40).collect() });
                        }
                        Err(_) => RawLabel::Text(text.into()),
                    },
                    _ => RawLabel::Text(text.into()),
                },
            },
            Value::String(text) if text.trim().is_empty() => return Ok(None),
            Value::String(text) => RawLabel::Text(text.trim().into()),
            Value::Array(list) => {
                let item = |value: &Value| match RawLabel::of(value, column, false)? {
                    Some(RawLabel::List(_)) => Err(wrong("a list of lists")),
                    Some(label) => Ok(label),
                    None => Err(wrong("a list with an item without text")),
                };
                RawLabel::List(list.iter().map(item).collect::<Result<_, _>>()?)
            }
            other => return Err(wrong(type_name(other))),
        }))
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            RawLabel::Int(_) | RawLabel::Float(_) => "a number",
            RawLabel::Bool(_) => "a boolean",
            RawLabel::Text(_) => "text",
            RawLabel::List(_) => "a list",
        }
    }

    /// Returns the integer, even if it was written as a float.
    pub(super) fn integer(&self) -> Option<i64> {
        match *self {
            RawLabel::Int(n) => Some(n),
            RawLabel::Float(x) if x.fract() == 0.0 && x.abs() < 9e15 => Some(x as i64),
            _ => None,
        }
    }

    /// Returns the class name that this label stands for.
    pub(super) fn name(&self) -> String {
        match (self.integer(), self) {
            (Some(n), _) => n.to_string(),
            (None, RawLabel::Float(x)) => x.to_string(),
            (None, RawLabel::Text(text)) => text.clone(),
            (None, other) => other.to_string(),
        }
    }

    /// Returns the items of a list, or the label as the only item.
    pub(super) fn items(&self) -> &[RawLabel] {
        match self {
            RawLabel::List(list) => list,
            one => std::slice::from_ref(one),
        }
    }

    /// Whether this is -1, which GLUE has in rows without a label.
    pub(super) fn is_minus_one(&self) -> bool {
        self.integer() == Some(-1)
    }
}

impl fmt::Display for RawLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RawLabel::Int(n) => write!(f, "{n}"),
            RawLabel::Float(x) => write!(f, "{x:?}"),
            RawLabel::Bool(b) => write!(f, "{b}"),
            RawLabel::Text(text) => write!(f, "{text:?}"),
            RawLabel::List(list) => {
                let shown: Vec<String> = list.iter().take(SHOWN).map(RawLabel::to_string).collect();
                let more = if list.len() > SHOWN { ", ..." } else { "" };
                write!(f, "[{}{more}]", shown.join(", "))
            }
        }
    }
}

/// Number of a list's items that a message shows.
const SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_become_labels() {
        let of = |value: Value, textual| RawLabel::of(&value, "label", textual).unwrap();
        assert_eq!(of("3".into(), false), Some(RawLabel::Text("3".into())));
        assert_eq!(of(" 3 ".into(), true), Some(RawLabel::Int(3)));
        assert_eq!(of("3.0".into(), true), Some(RawLabel::Float(3.0)));
        assert_eq!(of("nan".into(), true), Some(RawLabel::Text("nan".into())));
        assert_eq!(of(" positive\t".into(), false), Some(RawLabel::Text("positive".into())));
        assert_eq!(of("".into(), true), None);
        assert_eq!(of(Value::Null, false), None);
        assert_eq!(of(5.0.into(), false), Some(RawLabel::Float(5.0)));
        assert!(RawLabel::of(&u64::MAX.into(), "label", false).is_err());
        let list = |items: &[RawLabel]| Some(RawLabel::List(items.to_vec()));
        assert_eq!(
            of(json!(["a", " b "]), false),
            list(&[RawLabel::Text("a".into()), RawLabel::Text("b".into())])
        );
        assert_eq!(of(json!([]), false), list(&[]));
        assert_eq!(of(r#" ["a"] "#.into(), true), list(&[RawLabel::Text("a".into())]));
        assert_eq!(of("[1, 0]".into(), true), list(&[RawLabel::Int(1), RawLabel::Int(0)]));
        assert_eq!(of("[1, 0]".into(), false), Some(RawLabel::Text("[1, 0]".into())));
        assert_eq!(of("[sic]".into(), true), Some(RawLabel::Text("[sic]".into())));
        for (bad, textual) in [
            (json!([[1]]), false),
            (json!([null]), false),
            (json!([" "]), false),
            ("['a', 'b']".into(), true),
        ] {
            assert!(RawLabel::of(&bad, "label", textual).is_err(), "{bad}");
        }
    }
}
