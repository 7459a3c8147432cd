//! What labels mean: class names in index order, or a regression. Train decides, and every other
//! split follows.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::columns::type_name;
use super::error::{Error, Problem};
use super::raw::{RawRow, RawSplit};
use crate::settings::Task;

/// A row's label, as training and evaluation use it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Label {
    /// A class's index.
    Class(usize),
    /// A regression's value, finite.
    Value(f32),
}

/// A label as a file has it, before the task is known.
#[derive(Clone, Debug, PartialEq)]
pub enum RawLabel {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
}

impl RawLabel {
    /// A field's label; None if there is none (null, or a blank text). White space around a text is
    /// ignored. In `textual` files, CSV and TSV, a label that looks like a number is one.
    ///
    /// # Errors
    /// The field is an array or an object, or a number that does not fit.
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
                    _ => RawLabel::Text(text.into()),
                },
            },
            Value::String(text) if text.trim().is_empty() => return Ok(None),
            Value::String(text) => RawLabel::Text(text.trim().into()),
            other => return Err(wrong(type_name(other))),
        }))
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            RawLabel::Int(_) | RawLabel::Float(_) => "a number",
            RawLabel::Bool(_) => "a boolean",
            RawLabel::Text(_) => "text",
        }
    }

    /// The integer, also if it was written as a float.
    fn integer(&self) -> Option<i64> {
        match *self {
            RawLabel::Int(n) => Some(n),
            RawLabel::Float(x) if x.fract() == 0.0 && x.abs() < 9e15 => Some(x as i64),
            _ => None,
        }
    }

    /// The class name that this label stands for.
    fn name(&self) -> String {
        match (self.integer(), self) {
            (Some(n), _) => n.to_string(),
            (None, RawLabel::Float(x)) => x.to_string(),
            (None, RawLabel::Text(text)) => text.clone(),
            (None, other) => other.to_string(),
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
        }
    }
}

/// The task's labels. They are stored with an adapter, so that evaluation and prediction read and
/// write the same names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Labels {
    /// Rows have one of these classes.
    Classification {
        /// Class names in index order: at least two, all different.
        #[serde(deserialize_with = "class_names")]
        names: Vec<String>,
        /// Of two classes, the index of the one whose F1 is measured: the second, unless another is
        /// chosen.
        #[serde(default = "second", skip_serializing_if = "is_second")]
        positive: usize,
    },
    /// Rows have a number.
    Regression,
}

fn second() -> usize {
    1
}

fn is_second(positive: &usize) -> bool {
    *positive == second()
}

fn class_names<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(input)?;
    if names.len() < 2 || names.iter().collect::<BTreeSet<_>>().len() < names.len() {
        return Err(serde::de::Error::custom("expected at least two class names, all different"));
    }
    Ok(names)
}

impl Labels {
    /// Number of the model's outputs: one for each class, or one for a regression.
    pub fn outputs(&self) -> usize {
        self.names().len().max(1)
    }

    /// Classes with these names, in index order.
    pub fn classes(names: Vec<String>) -> Self {
        Labels::Classification { names, positive: second() }
    }

    /// The same with another class whose F1 is measured.
    ///
    /// # Errors
    /// `Error::Options` if there are not two classes, or none has this name.
    pub fn with_positive(self, class: &str) -> Result<Self, Error> {
        let refuse = |what: String| Err(Error::Options(format!("`positive_class = {class}`: {what}")));
        let Labels::Classification { names, .. } = self else {
            return refuse("a regression has no classes".into());
        };
        if names.len() != 2 {
            return refuse(format!("F1 is the mean over all {} classes", names.len()));
        }
        match names.iter().position(|name| name == class) {
            Some(positive) => Ok(Labels::Classification { names, positive }),
            None => refuse(format!("the classes are {} and {}", names[0], names[1])),
        }
    }

    /// Of two classes, the one whose F1 is measured; None for others and for a regression.
    pub fn positive(&self) -> Option<&str> {
        match self {
            Labels::Classification { names, positive } if names.len() == 2 => {
                names.get(*positive).map(String::as_str)
            }
            _ => None,
        }
    }

    /// The index of the class whose F1 is measured, where there are two.
    pub(crate) fn positive_index(&self) -> usize {
        if let Labels::Classification { positive, .. } = self { *positive } else { second() }
    }

    /// Class names in index order; empty for a regression.
    pub fn names(&self) -> &[String] {
        match self {
            Labels::Classification { names, .. } => names,
            Labels::Regression => &[],
        }
    }

    /// Whether the labels are numbers to predict.
    pub fn is_regression(&self) -> bool {
        *self == Labels::Regression
    }

    /// What is learned from rows with these labels.
    pub fn task(&self) -> Task {
        if self.is_regression() { Task::Regression } else { Task::Classification }
    }

    /// A label as people read it: its class's name, or its value.
    pub(crate) fn describe(&self, label: Label) -> String {
        match label {
            Label::Class(class) => self.names()[class].clone(),
            Label::Value(value) => value.to_string(),
        }
    }

