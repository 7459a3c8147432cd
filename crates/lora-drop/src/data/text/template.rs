//! Chat templates: a model's own Jinja text that writes a conversation as the model is used to
//! reading it, rendered as transformers renders it. Templates are foreign code: `renderer` runs
//! them, within limits of time and memory.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Map;

use super::error::TemplateError;
use super::messages::Message;
use super::renderer::{Conversation, Renderers, Source};
use crate::data::error::Error;

/// What marks the ends of a `{% generation %}` block in the output: two code points that Unicode
/// keeps from being characters, so no text has them.
pub(super) const MARKS: [char; 2] = ['\u{10fffe}', '\u{10ffff}'];

/// A template, ready to render.
pub struct ChatTemplate {
    renderers: Renderers,
    special: SpecialTokens,
    marks_turns: bool,
    writes_date: bool,
    /// Where it was read, for messages.
    file: Option<PathBuf>,
}

/// The special tokens' texts by the names that templates know them by: `bos_token`, `eos_token`,
/// ...
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens(pub Vec<(String, String)>);

impl SpecialTokens {
    const NAMES: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

    /// Reads a model folder's tokenizer_config.json, and special_tokens_map.json for what is not in
    /// it. Empty where there is neither.
    ///
    /// # Errors
    /// A file is not readable or is not JSON.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let mut tokens = SpecialTokens::default();
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let Some(config) = json_file(&folder.join(file))? else { continue };
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

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }
}

