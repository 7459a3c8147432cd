//! Rows to learn generation from: their kind, and how they are read.

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

/// Column names that the user gave. A column without a name here is found by its usual names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextColumnNames {
    /// What the model is given.
    pub prompt: Option<String>,
    /// What the model should write.
    pub completion: Option<String>,
    /// A conversation.
    pub messages: Option<String>,
    /// A plain text.
    pub text: Option<String>,
}

/// The columns that are read, spelled as in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextColumns {
    pub kind: TextKind,
    /// The column of the prompt, the conversation or the text.
    pub text: String,
    /// The completion's column; None for other kinds and in rows to generate for.
    pub completion: Option<String>,
    /// Alpaca's `input` next to `instruction`: it follows the prompt on a new line where it has
    /// text.
    pub input: Option<String>,
    /// The texts that generated ones are compared with.
    pub references: Option<String>,
}

/// Whether rows must have something to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// A row without anything to learn is an error.
    Required,
    /// A prompt, or a conversation up to the user's turn, is enough, as in a test split or in the
    /// input of generation.
    Optional,
}

impl TextColumns {
    /// Chooses among the columns of a file's first row. Names are compared without regard to case,
    /// an exact match first.
    ///
    /// # Errors
    /// A named column is missing, or the usual names fit no column or several: the message lists
    /// the columns and the options.
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
            let what = format!("the named columns are for different kinds of rows: {}", kinds.join(", "));
            return Err(choice.unclear(what, OPTIONS));
        }
        let is_open = |kind: TextKind| kinds.is_empty() || kinds == [kind.name()];
        let mut found: Vec<(TextKind, String, Option<String>)> = Vec::new();
        if is_open(TextKind::Messages) {
            let names = match &named.messages {
                Some(name) => vec![choice.named(name)?],
                None => MESSAGES.iter().filter_map(|name| find(name)).collect(),
            };
            found.extend(names.into_iter().map(|name| (TextKind::Messages, name, None)));
        }
        if is_open(TextKind::Completion) {
            let pairs = pairs(&choice, named, targets)?.into_iter();
            found.extend(pairs.map(|(prompt, completion)| (TextKind::Completion, prompt, completion)));
        }
        if is_open(TextKind::Text) {
            let text = match &named.text {
                Some(name) => Some(choice.named(name)?),
                None => find("text"),
            };
            found.extend(text.map(|text| (TextKind::Text, text, None)));
        }
        let none = "no usual columns, such as `prompt` with `completion`, `messages` or `text`".into();
        let describe = |(_, text, completion): &(_, String, Option<String>)| describe_pair(text, completion);
        let (kind, text, completion) = choice.only(found, "what is learned", none, describe, OPTIONS)?;
        let instruction = kind == TextKind::Completion && text.eq_ignore_ascii_case("instruction");
        let input = if instruction { find("input") } else { None };
        let references = if kind == TextKind::Text { None } else { find(REFERENCES) };
        Ok(TextColumns { kind, text, completion, input, references })
    }

    /// The names of these columns, to find them in another split's files.
    pub fn names(&self) -> TextColumnNames {
        let text = |kind| (self.kind == kind).then(|| self.text.clone());
        TextColumnNames {
            prompt: text(TextKind::Completion),
            completion: self.completion.clone(),
            messages: text(TextKind::Messages),
            text: text(TextKind::Text),
        }
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
    /// A prompt and what follows it; None if only the prompt is known.
    Completion {
        prompt: String,
        completion: Option<String>,
    },
    Messages(Vec<Message>),
    Text(String),
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRow {
    pub content: TextContent,
    /// The texts that a generated one is compared with: the row's references, else its completion
    /// or last assistant turn; may be empty.
    pub references: Vec<String>,
    /// Index into the split's files.
    pub file: usize,
    /// Line in the file, from 1; the row's number if the format has no lines.
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
        let column = &columns.text;
        let content = match columns.kind {
            TextKind::Completion => {
                let mut prompt = text(row, column)?.to_string();
                if let Some(input) = &columns.input
                    && !matches!(field(row, input)?, Value::Null)
                    && field(row, input)? != ""
                {
                    prompt.push('\n');
                    prompt.push_str(text(row, input)?);
                }
                let completion = match &columns.completion {
                    Some(column) if targets == Targets::Optional && field(row, column)?.is_null() => None,
                    Some(column) => Some(text(row, column)?.to_string()),
                    None => None,
                };
                TextContent::Completion { prompt, completion }
            }
            TextKind::Messages => TextContent::Messages(messages::conversation(field(row, column)?, column)?),
            TextKind::Text => TextContent::Text(text(row, column)?.into()),
        };
        content.check_targets(targets)?;
        let mut row_references = match &columns.references {
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
        let kind = rows.first().map_or(TextKind::Completion, TextContent::kind);
        let text = match kind {
            TextKind::Completion => "prompt",
            TextKind::Messages => "messages",
            TextKind::Text => "text",
        };
        let completion = (kind == TextKind::Completion).then(|| "completion".to_string());
        let columns = TextColumns { kind, text: text.into(), completion, input: None, references: None };
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
