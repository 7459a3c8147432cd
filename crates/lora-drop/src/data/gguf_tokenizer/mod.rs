//! The tokenizer that a GGUF file carries in its metadata: byte-level BPE (`gpt2`) and
//! SentencePiece's BPE (`llama`).
//!
//! The file only names the rule that splits text before BPE (`tokenizer.ggml.pre`). So the known
//! rules are listed in `split`, and an unknown name is an error rather than a source of wrong
//! tokens.

mod files;
mod metadata;
mod sentence_piece;
mod split;

use std::collections::HashSet;

use lora_drop_transformer::gguf::{Gguf, Value};
use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use super::error::Error;
pub(crate) use files::WRITTEN_FILES;
pub use files::write_tokenizer;
pub use metadata::tokenizer_metadata;
use split::KINDS;

/// A GGUF file's tokenizer and what the metadata say about it.
#[derive(Clone, Debug)]
pub struct GgufTokenizer {
    /// Adds the file's special tokens at the start and end of a text where the file wants them.
    pub tokenizer: Tokenizer,
    /// `tokenizer.chat_template`, a Jinja template.
    pub chat_template: Option<String>,
    /// Id of the token that begins a text.
    pub bos: Option<u32>,
    /// Id of the token that ends a text.
    pub eos: Option<u32>,
    /// Id of the token for text that the vocabulary does not cover.
    pub unknown: Option<u32>,
    /// Id of the padding token.
    pub padding: Option<u32>,
}

/// Token types as numbered by `tokenizer.ggml.token_type`.
mod token_type {
    pub const NORMAL: i64 = 1;
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    pub const UNUSED: i64 = 5;
    pub const BYTE: i64 = 6;
}

impl GgufTokenizer {
    /// Builds the tokenizer.
    ///
    /// # Errors
    /// A key is missing, of another type, or contradicts another; the kind of tokenizer or of
    /// splitting is unknown (the message lists the known ones).
    pub fn read(file: &Gguf) -> Result<Self, Error> {
        Metadata { file }.tokenizer().map_err(|message| Error::file(file.path(), message))
    }
}

/// Reader of the tokenizer's keys. Errors are plain texts, to which `read` adds the file's name.
struct Metadata<'a> {
    file: &'a Gguf,
}

