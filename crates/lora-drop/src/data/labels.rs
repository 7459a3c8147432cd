//! The meaning of labels: class names in index order, or a regression. It is determined from train
//! and applied to every other split.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Deserializer, Serialize};

use super::error::{Error, Problem};
use super::raw::{RawRow, RawSplit};
use super::raw_label::RawLabel;
use crate::settings::Task;

/// A row's label, as training and evaluation use it.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// A class's index.
    Class(usize),
    /// The indices of a row's classes, ascending; there may be none.
    Set(Vec<usize>),
    /// The index of each word's class.
    Tags(Vec<usize>),
    /// A regression's value, finite.
    Value(f32),
}

impl Label {
    /// Returns the indices of the label's classes; none for a value.
    pub fn classes(&self) -> &[usize] {
        match self {
            Label::Class(class) => std::slice::from_ref(class),
            Label::Set(classes) | Label::Tags(classes) => classes,
            Label::Value(_) => &[],
        }
    }
}

/// The task's labels. They are stored with an adapter, so that evaluation and prediction read and
/// write the same names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Labels {
    /// Rows have one of these classes.
    Classification {
        #[serde(flatten)]
        classes: Classes,
        /// Of two classes, the index of the one whose F1 is measured: the second, unless another is
        /// chosen.
        #[serde(default = "second", skip_serializing_if = "is_second")]
        positive: usize,
    },
    /// Rows have any number of these classes.
    MultiLabel {
        #[serde(flatten)]
        classes: Classes,
        /// Whether a list with a 0 or 1 for each class says which ones a row has.
        #[serde(default, skip_serializing_if = "is_false")]
        indicators: bool,
    },
    /// Each word of a row has one of these classes.
    TokenClassification {
        #[serde(flatten)]
        classes: Classes,
    },
    /// Rows have a number.
    Regression,
}

/// The classes of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Classes {
    /// Names in index order: at least two, all different.
    #[serde(deserialize_with = "class_names")]
    pub names: Vec<String>,
    /// Weights in the loss, in index order; empty if all are 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<f64>,
}

