//! Chat templates: a model's own Jinja text, which renders a conversation in the format that the
//! model was trained on, as in transformers. Templates are untrusted code: `renderer` runs them
//! within limits of time and memory.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

use super::error::TemplateError;
use super::messages::{Conversation, Message, Role};
use super::renderer::{Renderers, Rendering, Source};
use crate::data::error::Error;
use crate::files::{json_object, read_if_there};

/// Marks of the start and the end of a `{% generation %}` block in the output: two Unicode
/// noncharacters, which are refused in conversations.
pub(super) const MARKS: [char; 2] = ['\u{10fffe}', '\u{10ffff}'];

/// A template, ready to render.
pub struct ChatTemplate {
    renderers: Renderers,
    special: SpecialTokens,
    marks_turns: bool,
    writes_date: bool,
    /// The file that it was read from, for messages.
    file: Option<PathBuf>,
}

/// The special tokens' texts by their names in templates: `bos_token`, `eos_token`, ...
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens(pub Vec<(String, String)>);

impl SpecialTokens {
    const NAMES: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

    /// Reads a model folder's tokenizer_config.json, and special_tokens_map.json for tokens that
    /// are not in it. Empty if there is neither.
    ///
    /// # Errors
    /// A file is not readable or is not JSON.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let mut tokens = SpecialTokens::default();
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let path = folder.join(file);
            let config = json_object(&path).map_err(|e| Error::io(&path, e))?;
            let Some(config) = config else { continue };
            for name in SpecialTokens::NAMES {
                // A token is a text, or an object with the text under `content`.
                let value = config.get(name);
                let text = value.and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()));
                if let (Some(text), None) = (text, tokens.get(name)) {
                    tokens.0.push((name.into(), text.into()));
                }
            }
        }
        Ok(tokens)
    }

    /// Returns the text of the token with this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }
}

