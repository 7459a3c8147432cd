//! Rows to learn generation from: of which kind they are, and how they are read.

use std::path::{Path, PathBuf};

use lora_drop_transformer::json;
use serde_json::Value;

use super::error::TextProblem;
use super::messages::{self, Message, Role};
use crate::data::columns::{Choice, describe_pair, field, not_blank, text, type_name};
use crate::data::error::{Error, Problem};
use crate::data::files::SplitName;
use crate::data::raw::RawRows;
use crate::data::rows::Row;
use crate::settings::definition::choices;

choices! {
    /// What a row is.
    TextKind {
        /// A prompt and its completion; the completion is learned.
        Completion = "completion",
        /// A conversation; the assistant's turns are learned.
        Messages = "messages",
        /// A text; all of it is learned.
        Text = "text",
    }
}

/// Prompt and completion as public data sets name them.
const PAIRS: [(&str, &str); 10] = [
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("article", "highlights"),
    ("source", "target"),
    ("input", "output"),
];
const MESSAGES: [&str; 2] = ["messages", "conversations"];
/// The column of texts that generated ones are compared with.
const REFERENCES: &str = "references";
const OPTIONS: &str = "`prompt_column` and `completion_column`, or `text_column`";

/// Column names that the user gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextColumnNames {
    pub prompt: Option<String>,
    pub completion: Option<String>,
    pub messages: Option<String>,
    pub text: Option<String>,
}

/// The columns that are read, spelled as in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextColumns {
    Completion {
        prompt: String,
        /// Alpaca's `input` next to `instruction`: it follows the prompt on a new line where it has
        /// text.
        input: Option<String>,
        /// None in rows to generate for.
        completion: Option<String>,
        references: Option<String>,
    },
    Messages {
        messages: String,
        references: Option<String>,
    },
    Text {
        text: String,
    },
}

/// Whether rows must have something to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    Required,
    /// A prompt, or a conversation up to the user's turn, is enough, as in a test split or in the input
    /// of generation.
    Optional,
}

impl TextColumns {
    /// Chooses among the columns of a file's first row. Names are compared without regard to case,
    /// an exact match first.
    ///
    /// # Errors
    /// A named column is missing, or the usual names fit no column or several: the message lists the
    /// columns and the options.
    pub fn choose(row: &Row, file: &Path, named: &TextColumnNames, targets: Targets) -> Result<Self, Error> {
        let choice = Choice::of(row, file);
        let find = |name: &str| choice.find(name).cloned();
        let given = [
            (TextKind::Completion, named.prompt.is_some() || named.completion.is_some()),
            (TextKind::Messages, named.messages.is_some()),
            (TextKind::Text, named.text.is_some()),
        ];
        let kinds: Vec<&str> =
            given.iter().filter(|(_, given)| *given).map(|(kind, _)| kind.name()).collect();
        if kinds.len() > 1 {
            let what = format!("columns of rows of different kinds are named: {}", kinds.join(", "));
            return Err(choice.unclear(what, OPTIONS));
        }
        let is_open = |kind: TextKind| kinds.is_empty() || kinds == [kind.name()];
        let mut found = Vec::new();
        if is_open(TextKind::Messages) {
            let names = match &named.messages {
                Some(name) => vec![choice.named(name)?],
                None => MESSAGES.iter().filter_map(|name| find(name)).collect(),
            };
            let of = |messages| TextColumns::Messages { messages, references: find(REFERENCES) };
            found.extend(names.into_iter().map(of));
        }
        if is_open(TextKind::Completion) {
            found.extend(pairs(&choice, named, targets)?.into_iter().map(|(prompt, completion)| {
                let input = if prompt.eq_ignore_ascii_case("instruction") { find("input") } else { None };
                TextColumns::Completion { prompt, input, completion, references: find(REFERENCES) }
            }));
        }
        if is_open(TextKind::Text) {
            let text = match &named.text {
                Some(name) => Some(choice.named(name)?),
                None => find("text"),
            };
            found.extend(text.map(|text| TextColumns::Text { text }));
        }
        let none = "no usual columns, such as `prompt` with `completion`, `messages` or `text`".into();
        choice.only(found, "what is learned", none, TextColumns::describe, OPTIONS)
    }

    /// The kind of rows that have these columns.
    pub fn kind(&self) -> TextKind {
        match self {
            TextColumns::Completion { .. } => TextKind::Completion,
            TextColumns::Messages { .. } => TextKind::Messages,
            TextColumns::Text { .. } => TextKind::Text,
        }
    }

    /// The names of these columns, to find them in another split's files.
    pub fn names(&self) -> TextColumnNames {
        let mut names = TextColumnNames::default();
        match self.clone() {
            TextColumns::Completion { prompt, completion, .. } => {
                (names.prompt, names.completion) = (Some(prompt), completion);
            }
            TextColumns::Messages { messages, .. } => names.messages = Some(messages),
            TextColumns::Text { text } => names.text = Some(text),
        }
        names
    }