impl ChatTemplate {
    /// Reads the template in a model's folder (see [`ChatTemplate::source`]). None where there is
    /// none.
    ///
    /// # Errors
    /// A file is not readable, or the template is not sound.
    pub fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let Some((file, source)) = ChatTemplate::source(folder)? else { return Ok(None) };
        let template = ChatTemplate::parse(&source, SpecialTokens::read(folder)?);
        let template = template.map_err(|e| Error::file(&file, format!("chat template: {e}")))?;
        Ok(Some(template.of_file(file)))
    }

    /// The template's text in a model's folder, and its file: chat_template.jinja, or
    /// `chat_template` in tokenizer_config.json, which is one template or a list of named ones, of
    /// which `default` is taken.
    ///
    /// # Errors
    /// A file is not readable, or has neither.
    pub fn source(folder: &Path) -> Result<Option<(PathBuf, String)>, Error> {
        let own = folder.join("chat_template.jinja");
        match std::fs::read_to_string(&own) {
            Ok(source) => Ok(Some((own, source))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let file = folder.join("tokenizer_config.json");
                match json_file(&file)?.map(|mut config| config["chat_template"].take()) {
                    None | Some(serde_json::Value::Null) => Ok(None),
                    Some(value) => {
                        let source = choose(value).map_err(|e| Error::file(&file, e))?;
                        Ok(Some((file, source)))
                    }
                }
            }
            Err(e) => Err(Error::io(&own, e)),
        }
    }

    /// Compiles a template's text, as from a GGUF file's metadata.
    ///
    /// # Errors
    /// It is no sound Jinja: the message has the line. It takes more time or memory than any
    /// template can need.
    pub fn parse(source: &str, special: SpecialTokens) -> Result<Self, TemplateError> {
        // Jinja reads every end of line as a line feed. The tag `generation` is transformers' own,
        // so that the parser is given a filter in its place, on the same line, and a scope as
        // Jinja's call blocks have it.
        static LINE_ENDS: LazyLock<Regex> = LazyLock::new(|| Regex::new("\r\n?").expect("a sound pattern"));
        static TAG: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("a sound pattern")
        });
        let source = LINE_ENDS.replace_all(source, "\n");
        let marks_turns = TAG.is_match(&source);
        let source = TAG.replace_all(&source, |tag: &regex::Captures| {
            let [before, end, behind] = [1, 2, 3].map(|group| tag.get(group).map_or("", |m| m.as_str()));
            match end {
                "" => format!("{{%{before} with %}}{{% filter __generation {behind}%}}"),
                _ => format!("{{%{before} endfilter %}}{{% endwith {behind}%}}"),
            }
        });
        let writes_date = source.contains("strftime_now");
        let source = Source { text: source.into_owned(), special: special.0.clone(), time: None };
        let renderers = Renderers::start(source)?;
        Ok(ChatTemplate { renderers, special, marks_turns, writes_date, file: None })
    }

    /// Names the file that it was read from in its errors.
    pub fn of_file(mut self, file: PathBuf) -> Self {
        self.file = Some(file);
        self
    }

    /// Fixes the time that `strftime_now` sees, in seconds since 1970 (UTC). Without it, that is
    /// each rendering's own time.
    pub fn at_time(mut self, seconds: i64) -> Self {
        self.renderers.fix_time(seconds);
        self
    }

    /// Whether the template marks what the assistant says with `{% generation %}`.
    pub fn marks_turns(&self) -> bool {
        self.marks_turns
    }

    /// Whether the template asks for the date and has no fixed one, so that its text may be another
    /// tomorrow.
    pub fn writes_date(&self) -> bool {
        self.writes_date && self.renderers.source().time.is_none()
    }

    /// Whether the template asks for the date, a fixed one or not.
    pub(super) fn reads_clock(&self) -> bool {
        self.writes_date
    }

    /// The template's text as the engine has it.
    pub(super) fn text(&self) -> &str {
        &self.renderers.source().text
    }

    /// The special tokens that it was given.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Writes a conversation; with `add_generation_prompt` up to where the assistant's answer
    /// begins.
    ///
    /// # Errors
    /// The template fails or refuses the conversation, or needs more work or room than a
    /// conversation can need.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        Ok(self.render_marked(messages, add_generation_prompt)?.0)
    }

    /// Like [`ChatTemplate::render`], and where the `{% generation %}` blocks lie in the text, in
    /// bytes.
    ///
    /// # Errors
    /// As for [`ChatTemplate::render`].
    pub fn render_marked(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<(String, Vec<Range<usize>>), TemplateError> {
        let turns: Vec<serde_json::Value> = messages.iter().map(Message::to_json).collect();
        let turns = serde_json::Value::Array(turns);
        let written = turns.to_string();
        if written.contains(MARKS) {
            return Err(TemplateError::new(
                "the conversation holds U+10FFFE or U+10FFFF, which are no characters; remove them",
            ));
        }
        let conversation = Conversation { messages: turns, add_generation_prompt, length: written.len() };
        let text = self.renderers.render(conversation);
        let text =
            text.and_then(|text| if self.marks_turns { take_marks(&text) } else { Ok((text, Vec::new())) });
        text.map_err(|e| TemplateError { file: self.file.clone(), ..e })
    }
}

/// A file's JSON object; None where there is no such file.
fn json_file(file: &Path) -> Result<Option<serde_json::Value>, Error> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(file, e)),
    };
    let value: Map<String, serde_json::Value> = lora_drop_transformer::json::from_slice(&bytes)
        .map_err(|e| Error::file(file, format!("not a JSON object: {e}")))?;
    Ok(Some(value.into()))
}

/// The template in tokenizer_config.json's value.
fn choose(value: serde_json::Value) -> Result<String, String> {
    #[derive(serde::Deserialize)]
    struct Named {
        name: String,
        template: String,
    }
    if let serde_json::Value::String(source) = value {
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

/// Takes the marks out of a text and gives the places that they enclosed.
fn take_marks(marked: &str) -> Result<(String, Vec<Range<usize>>), TemplateError> {
    let odd = || {
        TemplateError::new(
            "its generation blocks do not come out whole; something in it cuts or filters them",
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
                let start = open.pop().ok_or_else(odd)?;
                // A block within a block is a part of it.
                if open.is_empty() && start < text.len() {
                    places.push(start..text.len());
                }
            }
            _ => text.push_str(piece),
        }
    }
    if open.is_empty() { Ok((text, places)) } else { Err(odd()) }
}