    /// Whether classes are named by whole numbers.
    fn are_integers(&self) -> bool {
        self.names().iter().any(|name| name.parse::<i64>().is_ok())
    }

    /// A function that reads a label's class or value. A class is given by its name, whatever its
    /// case if that is unique, or by its index if no name is an integer. Its errors: no such class; a
    /// regression's label is not a finite number.
    pub(super) fn reader(&self) -> impl Fn(&RawLabel) -> Result<Label, Problem> {
        let names = self.names();
        let index: HashMap<&str, usize> = names.iter().map(|name| name.trim()).zip(0..).collect();
        let mut without_case: HashMap<String, Option<usize>> = HashMap::new();
        for (name, class) in names.iter().map(|name| name.trim().to_lowercase()).zip(0..) {
            without_case.entry(name).and_modify(|class| *class = None).or_insert(Some(class));
        }
        let integer_names = self.are_integers();
        move |label| {
            if self.is_regression() {
                return match (value(label), label) {
                    (Some(value), _) => Ok(Label::Value(value)),
                    (None, RawLabel::Text(text)) if text.parse::<f64>().is_ok() => {
                        Err(Problem::LabelNotFinite { seen: text.clone() })
                    }
                    (None, RawLabel::Int(_) | RawLabel::Float(_)) => {
                        Err(Problem::LabelNotFinite { seen: label.to_string() })
                    }
                    (None, _) => Err(Problem::LabelNotNumber { seen: label.to_string() }),
                };
            }
            let name = label.name();
            let in_any_case = || without_case.get(&name.to_lowercase()).copied().flatten();
            if let Some(class) = index.get(name.as_str()).copied().or_else(in_any_case) {
                return Ok(Label::Class(class));
            }
            match label.integer().and_then(|n| usize::try_from(n).ok()) {
                Some(class) if !integer_names && class < names.len() => Ok(Label::Class(class)),
                _ => Err(Problem::LabelUnknown { seen: label.to_string(), known: names.to_vec() }),
            }
        }
    }

    /// What numbers are taken for, if a row's class is given by its index: a warning, for data may
    /// number the classes in another order.
    pub(super) fn index_warning(&self, split: &RawSplit) -> Option<String> {
        let is_number = |row: &RawRow| row.label.as_ref().is_some_and(|label| label.integer().is_some());
        if self.is_regression() || self.are_integers() || !split.rows.iter().any(is_number) {
            return None;
        }
        const SHOWN: usize = 10;
        let names = self.names();
        let meaning = names.iter().enumerate().take(SHOWN).map(|(i, name)| format!("{i} is {name}"));
        let more = if names.len() > SHOWN { ", ..." } else { "" };
        Some(format!(
            "{}: the labels are numbers, and are taken for the model's classes in their order: {}{more}; if the data \
             numbers them in another way, give it their names",
            split.name,
            meaning.collect::<Vec<_>>().join(", ")
        ))
    }

    /// Finds out what train's labels are. If a label has a fraction, or all are floats, they are a
    /// regression; otherwise they are classes, sorted by name (numbers by value, false before
    /// true). Floats that count from 0 without a gap are classes too: so whole numbers are written
    /// where a column has missing values. If a task is given, it decides instead.
    ///
    /// # Errors
    /// A row without label, numbers mixed with text or booleans, labels that are all the same, or
    /// labels that the given task cannot have.
    pub fn of(train: &RawSplit, task: Option<Task>) -> Result<Self, Error> {
        let mut first: Option<(&RawLabel, usize)> = None;
        // Numbers sort by their value, other names as texts; labels are all numbers, or none is.
        let mut names: BTreeSet<(Option<i64>, String)> = BTreeSet::new();
        let (mut floats, mut fraction) = (0, false);
        for row in &train.rows {
            let refuse = |problem| Error::row(&train.files[row.file], row.line, problem);
            let Some(label) = &row.label else {
                return Err(refuse(Problem::NoLabel { column: train.label_column().into() }));
            };
            let (other, other_line) = *first.get_or_insert((label, row.line));
            if other.kind() != label.kind() {
                return Err(refuse(mixed(label, other, other_line)));
            }
            if let RawLabel::Float(_) = label {
                floats += 1;
                if label.integer().is_none() {
                    if task == Some(Task::Classification) {
                        return Err(refuse(Problem::LabelFraction { seen: label.to_string() }));
                    }
                    fraction = true;
                }
            }
            // A regression needs no names, and could have one for every row.
            if !fraction {
                names.insert((label.integer(), label.name()));
            }
        }
        let path = || train.files[0].clone();
        let regression = match task {
            Some(task) => task == Task::Regression,
            None => fraction || (floats > 0 && floats == train.rows.len() && !count_from_zero(&names)),
        };
        if regression {
            // A value that is not a finite number differs from the others here; `reader`
            // refuses it.
            let mut values = train.rows.iter().map(|row| row.label.as_ref().and_then(value));
            return match values.next().flatten() {
                Some(value) if values.all(|other| other == Some(value)) => {
                    Err(Error::OneValue { path: path(), value })
                }
                _ => Ok(Labels::Regression),
            };
        }
        let names: Vec<String> = names.into_iter().map(|(_, name)| name).collect();
        match &names[..] {
            [] => Err(Error::NoRows { path: path() }),
            [class] => Err(Error::OneClass { path: path(), class: class.clone() }),
            _ => Ok(Labels::classes(names)),
        }
    }
}