impl ChatTemplate {
    /// Reads the template in a model's folder (see [`ChatTemplate::source`]); None if there is
    /// none.
    ///
    /// # Errors
    /// A file is not readable, or the template is not valid.
    pub fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let Some((file, source)) = ChatTemplate::source(folder)? else { return Ok(None) };
        let template = ChatTemplate::parse(&source, SpecialTokens::read(folder)?);
        let template = template.map_err(|e| Error::file(&file, format!("chat template: {e}")))?;
        Ok(Some(template.of_file(file)))
    }

    /// Returns the template's text in a model's folder, and its file: chat_template.jinja, or
    /// `chat_template` in tokenizer_config.json, which is one template or a list of named ones with
    /// a `default`.
    ///
    /// # Errors
    /// A file is not readable, or `chat_template` is something else.
    pub fn source(folder: &Path) -> Result<Option<(PathBuf, String)>, Error> {
        let own = folder.join("chat_template.jinja");
        if let Some(bytes) = read_if_there(&own).map_err(|e| Error::io(&own, e))? {
            let source = String::from_utf8(bytes).map_err(|_| Error::file(&own, "not UTF-8"))?;
            return Ok(Some((own, source)));
        }
        let file = folder.join("tokenizer_config.json");
        let config = json_object(&file).map_err(|e| Error::io(&file, e))?;
        match config.and_then(|mut config| config.remove("chat_template")) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let source = choose(value).map_err(|e| Error::file(&file, e))?;
                Ok(Some((file, source)))
            }
        }
    }

    /// Compiles a template's text, as from a GGUF file's metadata.
    ///
    /// # Errors
    /// It is not valid Jinja (the message has the line), or takes more time or memory than any
    /// template can need.
    pub fn parse(source: &str, special: SpecialTokens) -> Result<Self, TemplateError> {
        // Jinja reads every line end as a line feed. The tag `generation` is an extension of
        // transformers; a filter replaces it, on the same line, with a scope like that of Jinja's
        // call blocks.
        static LINE_ENDS: LazyLock<Regex> = LazyLock::new(|| Regex::new("\r\n?").expect("a sound pattern"));
        static TAG: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("a sound pattern")
        });
        let source = LINE_ENDS.replace_all(source, "\n");
        let marks_turns = TAG.is_match(&source);
        let source = TAG.replace_all(&source, |tag: &regex::Captures| {
            let [before, end, after] = [1, 2, 3].map(|group| tag.get(group).map_or("", |m| m.as_str()));
            match end {
                "" => format!("{{%{before} with %}}{{% filter __generation {after}%}}"),
                _ => format!("{{%{before} endfilter %}}{{% endwith {after}%}}"),
            }
        });
        let writes_date = source.contains("strftime_now");
        let source = Source {
            text: source.into_owned(),
            special: special.0.clone(),
            variables: Map::new(),
            time: None,
        };
        let renderers = Renderers::start(source)?;
        Ok(ChatTemplate { renderers, special, marks_turns, writes_date, file: None })
    }

    /// Sets the file that it was read from, for its errors.
    pub fn of_file(mut self, file: PathBuf) -> Self {
        self.file = Some(file);
        self
    }

    /// Fixes the time that `strftime_now` sees, in seconds since 1970 (UTC); otherwise it is the
    /// time of each rendering.
    pub fn at_time(mut self, seconds: i64) -> Self {
        self.renderers.fix_time(seconds);
        self
    }

    /// Gives the template values by name, as keyword arguments of transformers'
    /// `apply_chat_template` do.
    pub fn with_variables(mut self, variables: Map<String, Value>) -> Self {
        self.renderers.set_variables(variables);
        self
    }

    /// Whether the template marks what the assistant says with `{% generation %}`.
    pub fn marks_turns(&self) -> bool {
        self.marks_turns
    }

    /// Whether the template writes the date and the time is not fixed, so that its text may differ
    /// tomorrow.
    pub(crate) fn writes_date(&self) -> bool {
        self.writes_date && self.renderers.source().time.is_none()
    }

    /// Whether the template writes the date, fixed or not.
    pub(super) fn reads_clock(&self) -> bool {
        self.writes_date
    }

    /// Returns what a rendering depends on besides the conversation and the special tokens: the
    /// template's text as the engine sees it, and the user's variables.
    pub(super) fn rendered_by(&self) -> [String; 2] {
        let Source { text, variables, .. } = self.renderers.source();
        [text.clone(), Value::from(variables.clone()).to_string()]
    }

    /// Returns the special tokens that the template sees.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Renders turns, with the tools that the assistant may call; with `ask`, the generation prompt
    /// for the assistant's answer follows.
    ///
    /// # Errors
    /// The template fails or refuses the conversation, or needs more time or memory than a
    /// conversation can need.
    pub fn render(
        &self,
        turns: &[Message],
        tools: Option<&Value>,
        ask: bool,
    ) -> Result<String, TemplateError> {
        Ok(self.render_marked(turns, tools, ask)?.0)
    }

    /// Like [`ChatTemplate::render`], with the byte ranges of the `{% generation %}` blocks in the
    /// text.
    ///
    /// # Errors
    /// As for [`ChatTemplate::render`].
    pub fn render_marked(
        &self,
        turns: &[Message],
        tools: Option<&Value>,
        ask: bool,
    ) -> Result<(String, Vec<Range<usize>>), TemplateError> {
        let tools = tools.cloned().unwrap_or_default();
        let mut messages: Vec<Value> = turns.iter().map(Message::to_json).collect();
        let with_nulls = messages.clone();
        for turn in messages.iter_mut().filter_map(Value::as_object_mut) {
            turn.retain(|_, value| !value.is_null());
        }
        let rendered = self.render_values(messages.clone(), tools.clone(), ask);
        // transformers 5 leaves out null contents and earlier versions did not: some templates read
        // them and fail without.
        if rendered.is_err() && messages != with_nulls {
            return self.render_values(with_nulls, tools, ask).or(rendered);
        }
        rendered
    }

    fn render_values(
        &self,
        messages: Vec<Value>,
        tools: Value,
        ask: bool,
    ) -> Result<(String, Vec<Range<usize>>), TemplateError> {
        let messages = Value::from(messages);
        let written = [messages.to_string(), tools.to_string()];
        if written.iter().any(|text| text.contains(MARKS)) {
            return Err(TemplateError::new(
                "the conversation contains U+10FFFE or U+10FFFF, which are not characters; remove them",
            ));
        }
        let length = written.iter().map(String::len).sum();
        let text = self.renderers.render(Rendering { messages, tools, add_generation_prompt: ask, length });
        let text =
            text.and_then(|text| if self.marks_turns { take_marks(&text) } else { Ok((text, Vec::new())) });
        text.map_err(|e| TemplateError { file: self.file.clone(), ..e })
    }

    /// Finds the assistant's turns that are `wanted` in the rendered conversation `whole`: each
    /// from where generation would begin to the end of the template's text of the turn.
    ///
    /// A turn's place is known if the text up to the turn, and the text including it, are prefixes
    /// of `whole`. A template may write a turn differently if others follow, such as without its
    /// thoughts, or refuse a part of the conversation. Then the turn is found by comparing
    /// renderings of the whole conversation in which the turn says something else.
    ///
    /// # Errors
    /// As for [`ChatTemplate::render`].
    pub(super) fn answers(
        &self,
        conversation: &Conversation,
        whole: &str,
        wanted: impl Fn(&Message) -> bool,
    ) -> Result<Vec<Answer>, TemplateError> {
        let turns = &conversation.turns;
        let found = turns.iter().enumerate().filter(|(_, turn)| turn.role == Role::Assistant && wanted(turn));
        let mut answers = Vec::new();
        for (i, _) in found {
            answers.extend(self.answer(conversation, whole, i)?);
        }
        if let Some(last) = answers.last_mut().filter(|last| last.turn == Some(turns.len() - 1)) {
            last.span.end = self.end_of_last(conversation, whole, &last.span);
        }
        Ok(answers)
    }

    /// Returns the end of a conversation's last turn at `span`, without text that the template
    /// writes after the whole conversation, which is missing if another answer is asked for.
    fn end_of_last(&self, of: &Conversation, whole: &str, span: &Range<usize>) -> usize {
        let asking = self.render(&of.turns, of.tools.as_ref(), true);
        let end = asking.map_or(span.end, |asking| common_start(&asking, whole).min(span.end));
        if end > span.start { end } else { span.end }
    }

    /// Finds the span of one turn; `None` if nothing of it is written.
    fn answer(&self, of: &Conversation, whole: &str, turn: usize) -> Result<Option<Answer>, TemplateError> {
        let Conversation { turns, tools } = of;
        let render = |turns: &[Message], ask| self.render(turns, tools.as_ref(), ask);
        // A template may refuse a part of a conversation that it accepts as a whole.
        let part = |turns: &[Message], ask| render(turns, ask).ok();
        let asked = part(&turns[..turn], true);
        let answered = part(&turns[..=turn], false);
        let start = asked.as_ref().filter(|asked| whole.starts_with(*asked)).map(String::len);
        let end = answered.as_ref().filter(|answered| whole.starts_with(*answered)).map(String::len);
        if let (Some(start), Some(end)) = (start, end)
            && start <= end
        {
            return Ok(Some(Answer { turn: Some(turn), span: start..end, follows_prompt: true }));
        }
        let other = |answer: &str, turns: &[Message], others: &Map<String, Value>| {
            let mut turns = turns.to_vec();
            turns[turn] = Message { others: others.clone(), ..Message::new(Role::Assistant, answer) };
            turns
        };
        // Beside a tool call, a template may not write the content.
        let none = Map::new();
        let mut others = &turns[turn].others;
        let mut changed = ["x", "y"].map(|answer| render(&other(answer, turns, others), false));
        if changed[0] == changed[1] {
            others = &none;
            changed = ["x", "y"].map(|answer| render(&other(answer, turns, others), false));
        }
        let [x, y] = changed;
        let (x, y) = (x?, y?);
        if x == y {
            return Ok(None);
        }
        let own = common_start(&x, &y).min(common_start(&x, whole)).min(common_start(&y, whole));
        // The generation prompt, as far as it precedes this answer.
        let prompt = || {
            let before = if turn == 0 { &turns[..=turn] } else { &turns[..turn] };
            let (with, without) = (part(before, true)?, part(before, false)?);
            let prompt = with.strip_prefix(&without)?;
            if prompt.is_empty() {
                // Without a generation prompt, generation begins where the text before the answer
                // ends, which may be before a space that the template writes.
                let starts = whole[..own].char_indices().map(|(at, _)| at).rev().take(LONGEST_LEAD);
                let same = |at: &usize| common_end(&whole[..*at], &with);
                let start = starts.chain([own]).max_by_key(|at| (same(at), *at));
                return Some((start?, true));
            }
            let mut ends = prompt.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
            ends.find_map(|end| Some((whole[..own].rfind(&prompt[..end])? + end, end == prompt.len())))
        };
        let (start, follows_prompt) =
            start.map(|start| (start, true)).or_else(prompt).unwrap_or((own, false));
        let after = common_end(&x, &y).min(common_end(&x, whole)).min(common_end(&y, whole));
        let end_of_answer = start.max(whole.len() - after);
        // Rendering the conversation up to the turn shows the text that ends the turn.
        let closing = answered.and_then(|answered| {
            let changed = |answer| part(&other(answer, &turns[..=turn], others), false);
            let (x, y) = (changed("x")?, changed("y")?);
            let after = common_end(&x, &y).min(common_end(&x, &answered));
            Some(answered[answered.len() - after..].to_string())
        });
        let closing = closing.map_or(0, |closing| common_start(&closing, &whole[end_of_answer..]));
        Ok(Some(Answer { turn: Some(turn), span: start..end_of_answer + closing, follows_prompt }))
    }
}

