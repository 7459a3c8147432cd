//! A tokenizer from a model's files: tokenizer.json or a BERT model's vocab.txt, with the additions
//! of tokenizer_config.json and its companions.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lora_drop_transformer::json;
use serde_json::{Map, Value};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{AddedToken, PostProcessor, Tokenizer};

use super::Tokens;
use crate::data::added_tokens::{self, TokenFiles};
use crate::data::cache::Fingerprint;
use crate::data::error::Error;
use crate::data::tokenizer_rules;
use crate::files::read_if_there;
use crate::panics::caught;

/// The settings of tokenizer_config.json that are not in tokenizer.json.
#[derive(Default, serde::Deserialize)]
struct TokenizerConfig {
    do_lower_case: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    strip_accents: Option<bool>,
    truncation_side: Option<String>,
}

impl Tokens {
    /// Opens the tokenizer in a model's folder: tokenizer.json, or a BERT model's vocab.txt.
    /// Padding and truncation that tokenizer.json carries are switched off; the caller's limit
    /// decides. Added and special tokens of tokenizer_config.json, added_tokens.json and
    /// special_tokens_map.json are added as in transformers.
    ///
    /// # Errors
    /// Neither file is there, or one is not valid.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let config_file = folder.join("tokenizer_config.json");
        let mut source = Fingerprint::new("tokenizer");
        let mut object = |path: &Path| -> Result<Map<String, Value>, Error> {
            let bytes = read_if_there(path).map_err(|e| Error::io(path, e))?;
            let Some(bytes) = bytes else { return Ok(Map::new()) };
            source.bytes(&bytes);
            json::from_slice(&bytes).map_err(|e| Error::file(path, e.to_string()))
        };
        let files = TokenFiles {
            config: object(&config_file)?,
            special_tokens_map: object(&folder.join("special_tokens_map.json"))?,
            added_tokens: object(&folder.join("added_tokens.json"))?,
        };
        let asked = ["add_bos_token", "add_eos_token"].map(|key| files.config.get(key) == Some(&true.into()));
        let config: TokenizerConfig = serde_json::from_value(files.config.clone().into())
            .map_err(|e| Error::file(&config_file, e.to_string()))?;
        let (whole, vocabulary) = (folder.join("tokenizer.json"), folder.join("vocab.txt"));
        let (mut tokenizer, file) = if whole.is_file() {
            let bytes = std::fs::read(&whole).map_err(|e| Error::io(&whole, e))?;
            source.bytes(&bytes);
            tokenizer_rules::check(&bytes).map_err(|problem| Error::file(&whole, problem))?;
            let read = caught(|| Tokenizer::from_bytes(bytes)).map_err(|panic| broken(&whole, panic))?;
            (read.map_err(|e| Error::file(&whole, e.to_string()))?, whole)
        } else if vocabulary.is_file() {
            let bytes = std::fs::read(&vocabulary).map_err(|e| Error::io(&vocabulary, e))?;
            source.bytes(&bytes);
            (word_piece(&bytes, &config).map_err(|message| Error::file(&vocabulary, message))?, vocabulary)
        } else {
            return Err(Error::file(&whole, format!("not there; {SAVE_IT}")));
        };
        let added =
            caught(|| added_tokens::add(&mut tokenizer, files)).map_err(|panic| broken(&file, panic))?;
        added.map_err(|problem| Error::file(&config_file, problem))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| Error::file(&file, e.to_string()))?;
        let special =
            [false, true].map(|pair| tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(pair)));
        if special.iter().any(|&count| count > MOST_SPECIAL_TOKENS) {
            let seen = format!("it adds {special:?} special tokens to a text and to a pair");
            return Err(Error::file(
                &file,
                format!("{seen}, expected at most {MOST_SPECIAL_TOKENS}; {SAVE_IT}"),
            ));
        }
        // Encoding a first text reveals rules that contradict the vocabulary. Texts without tokens
        // are reported row by row.
        let first_text = || [tokenizer.encode_fast("a", true), tokenizer.encode_fast(("a", "a"), true)];
        caught(first_text).map(drop).map_err(|panic| broken(&file, panic))?;
        let side = match config.truncation_side.as_deref() {
            Some("left") => TruncationDirection::Left,
            _ => TruncationDirection::Right,
        };
        let (unknown, adds_space) = (unknown_token(&tokenizer), adds_space(&tokenizer));
        let note = unread_note(&tokenizer, asked).map(|note| format!("{}: {note}", config_file.display()));
        let of_words = OnceLock::new();
        Ok(Tokens { unknown, adds_space, tokenizer, side, of_words, file, hash: source.finish(), note })
    }

    /// Wraps a tokenizer that was built from these bytes of `file`, which is named in messages.
    pub(crate) fn of_tokenizer(tokenizer: Tokenizer, file: PathBuf, built_from: &[u8]) -> Self {
        let mut source = Fingerprint::new("tokenizer");
        source.bytes(built_from);
        let (unknown, side) = (unknown_token(&tokenizer), TruncationDirection::Right);
        let (adds_space, of_words) = (adds_space(&tokenizer), OnceLock::new());
        Tokens { tokenizer, side, unknown, adds_space, of_words, file, hash: source.finish(), note: None }
    }
}

