//! Rows to learn generation from: which kind they are, and the reading of a split's files.

use std::path::{Path, PathBuf};

use lora_drop_transformer::json;
use serde_json::Value;

use super::error::TextProblem;
use super::messages::{self, Message, Role};
use crate::data::columns::{Choice, field, text, type_name};
use crate::data::error::{Error, Problem};
use crate::data::files::SplitName;
use crate::data::rows::{Row, Rows};
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
const OPTIONS: &str = "`prompt_column` and `completion_column`, or `text_column`";

/// Column names that the user gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextColumnNames {
    pub prompt: Option<String>,
    pub completion: Option<String>,
    pub messages: Option<String>,
    pub text: Option<String>,
    pub references: Option<String>,
}

/// The columns that are read, spelled as in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextColumns {
    Completion {
        prompt: String,
        /// Alpaca's `input` beside `instruction`: it follows the prompt on a line of its own where
        /// it has text.
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

/// Whether rows have to have something to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    Required,
    /// A prompt or a conversation up to the user's turn will do, as in a test split or in the input
    /// of generation.
    Optional,
}

impl TextColumns {
    /// Chooses among the columns of a file's first row. Names are compared without regard to case,
    /// an exact match first.
    ///
    /// # Errors
    /// A named column is not there, no usual name is, or several are: the message lists the columns
    /// and the options.
    pub fn choose(
        row: &Row,
        file: &Path,
        kind: Option<TextKind>,
        named: &TextColumnNames,
        targets: Targets,
    ) -> Result<Self, Error> {
        let choice = Choice::of(row, file);
        let given = [
            (TextKind::Completion, named.prompt.is_some() || named.completion.is_some()),
            (TextKind::Messages, named.messages.is_some()),
            (TextKind::Text, named.text.is_some()),
        ];
        let mut kinds: Vec<TextKind> = given.iter().filter(|(_, given)| *given).map(|(k, _)| *k).collect();
        kinds.extend(kind);
        kinds.dedup();
        let wanted = |of: TextKind| kinds.is_empty() || kinds.contains(&of);
        if kinds.len() > 1 {
            let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
            let what = format!(
                "columns and kinds of row that exclude each other are asked for: {}",
                names.join(", ")
            );
            return Err(choice.unclear(what, OPTIONS));
        }
        let references = match &named.references {
            Some(name) if targets == Targets::Optional => choice.find(name).cloned(),
            Some(name) => Some(choice.named(name)?),
            None => choice.find("references").cloned(),
        };
        let mut found = Vec::new();
        if wanted(TextKind::Messages) {
            let names = match &named.messages {
                Some(name) => vec![choice.named(name)?],
                None => MESSAGES.iter().filter_map(|name| choice.find(name).cloned()).collect(),
            };
            let of = |messages| TextColumns::Messages { messages, references: references.clone() };
            found.extend(names.into_iter().map(of));
        }
        if wanted(TextKind::Completion) {
            found.extend(pairs(&choice, named, references, targets)?);
        }
        if wanted(TextKind::Text) {
            let text = match &named.text {
                Some(name) => Some(choice.named(name)?),
                None => choice.find("text").cloned(),
            };
            found.extend(text.map(|text| TextColumns::Text { text }));
        }
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => {
                let what = match kinds.first() {
                    Some(kind) => format!("no usual column for rows of kind {:?}", kind.name()),
                    None => {
                        "no usual columns, such as `prompt` with `completion`, `messages` or `text`".into()
                    }
                };
                Err(choice.unclear(what, OPTIONS))
            }
            _ => {
                let names: Vec<String> = found.iter().map(TextColumns::describe).collect();
                let what = format!("several columns could be what is learned: {}", names.join(", "));
                Err(choice.unclear(what, OPTIONS))
            }
        }
    }

    pub fn kind(&self) -> TextKind {
        match self {
            TextColumns::Completion { .. } => TextKind::Completion,
            TextColumns::Messages { .. } => TextKind::Messages,
            TextColumns::Text { .. } => TextKind::Text,
        }
    }

    /// These columns as names to find in another split's files.
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
        match self {
            TextColumns::Completion { prompt, completion: Some(completion), .. } => {
                format!("{prompt:?} with {completion:?}")
            }
            TextColumns::Completion { prompt, .. } => format!("{prompt:?}"),
            TextColumns::Messages { messages, .. } => format!("{messages:?}"),
            TextColumns::Text { text } => format!("{text:?}"),
        }
    }
}

