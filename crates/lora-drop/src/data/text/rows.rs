//! Rows for generation: their kind, and how they are read.

use std::path::{Path, PathBuf};

use lora_drop_transformer::json;
use serde_json::Value;

use super::error::TextProblem;
use super::messages::{self, Conversation, Message, Role};
use crate::data::columns::{Choice, blank, describe_pair, field, not_blank, optional, text, type_name};
use crate::data::error::{Error, Problem};
use crate::data::files::SplitName;
use crate::data::layouts::{
    HISTORY, Layout, REFERENCES, RowKind, SYSTEM, TOOLS, looks_read, parts_of_examples,
};
use crate::data::raw::{RawRows, ReadRows};
use crate::data::rows::Row;
use crate::data::sources::HasFile;
use crate::settings::BadRows;
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

const OPTIONS: &str = "`prompt_column` and `completion_column`, or `text_column`";

/// Column names that the user gave. A column without a name here is found by its usual names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextColumnNames {
    /// The prompt, which the model is given.
    pub prompt: Option<String>,
    /// The completion, which the model should write.
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
    /// Text that follows the prompt on a new line if there is any, such as Alpaca's `input`.
    pub input: Option<String>,
    /// Text of a system turn before all others.
    pub system: Option<String>,
    /// Turns before the prompt or the conversation.
    pub history: Option<String>,
    /// The tools that the assistant may call.
    pub tools: Option<String>,
    /// Reference texts, with which generated texts are compared.
    pub references: Option<String>,
}

/// Whether rows must have a target to learn.
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
        if *named == TextColumnNames::default()
            && let Some(advice) = parts_of_examples(|name| choice.find(name).is_some())
        {
            return Err(Error::row(file, row.line, TextProblem::Parts { advice }.into()));
        }
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
        for &kind in TextKind::ALL.iter().filter(|kind| is_open(**kind)) {
            let columns = match kind {
                TextKind::Completion => pairs(&choice, named, targets)?,
                TextKind::Messages => whole(&choice, kind, named.messages.as_deref())?,
                TextKind::Text => whole(&choice, kind, named.text.as_deref())?,
            };
            found.extend(columns.into_iter().map(|(text, completion)| (kind, text, completion)));
        }
        if found.is_empty() {
            let last = TextKind::ALL.iter().filter(|kind| is_open(**kind));
            let last =
                last.flat_map(|&kind| Layout::of(RowKind::Texts(kind)).map(move |layout| (kind, layout)));
            let last = last.filter(|(_, layout)| layout.last);
            found.extend(
                last.filter_map(|(kind, layout)| Some((kind, choice.find(layout.text)?.clone(), None))),
            );
        }
        let none = "no usual columns, such as `prompt` with `completion`, `messages` or `text`".into();
        let describe = |(_, text, completion): &(_, String, Option<String>)| describe_pair(text, completion);
        let (kind, text, completion) = choice.only(found, "what is learned", none, describe, OPTIONS)?;
        let mut columns = TextColumns { completion, ..TextColumns::new(kind, text) };
        columns.grow(row, file, named);
        Ok(columns)
    }

    /// Creates the columns of rows of this kind with one column.
    pub fn new(kind: TextKind, text: impl Into<String>) -> Self {
        let [completion, input, system, history, tools, references] = [const { None }; 6];
        TextColumns { kind, text: text.into(), completion, input, system, history, tools, references }
    }

    /// Adds the columns that the rows before this one lacked.
    fn grow(&mut self, row: &Row, file: &Path, named: &TextColumnNames) {
        if self.kind == TextKind::Text {
            return;
        }
        let choice = Choice::of(row, file);
        let of_prompt = Layout::of(RowKind::Texts(self.kind))
            .filter(|layout| layout.text.eq_ignore_ascii_case(&self.text))
            .filter(|layout| layout.fits(self.completion.as_deref().or(named.completion.as_deref())));
        let names =
            |of: fn(&Layout) -> &'static [&'static str]| of_prompt.clone().flat_map(of).copied().collect();
        let (seconds, inputs): (Vec<&str>, Vec<&str>) =
            (names(|layout| layout.second), names(|layout| layout.input));
        let seconds = named.completion.as_deref().map_or(seconds, |name| vec![name]);
        let taken = [Some(self.text.clone()), self.completion.clone()];
        for (column, names) in [
            (&mut self.completion, &seconds[..]),
            (&mut self.input, &inputs),
            (&mut self.system, SYSTEM),
            (&mut self.history, HISTORY),
            (&mut self.tools, TOOLS),
            (&mut self.references, REFERENCES),
        ] {
            let mut found = names.iter().filter_map(|name| choice.find(name)).cloned();
            let found = found.find(|found| !taken.contains(&Some(found.clone())));
            *column = column.take().or(found);
        }
    }

    /// Name of the layout that these columns form.
    pub fn layout(&self) -> &'static str {
        Layout::name_of(RowKind::Texts(self.kind), &self.text, self.completion.as_deref())
    }

    /// Returns each column that is read with its role, in reading order.
    pub fn roles(&self) -> Vec<(&'static str, &str)> {
        let text = match self.kind {
            TextKind::Completion => "prompt",
            TextKind::Messages => "conversation",
            TextKind::Text => "text",
        };
        let roles = [text, "completion", "input", "system", "history", "tools", "references"];
        let columns = std::iter::zip(roles, self.all());
        columns.filter_map(|(role, column)| Some((role, column?))).collect()
    }

    /// Returns the columns that are read.
    fn all(&self) -> [Option<&str>; 7] {
        let TextColumns { text, completion, input, system, history, tools, references, .. } = self;
        let [a, b, c, d, e, f] =
            [completion, input, system, history, tools, references].map(Option::as_deref);
        [Some(text), a, b, c, d, e, f]
    }

    /// Returns the names of these columns, to find them in another split's files.
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

