//! A compiled chat template, which renders one conversation within limits of work and output.
//!
//! The limits do not bound the cost of a single operation, so `renderer` adds limits of time and
//! memory.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::{Map, json};

use super::error::TemplateError;
use super::python;
use super::renderer::{Rendering, Source};
use super::template::MARKS;

/// Name of the only template in the environment.
const NAME: &str = "chat";
/// Instructions that a template may execute: a base, an addition for each byte of the conversation,
/// and an upper limit. The engine counts 64 bytes that a template creates as one instruction.
const FUEL: u64 = 200_000;
const FUEL_PER_BYTE: u64 = 4;
const MOST_FUEL: u64 = 600_000;
/// Bytes that a template may write: a base, and an addition for each byte of the conversation.
const OUTPUT: usize = 1 << 20;
const OUTPUT_PER_BYTE: usize = 8;
/// Largest depth of nested macro calls.
const RECURSION: usize = 50;

/// A compiled template.
pub(super) struct Engine {
    environment: Environment<'static>,
    special: Vec<(String, String)>,
    variables: Map<String, serde_json::Value>,
}

impl Engine {
    /// Compiles a template.
    ///
    /// # Errors
    /// It is not valid Jinja; the message has the line.
    pub fn compile(source: Source) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| template_error(&e))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_recursion_limit(RECURSION);
        environment.add_filter("__generation", |body: &str| format!("{}{body}{}", MARKS[0], MARKS[1]));
        python::add_to(&mut environment);
        if let Some(time) = source.time {
            python::fix_time(&mut environment, time);
        }
        environment.add_template_owned(NAME, source.text).map_err(|e| template_error(&e))?;
        Ok(Engine { environment, special: source.special, variables: source.variables })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// The template fails or refuses the conversation, or needs more time or memory than a
    /// conversation can need.
    pub fn render(&self, conversation: Rendering) -> Result<String, TemplateError> {
        let Rendering { messages, tools, add_generation_prompt, length } = conversation;
        let mut context: Map<String, serde_json::Value> =
            self.special.iter().map(|(name, text)| (name.clone(), text.as_str().into())).collect();
        context.extend(self.variables.clone());
        context.insert("messages".into(), messages);
        context.insert("tools".into(), tools);
        context.insert("documents".into(), json!(null));
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        let fuel = FUEL_PER_BYTE.saturating_mul(length as u64).saturating_add(FUEL).min(MOST_FUEL);
        let most = OUTPUT.saturating_add(OUTPUT_PER_BYTE.saturating_mul(length));
        // The clone shares the compiled template and gets the limits of this conversation.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let mut output = Limited { bytes: Vec::new(), most };
        let template = environment.get_template(NAME).map_err(|e| template_error(&e))?;
        let context = Value::from(Serde(&context));
        template.render_captured_to(context, &mut output).map_err(|e| template_error(&e))?;
        String::from_utf8(output.bytes).map_err(|e| TemplateError::new(e.to_string()))
    }
}

/// A buffer of at most `most` bytes.
struct Limited {
    bytes: Vec<u8>,
    most: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most - self.bytes.len() {
            let message =
                format!("it writes more than {} bytes for this conversation; does it loop?", self.most);
            return Err(io::Error::other(message));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Describes the engine's error in plain words, with the innermost line, where it happened.
fn template_error(error: &minijinja::Error) -> TemplateError {
    let mut innermost = error;
    let mut source = std::error::Error::source(error);
    let mut from_writer = None;
    while let Some(next) = source {
        match next.downcast_ref::<minijinja::Error>() {
            Some(next) => innermost = next,
            None => from_writer = Some(next.to_string()),
        }
        source = next.source();
    }
    let message = match (innermost.kind(), innermost.detail()) {
        (ErrorKind::OutOfFuel, _) => {
            "it takes more work or memory than a conversation of this length can need; does it loop?".into()
        }
        (ErrorKind::WriteFailure, _) if from_writer.is_some() => from_writer.unwrap_or_default(),
        // The message of raise_exception is the template's own text.
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_string(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    TemplateError { line: innermost.line().or(error.line()), ..TemplateError::new(message) }
}
