//! Conversations in rows: turns with `role` and `content`, or with ShareGPT's `from` and `value`;
//! the history before them, and tools.

use lora_drop_transformer::json;
use serde_json::{Map, Value, json};

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
    /// Parses a speaker's name in ShareGPT's files.
    fn of_speaker(name: &str) -> Option<Self> {
        match name {
            "human" => Some(Role::User),
            "gpt" | "chatgpt" | "bot" | "model" | FUNCTION_CALL => Some(Role::Assistant),
            "observation" | "tool_response" => Some(Role::Tool),
            other => Role::of_name(other),
        }
    }

    /// Parses a role's name; tools once had the role `function`.
    fn of_name(name: &str) -> Option<Self> {
        if name == "function" { Some(Role::Tool) } else { Role::from_name(name) }
    }
}

/// Speaker of a tool call in ShareGPT's files.
const FUNCTION_CALL: &str = "function_call";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The text; `None` if there is none, as beside a tool call.
    pub content: Option<String>,
    /// The turn's other keys, which templates may read (`name`, `reasoning_content`, `tool_calls`,
    /// ...), and `content` if it is null.
    pub others: Map<String, Value>,
    /// Whether an assistant's turn is learned.
    pub learned: bool,
}

/// The turns of a conversation and its tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub turns: Vec<Message>,
    /// The tools that the assistant may call, a list, for the template.
    pub tools: Option<Value>,
}

impl From<Vec<Message>> for Conversation {
    fn from(turns: Vec<Message>) -> Self {
        Conversation { turns, tools: None }
    }
}

impl Conversation {
    /// Returns the turns before the assistant's last one, if that ends the conversation, or else
    /// all turns.
    pub fn asked(&self) -> &[Message] {
        match self.turns.split_last() {
            Some((last, before)) if last.role == Role::Assistant => before,
            _ => &self.turns,
        }
    }
}

