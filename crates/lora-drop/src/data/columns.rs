//! Which columns hold the text, the second text of a pair, and the label: those that the user
//! names, or those with the usual names.

use std::path::Path;

use serde_json::Value;

use super::error::{Error, Place, Problem};
use super::layouts::{LABELS, Layout, RowKind};
use super::row_text::RowText;
use super::rows::Row;
use crate::settings::{RowSettings, Task};

/// Column names that the user gave. A column without a name here is found by its usual names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnNames {
    /// The text, or the first text of a pair.
    pub text: Option<String>,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// The class or the value.
    pub label: Option<String>,
    /// The task, if it is known: rows may have both a text and its words, with labels for either.
    pub task: Option<Task>,
}

impl ColumnNames {
    /// Takes the names from the settings.
    pub fn of(rows: &RowSettings) -> Self {
        ColumnNames {
            text: rows.text_column.clone(),
            pair: rows.pair_column.clone(),
            label: rows.label_column.clone(),
            task: rows.task,
        }
    }
}

/// The columns that are read, spelled as in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The text, the first text of a pair, or the words.
    pub text: String,
    /// The second text of a pair; None for single texts.
    pub pair: Option<String>,
    /// None if the rows have no label.
    pub label: Option<String>,
}

/// Whether rows must have a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelColumn {
    /// A file without a label column is an error.
    Required,
    /// A label is read if there is one, as in a test split or in the input of `predict`.
    Optional,
}

impl Columns {
    /// Chooses among the columns of a file's first row. Names are compared without regard to case,
    /// an exact match first. A named text column without a named pair column means single texts.
    ///
    /// # Errors
    /// A named column is missing, or the usual names fit no column or several: the message lists
    /// the columns and the options.
    pub fn choose(row: &Row, file: &Path, named: &ColumnNames, label: LabelColumn) -> Result<Self, Error> {
        let choice = Choice::of(row, file);
        if let Some(columns) = choice.words(row, named, label)? {
            return Ok(columns);
        }
        let (text, pair) = match (&named.text, &named.pair) {
            (Some(text), pair) => {
                (choice.named(text)?, pair.as_deref().map(|name| choice.named(name)).transpose()?)
            }
            (None, Some(_)) => {
                let what = "a pair column is named, but no text column".into();
                return Err(choice.unclear(what, "`text_column`"));
            }
            (None, None) => choice.texts(named.label.as_deref())?,
        };
        let label = match &named.label {
            Some(name) if label == LabelColumn::Optional => choice.find(name).cloned(),
            Some(name) => Some(choice.named(name)?),
            None => choice.label(&[Some(&text), pair.as_ref()], label)?,
        };
        let chosen = [Some(&text), pair.as_ref(), label.as_ref()];
        for (i, name) in chosen.iter().enumerate() {
            if let (Some(name), true) = (name, chosen[..i].contains(name)) {
                let what = format!("the column {name:?} is taken twice");
                return Err(choice.unclear(what, "`text_column`, `pair_column` and `label_column`"));
            }
        }
        Ok(Columns { text, pair, label })
    }

    /// Whether a row has a list of words in a column with one of the usual names.
    pub(super) fn has_words(row: &Row) -> bool {
        let words = |name: &String| row.fields.get(name).is_some_and(Value::is_array);
        let known =
            |name: &str| Layout::of(RowKind::Words).any(|layout| name.eq_ignore_ascii_case(layout.text));
        row.fields.keys().any(|name| known(name) && words(name))
    }

    /// Looks for the label column in this row if the rows before it lacked one.
    pub(super) fn grow(&mut self, row: &Row, file: &Path, named: &ColumnNames) {
        if self.label.is_none()
            && let Ok(columns) = Columns::choose(row, file, &self.names_or(named), LabelColumn::Optional)
        {
            self.label = columns.label;
        }
    }

    /// Kind of rows that these columns hold.
    pub(super) fn rows(&self) -> RowKind {
        let of_words = Layout::of(RowKind::Words).any(|layout| self.text.eq_ignore_ascii_case(layout.text));
        if of_words { RowKind::Words } else { RowKind::Labelled }
    }

    /// Whether a column of this name is read.
    pub(super) fn reads(&self, name: &str) -> bool {
        [Some(&*self.text), self.pair.as_deref(), self.label.as_deref()].contains(&Some(name))
    }