impl Classes {
    /// Builds classes of these names, without weights.
    pub fn new(names: Vec<String>) -> Self {
        Classes { names, weights: Vec::new() }
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
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

    /// Builds the labels of a classification with these class names, in index order.
    pub fn classes(names: Vec<String>) -> Self {
        Labels::Classification { classes: Classes::new(names), positive: second() }
    }

    /// Chooses the class whose F1 is measured.
    ///
    /// # Errors
    /// `Error::Options` if there are not two classes, or none has this name.
    pub fn with_positive(self, class: &str) -> Result<Self, Error> {
        let refuse = |what: String| Err(Error::Options(format!("`positive_class = {class}`: {what}")));
        let Labels::Classification { classes, .. } = self else {
            return refuse(match self {
                Labels::Regression => "a regression has no classes".into(),
                _ => "F1 is measured over all classes".into(),
            });
        };
        let names = &classes.names;
        if names.len() != 2 {
            return refuse(format!("F1 is the mean over all {} classes", names.len()));
        }
        match names.iter().position(|name| name == class) {
            Some(positive) => Ok(Labels::Classification { classes, positive }),
            None => refuse(format!("the classes are {} and {}", names[0], names[1])),
        }
    }

    /// Sets the weights of the classes in the loss, in index order; a regression has none.
    pub(super) fn with_weights(mut self, new: Vec<f64>) -> Self {
        match &mut self {
            Labels::Classification { classes, .. }
            | Labels::MultiLabel { classes, .. }
            | Labels::TokenClassification { classes } => classes.weights = new,
            Labels::Regression => {}
        }
        self
    }

    /// Name of the class whose F1 is measured; `None` unless rows have one of exactly two classes.
    pub fn positive(&self) -> Option<&str> {
        match self {
            Labels::Classification { classes, positive } if classes.names.len() == 2 => {
                classes.names.get(*positive).map(String::as_str)
            }
            _ => None,
        }
    }

    /// Index of the class whose F1 is measured if there are two classes.
    pub(crate) fn positive_index(&self) -> usize {
        if let Labels::Classification { positive, .. } = self { *positive } else { second() }
    }

    fn of_classes(&self) -> Option<&Classes> {
        match self {
            Labels::Classification { classes, .. }
            | Labels::MultiLabel { classes, .. }
            | Labels::TokenClassification { classes } => Some(classes),
            Labels::Regression => None,
        }
    }

    /// Class names in index order; empty for a regression.
    pub fn names(&self) -> &[String] {
        self.of_classes().map_or(&[], |classes| &classes.names)
    }

    /// Weights of the classes in the loss, in index order; empty if all are 1.
    pub fn weights(&self) -> &[f64] {
        self.of_classes().map_or(&[], |classes| &classes.weights)
    }

    /// Whether the labels are numbers to predict.
    pub fn is_regression(&self) -> bool {
        *self == Labels::Regression
    }

    /// Whether each word of a row has a label.
    pub fn of_words(&self) -> bool {
        matches!(self, Labels::TokenClassification { .. })
    }

    /// The task of rows with these labels.
    pub fn task(&self) -> Task {
        match self {
            Labels::Classification { .. } => Task::Classification,
            Labels::MultiLabel { .. } => Task::MultiLabel,
            Labels::TokenClassification { .. } => Task::TokenClassification,
            Labels::Regression => Task::Regression,
        }
    }

    /// Describes a label for people: the names of its classes, or its value.
    pub(crate) fn describe(&self, label: &Label) -> String {
        let names = |classes: &[usize], between: &str| {
            classes.iter().map(|&class| self.names()[class].as_str()).collect::<Vec<_>>().join(between)
        };
        match label {
            Label::Class(class) => self.names()[*class].clone(),
            Label::Set(classes) if classes.is_empty() => "none".to_string(),
            Label::Set(classes) => names(classes, ", "),
            Label::Tags(classes) => names(classes, " "),
            Label::Value(value) => value.to_string(),
        }
    }

    /// Whether any class has an integer as its name.
    fn has_integer_name(&self) -> bool {
        self.names().iter().any(|name| name.parse::<i64>().is_ok())
    }

    /// Returns a function that converts a row's label. A class is given by its name, whatever its
    /// case if that is unique, or by its index if no name is an integer. The function's errors: no
    /// such class; a list where one label is expected; tags that are not a list; a regression's
    /// label that is not a finite number.
    pub(super) fn reader(&self) -> impl Fn(&RawLabel) -> Result<Label, Problem> {
        let names = self.names();
        let index: HashMap<&str, usize> = names.iter().map(|name| name.trim()).zip(0..).collect();
        let mut without_case: HashMap<String, Option<usize>> = HashMap::new();
        for (name, class) in names.iter().map(|name| name.trim().to_lowercase()).zip(0..) {
            without_case.entry(name).and_modify(|class| *class = None).or_insert(Some(class));
        }
        let integer_names = self.has_integer_name();
        let class_of = move |label: &RawLabel| {
            let name = label.name();
            let in_any_case = || without_case.get(&name.to_lowercase()).copied().flatten();
            if let Some(class) = index.get(name.as_str()).copied().or_else(in_any_case) {
                return Ok(class);
            }
            match label.integer().and_then(|n| usize::try_from(n).ok()) {
                Some(class) if !integer_names && class < names.len() => Ok(class),
                _ => Err(Problem::LabelUnknown { seen: label.to_string(), known: names.to_vec() }),
            }
        };
        move |label| {
            let classes = |items: &[RawLabel]| items.iter().map(&class_of).collect::<Result<Vec<_>, _>>();
            match (self, label) {
                (Labels::Classification { .. } | Labels::Regression, RawLabel::List(_)) => {
                    Err(Problem::LabelOfList { seen: label.to_string() })
                }
                (Labels::Classification { .. }, _) => class_of(label).map(Label::Class),
                (Labels::MultiLabel { indicators: true, .. }, RawLabel::List(list))
                    if list.len() == names.len() && list.iter().all(|item| bit(item).is_some()) =>
                {
                    let has = |class: &usize| bit(&list[*class]) == Some(true);
                    Ok(Label::Set((0..list.len()).filter(has).collect()))
                }
                (Labels::MultiLabel { .. }, _) => {
                    let found = classes(label.items())?;
                    let set: BTreeSet<usize> = found.iter().copied().collect();
                    // A repeated number is not a class index; the list is probably an indicator
                    // vector.
                    let numbers = label.items().iter().any(|item| item.integer().is_some());
                    if numbers && set.len() < found.len() {
                        return Err(Problem::LabelTwice { seen: label.to_string() });
                    }
                    Ok(Label::Set(set.into_iter().collect()))
                }
                (Labels::TokenClassification { .. }, RawLabel::List(list)) => classes(list).map(Label::Tags),
                (Labels::TokenClassification { .. }, _) => Err(Problem::TagsType { seen: label.to_string() }),
                (Labels::Regression, _) => match (value(label), label) {
                    (Some(value), _) => Ok(Label::Value(value)),
                    (None, RawLabel::Text(text)) if text.parse::<f64>().is_ok() => {
                        Err(Problem::LabelNotFinite { seen: text.clone() })
                    }
                    (None, RawLabel::Int(_) | RawLabel::Float(_)) => {
                        Err(Problem::LabelNotFinite { seen: label.to_string() })
                    }
                    (None, _) => Err(Problem::LabelNotNumber { seen: label.to_string() }),
                },
            }
        }
    }

    /// Returns a warning about how class indices are read, if rows have any, because the data may
    /// number the classes in another order.
    pub(super) fn index_warning(&self, split: &RawSplit) -> Option<String> {
        let is_number = |row: &RawRow| match split.label_of(row, self.names()).as_deref() {
            Some(label) => label.items().iter().any(|item| item.integer().is_some()),
            None => false,
        };
        let by_place = matches!(self, Labels::MultiLabel { indicators: true, .. });
        if self.is_regression() || by_place || self.has_integer_name() || !split.rows.iter().any(is_number) {
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

    /// Determines train's labels. Lists are the tags of words if rows have words, otherwise the
    /// classes of rows that may have several. Other labels are a regression if one has a fraction,
    /// or all are floats; otherwise they are classes, sorted by name (numbers by value, false
    /// before true). Floats that count from 0 without a gap are classes too, because this is how
    /// integers are written in a column with missing values. If a task is given, it decides
    /// instead. `names` are those of all classes in their order, if they are known.
    ///
    /// # Errors
    /// A row without label, numbers mixed with text or booleans, labels that are all the same, or
    /// labels that the given task cannot have.
    pub fn of(train: &RawSplit, task: Option<Task>, names: Option<&[String]>) -> Result<Self, Error> {
        let lists = train.rows.iter().find_map(|row| row.label.as_ref());
        let lists = matches!(lists, Some(RawLabel::List(_)));
        let of_words = train.rows.iter().any(|row| row.text.is_words());
        let task = task.or(match (of_words, lists) {
            (true, _) => Some(Task::TokenClassification),
            (false, true) => Some(Task::MultiLabel),
            (false, false) => None,
        });
        match task {
            Some(Task::MultiLabel) => {
                let indicators = count_indicators(train);
                let numbers = || indicators.map(|count| (0..count).map(|class| class.to_string()).collect());
                let names = match names.map(<[_]>::to_vec).or_else(numbers) {
                    Some(names) => names,
                    None => found_names(train)?,
                };
                Ok(Labels::MultiLabel { classes: Classes::new(names), indicators: indicators.is_some() })
            }
            Some(Task::TokenClassification) => {
                let names = names.map_or_else(|| found_names(train), |names| Ok(names.to_vec()))?;
                Ok(Labels::TokenClassification { classes: Classes::new(names) })
            }
            Some(Task::Classification) | None if names.is_some() => {
                Ok(Labels::classes(names.unwrap_or_default().to_vec()))
            }
            task => Labels::of_one(train, task),
        }
    }

    /// Determines the labels, as `of` does, if they are not lists.
    fn of_one(train: &RawSplit, task: Option<Task>) -> Result<Self, Error> {
        let mut found = Names::default();
        let (mut floats, mut fraction) = (0, false);
        for row in &train.rows {
            let refuse = |problem| Error::row(&train.files[row.file], row.line, problem);
            let Some(label) = &row.label else {
                return Err(refuse(Problem::NoLabel { column: train.label_column().into() }));
            };
            if let RawLabel::List(_) = label {
                return Err(refuse(Problem::LabelOfList { seen: label.to_string() }));
            }
            found.check(label, row.line).map_err(refuse)?;
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
                found.add(label);
            }
        }
        let regression = match task {
            Some(task) => task == Task::Regression,
            None => fraction || (floats > 0 && floats == train.rows.len() && !count_from_zero(&found.names)),
        };
        if regression {
            // A value that is not a finite number counts as different here; `reader` refuses it.
            let mut values = train.rows.iter().map(|row| row.label.as_ref().and_then(value));
            return match values.next().flatten() {
                Some(value) if values.all(|other| other == Some(value)) => {
                    Err(Error::OneValue { path: train.files[0].clone(), value })
                }
                _ => Ok(Labels::Regression),
            };
        }
        found.finish(train).map(Labels::classes)
    }
}

/// Returns the names of the classes in train's lists, sorted.
fn found_names(train: &RawSplit) -> Result<Vec<String>, Error> {
    let mut found = Names::default();
    for row in &train.rows {
        let refuse = |problem| Error::row(&train.files[row.file], row.line, problem);
        let label = train.label_of(row, &[]);
        let label = label.ok_or_else(|| refuse(Problem::NoLabel { column: train.label_column().into() }))?;
        for item in label.items() {
            found.check(item, row.line).map_err(refuse)?;
            if matches!(item, RawLabel::Float(_)) && item.integer().is_none() {
                return Err(refuse(Problem::LabelFractions { seen: label.to_string() }));
            }
            found.add(item);
        }
    }
    found.finish(train)
}

/// Returns the number of classes if every row's list is an indicator vector, a 0 or 1 for each
/// class, as transformers expects. Lists of class indices would look the same only if all rows had
/// the first two classes and no other.
fn count_indicators(train: &RawSplit) -> Option<usize> {
    let mut lists = train.rows.iter().map(|row| match &row.label {
        Some(RawLabel::List(list)) if list.iter().all(|item| bit(item).is_some()) => Some(list.len()),
        _ => None,
    });
    let first = lists.next().flatten().filter(|&classes| classes >= 2)?;
    lists.all(|classes| classes == Some(first)).then_some(first)
}

/// Reads a 0, a 1 or a boolean as whether a row has a class; `None` for anything else.
fn bit(label: &RawLabel) -> Option<bool> {
    match label {
        RawLabel::Bool(has) => Some(*has),
        label => [Some(0), Some(1)].iter().position(|bit| label.integer() == *bit).map(|bit| bit == 1),
    }
}

/// Collects the class names of labels. Labels are all numbers, or none is.
#[derive(Default)]
struct Names {
    /// The first label and its line.
    first: Option<(RawLabel, usize)>,
    /// Numbers sort by value, other names as text.
    names: BTreeSet<(Option<i64>, String)>,
}

impl Names {
    /// Checks that a label is of the first one's kind.
    fn check(&mut self, label: &RawLabel, line: usize) -> Result<(), Problem> {
        let (other, other_line) = self.first.get_or_insert_with(|| (label.clone(), line));
        if other.kind() != label.kind() {
            return Err(mixed(label, other, *other_line));
        }
        Ok(())
    }

    fn add(&mut self, label: &RawLabel) {
        self.names.insert((label.integer(), label.name()));
    }

    /// Returns the names, at least two.
    fn finish(self, train: &RawSplit) -> Result<Vec<String>, Error> {
        let (names, path) = (self.names.into_iter().map(|(_, name)| name), train.files[0].clone());
        let names: Vec<String> = names.collect();
        match &names[..] {
            [] if train.rows.is_empty() => Err(Error::NoRows { path }),
            [] => Err(Error::file(&path, "no row has a class; training needs at least two classes")),
            [class] if matches!(train.rows[0].label, Some(RawLabel::List(_))) => {
                let problem = format!("{class} is the only class; training needs at least two classes");
                Err(Error::file(&path, problem))
            }
            [class] => Err(Error::OneClass { path, class: class.clone() }),
            _ => Ok(names),
        }
    }
}

/// Largest number of classes that may be written as floats.
const FLOAT_CLASSES: usize = 20;

/// Whether the labels are the integers from 0 to less than `FLOAT_CLASSES`, without a gap.
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

/// Returns a regression's value; `None` if the label is not a finite number.
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
    fn a_class_by_name_or_index() {
        let labels = classes(&["neg", "pos"]);
        let reader = labels.reader();
        assert_eq!(reader(&RawLabel::Text("pos".into())), Ok(Label::Class(1)));
        assert_eq!(reader(&RawLabel::Int(1)), Ok(Label::Class(1)));
        assert_eq!(reader(&RawLabel::Float(0.0)), Ok(Label::Class(0)));
        assert!(reader(&RawLabel::Int(2)).is_err());
        assert!(reader(&RawLabel::Int(-1)).is_err());
        // Whatever the case, if the name is unique without it.
        assert_eq!(reader(&RawLabel::Text("POS".into())), Ok(Label::Class(1)));
        let labels = classes(&["Pos", "neg", "pos"]);
        assert_eq!(labels.reader()(&RawLabel::Text("pos".into())), Ok(Label::Class(2)));
        assert_eq!(labels.reader()(&RawLabel::Text("NEG".into())), Ok(Label::Class(1)));
        assert!(labels.reader()(&RawLabel::Text("POS".into())).is_err());
        // If classes are numbers, a number is a name.
        let labels = classes(&["1", "2", "5"]);
        let reader = labels.reader();
        assert_eq!(reader(&RawLabel::Int(5)), Ok(Label::Class(2)));
        assert_eq!(reader(&RawLabel::Text("2".into())), Ok(Label::Class(1)));
        assert!(reader(&RawLabel::Int(0)).is_err());
    }

    #[test]
    fn lists_are_several_classes_or_tags() {
        let classes = Classes::new(["a", "b", "c"].map(String::from).into());
        let list = |items: &[i64]| RawLabel::List(items.iter().map(|&n| RawLabel::Int(n)).collect());
        let sets = Labels::MultiLabel { classes: classes.clone(), indicators: false };
        assert_eq!(sets.reader()(&list(&[2, 0])), Ok(Label::Set(vec![0, 2])));
        assert_eq!(sets.reader()(&list(&[])), Ok(Label::Set(vec![])));
        assert_eq!(sets.reader()(&RawLabel::Text("B".into())), Ok(Label::Set(vec![1])));
        // As an indicator vector, [0, 1, 1] has the second and third class; otherwise it has no
        // meaning.
        assert!(sets.reader()(&list(&[0, 1, 1])).is_err());
        let bits = Labels::MultiLabel { classes: classes.clone(), indicators: true };
        assert_eq!(bits.reader()(&list(&[0, 1, 1])), Ok(Label::Set(vec![1, 2])));
        assert_eq!(bits.reader()(&list(&[2])), Ok(Label::Set(vec![2])));
        let tags = Labels::TokenClassification { classes };
        assert_eq!(tags.reader()(&list(&[1, 1, 0])), Ok(Label::Tags(vec![1, 1, 0])));
        assert!(tags.reader()(&RawLabel::Int(1)).is_err() && tags.reader()(&list(&[3])).is_err());
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
        let two = Classes::new(["b", "a"].map(String::from).into());
        let weighted = Labels::TokenClassification { classes: two.clone() }.with_weights(vec![1.0, 0.5]);
        let sets = |indicators| Labels::MultiLabel { classes: two.clone(), indicators };
        for (labels, text) in [
            (weighted, r#"{"kind":"token-classification","names":["b","a"],"weights":[1.0,0.5]}"#),
            (sets(false), r#"{"kind":"multi-label","names":["b","a"]}"#),
            (sets(true), r#"{"kind":"multi-label","names":["b","a"],"indicators":true}"#),
        ] {
            assert_eq!(serde_json::to_string(&labels).unwrap(), text);
            assert_eq!(serde_json::from_str::<Labels>(text).unwrap(), labels);
            assert!(labels.with_positive("a").is_err());
        }
        for bad in [r#"["a"]"#, r#"["a","a"]"#] {
            let text = format!(r#"{{"kind":"classification","names":{bad}}}"#);
            assert!(serde_json::from_str::<Labels>(&text).is_err());
        }
    }
}