/// Keys under which templates and data have an assistant's thoughts.
const THOUGHTS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl Message {
    /// Creates a turn without other keys.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message { role, content: Some(content.into()), others: Map::new(), learned: true }
    }

    /// Returns the text; empty if there is none.
    pub fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }

    /// Returns the assistant's thoughts, if the turn has any: those under a key of their own, or
    /// else the content before `</think>`. `None` if they are blank.
    pub(super) fn thoughts(&self) -> Option<&str> {
        let own = THOUGHTS.into_iter().find_map(|key| self.others.get(key)?.as_str());
        let thoughts = own.or_else(|| {
            let (thoughts, _) = self.text().split_once("</think>")?;
            Some(thoughts.split_once("<think>").map_or(thoughts, |(_, thoughts)| thoughts))
        });
        thoughts.map(str::trim).filter(|thoughts| !thoughts.is_empty())
    }

    /// Checks that turn number `turn` (from 1) has something to learn, if it is to be learned.
    fn check(&self, turn: usize) -> Result<(), TextProblem> {
        let has = |key: &str| self.others.get(key).is_some_and(|value| !value.is_null());
        let more = has("tool_calls") || has("function_call") || self.thoughts().is_some();
        if self.role != Role::Assistant || !self.learned || more {
            return Ok(());
        }
        let seen = match &self.content {
            Some(text) => blank(text),
            None if self.others.contains_key("content") => Some("null"),
            None => Some("no content"),
        };
        let problem = |seen| TextProblem::NoContent { turn, role: self.role.name().into(), seen };
        seen.map_or(Ok(()), |seen| Err(problem(seen)))
    }

    /// Reads turn number `turn` (from 1).
    fn of(value: &Value, turn: usize) -> Result<Self, TextProblem> {
        let Value::Object(object) = value else {
            return Err(TextProblem::Turn { turn, seen: type_name(value) });
        };
        let mut others = object.clone();
        remove_nulls(&mut others);
        // ShareGPT's keys count only if the turn has neither `role` nor `content`.
        let shared =
            !others.contains_key("role") && !others.contains_key("content") && others.contains_key("from");
        let (role_key, content_key) = if shared { ("from", "value") } else { ("role", "content") };
        let name = match others.remove(role_key) {
            Some(Value::String(name)) => name,
            Some(other) => return Err(TextProblem::KeyType { turn, key: role_key, seen: type_name(&other) }),
            None => {
                let keys = others.keys().cloned().collect();
                return Err(TextProblem::NoKey { turn, key: role_key, keys });
            }
        };
        let role = if shared { Role::of_speaker(&name) } else { Role::of_name(&name) };
        let role = role.ok_or_else(|| TextProblem::Role { turn, role: name.clone() })?;
        let mut content = match others.remove(content_key) {
            Some(Value::String(text)) => Some(text),
            Some(Value::Array(parts)) => Some(joined(&parts, turn)?),
            Some(other) => {
                return Err(TextProblem::KeyType { turn, key: content_key, seen: type_name(&other) });
            }
            None => None,
        };
        if content.is_none() && object.get(content_key).is_some_and(Value::is_null) {
            others.insert("content".into(), Value::Null);
        }
        if shared && name == FUNCTION_CALL {
            others.insert("tool_calls".into(), tool_calls(content.take().unwrap_or_default(), turn)?);
            others.insert("content".into(), Value::Null);
        }
        let learned = match others.get("weight").map(|weight| (weight, weight.as_f64())) {
            None | Some((Value::Bool(true), _) | (_, Some(1.0))) => true,
            Some((Value::Bool(false), _) | (_, Some(0.0))) => false,
            Some((weight, _)) => return Err(TextProblem::Weight { turn, seen: weight.to_string() }),
        };
        Ok(Message { role, content, others, learned })
    }

    /// Returns the turn as chat templates see it. As in transformers, thoughts appear under all the
    /// names by which templates read them.
    pub(crate) fn to_json(&self) -> Value {
        let mut object = Map::new();
        let reasoning = THOUGHTS.into_iter().find_map(|key| self.others.get(key));
        if let Some(reasoning) = reasoning {
            object.insert("thinking".into(), reasoning.clone());
        }
        object.insert("role".into(), self.role.name().into());
        if let Some(content) = &self.content {
            object.insert("content".into(), content.as_str().into());
        }
        object.extend(self.others.clone());
        if let Some(reasoning) = reasoning {
            object.insert("reasoning_content".into(), reasoning.clone());
        }
        Value::Object(object)
    }
}

/// Removes null keys at any depth: Parquet and Arrow give every turn the keys of all turns, and a
/// template may test whether a key is present.
fn remove_nulls(object: &mut Map<String, Value>) {
    fn inside(value: &mut Value) {
        match value {
            Value::Object(object) => remove_nulls(object),
            Value::Array(list) => list.iter_mut().for_each(inside),
            _ => {}
        }
    }
    object.retain(|_, value| !value.is_null());
    object.values_mut().for_each(inside);
}

/// Joins the text parts of a content list.
fn joined(parts: &[Value], turn: usize) -> Result<String, TextProblem> {
    let text = |(part, number): (&Value, usize)| {
        let kind = part.get("type").and_then(Value::as_str);
        match (kind, part.get("text").and_then(Value::as_str)) {
            (Some("text" | "input_text" | "output_text") | None, Some(text)) => Ok(text.to_string()),
            (kind, _) => {
                let seen = kind.map_or_else(|| type_name(part).into(), |kind| format!("of type {kind:?}"));
                Err(TextProblem::Part { turn, part: number, seen })
            }
        }
    };
    parts.iter().zip(1..).map(text).collect()
}

/// Parses ShareGPT's `function_call`: JSON with one call, or a list of calls, each with `name` and
/// `arguments`.
fn tool_calls(text: String, turn: usize) -> Result<Value, TextProblem> {
    let calls = match json::from_str::<Value>(&text) {
        Ok(Value::Array(calls)) => calls,
        Ok(call) => vec![call],
        Err(_) => Vec::new(),
    };
    let is_call = |call: &Value| call.get("name").is_some_and(Value::is_string);
    if calls.is_empty() || !calls.iter().all(is_call) {
        return Err(TextProblem::Call { turn });
    }
    let call = |function| json!({ "type": "function", "function": function });
    Ok(calls.into_iter().map(call).collect())
}