/// The columns that could be prompt and completion.
fn pairs(
    choice: &Choice,
    named: &TextColumnNames,
    references: Option<String>,
    targets: Targets,
) -> Result<Vec<TextColumns>, Error> {
    let completion_of = |name: &str| match targets {
        Targets::Required => choice.named(name).map(Some),
        Targets::Optional => Ok(choice.find(name).cloned()),
    };
    let instruction = choice.find("instruction").is_some();
    let usual = PAIRS.iter().filter(|(prompt, _)| !(instruction && *prompt == "input"));
    let found: Vec<(String, Option<String>)> = match (&named.prompt, &named.completion) {
        (Some(prompt), Some(completion)) => vec![(choice.named(prompt)?, completion_of(completion)?)],
        (None, Some(_)) => {
            let what = "a completion column is named, but no prompt column".into();
            return Err(choice.unclear(what, "`prompt_column`"));
        }
        (Some(named), None) => {
            let prompt = choice.named(named)?;
            let of_prompt = usual.filter(|(usual, _)| prompt.eq_ignore_ascii_case(usual));
            let found: Vec<_> = of_prompt
                .filter_map(|(_, completion)| Some((prompt.clone(), Some(choice.find(completion)?.clone()))))
                .collect();
            match (found.is_empty(), targets) {
                (true, Targets::Optional) => vec![(prompt, None)],
                (true, Targets::Required) => {
                    let what = format!("the prompt column {prompt:?} is named, but no completion column");
                    return Err(choice.unclear(what, "`completion_column`"));
                }
                _ => found,
            }
        }
        (None, None) => {
            let find = |name: &&str| choice.find(name).cloned();
            let whole: Vec<_> = usual
                .clone()
                .filter_map(|(prompt, completion)| Some((find(prompt)?, Some(find(completion)?))))
                .collect();
            // Rows to generate for may have the prompt alone; a name that is in several pairs
            // counts once.
            let alone = || {
                let mut prompts: Vec<String> = usual.filter_map(|(prompt, _)| find(prompt)).collect();
                prompts.dedup();
                prompts.into_iter().map(|prompt| (prompt, None)).collect()
            };
            if whole.is_empty() && targets == Targets::Optional { alone() } else { whole }
        }
    };
    let columns = found.into_iter().map(|(prompt, completion)| {
        let input =
            prompt.eq_ignore_ascii_case("instruction").then(|| choice.find("input").cloned()).flatten();
        TextColumns::Completion { prompt, input, completion, references: references.clone() }
    });
    Ok(columns.collect())
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
    /// What generation is compared with: the row's references, else its completion or last
    /// assistant turn; may be empty.
    pub references: Vec<String>,
    /// Index into the split's files.
    pub file: usize,
    pub line: usize,
}

impl TextRow {
    /// A prompt that comes from no file.
    pub fn prompt(prompt: impl Into<String>) -> Self {
        let content = TextContent::Completion { prompt: prompt.into(), completion: None };
        TextRow { content, references: Vec::new(), file: 0, line: 0 }
    }

    /// A conversation that comes from no file.
    pub fn conversation(messages: Vec<Message>) -> Self {
        TextRow { content: TextContent::Messages(messages), references: Vec::new(), file: 0, line: 0 }
    }