/// Reads a template's variables, each as `NAME=VALUE`. A value is JSON if it parses, Python's True,
/// False or None, or else text.
///
/// # Errors
/// `Error::Usage` for one that has no name, or a name that the conversation itself has.
pub(crate) fn template_variables(given: &[String]) -> crate::Result<Map<String, Value>> {
    let mut variables = Map::new();
    for variable in given {
        let refuse = |what: &str| Err(crate::Error::Usage(format!("`template_var = {variable}`: {what}")));
        let Some((name, value)) = variable.split_once('=') else {
            return refuse("expected NAME=VALUE, such as enable_thinking=false");
        };
        let mut letters = name.chars();
        let starts = letters.next().is_some_and(|c| c.is_alphabetic() || c == '_');
        if !starts || !letters.all(|c| c.is_alphanumeric() || c == '_') {
            return refuse("the name of a variable has letters, digits and _, and begins with a letter or _");
        }
        if ["messages", "tools", "documents", "add_generation_prompt"].contains(&name) {
            return refuse("the rows decide this variable");
        }
        let value = match value {
            "True" => true.into(),
            "False" => false.into(),
            "None" => Value::Null,
            other => lora_drop_transformer::json::from_str(other).unwrap_or_else(|_| other.into()),
        };
        if variables.insert(name.into(), value).is_some() {
            return refuse("the variable is given twice");
        }
    }
    Ok(variables)
}