/// Candidate columns for a kind of rows: one column, or a prompt's and its completion's.
type Found = Vec<(String, Option<String>)>;

/// Finds the columns that could be a text or a conversation.
fn whole(choice: &Choice, kind: TextKind, named: Option<&str>) -> Result<Found, Error> {
    match named {
        Some(name) => Ok(vec![(choice.named(name)?, None)]),
        None => Ok(choice.layouts(RowKind::Texts(kind), None)),
    }
}

/// Finds the columns that could be prompt and completion.
fn pairs(choice: &Choice, named: &TextColumnNames, targets: Targets) -> Result<Found, Error> {
    let find = |name: &str| choice.find(name).cloned();
    let kind = RowKind::Texts(TextKind::Completion);
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
            let of_prompt = Layout::of(kind).filter(|layout| layout.text.eq_ignore_ascii_case(&prompt));
            let seconds = of_prompt.flat_map(|layout| layout.second).filter_map(|name| find(name));
            let found: Found = seconds.map(|completion| (prompt.clone(), Some(completion))).collect();
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
            let whole = choice.layouts(kind, None);
            if !whole.is_empty() || !optional {
                return Ok(whole);
            }
            // Rows to generate for may have only the prompt.
            let is_input = |prompt: &String| {
                let mut others =
                    Layout::of(kind).filter(|layout| find(layout.text).is_some_and(|text| text != *prompt));
                others.any(|layout| layout.input.iter().any(|name| find(name).as_ref() == Some(prompt)))
            };
            let prompts = Layout::of(kind).filter_map(|layout| find(layout.text));
            prompts.filter(|prompt| !is_input(prompt)).map(|prompt| (prompt, None)).collect()
        }
    })
}

/// Content of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum TextContent {
    /// A prompt and its completion; `None` if only the prompt is known.
    Completion {
        prompt: String,
        completion: Option<String>,
    },
    Messages(Conversation),
    Text(String),
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRow {
    pub content: TextContent,
    /// Reference texts for a generated one: the row's references, or else its completion or last
    /// assistant turn; may be empty.
    pub references: Vec<String>,
    /// Index into the split's files.
    pub file: usize,
    /// Line in the file, from 1; the row's number if the format has no lines.
    pub line: usize,
}

impl HasFile for TextRow {
    fn file_mut(&mut self) -> &mut usize {
        &mut self.file
    }
}

impl TextRow {
    /// Creates a row from a prompt that was not read from a file.
    pub fn prompt(prompt: impl Into<String>) -> Self {
        let content = TextContent::Completion { prompt: prompt.into(), completion: None };
        TextRow { content, references: Vec::new(), file: 0, line: 0 }
    }

    /// Creates a row from a conversation that was not read from a file.
    pub fn conversation(turns: Vec<Message>) -> Self {
        let content = TextContent::Messages(turns.into());
        TextRow { content, references: Vec::new(), file: 0, line: 0 }
    }

    /// Reads a row of the file with this index.
    ///
    /// # Errors
    /// The row is wrong: see [`Problem`] and [`TextProblem`].
    pub fn read(row: &Row, columns: &TextColumns, targets: Targets, file: usize) -> Result<Self, Problem> {
        let column = &columns.text;
        let content = match columns.kind {
            TextKind::Completion => completion(row, columns, targets)?,
            TextKind::Messages => {
                let turns = messages::turns(field(row, column)?, column)?;
                TextContent::Messages(conversation(row, columns, turns)?)
            }
            TextKind::Text => TextContent::Text(text(row, column)?.into()),
        };
        if let TextContent::Messages(Conversation { turns, .. }) = &content {
            messages::check_turns(turns)?;
        }
        content.check_targets(targets)?;
        let mut references = match (columns.references.as_ref(), columns.completion.as_ref()) {
            (Some(column), _) => read_references(row, column)?,
            (None, Some(column)) => {
                let answers = row.fields.get(column).and_then(answers).into_iter().flatten();
                answers.filter_map(Value::as_str).map(String::from).collect()
            }
            (None, None) => Vec::new(),
        };
        if references.is_empty() {
            references.extend(content.target().map(String::from));
        }
        Ok(TextRow { content, references, file, line: row.line })
    }
}