    /// Name of the layout that these columns form.
    pub fn layout(&self) -> &'static str {
        Layout::name_of(self.rows(), &self.text, self.pair.as_deref())
    }

    /// Returns each column that is read with its role, in reading order.
    pub fn roles(&self) -> Vec<(&'static str, &str)> {
        let (text, label) = match (self.rows(), &self.pair) {
            (RowKind::Words, _) => ("words", "tags"),
            (_, Some(_)) => ("first text", "label"),
            (_, None) => ("text", "label"),
        };
        let roles =
            [(text, Some(&self.text)), ("second text", self.pair.as_ref()), (label, self.label.as_ref())];
        roles.into_iter().filter_map(|(role, column)| Some((role, column?.as_str()))).collect()
    }

    /// Returns the names of these columns, with the user's name for the label column.
    fn names_or(&self, named: &ColumnNames) -> ColumnNames {
        ColumnNames { label: named.label.clone(), ..self.names() }
    }

    /// Returns the names of these columns, to find them in another split's files.
    pub fn names(&self) -> ColumnNames {
        ColumnNames {
            text: Some(self.text.clone()),
            pair: self.pair.clone(),
            label: self.label.clone(),
            task: None,
        }
    }

    /// Returns a row's text, pair of texts or words; `None` if its list of words is empty.
    ///
    /// # Errors
    /// A column is missing, is not text or a list of texts, or is blank.
    pub fn text(&self, row: &Row) -> Result<Option<RowText>, Problem> {
        if let Value::Array(words) = field(row, &self.text)? {
            let word = |word: &Value| match word {
                Value::String(word) => Ok(word.clone()),
                other => Err(Problem::WordType { column: self.text.clone(), seen: type_name(other) }),
            };
            let words = words.iter().map(word).collect::<Result<Vec<_>, _>>()?;
            return Ok((!words.is_empty()).then_some(RowText::Words(words)));
        }
        let pair = self.pair.as_deref().map(|pair| text(row, pair)).transpose()?;
        Ok(Some((text(row, &self.text)?.into(), pair.map(Into::into)).into()))
    }
}

/// Returns a row's text in a column.
///
/// # Errors
/// The column is missing, is not text, or is blank.
pub(super) fn text<'a>(row: &'a Row, column: &str) -> Result<&'a str, Problem> {
    match field(row, column)? {
        Value::String(text) => not_blank(text, column),
        Value::Null => Err(Problem::NoText { column: column.into(), seen: "null" }),
        other => Err(Problem::TextType { column: column.into(), seen: type_name(other) }),
    }
}

/// Returns the text of a column unless it is blank.
///
/// # Errors
/// It is empty or white space.
pub(super) fn not_blank<'a>(text: &'a str, column: &str) -> Result<&'a str, Problem> {
    match blank(text) {
        Some(seen) => Err(Problem::NoText { column: column.into(), seen }),
        None => Ok(text),
    }
}

/// Describes for a message how a text is blank; `None` if it is not.
pub(super) fn blank(text: &str) -> Option<&'static str> {
    match text {
        "" => Some("zero length"),
        text if text.trim().is_empty() => Some("white space only"),
        _ => None,
    }
}

/// Returns a row's value in a column.
pub(super) fn field<'a>(row: &'a Row, column: &str) -> Result<&'a Value, Problem> {
    row.fields.get(column).ok_or_else(|| Problem::NoColumn {
        column: column.into(),
        columns: row.fields.keys().cloned().collect(),
    })
}

/// Returns a row's value in an optional column; `None` if it is null or absent.
pub(super) fn optional<'a>(row: &'a Row, column: Option<&String>) -> Option<&'a Value> {
    row.fields.get(column?).filter(|value| !value.is_null())
}

pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The columns of a file's first row, for choosing among them.
pub(super) struct Choice {
    columns: Vec<String>,
    place: Place,
}

impl Choice {
    pub(super) fn of(row: &Row, file: &Path) -> Self {
        Choice { columns: row.fields.keys().cloned().collect(), place: Place::new(file, row.line) }
    }

    pub(super) fn find(&self, name: &str) -> Option<&String> {
        let exact = self.columns.iter().find(|column| *column == name);
        exact.or_else(|| self.columns.iter().find(|column| column.to_lowercase() == name.to_lowercase()))
    }

    pub(super) fn named(&self, name: &str) -> Result<String, Error> {
        self.find(name).cloned().ok_or_else(|| {
            let problem = Problem::NoColumn { column: name.into(), columns: self.columns.clone() };
            Error::Row { place: self.place.clone(), problem }
        })
    }

    pub(super) fn unclear(&self, what: String, options: &'static str) -> Error {
        Error::Columns { place: self.place.clone(), what, columns: self.columns.clone(), options }
    }