    fn describe(&self) -> String {
        let (first, second) = match self.clone() {
            TextColumns::Completion { prompt, completion, .. } => (prompt, completion),
            TextColumns::Messages { messages: column, .. } | TextColumns::Text { text: column } => {
                (column, None)
            }
        };
        describe_pair(&(first, second))
    }
}

/// The columns that could be prompt and completion.
fn pairs(
    choice: &Choice,
    named: &TextColumnNames,
    targets: Targets,
) -> Result<Vec<(String, Option<String>)>, Error> {
    let find = |name: &str| choice.find(name).cloned();
    let instruction = find("instruction").is_some();
    let usual = PAIRS.iter().filter(|(prompt, _)| !(instruction && *prompt == "input"));
    let optional = targets == Targets::Optional;
    Ok(match (&named.prompt, &named.completion) {
        (Some(prompt), Some(completion)) => {
            let completion = if optional { find(completion) } else { Some(choice.named(completion)?) };
            vec![(choice.named(prompt)?, completion)]
        }
        (None, Some(_)) => {
            let what = "a completion column is named, but no prompt column".into();
            return Err(choice.unclear(what, "`prompt_column`"));
        }
        (Some(named), None) => {
            let prompt = choice.named(named)?;
            let of_prompt = usual.filter(|(usual, _)| prompt.eq_ignore_ascii_case(usual));
            let found: Vec<_> = of_prompt
                .filter_map(|(_, completion)| Some((prompt.clone(), Some(find(completion)?))))
                .collect();
            match found.is_empty() {
                true if optional => vec![(prompt, None)],
                true => {
                    let what = format!("the prompt column {prompt:?} is named, but no completion column");
                    return Err(choice.unclear(what, "`completion_column`"));
                }
                false => found,
            }
        }
        (None, None) => {
            let whole: Vec<_> = usual
                .clone()
                .filter_map(|(prompt, completion)| Some((find(prompt)?, Some(find(completion)?))))
                .collect();
            if !whole.is_empty() || !optional {
                return Ok(whole);
            }
            // Rows to generate for may have only the prompt. A name that is in several pairs counts
            // once.
            let mut prompts: Vec<String> = usual.filter_map(|(prompt, _)| find(prompt)).collect();
            prompts.dedup();
            prompts.into_iter().map(|prompt| (prompt, None)).collect()
        }
    })
}

/// What a row holds.
#[derive(Clone, Debug, PartialEq)]
pub enum TextContent {
    Completion { prompt: String, completion: Option<String> },
    Messages(Vec<Message>),
    Text(String),
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRow {
    pub content: TextContent,
    /// The texts that a generated one is compared with: the row's references, else its completion or
    /// last assistant turn; may be empty.
    pub references: Vec<String>,
    /// Index into the split's files.
    pub file: usize,
    pub line: usize,
}

impl TextRow {
    /// A prompt that was not read from a file.
    pub fn prompt(prompt: impl Into<String>) -> Self {
        let content = TextContent::Completion { prompt: prompt.into(), completion: None };
        TextRow { content, references: Vec::new(), file: 0, line: 0 }
    }

    /// A conversation that was not read from a file.
    pub fn conversation(messages: Vec<Message>) -> Self {
        TextRow { content: TextContent::Messages(messages), references: Vec::new(), file: 0, line: 0 }
    }

    /// Reads a row of the file with this index.
    ///
    /// # Errors
    /// The row is wrong: see [`Problem`] and [`TextProblem`].
    pub fn read(row: &Row, columns: &TextColumns, targets: Targets, file: usize) -> Result<Self, Problem> {
        let (content, references) = match columns {
            TextColumns::Completion { prompt, input, completion, references } => {
                let mut prompt = text(row, prompt)?.to_string();
                if let Some(input) = input
                    && !matches!(field(row, input)?, Value::Null)
                    && field(row, input)? != ""
                {
                    prompt.push('\n');
                    prompt.push_str(text(row, input)?);
                }
                let completion = match completion {
                    Some(column) if targets == Targets::Optional && field(row, column)?.is_null() => None,
                    Some(column) => Some(text(row, column)?.to_string()),
                    None => None,
                };
                (TextContent::Completion { prompt, completion }, references)
            }
            TextColumns::Messages { messages: column, references } => {
                (TextContent::Messages(messages::conversation(field(row, column)?, column)?), references)
            }
            TextColumns::Text { text: column } => (TextContent::Text(text(row, column)?.into()), &None),
        };
        content.check_targets(targets)?;
        let mut row_references = match references {
            Some(column) => read_references(row, column)?,
            None => Vec::new(),
        };
        if row_references.is_empty() {
            row_references.extend(content.target().map(String::from));
        }
        Ok(TextRow { content, references: row_references, file, line: row.line })
    }
}

impl TextContent {
    fn kind(&self) -> TextKind {
        match self {
            TextContent::Completion { .. } => TextKind::Completion,
            TextContent::Messages(_) => TextKind::Messages,
            TextContent::Text(_) => TextKind::Text,
        }
    }