impl Metadata<'_> {
    fn tokenizer(&self) -> Result<GgufTokenizer, String> {
        let tokens = self.strings("tokenizer.ggml.tokens")?;
        if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
            return Err(format!("tokenizer.ggml.tokens has {} tokens", tokens.len()));
        }
        let mut seen = HashSet::with_capacity(tokens.len());
        if let Some((id, token)) = tokens.iter().enumerate().find(|(_, t)| !seen.insert(t.as_str())) {
            return Err(format!("tokenizer.ggml.tokens has the token {token:?} twice (the second is {id})"));
        }
        let kinds = match self.file.value("tokenizer.ggml.token_type") {
            None => vec![token_type::NORMAL; tokens.len()],
            Some(value) => value.as_integers().filter(|v| v.len() == tokens.len()).ok_or_else(|| {
                format!("tokenizer.ggml.token_type is {value}, expected {} integers", tokens.len())
            })?,
        };
        let [bos, eos, unknown, padding] =
            ["bos", "eos", "unknown", "padding"].map(|name| self.token_id(name, tokens));
        let model = self.text("tokenizer.ggml.model")?;
        let (mut tokenizer, adds_bos) = match model {
            "gpt2" => self.byte_level(tokens, &kinds)?,
            "llama" => (self.sentence_piece(tokens, unknown)?, true),
            other => {
                return Err(format!("tokenizer.ggml.model is {other:?}, expected gpt2 or llama"));
            }
        };
        add_tokens(&mut tokenizer, tokens, &kinds, [bos, eos, unknown, padding])?;
        let add_bos = self.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos);
        let add_eos = self.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        let frame = |wanted: bool, id: Option<u32>, key: &str| match (wanted, id) {
            (false, _) => Ok(None),
            (true, Some(id)) => Ok(Some((tokens[id as usize].clone(), id))),
            (true, None) => {
                let key = format!("tokenizer.ggml.{key}_token_id");
                let seen = self.file.value(&key).map_or("missing".into(), Value::to_string);
                let most = tokens.len();
                Err(format!(
                    "the tokenizer adds this token to texts, but {key} is {seen}, expected a number below {most}"
                ))
            }
        };
        let start = frame(add_bos, bos, "bos")?;
        let end = frame(add_eos, eos, "eos")?;
        if start.is_some() || end.is_some() {
            tokenizer.with_post_processor(Some(frame_with(start, end)?));
        }
        let chat_template = match self.file.value("tokenizer.chat_template") {
            None => None,
            Some(_) => Some(self.text("tokenizer.chat_template")?.to_string()),
        };
        Ok(GgufTokenizer { tokenizer, chat_template, bos, eos, unknown, padding })
    }

    /// Builds byte-level BPE; returns also whether texts start with a bos token if the file does
    /// not say.
    fn byte_level(&self, tokens: &[String], kinds: &[i64]) -> Result<(Tokenizer, bool), String> {
        const PRE: &str = "tokenizer.ggml.pre";
        if self.file.value(PRE).is_none() {
            return Err(format!(
                "{PRE} is missing, as in files of old converters; without it the tokens are unknown: convert the model \
                 again"
            ));
        }
        let pre = self.text(PRE)?;
        let kind = KINDS.iter().find(|kind| kind.names.contains(&pre)).ok_or_else(|| {
            let names: Vec<&str> = KINDS.iter().flat_map(|kind| kind.names).copied().collect();
            format!("{PRE} is {pre:?}, expected one of {}", names.join(", "))
        })?;
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let mut vocabulary = Vocab::default();
        for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
            // Some converters write ordinary tokens as plain text, which only special ones should
            // be.
            let plain = !token.chars().all(|c| alphabet.contains(&c));
            let spelled = match *kind {
                token_type::UNKNOWN | token_type::CONTROL | token_type::USER_DEFINED => token.clone(),
                _ if plain => split::in_byte_alphabet(token)?,
                _ => token.clone(),
            };
            if vocabulary.insert(spelled, id as u32).is_some() {
                return Err(format!(
                    "token {id} of tokenizer.ggml.tokens, {token:?}, occurs in two spellings"
                ));
            }
        }
        let merges = self.merges(&vocabulary)?.ok_or("tokenizer.ggml.merges is missing")?;
        let model = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(kind.ignores_merges);
        let mut tokenizer = Tokenizer::new(model.build().map_err(text)?);
        if kind.composes {
            tokenizer.with_normalizer(Some(tokenizers::normalizers::unicode::NFC)).map_err(text)?;
        }
        tokenizer.with_pre_tokenizer(Some(kind.pre_tokenizer()?)).with_decoder(Some(ByteLevel::default()));
        Ok((tokenizer, kind.adds_bos))
    }

    fn sentence_piece(&self, tokens: &[String], unknown: Option<u32>) -> Result<Tokenizer, String> {
        let vocabulary: Vocab = tokens.iter().cloned().zip(0..).collect();
        let merges = match self.merges(&vocabulary)? {
            Some(merges) => merges,
            None => {
                let key = "tokenizer.ggml.scores";
                let value = self.file.value(key).ok_or_else(|| format!("{key} is missing"))?;
                let scores = value.as_f32s().filter(|scores| scores.len() == tokens.len());
                let scores =
                    scores.ok_or_else(|| format!("{key} is {value}, expected {} f32", tokens.len()))?;
                if let Some(id) = scores.iter().position(|score| score.is_nan()) {
                    return Err(format!("{key}: the score of token {id} is not a number"));
                }
                sentence_piece::merges(tokens, scores, &vocabulary)
            }
        };
        let prefix = self.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let unknown = unknown.map(|id| tokens[id as usize].clone());
        sentence_piece::tokenizer(vocabulary, merges, unknown, prefix)
    }

    /// Reads `tokenizer.ggml.merges`, whose parts and results must all be tokens; `None` if the
    /// file has no merges.
    fn merges(&self, vocabulary: &Vocab) -> Result<Option<Merges>, String> {
        let key = "tokenizer.ggml.merges";
        if self.file.value(key).is_none() {
            return Ok(None);
        }
        let pair = |(number, line): (usize, &String)| {
            let wrong = |problem| format!("{key}: merge {number}, {line:?}, {problem}");
            let (left, right) = line.split_once(' ').ok_or_else(|| wrong("is no pair"))?;
            // The library's builder does not check this.
            if ![left, right, &format!("{left}{right}")].iter().all(|token| vocabulary.contains_key(*token)) {
                return Err(wrong("has a part or a result that is not in tokenizer.ggml.tokens"));
            }
            Ok((left.to_string(), right.to_string()))
        };
        self.strings(key)?.iter().enumerate().map(pair).collect::<Result<_, _>>().map(Some)
    }

    fn strings(&self, key: &str) -> Result<&[String], String> {
        let value = self.file.value(key).ok_or_else(|| format!("{key} is missing"))?;
        value.as_strings().ok_or_else(|| wrong_type(key, value, "an array of strings"))
    }

    fn text(&self, key: &str) -> Result<&str, String> {
        let value = self.file.value(key).ok_or_else(|| format!("{key} is missing"))?;
        value.as_str().ok_or_else(|| wrong_type(key, value, "a string"))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        let flag = |value: &Value| value.as_bool().ok_or_else(|| wrong_type(key, value, "a bool"));
        self.file.value(key).map(flag).transpose()
    }

    /// Reads `tokenizer.ggml.{name}_token_id`; `None` if it is not in the list of tokens, about
    /// which the model's configuration warns.
    fn token_id(&self, name: &str, tokens: &[String]) -> Option<u32> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let id = self.file.value(&key)?.as_u64().and_then(|id| u32::try_from(id).ok());
        id.filter(|id| (*id as usize) < tokens.len())
    }
}