/// Reads a row's prompt and completion: as texts, or as a conversation if one of them is a list of
/// turns or the row has other turns or tools.
fn completion(row: &Row, columns: &TextColumns, targets: Targets) -> Result<TextContent, Problem> {
    let value = field(row, &columns.text)?;
    let second = match &columns.completion {
        Some(column) if targets == Targets::Required => Some((field(row, column)?, column)),
        column => optional(row, column.as_ref()).zip(column.as_ref()),
    };
    let turns = |value: &Value, column: &String, role: Role| -> Result<Vec<Message>, Problem> {
        match value {
            Value::Array(_) => Ok(messages::turns(value, column)?),
            _ => Ok(vec![Message::new(role, text(row, column)?)]),
        }
    };
    let has_turns = value.is_array() || second.is_some_and(|(value, _)| value.is_array());
    if has_turns {
        let mut all = turns(value, &columns.text, Role::User)?;
        // Only the completion's turns are learned.
        all.iter_mut().for_each(|turn| turn.learned = false);
        if let Some((value, column)) = second {
            all.extend(turns(value, column, Role::Assistant)?);
        }
        return Ok(TextContent::Messages(conversation(row, columns, all)?));
    }
    let mut prompt = text(row, &columns.text)?.to_string();
    if let Some((_, column)) = filled(row, columns.input.as_ref()) {
        prompt.push('\n');
        prompt.push_str(text(row, column)?);
    }
    let completion = second.map(|(_, column)| answer(row, column)).transpose()?.map(String::from);
    let before = conversation(row, columns, Vec::new())?;
    if before.turns.is_empty() && before.tools.is_none() {
        return Ok(TextContent::Completion { prompt, completion });
    }
    let new = [Some((Role::User, prompt)), completion.map(|text| (Role::Assistant, text))];
    let new = new.into_iter().flatten().map(|(role, text)| Message::new(role, text));
    Ok(TextContent::Messages(Conversation { turns: before.turns.into_iter().chain(new).collect(), ..before }))
}

/// Reads a completion: a text, or the first answer in SQuAD's format, `{"text": [...]}`.
fn answer<'a>(row: &'a Row, column: &str) -> Result<&'a str, Problem> {
    match answers(field(row, column)?) {
        Some(answers) => match answers.first().and_then(Value::as_str) {
            Some(first) => not_blank(first, column),
            None => Err(Problem::NoText { column: column.into(), seen: "a list without a text" }),
        },
        None => text(row, column),
    }
}

/// Returns the answers of a value in SQuAD's format.
fn answers(value: &Value) -> Option<&Vec<Value>> {
    value.as_object()?.get("text")?.as_array()
}

/// Puts the system's turn and the history before `turns`, and adds the row's tools.
fn conversation(row: &Row, columns: &TextColumns, turns: Vec<Message>) -> Result<Conversation, Problem> {
    let mut all = Vec::new();
    if let Some((_, column)) = filled(row, columns.system.as_ref())
        && turns.first().is_none_or(|first| first.role != Role::System)
    {
        all.push(Message::new(Role::System, text(row, column)?));
    }
    if let Some((history, column)) = filled(row, columns.history.as_ref()) {
        all.extend(messages::history(history, column)?);
    }
    all.extend(turns);
    let tools = filled(row, columns.tools.as_ref());
    let tools = tools.map(|(tools, column)| messages::tools(tools, column)).transpose()?.flatten();
    Ok(Conversation { turns: all, tools })
}

/// Returns the value and the name of an optional column; `None` if the value is null, absent or a
/// blank text.
fn filled<'a>(row: &'a Row, column: Option<&'a String>) -> Option<(&'a Value, &'a String)> {
    let value = optional(row, column).filter(|value| value.as_str().is_none_or(|text| blank(text).is_none()));
    value.zip(column)
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
            TextContent::Messages(conversation) => messages::check_turns(&conversation.turns)?,
            TextContent::Text(text) => drop(not_blank(text, "text")?),
        }
        Ok(())
    }

    /// Checks that there is something to learn or, if targets are optional, to answer.
    fn check_targets(&self, targets: Targets) -> Result<(), TextProblem> {
        let required = targets == Targets::Required;
        match self {
            TextContent::Completion { completion: None, .. } if required => Err(TextProblem::NoCompletion),
            TextContent::Messages(Conversation { turns, .. }) => {
                let (role, problem) = match required {
                    true => (Role::Assistant, TextProblem::NoAssistant),
                    false => (Role::User, TextProblem::NoUser),
                };
                let found = turns.iter().any(|turn| turn.role == role && (turn.learned || !required));
                if found { Ok(()) } else { Err(problem) }
            }
            _ => Ok(()),
        }
    }

    /// Returns the completion, or the assistant's turn that ends a conversation.
    fn target(&self) -> Option<&str> {
        match self {
            TextContent::Completion { completion, .. } => completion.as_deref(),
            TextContent::Messages(Conversation { turns, .. }) => {
                turns.last().filter(|turn| turn.role == Role::Assistant)?.content.as_deref()
            }
            TextContent::Text(_) => None,
        }
    }
}