    /// Returns the only candidate for `role`.
    ///
    /// # Errors
    /// There is none (`none` says what was looked for), or there are several.
    pub(super) fn only<T>(
        &self,
        mut found: Vec<T>,
        role: &str,
        none: String,
        describe: impl Fn(&T) -> String,
        options: &'static str,
    ) -> Result<T, Error> {
        if found.len() == 1 {
            return Ok(found.remove(0));
        }
        let names: Vec<String> = found.iter().map(describe).collect();
        let what = match names.is_empty() {
            true => none,
            false => format!("several columns could be {role}: {}", names.join(", ")),
        };
        Err(self.unclear(what, options))
    }

    /// Finds the columns of words and tags, by a layout's usual names or the label column that the
    /// user named. `None` if the row does not have a list of words with a list of tags, or the task
    /// is not token classification. If `label` is optional, a list of words is enough.
    fn words(&self, row: &Row, named: &ColumnNames, label: LabelColumn) -> Result<Option<Columns>, Error> {
        let of_words = named.task.is_none_or(|task| task == Task::TokenClassification);
        if named.text.is_some() || named.pair.is_some() || !of_words {
            return Ok(None);
        }
        let length = |column: &String| row.fields.get(column).and_then(Value::as_array).map(Vec::len);
        let layout = Layout::of(RowKind::Words).find_map(|layout| Some((layout, self.find(layout.text)?)));
        let Some((layout, text)) = layout.filter(|(_, text)| length(text).is_some()) else { return Ok(None) };
        let columns = |label| Columns { text: text.clone(), pair: None, label };
        let tags: Vec<&String> = match &named.label {
            Some(label) => self.find(label).into_iter().collect(),
            None => layout.second.iter().filter_map(|name| self.find(name)).collect(),
        };
        let lists: Vec<&String> = tags.into_iter().filter(|tags| length(tags).is_some()).collect();
        let fitting: Vec<&String> =
            lists.iter().copied().filter(|tags| length(tags) == length(text)).collect();
        // If the row also has a text, a list of another length holds the text's classes.
        let has_text = !self.layouts(RowKind::Labelled, None).is_empty();
        let tags = if fitting.is_empty() && !has_text { lists } else { fitting };
        match (&tags[..], label) {
            ([tags], _) => Ok(Some(columns(Some(tags.to_string())))),
            (_, LabelColumn::Optional) => Ok(Some(columns(None))),
            ([], _) if named.task.is_none() => Ok(None),
            _ => {
                let none = "no column has a list with a tag for each word".into();
                let describe = |name: &&String| format!("{name:?}");
                let tags = self.only(tags, "the tags", none, describe, "`label_column`")?;
                Ok(Some(columns(Some(tags.clone()))))
            }
        }
    }

    /// Finds the text columns by their usual names, leaving out the label column.
    fn texts(&self, label: Option<&str>) -> Result<(String, Option<String>), Error> {
        let label = label.and_then(|name| self.find(name)).cloned();
        let found = self.layouts(RowKind::Labelled, label.as_ref());
        let none = "no column has a usual name for text, such as `text`, `sentence` or `sentence1`".into();
        let describe = |(text, pair): &(String, Option<String>)| describe_pair(text, pair);
        self.only(found, "the text", none, describe, "`text_column` (and `pair_column` for pairs)")
    }

    /// Finds the known layouts of this kind of rows: for each, the first column, and the second one
    /// if the layout has one, leaving out the column `taken`. A layout whose first column is part
    /// of another layout found here is left out.
    pub(super) fn layouts(&self, rows: RowKind, taken: Option<&String>) -> Vec<(String, Option<String>)> {
        let find = |name: &str| self.find(name).filter(|column| Some(*column) != taken);
        let mut found: Vec<(&Layout, String, Option<String>)> = Vec::new();
        for layout in Layout::of(rows) {
            let Some(text) = find(layout.text) else { continue };
            if layout.second.is_empty() {
                found.push((layout, text.clone(), None));
            }
            let seconds = layout.second.iter().filter_map(|name| find(name));
            found.extend(seconds.map(|second| (layout, text.clone(), Some(second.clone()))));
        }
        let is_part = |text: &String, second: &Option<String>| {
            found.iter().any(|(layout, other, part)| {
                let input = layout.input.iter().any(|name| self.find(name) == Some(text));
                input || part.as_ref() == Some(text) || (second.is_none() && part.is_some() && other == text)
            })
        };
        let whole = found.iter().filter(|(_, text, second)| !is_part(text, second));
        whole
            .filter(|(layout, ..)| !layout.last)
            .map(|(_, text, second)| (text.clone(), second.clone()))
            .collect()
    }