/// Adds the tokens that are found in text before it is split: control tokens and those of the
/// `named` ids, which are special, and the user's, which are not.
fn add_tokens(
    tokenizer: &mut Tokenizer,
    tokens: &[String],
    kinds: &[i64],
    named: [Option<u32>; 4],
) -> Result<(), String> {
    let (mut special, mut user) = (Vec::new(), Vec::new());
    for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
        let is_named = named.contains(&Some(id as u32));
        // A token without text cannot be found; one that is spelled differently is not special to
        // the model.
        if token.is_empty() || tokenizer.token_to_id(token) != Some(id as u32) {
            continue;
        }
        match *kind {
            token_type::USER_DEFINED if !is_named => {
                user.push(AddedToken::from(token.clone(), false).normalized(false));
            }
            token_type::CONTROL | token_type::UNKNOWN => special.push(AddedToken::from(token.clone(), true)),
            _ if is_named => special.push(AddedToken::from(token.clone(), true)),
            _ => {}
        }
    }
    tokenizer.add_special_tokens(special).map_err(text)?;
    tokenizer.add_tokens(user).map_err(text)?;
    Ok(())
}

/// Builds the processor that puts tokens before and after each text, also each of a pair. It is
/// built as JSON because the library's builder would parse a token such as `$b` or `x:1` as syntax.
fn frame_with(
    start: Option<(String, u32)>,
    end: Option<(String, u32)>,
) -> Result<TemplateProcessing, String> {
    let special = |token: &Option<(String, u32)>| {
        token.as_ref().map(|(text, _)| json!({ "SpecialToken": { "id": text, "type_id": 0 } }))
    };
    let one = |sequence: &str, kind: u32| {
        let text = json!({ "Sequence": { "id": sequence, "type_id": kind } });
        [special(&start), Some(text), special(&end)].into_iter().flatten().collect::<Vec<_>>()
    };
    let tokens = start.iter().chain(&end);
    let tokens =
        tokens.map(|(text, id)| (text.clone(), json!({ "id": text, "ids": [id], "tokens": [text] })));
    let pair = [one("A", 0), one("B", 1)].concat();
    let frame = json!({
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": pair,
        "special_tokens": tokens.collect::<serde_json::Map<_, _>>(),
    });
    serde_json::from_value(frame).map_err(|e| e.to_string())
}

fn wrong_type(key: &str, value: &Value, expected: &str) -> String {
    format!("{key} is {value} ({}), expected {expected}", value.type_name())
}

fn text(error: tokenizers::Error) -> String {
    error.to_string()
}