/// Reads a row's references: a list of texts, as a list or as JSON in a text column, or one text.
/// Empty if the value is null.
fn read_references(row: &Row, column: &str) -> Result<Vec<String>, Problem> {
    const EXPECTED: &str = "a list of texts";
    let value = row.fields.get(column).unwrap_or(&Value::Null);
    match value {
        Value::Null => return Ok(Vec::new()),
        Value::String(list) if json::from_str::<Vec<Value>>(list).is_err() => {
            return text(row, column).map(|text| vec![text.to_string()]);
        }
        _ => {}
    }
    let list = messages::json_list(value, column, EXPECTED)?;
    if list.is_empty() {
        return Err(TextProblem::Empty { column: column.into(), expected: EXPECTED }.into());
    }
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

/// A split's texts before tokenisation.
pub type RawText = RawRows<TextColumns, TextRow>;

impl RawText {
    /// Kind of the rows: conversations if all prompts and completions are turns.
    pub fn kind(&self) -> TextKind {
        let all = self.rows.iter().all(|row| row.content.kind() == TextKind::Messages);
        if all { TextKind::Messages } else { self.columns.kind }
    }

    /// Builds a split from rows in memory, numbered from 1.
    ///
    /// # Errors
    /// There are no rows; one is blank, has nothing to learn, or is of another kind than the first.
    pub(crate) fn of_rows(name: SplitName, rows: Vec<TextContent>) -> Result<Self, Error> {
        let kind = rows.first().map_or(TextKind::Completion, TextContent::kind);
        let text = match kind {
            TextKind::Completion => "prompt",
            TextKind::Messages => "messages",
            TextKind::Text => "text",
        };
        let completion = (kind == TextKind::Completion).then(|| "completion".to_string());
        let columns = TextColumns { completion, ..TextColumns::new(kind, text) };
        RawRows::in_memory(name, columns, rows, |content, line| {
            content.check(kind)?;
            content.check_targets(Targets::Required)?;
            let references = content.target().map(String::from).into_iter().collect();
            Ok(TextRow { content, references, file: 0, line })
        })
    }

    /// Reads a split's files (at least one). Blank rows of plain text are passed over.
    ///
    /// # Errors
    /// A file cannot be read or has no rows, or a row is wrong and not left out.
    pub fn read(
        name: SplitName,
        files: &[PathBuf],
        named: &TextColumnNames,
        targets: Targets,
        bad_rows: BadRows,
    ) -> Result<Self, Error> {
        RawRows::read_files(name, files, bad_rows, &Texts { named, targets })
    }
}

/// Reads texts, with the columns that the user named.
struct Texts<'a> {
    named: &'a TextColumnNames,
    targets: Targets,
}

impl ReadRows for Texts<'_> {
    type Columns = TextColumns;
    type Row = TextRow;

    fn choose(&self, row: &Row, file: &Path, first: Option<&TextColumns>) -> Result<TextColumns, Error> {
        let first = first.map(TextColumns::names);
        TextColumns::choose(row, file, first.as_ref().unwrap_or(self.named), self.targets)
    }

    fn grow(&self, columns: &mut TextColumns, row: &Row, file: &Path) {
        columns.grow(row, file, self.named);
    }

    fn read(&self, row: &Row, columns: &TextColumns, file: usize) -> Result<Option<TextRow>, Problem> {
        if columns.kind == TextKind::Text {
            let value = row.fields.get(&columns.text);
            if value.is_some_and(|value| {
                value.is_null() || value.as_str().is_some_and(|text| blank(text).is_some())
            }) {
                return Ok(None);
            }
        }
        TextRow::read(row, columns, self.targets, file).map(Some)
    }

    fn reads(&self, columns: &TextColumns, name: &str) -> bool {
        columns.all().contains(&Some(name))
    }

    fn looks_read(&self, columns: &TextColumns, name: &str) -> bool {
        self.named.prompt.is_none() && looks_read(name, RowKind::Texts(columns.kind))
    }
}
