//! Errors in rows for text generation and in chat templates.

use std::path::PathBuf;

use super::rows::TextKind;

/// A problem with a row; turns count from 1.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TextProblem {
    #[error("{column:?} is {seen}, expected {expected}")]
    Type { column: String, seen: &'static str, expected: &'static str },
    #[error("{column:?} holds text that is not JSON: {message}; expected {expected}")]
    Json { column: String, message: String, expected: &'static str },
    #[error("{column:?} is an empty list; expected {expected}")]
    Empty { column: String, expected: &'static str },
    #[error("reference {number} in {column:?} is {seen}, expected text")]
    Reference { column: String, number: usize, seen: &'static str },
    #[error("turn {turn} is {seen}, expected an object with `role` and `content`")]
    Turn { turn: usize, seen: &'static str },
    #[error("turn {turn} has no {key:?}; its keys: {}", crate::data::error::list(.keys))]
    NoKey { turn: usize, key: &'static str, keys: Vec<String> },
    #[error("turn {turn}: {key:?} is {seen}, expected text")]
    KeyType { turn: usize, key: &'static str, seen: &'static str },
    #[error(
        "turn {turn}: part {part} of the content is {seen}, expected {{\"type\": \"text\", \"text\": ...}}"
    )]
    Part { turn: usize, part: usize, seen: String },
    #[error("turn {turn}: \"weight\" is {seen}, expected 0 or 1")]
    Weight { turn: usize, seen: String },
    #[error("turn {turn}: a function_call is JSON with `name` and `arguments`, and this one is not")]
    Call { turn: usize },
    #[error(
        "a conversation (a system text, a history, tools or turns) among prompts and completions; give `chat`, which \
         writes all rows by the model's chat template"
    )]
    NotChat,
    #[error("a conversation, in which `prompt_template` has no place; leave it out")]
    PromptTemplate,
    #[error("turn {turn}: the role {role:?} is not known; expected {}", ROLES)]
    Role { turn: usize, role: String },
    #[error("turn {turn} ({role}) has no text: {seen}; remove the row or fill it in")]
    NoContent { turn: usize, role: String, seen: &'static str },
    #[error("no assistant turn that is learned, so there is nothing to learn from; remove the row")]
    NoAssistant,
    #[error("no user turn to answer")]
    NoUser,
    #[error(
        "a conversation, but the model has no chat template; give one, or use rows of prompt and completion"
    )]
    NoTemplate,
    #[error("the chat template fails: {0}")]
    Template(#[from] TemplateError),
    /// Rows of a known data set that are not examples by themselves.
    #[error("{advice}")]
    Parts { advice: &'static str },
    #[error("no completion; the row has only a prompt")]
    NoCompletion,
    #[error("the row's kind is {seen}, but the first row's is {expected}; all rows are of one kind")]
    OtherKind { seen: TextKind, expected: TextKind },
    #[error(
        "the model has no end-of-sequence token to put after the completion; name one in its tokenizer_config.json \
         (`eos_token`), config.json or generation_config.json (`eos_token_id`), or use its chat template"
    )]
    NoEnd,
    #[error(
        "it has more than {context} tokens, but the model's context is {context} tokens, at least one of which must be \
         new; shorten the prompt"
    )]
    LongPrompt { context: usize },
}

const ROLES: &str =
    "system, developer, user, assistant or tool (in `from`: also human, gpt, observation, ...)";

/// Why a chat template could not be read or rendered.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, thiserror::Error)]
#[error(
    "{}{}{message}",
    .file.as_ref().map_or(String::new(), |file| format!("{}: ", file.display())),
    .line.map_or(String::new(), |line| format!("line {line} of the template: "))
)]
pub struct TemplateError {
    /// The template's file, if it was read from one.
    pub file: Option<PathBuf>,
    /// The line in the template, from 1, if it is known.
    pub line: Option<usize>,
    pub message: String,
}

impl TemplateError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        TemplateError { file: None, line: None, message: message.into() }
    }
}