/// Returns the token for unknown text, by its usual names; the tokenizers crate does not say which
/// one it is.
fn unknown_token(tokenizer: &Tokenizer) -> Option<u32> {
    ["[UNK]", "<unk>", "<|unk|>", "<UNK>"].into_iter().find_map(|token| tokenizer.token_to_id(token))
}

/// Whether a tokenizer puts a space before a text: by its normalizer or its pre-tokenizer.
fn adds_space(tokenizer: &Tokenizer) -> bool {
    fn puts_one(rule: &Value) -> bool {
        let is = |key: &str, value: &str| rule.get(key).and_then(Value::as_str) == Some(value);
        let own = match rule.get("type").and_then(Value::as_str) {
            Some("Prepend") => true,
            Some("Metaspace") => !is("prepend_scheme", "never"),
            Some("ByteLevel") => rule.get("add_prefix_space").and_then(Value::as_bool) == Some(true),
            _ => false,
        };
        let parts = ["normalizers", "pretokenizers"].into_iter().filter_map(|key| rule.get(key)?.as_array());
        own || parts.flatten().any(puts_one)
    }
    let rules = [
        tokenizer.get_normalizer().and_then(|rule| serde_json::to_value(rule).ok()),
        tokenizer.get_pre_tokenizer().and_then(|rule| serde_json::to_value(rule).ok()),
    ];
    rules.iter().flatten().any(puts_one)
}

/// Returns a note if `add_bos_token` or `add_eos_token` is set but tokenizer.json does not put the
/// token there: transformers 5 reads only tokenizer.json.
fn unread_note(tokenizer: &Tokenizer, [begin, end]: [bool; 2]) -> Option<String> {
    let mask = tokenizer.encode_fast("a", true).ok()?.get_special_tokens_mask().to_vec();
    let puts = [mask.first(), mask.last()].map(|mask| mask == Some(&1));
    let keys = [("add_bos_token", begin, puts[0]), ("add_eos_token", end, puts[1])];
    let unread: Vec<&str> =
        keys.into_iter().filter(|(_, asked, puts)| *asked && !puts).map(|(key, ..)| key).collect();
    (!unread.is_empty()).then(|| {
        format!(
            "{} has no effect, because tokenizer.json does not put that token into a text (its post_processor); \
             transformers 5 reads it in the same way, versions before 5 added the token",
            unread.join(" and ")
        )
    })
}

/// Largest number of special tokens; any model's template adds fewer.
const MOST_SPECIAL_TOKENS: usize = 1024;

const SAVE_IT: &str =
    "save the tokenizer with transformers: AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)";

/// Returns the error for a tokenizer on which the tokenizers crate panics.
fn broken(path: &Path, panic: String) -> Error {
    Error::file(
        path,
        format!("not a valid tokenizer: the tokenizers library fails on it ({panic}); {SAVE_IT}"),
    )
}

/// Builds BERT's tokenizer from its list of word pieces, one a line.
fn word_piece(bytes: &[u8], config: &TokenizerConfig) -> Result<Tokenizer, String> {
    let text = |e: tokenizers::Error| e.to_string();
    let vocabulary = WordPiece::read_bytes(bytes).map_err(text)?;
    let number = |token: &str| {
        let number = vocabulary.get(token).copied();
        number.ok_or_else(|| {
            format!(
                "it has no {token}, so it is not a BERT vocabulary, and there is no tokenizer.json; {SAVE_IT}"
            )
        })
    };
    let (cls, sep) = (number("[CLS]")?, number("[SEP]")?);
    number("[UNK]")?;
    let special: Vec<AddedToken> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .into_iter()
        .filter(|token| vocabulary.contains_key(*token))
        .map(|token| AddedToken::from(token, true))
        .collect();
    let template = TemplateProcessing::builder()
        .try_single("[CLS] $A [SEP]")
        .and_then(|builder| builder.try_pair("[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"))?
        .special_tokens(vec![("[CLS]", cls), ("[SEP]", sep)])
        .build()
        .map_err(|e| e.to_string())?;
    let normalizer = BertNormalizer::new(
        true,
        config.tokenize_chinese_chars.unwrap_or(true),
        config.strip_accents,
        config.do_lower_case.unwrap_or(true),
    );
    let model = WordPiece::builder().vocab(vocabulary).unk_token("[UNK]".into()).build().map_err(text)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(normalizer)).map_err(text)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer)).with_post_processor(Some(template));
    tokenizer.add_special_tokens(special).map_err(text)?;
    Ok(tokenizer)
}