    /// Finds the label column by its usual names, leaving out the text columns.
    fn label(&self, texts: &[Option<&String>], needed: LabelColumn) -> Result<Option<String>, Error> {
        let found = LABELS.iter().filter_map(|name| self.find(name));
        let found: Vec<&String> = found.filter(|column| !texts.contains(&Some(column))).collect();
        if needed == LabelColumn::Optional && found.len() != 1 {
            return Ok(None);
        }
        let none = "no column has a usual name for the label, such as `label` or `score`".into();
        self.only(found, "the label", none, |name| format!("{name:?}"), "`label_column`").cloned().map(Some)
    }
}

/// Describes two columns, or one alone, for a message.
pub(super) fn describe_pair(first: &str, second: &Option<String>) -> String {
    match second {
        Some(second) => format!("{first:?} with {second:?}"),
        None => format!("{first:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[&str]) -> Row {
        Row { line: 1, fields: columns.iter().map(|c| (c.to_string(), Value::Null)).collect() }
    }

    fn choose(
        columns: &[&str],
        named: [&str; 3],
        label: LabelColumn,
    ) -> Result<(String, String, String), String> {
        let name = |n: &str| (!n.is_empty()).then(|| n.to_string());
        let named =
            ColumnNames { text: name(named[0]), pair: name(named[1]), label: name(named[2]), task: None };
        let chosen =
            Columns::choose(&row(columns), Path::new("f.csv"), &named, label).map_err(|e| e.to_string())?;
        Ok((chosen.text, chosen.pair.unwrap_or_default(), chosen.label.unwrap_or_default()))
    }

    #[test]
    fn usual_names() {
        for (columns, expected) in [
            (&["idx", "sentence1", "sentence2", "label"][..], ["sentence1", "sentence2", "label"]),
            (&["Category", "Text"], ["Text", "", "Category"]),
            (&["question", "sentence", "label"], ["question", "sentence", "label"]),
            (&["premise", "hypothesis", "gold_label"], ["premise", "hypothesis", "gold_label"]),
            (&["sentence1", "label"], ["sentence1", "", "label"]),
            (&["review", "sentiment"], ["review", "", "sentiment"]),
            (&["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], ["#1 String", "#2 String", "Quality"]),
        ] {
            let found = choose(columns, ["", "", ""], LabelColumn::Required).unwrap();
            assert_eq!([found.0, found.1, found.2], expected);
        }
    }

    #[test]
    fn named_columns_win() {
        let columns = ["text", "sentence", "label", "score"];
        let found = choose(&columns, ["SENTENCE", "", "score"], LabelColumn::Required).unwrap();
        assert_eq!(found, ("sentence".into(), String::new(), "score".into()));
        let found = choose(&columns, ["text", "sentence", "label"], LabelColumn::Required).unwrap();
        assert_eq!(found.1, "sentence");
        // A label column with a text's usual name.
        let found = choose(&["text", "comment"], ["", "", "comment"], LabelColumn::Required).unwrap();
        assert_eq!(found, ("text".into(), String::new(), "comment".into()));
    }

    #[test]
    fn without_a_label() {
        assert_eq!(choose(&["text"], ["", "", ""], LabelColumn::Optional).unwrap().2, "");
        assert_eq!(choose(&["text"], ["", "", "label"], LabelColumn::Optional).unwrap().2, "");
        assert_eq!(choose(&["text", "label", "score"], ["", "", ""], LabelColumn::Optional).unwrap().2, "");
    }

    #[test]
    fn unclear_columns_name_the_options() {
        for (columns, named, parts) in [
            (
                &["text", "content", "label"][..],
                ["", "", ""],
                &["\"text\", \"content\"", "`text_column`"][..],
            ),
            (&["a", "b", "label"], ["", "", ""], &["columns: a, b, label", "`text_column`", "`pair_column`"]),
            (&["text", "label", "score"], ["", "", ""], &["\"label\", \"score\"", "`label_column`"]),
            (&["text", "y"], ["", "", ""], &["columns: text, y", "`label_column`"]),
            (&["text", "y"], ["", "y", ""], &["no text column", "`text_column`"]),
            (
                &["text", "label"],
                ["txt", "", ""],
                &["f.csv, line 1: no column \"txt\"; columns: text, label"],
            ),
            (&["text", "label"], ["", "", "gold"], &["no column \"gold\""]),
            (&["text", "label"], ["text", "text", ""], &["\"text\" is taken twice"]),
            (&["text", "label"], ["label", "", "label"], &["\"label\" is taken twice"]),
        ] {
            let message = choose(columns, named, LabelColumn::Required).unwrap_err();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