    /// Reads a row of the file with this index.
    ///
    /// # Errors
    /// Anything odd in the row, see [`Problem`] and [`TextProblem`].
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
                    None if targets == Targets::Required => return Err(TextProblem::NoCompletion.into()),
                    None => None,
                };
                (TextContent::Completion { prompt, completion }, references)
            }
            TextColumns::Messages { messages: column, references } => {
                let turns = messages::conversation(field(row, column)?, column)?;
                let has = |role| turns.iter().any(|turn| turn.role == role);
                match targets {
                    Targets::Required if !has(Role::Assistant) => return Err(TextProblem::NoAssistant.into()),
                    Targets::Optional if !has(Role::User) => return Err(TextProblem::NoUser.into()),
                    _ => {}
                }
                (TextContent::Messages(turns), references)
            }
            TextColumns::Text { text: column } => (TextContent::Text(text(row, column)?.into()), &None),
        };
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

/// A row's references: a list of texts, as such or as JSON in a text column, or one text. None
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

/// A split's rows before tokenising.
#[derive(Clone, Debug, PartialEq)]
pub struct RawText {
    pub name: SplitName,
    /// One, or the shards in order.
    pub files: Vec<PathBuf>,
    /// As the first file spells them.
    pub columns: TextColumns,
    pub rows: Vec<TextRow>,
}

impl RawText {
    /// A split of rows in memory, numbered from 1.
    ///
    /// # Errors
    /// There are none; one is odd, or of another kind than the first.
    pub(crate) fn of_rows(name: SplitName, rows: Vec<TextContent>) -> Result<Self, Error> {
        let file = PathBuf::from(format!("rows for {name}"));
        let columns = match rows.first() {
            None => return Err(Error::NoRows { path: file }),
            Some(TextContent::Completion { .. }) => TextColumns::Completion {
                prompt: "prompt".to_string(),
                input: None,
                completion: Some("completion".to_string()),
                references: None,
            },
            Some(TextContent::Messages(_)) => {
                TextColumns::Messages { messages: "messages".to_string(), references: None }
            }
            Some(TextContent::Text(_)) => TextColumns::Text { text: "text".to_string() },
        };
        let read = |(number, content): (usize, TextContent)| {
            let fields = match content {
                TextContent::Completion { prompt, completion } => {
                    serde_json::json!({ "prompt": prompt, "completion": completion })
                }
                TextContent::Messages(turns) => {
                    serde_json::json!({ "messages": turns.into_iter().map(Message::into_json).collect::<Vec<_>>() })
                }
                TextContent::Text(text) => serde_json::json!({ "text": text }),
            };
            let Value::Object(fields) = fields else { unreachable!("each is an object") };
            let row = Row { line: number + 1, fields };
            TextRow::read(&row, &columns, Targets::Required, 0)
                .map_err(|problem| Error::row(&file, row.line, problem))
        };
        let rows = rows.into_iter().enumerate().map(read).collect::<Result<_, Error>>()?;
        Ok(RawText { name, files: vec![file], columns, rows })
    }

    /// Reads a split's files (one at least).
    ///
    /// # Errors
    /// A file cannot be read, or one of its rows is odd, or there are no rows.
    pub fn read(
        name: SplitName,
        files: &[PathBuf],
        kind: Option<TextKind>,
        named: &TextColumnNames,
        targets: Targets,
    ) -> Result<Self, Error> {
        let mut split: Option<RawText> = None;
        for (number, file) in files.iter().enumerate() {
            let mut columns: Option<TextColumns> = None;
            for row in Rows::open(file)? {
                let row = row?;
                let columns = match &columns {
                    Some(columns) => columns,
                    // Shards follow the first one's choice.
                    None => {
                        let of_first = split.as_ref().map(|split| TextColumnNames {
                            references: named.references.clone(),
                            ..split.columns.names()
                        });
                        let named = of_first.as_ref().unwrap_or(named);
                        columns.insert(TextColumns::choose(&row, file, kind, named, targets)?)
                    }
                };
                let read = TextRow::read(&row, columns, targets, number)
                    .map_err(|problem| Error::row(file, row.line, problem))?;
                let new =
                    || RawText { name, files: files.to_vec(), columns: columns.clone(), rows: Vec::new() };
                split.get_or_insert_with(new).rows.push(read);
            }
            if columns.is_none() {
                return Err(Error::NoRows { path: file.clone() });
            }
        }
        split.ok_or_else(|| Error::NoRows { path: files.first().cloned().unwrap_or_default() })
    }
}
