//! Conversations as rows hold them: `messages` with role and content, or ShareGPT's `conversations`
//! with from and value.

use lora_drop_transformer::json;
use serde_json::{Map, Value};

use super::error::TextProblem;
use crate::data::columns::{blank, type_name};
use crate::settings::definition::choices;

choices! {
    /// Who speaks in a turn.
    Role {
        System = "system",
        Developer = "developer",
        User = "user",
        Assistant = "assistant",
        Tool = "tool",
    }
}

impl Role {
    /// A speaker as ShareGPT's files name them.
    fn of_speaker(name: &str) -> Option<Self> {
        match name {
            "human" => Some(Role::User),
            "gpt" | "chatgpt" | "bot" | "model" => Some(Role::Assistant),
            "observation" => Some(Role::Tool),
            other => Role::from_name(other),
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// The turn's other keys, which templates may read (`name`, `reasoning_content`, ...).
    pub others: Map<String, Value>,
}

impl Message {
    /// A turn without other keys.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message { role, content: content.into(), others: Map::new() }
    }

    /// Checks that turn number `turn` (from 1) is not blank.
    fn check(&self, turn: usize) -> Result<(), TextProblem> {
        let problem = |seen| TextProblem::NoContent { turn, role: self.role.name().into(), seen };
        blank(&self.content).map_or(Ok(()), |seen| Err(problem(seen)))
    }

    /// Reads turn number `turn` (from 1).
    fn of(value: &Value, turn: usize) -> Result<Self, TextProblem> {
        let Value::Object(object) = value else {
            return Err(TextProblem::Turn { turn, seen: type_name(value) });
        };
        // ShareGPT's names count only where the turn has neither of the others.
        let shared =
            !object.contains_key("role") && !object.contains_key("content") && object.contains_key("from");
        let (role_key, content_key) = if shared { ("from", "value") } else { ("role", "content") };
        let text = |key: &'static str| match object.get(key) {
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(other) => Err(TextProblem::KeyType { turn, key, seen: type_name(other) }),
            None => Err(TextProblem::NoKey { turn, key, keys: object.keys().cloned().collect() }),
        };
        let name = text(role_key)?;
        let role = if shared { Role::of_speaker(name) } else { Role::from_name(name) };
        let role = role.ok_or_else(|| TextProblem::Role { turn, role: name.into() })?;
        let content = text(content_key)?;
        let others = object.iter().filter(|(key, _)| ![role_key, content_key].contains(&key.as_str()));
        let others = others.map(|(key, value)| (key.clone(), value.clone())).collect();
        let read = Message { role, content: content.into(), others };
        read.check(turn).map(|()| read)
    }

    /// The turn as chat templates see it. As in transformers, reasoning has all the names under
    /// which templates read it.
    pub(super) fn to_json(&self) -> Value {
        let mut object = Map::new();
        let reasoning = ["reasoning_content", "thinking", "reasoning"]
            .into_iter()
            .find_map(|key| self.others.get(key).filter(|value| !value.is_null()));
        if let Some(reasoning) = reasoning {
            object.insert("thinking".into(), reasoning.clone());
        }
        object.insert("role".into(), self.role.name().into());
        object.insert("content".into(), self.content.as_str().into());
        object.extend(self.others.clone());
        if let Some(reasoning) = reasoning {
            object.insert("reasoning_content".into(), reasoning.clone());
        }
        Value::Object(object)
    }
}

const EXPECTED: &str = "a list of turns, {\"role\": ..., \"content\": ...}";

/// Reads a conversation from a column's value, at least one turn.
pub(super) fn conversation(value: &Value, column: &str) -> Result<Vec<Message>, TextProblem> {
    let turns = json_list(value, column, EXPECTED)?;
    turns.iter().zip(1..).map(|(turn, number)| Message::of(turn, number)).collect()
}

/// Checks that a conversation in memory has turns, and that none of them is blank.
pub(super) fn check_turns(turns: &[Message]) -> Result<(), TextProblem> {
    if turns.is_empty() {
        return Err(TextProblem::Empty { column: "messages".into(), expected: EXPECTED });
    }
    turns.iter().zip(1..).try_for_each(|(turn, number)| turn.check(number))
}

/// A list that is not empty, from JSON or, where the file's format has no lists, from text that
/// holds JSON.
pub(super) fn json_list<'a>(
    value: &'a Value,
    column: &str,
    expected: &'static str,
) -> Result<std::borrow::Cow<'a, [Value]>, TextProblem> {
    use std::borrow::Cow;
    let wrong_type =
        |seen: &Value| TextProblem::Type { column: column.into(), seen: type_name(seen), expected };
    let list = match value {
        Value::Array(list) => Cow::Borrowed(list.as_slice()),
        Value::String(text) => match json::from_str(text) {
            Ok(Value::Array(list)) => Cow::Owned(list),
            Ok(other) => return Err(wrong_type(&other)),
            Err(e) => {
                let column = column.into();
                return Err(TextProblem::Json { column, message: e.to_string(), expected });
            }
        },
        other => return Err(wrong_type(other)),
    };
    if list.is_empty() {
        return Err(TextProblem::Empty { column: column.into(), expected });
    }
    Ok(list)
}