    /// Checks that a row in memory is of this kind and that none of its texts is blank.
    fn check(&self, kind: TextKind) -> Result<(), Problem> {
        if self.kind() != kind {
            return Err(TextProblem::OtherKind { seen: self.kind(), expected: kind }.into());
        }
        match self {
            TextContent::Completion { prompt, completion } => {
                not_blank(prompt, "prompt")?;
                completion.as_deref().map(|text| not_blank(text, "completion")).transpose()?;
            }
            TextContent::Messages(turns) => messages::check_turns(turns)?,
            TextContent::Text(text) => drop(not_blank(text, "text")?),
        }
        Ok(())
    }

    /// Checks that there is something to learn, or else something to generate for.
    fn check_targets(&self, targets: Targets) -> Result<(), TextProblem> {
        let required = targets == Targets::Required;
        match self {
            TextContent::Completion { completion: None, .. } if required => Err(TextProblem::NoCompletion),
            TextContent::Messages(turns) => {
                let (role, problem) = match required {
                    true => (Role::Assistant, TextProblem::NoAssistant),
                    false => (Role::User, TextProblem::NoUser),
                };
                if turns.iter().any(|turn| turn.role == role) { Ok(()) } else { Err(problem) }
            }
            _ => Ok(()),
        }
    }

    /// The completion, or the assistant's turn that ends a conversation.
    fn target(&self) -> Option<&str> {
        match self {
            TextContent::Completion { completion, .. } => completion.as_deref(),
            TextContent::Messages(turns) => {
                turns.last().filter(|turn| turn.role == Role::Assistant).map(|turn| turn.content.as_str())
            }
            TextContent::Text(_) => None,
        }
    }
}

/// A row's references: a list of texts, as a list or as JSON in a text column, or one text. Empty
/// where the value is null.
fn read_references(row: &Row, column: &str) -> Result<Vec<String>, Problem> {
    const EXPECTED: &str = "a list of texts";
    let value = field(row, column)?;
    match value {
        Value::Null => return Ok(Vec::new()),
        Value::String(list) if json::from_str::<Vec<Value>>(list).is_err() => {
            return text(row, column).map(|text| vec![text.to_string()]);
        }
        _ => {}
    }
    let list = messages::json_list(value, column, EXPECTED)?;
    let read = |(i, value): (usize, &Value)| {
        let seen = match value {
            Value::String(text) if !text.trim().is_empty() => return Ok(text.clone()),
            Value::String(_) => "empty",
            other => type_name(other),
        };
        Err(TextProblem::Reference { column: column.into(), number: i + 1, seen }.into())
    };
    list.iter().enumerate().map(read).collect()
}

/// A split's texts before tokenising.
pub type RawText = RawRows<TextColumns, TextRow>;

impl RawText {
    /// A split of rows in memory, numbered from 1.
    ///
    /// # Errors
    /// There are none; one is blank, has nothing to learn, or is of another kind than the first.
    pub(crate) fn of_rows(name: SplitName, rows: Vec<TextContent>) -> Result<Self, Error> {
        let columns = match rows.first() {
            Some(TextContent::Messages(_)) => {
                TextColumns::Messages { messages: "messages".to_string(), references: None }
            }
            Some(TextContent::Text(_)) => TextColumns::Text { text: "text".to_string() },
            Some(TextContent::Completion { .. }) | None => TextColumns::Completion {
                prompt: "prompt".to_string(),
                input: None,
                completion: Some("completion".to_string()),
                references: None,
            },
        };
        let kind = columns.kind();
        RawRows::in_memory(name, columns, rows, |content, line| {
            content.check(kind)?;
            content.check_targets(Targets::Required)?;
            let references = content.target().map(String::from).into_iter().collect();
            Ok(TextRow { content, references, file: 0, line })
        })
    }

    /// Reads a split's files (at least one).
    ///
    /// # Errors
    /// A file cannot be read or has no rows, or a row is wrong.
    pub fn read(
        name: SplitName,
        files: &[PathBuf],
        named: &TextColumnNames,
        targets: Targets,
    ) -> Result<Self, Error> {
        let choose = |row: &Row, file: &Path, first: Option<&TextColumns>| {
            let first = first.map(TextColumns::names);
            TextColumns::choose(row, file, first.as_ref().unwrap_or(named), targets)
        };
        let read = |row: &Row, columns: &TextColumns, file| TextRow::read(row, columns, targets, file);
        RawRows::read_files(name, files, choose, read)
    }
}