const EXPECTED: &str = "a list of turns, {\"role\": ..., \"content\": ...}";

/// Reads turns from a column's value, at least one.
pub(super) fn turns(value: &Value, column: &str) -> Result<Vec<Message>, TextProblem> {
    if let Some(text) = value.as_str().filter(|text| is_transcript(text)) {
        return Ok(transcript(text));
    }
    let turns = json_list(value, column, EXPECTED)?;
    if turns.is_empty() {
        return Err(TextProblem::Empty { column: column.into(), expected: EXPECTED });
    }
    turns.iter().zip(1..).map(|(turn, number)| Message::of(turn, number)).collect()
}

/// Marks that begin a turn of a transcript, and their speakers.
const SPEAKERS: [(&str, Role); 2] = [("\n\nHuman:", Role::User), ("\n\nAssistant:", Role::Assistant)];

/// Whether a text begins like a transcript of a conversation, as in hh-rlhf.
fn is_transcript(text: &str) -> bool {
    SPEAKERS.iter().any(|(mark, _)| text.trim_start().starts_with(mark.trim_start()))
}

/// Splits a transcript into turns, each of which begins with a blank line and its speaker.
fn transcript(text: &str) -> Vec<Message> {
    let text = format!("\n\n{}", text.trim_start());
    let mut marks: Vec<(usize, &str, Role)> = SPEAKERS
        .iter()
        .flat_map(|&(mark, role)| text.match_indices(mark).map(move |(at, mark)| (at, mark, role)))
        .collect();
    marks.sort_by_key(|(at, ..)| *at);
    let ends = marks.iter().skip(1).map(|(at, ..)| *at).chain([text.len()]);
    let turn = |(&(at, mark, role), end): (&(usize, &str, Role), usize)| {
        Message::new(role, text[at + mark.len()..end].trim())
    };
    std::iter::zip(&marks, ends).map(turn).collect()
}

/// Reads the turns before a prompt: pairs of a question and an answer, or turns.
pub(super) fn history(value: &Value, column: &str) -> Result<Vec<Message>, TextProblem> {
    const EXPECTED: &str = "a list of pairs, [question, answer], or of turns";
    let mut turns = Vec::new();
    for entry in json_list(value, column, EXPECTED)?.iter() {
        match entry.as_array().map(Vec::as_slice) {
            Some([Value::String(question), Value::String(answer)]) => {
                turns.extend([
                    Message::new(Role::User, question.as_str()),
                    Message::new(Role::Assistant, answer.as_str()),
                ]);
            }
            Some(_) => {
                let seen = "a list that holds something else";
                return Err(TextProblem::Type { column: column.into(), seen, expected: EXPECTED });
            }
            None => turns.push(Message::of(entry, turns.len() + 1)?),
        }
    }
    Ok(turns)
}

/// Reads the tools of a conversation; None if the list is empty.
pub(super) fn tools(value: &Value, column: &str) -> Result<Option<Value>, TextProblem> {
    let tools = json_list(value, column, "a list of tools")?;
    if tools.is_empty() {
        return Ok(None);
    }
    let mut object = Map::from_iter([("tools".to_string(), Value::Array(tools.into_owned()))]);
    remove_nulls(&mut object);
    Ok(object.remove("tools"))
}

/// Checks that a conversation has turns, and that no learned turn is blank.
pub(super) fn check_turns(turns: &[Message]) -> Result<(), TextProblem> {
    if turns.is_empty() {
        return Err(TextProblem::Empty { column: "messages".into(), expected: EXPECTED });
    }
    turns.iter().zip(1..).try_for_each(|(turn, number)| turn.check(number))
}

/// Reads a list, from JSON or, if the file's format has no lists, from text that holds JSON.
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
    Ok(list)
}