/// Most classes that may be written as floats.
const FLOAT_CLASSES: usize = 20;

/// Whether labels are the whole numbers from 0 to less than `FLOAT_CLASSES`, without a gap.
fn count_from_zero(names: &BTreeSet<(Option<i64>, String)>) -> bool {
    let counted = names.iter().zip(0..).all(|((number, _), expected)| *number == Some(expected));
    counted && (2..=FLOAT_CLASSES).contains(&names.len())
}

fn mixed(label: &RawLabel, other: &RawLabel, other_line: usize) -> Problem {
    let numbers = [label, other].iter().any(|l| l.kind() == "a number");
    let not_finite =
        |l: &RawLabel| matches!(l, RawLabel::Text(t) if t.parse::<f64>().is_ok_and(|x| !x.is_finite()));
    if numbers && not_finite(label) {
        return Problem::LabelNotFinite { seen: label.name() };
    }
    Problem::LabelMixed {
        seen: label.to_string(),
        kind: label.kind(),
        other: other.to_string(),
        other_kind: other.kind(),
        other_line,
    }
}

/// A regression's value; None if the label is not a finite number.
fn value(label: &RawLabel) -> Option<f32> {
    let value = match *label {
        RawLabel::Int(n) => n as f32,
        RawLabel::Float(x) => x as f32,
        _ => return None,
    };
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(names: &[&str]) -> Labels {
        Labels::classes(names.iter().map(|n| n.to_string()).collect())
    }

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
        assert!(RawLabel::of(&serde_json::json!([1]), "label", false).is_err());
    }

    #[test]
    fn a_class_by_name_or_index() {
        let labels = classes(&["neg", "pos"]);
        let reader = labels.reader();
        assert_eq!(reader(&RawLabel::Text("pos".into())), Ok(Label::Class(1)));
        assert_eq!(reader(&RawLabel::Int(1)), Ok(Label::Class(1)));
        assert_eq!(reader(&RawLabel::Float(0.0)), Ok(Label::Class(0)));
        assert!(reader(&RawLabel::Int(2)).is_err());
        assert!(reader(&RawLabel::Int(-1)).is_err());
        // Whatever the case, if that is unique.
        assert_eq!(reader(&RawLabel::Text("POS".into())), Ok(Label::Class(1)));
        let labels = classes(&["Pos", "neg", "pos"]);
        assert_eq!(labels.reader()(&RawLabel::Text("pos".into())), Ok(Label::Class(2)));
        assert_eq!(labels.reader()(&RawLabel::Text("NEG".into())), Ok(Label::Class(1)));
        assert!(labels.reader()(&RawLabel::Text("POS".into())).is_err());
        // Where classes are numbers, a number is a name.
        let labels = classes(&["1", "2", "5"]);
        let reader = labels.reader();
        assert_eq!(reader(&RawLabel::Int(5)), Ok(Label::Class(2)));
        assert_eq!(reader(&RawLabel::Text("2".into())), Ok(Label::Class(1)));
        assert!(reader(&RawLabel::Int(0)).is_err());
    }

    #[test]
    fn kept_as_json() {
        let labels = classes(&["b", "a"]);
        let text = serde_json::to_string(&labels).unwrap();
        assert_eq!(text, r#"{"kind":"classification","names":["b","a"]}"#);
        assert_eq!(serde_json::from_str::<Labels>(&text).unwrap(), labels);
        assert_eq!(labels.positive(), Some("a"));
        let other = labels.with_positive("b").unwrap();
        let text = serde_json::to_string(&other).unwrap();
        assert_eq!(text, r#"{"kind":"classification","names":["b","a"],"positive":0}"#);
        assert_eq!(serde_json::from_str::<Labels>(&text).unwrap().positive(), Some("b"));
        assert!(other.with_positive("c").unwrap_err().to_string().contains("the classes are b and a"));
        assert!(classes(&["a", "b", "c"]).with_positive("a").is_err());
        assert_eq!(serde_json::to_string(&Labels::Regression).unwrap(), r#"{"kind":"regression"}"#);
        for bad in [r#"["a"]"#, r#"["a","a"]"#] {
            let text = format!(r#"{{"kind":"classification","names":{bad}}}"#);
            assert!(serde_json::from_str::<Labels>(&text).is_err());
        }
    }
}