/// Largest number of characters that a template without a generation prompt writes before an
/// answer.
const LONGEST_LEAD: usize = 64;

/// Span of an assistant's turn in a conversation's text.
pub(super) struct Answer {
    /// The turn's index; `None` for a `{% generation %}` block.
    pub turn: Option<usize>,
    /// Byte range in the text.
    pub span: Range<usize>,
    /// Whether the whole generation prompt precedes it.
    pub follows_prompt: bool,
}

/// Returns the length in bytes of the longest common prefix of two texts, in whole characters.
fn common_start(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    same.map(|(c, _)| c.len_utf8()).sum()
}

/// Returns the length in bytes of the longest common suffix of two texts, in whole characters.
fn common_end(a: &str, b: &str) -> usize {
    let same = a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b);
    same.map(|(c, _)| c.len_utf8()).sum()
}

/// Chooses the template in the value of `chat_template` in tokenizer_config.json.
fn choose(value: Value) -> Result<String, String> {
    #[derive(serde::Deserialize)]
    struct Named {
        name: String,
        template: String,
    }
    if let Value::String(source) = value {
        return Ok(source);
    }
    let named: Vec<Named> = serde_json::from_value(value)
        .map_err(|e| format!("`chat_template` is neither a text nor a list of named templates: {e}"))?;
    let names: Vec<&str> = named.iter().map(|template| template.name.as_str()).collect();
    let missing = format!("`chat_template` has no template named `default`, but {}", names.join(", "));
    named
        .into_iter()
        .find(|template| template.name == "default")
        .map(|template| template.template)
        .ok_or(missing)
}

/// Removes the marks from a text and returns the byte ranges that they enclosed.
fn take_marks(marked: &str) -> Result<(String, Vec<Range<usize>>), TemplateError> {
    let broken = || {
        TemplateError::new(
            "its generation blocks are not complete in its output; something in it cuts or filters them",
        )
    };
    let mut text = String::with_capacity(marked.len());
    let mut places: Vec<Range<usize>> = Vec::new();
    let mut open = Vec::new();
    for piece in marked.split_inclusive(MARKS) {
        match piece.char_indices().next_back() {
            Some((at, mark)) if mark == MARKS[0] => {
                text.push_str(&piece[..at]);
                open.push(text.len());
            }
            Some((at, mark)) if mark == MARKS[1] => {
                text.push_str(&piece[..at]);
                let start = open.pop().ok_or_else(broken)?;
                // A nested block is a part of the outer one.
                if open.is_empty() && start < text.len() {
                    places.push(start..text.len());
                }
            }
            _ => text.push_str(piece),
        }
    }
    if open.is_empty() { Ok((text, places)) } else { Err(broken()) }
}
