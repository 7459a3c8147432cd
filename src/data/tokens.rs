//! Text → token numbers, by the model's own tokenizer and with its special tokens, cut as transformers cuts.

use std::path::{Path, PathBuf};

use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::utils::truncation::{
    TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};
use tokenizers::{AddedToken, PostProcessor, Tokenizer};

use super::cache::Fingerprint;
use super::error::{Error, Problem};
use crate::panics::caught;

/// A model's tokenizer.
pub struct Tokens {
    pub(super) tokenizer: Tokenizer,
    /// The side that over-long text loses: the right, unless tokenizer_config.json says left.
    pub(super) side: TruncationDirection,
    file: PathBuf,
    /// Of the bytes that it was built from.
    hash: u128,
}

/// One row's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token numbers, special tokens included.
    pub ids: Vec<u32>,
    /// Token types as the tokenizer sets them: 1 for the second text of a pair where the model tells texts apart so.
    /// They mean nothing to a model without token types.
    pub types: Vec<u32>,
    /// Tokens before the row was cut.
    pub length: usize,
}

/// What tokenizer_config.json says beyond tokenizer.json.
#[derive(Default, serde::Deserialize)]
struct TokenizerConfig {
    do_lower_case: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    strip_accents: Option<bool>,
    truncation_side: Option<String>,
}

impl Tokens {
    /// Opens the tokenizer in a model's folder: tokenizer.json, or a BERT model's vocab.txt. Padding and truncation that
    /// tokenizer.json carries are switched off; the caller's limit decides.
    ///
    /// # Errors
    /// Neither file is there, or one is not sound.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let config_file = folder.join("tokenizer_config.json");
        let mut source = Fingerprint::new("tokenizer");
        let config: TokenizerConfig = match std::fs::read(&config_file) {
            Ok(bytes) => {
                source.bytes(&bytes);
                serde_json::from_slice(&bytes).map_err(|e| refuse(&config_file, e.to_string()))?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => TokenizerConfig::default(),
            Err(e) => return Err(Error::io(&config_file, e)),
        };
        let (whole, vocabulary) = (folder.join("tokenizer.json"), folder.join("vocab.txt"));
        let (mut tokenizer, file) = if whole.is_file() {
            let bytes = std::fs::read(&whole).map_err(|e| Error::io(&whole, e))?;
            source.bytes(&bytes);
            let read = caught(|| Tokenizer::from_bytes(bytes)).map_err(|panic| broken(&whole, panic))?;
            (read.map_err(|e| refuse(&whole, e.to_string()))?, whole)
        } else if vocabulary.is_file() {
            let bytes = std::fs::read(&vocabulary).map_err(|e| Error::io(&vocabulary, e))?;
            source.bytes(&bytes);
            (word_piece(&bytes, &config).map_err(|message| refuse(&vocabulary, message))?, vocabulary)
        } else {
            return Err(refuse(&whole, format!("not there; {SAVE_IT}")));
        };
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| refuse(&file, e.to_string()))?;
        // Rules that contradict the vocabulary are found out by the first text; whether that has tokens is the rows' affair.
        let first_text = || [tokenizer.encode_fast("a", true), tokenizer.encode_fast(("a", "a"), true)];
        caught(first_text).map(drop).map_err(|panic| broken(&file, panic))?;
        let side = match config.truncation_side.as_deref() {
            Some("left") => TruncationDirection::Left,
            _ => TruncationDirection::Right,
        };
        Ok(Tokens { tokenizer, side, file, hash: source.finish() })
    }

    /// A tokenizer that was built otherwise, from these bytes; `file` is where it comes from, for messages.
    pub fn of_tokenizer(tokenizer: Tokenizer, file: PathBuf, built_from: &[u8]) -> Self {
        let mut source = Fingerprint::new("tokenizer");
        source.bytes(built_from);
        Tokens { tokenizer, side: TruncationDirection::Right, file, hash: source.finish() }
    }

    /// The tokenizer itself.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Where the tokenizer was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The start of a fingerprint of rows that this tokenizer makes tokens of.
    pub(super) fn fingerprint(&self, kind: &str) -> Fingerprint {
        let mut fingerprint = Fingerprint::new(kind);
        fingerprint.bytes(&self.hash.to_le_bytes());
        fingerprint.number(u64::from(self.side == TruncationDirection::Left));
        fingerprint
    }

    /// Tokens in the vocabulary, the added ones included.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// How many special tokens a single text, or a pair, is given.
    pub fn special_tokens(&self, pair: bool) -> usize {
        self.tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(pair))
    }

    /// Checks that rows of at most `max_length` tokens have room for a token of each text.
    ///
    /// # Errors
    /// They have not.
    pub fn check_max_length(&self, max_length: usize, pair: bool) -> Result<(), Error> {
        let (special, texts) = (self.special_tokens(pair), 1 + usize::from(pair));
        if max_length < special + texts {
            return Err(Error::MaxLength { max_length, special, texts });
        }
        Ok(())
    }

    /// Tokens of a text or a pair, with special tokens, cut to `max_length` (which [`Tokens::check_max_length`] accepts):
    /// of a pair the longer text is cut first, as transformers' `truncation=True` does.
    ///
    /// # Errors
    /// The tokenizer fails, makes no token at all, or one whose number is not below `vocabulary`, the model's.
    pub fn encode(
        &self,
        text: &str,
        pair: Option<&str>,
        max_length: usize,
        vocabulary: usize,
    ) -> Result<Encoded, Problem> {
        let part = |text: &str| self.ask(|tokenizer| tokenizer.encode_fast(text, false));
        let first = part(text)?;
        let second = match pair {
            Some(pair) => {
                let mut second = part(pair)?;
                second.set_type_ids(vec![1; second.len()]);
                Some(second)
            }
            None => None,
        };
        let special = self.special_tokens(pair.is_some());
        let length = first.len() + second.as_ref().map_or(0, |e| e.len()) + special;
        let (first, second) = if length > max_length {
            let cut = TruncationParams {
                max_length: max_length.saturating_sub(special),
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
                direction: self.side,
            };
            self.ask(|_| truncate_encodings(first, second, &cut))?
        } else {
            (first, second)
        };
        let whole = self.ask(|tokenizer| tokenizer.post_process(first, second, true))?;
        let (ids, types) = (whole.get_ids().to_vec(), whole.get_type_ids().to_vec());
        if ids.is_empty() {
            return Err(Problem::NoTokens);
        }
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            let token = self.tokenizer.id_to_token(id).unwrap_or_default();
            return Err(Problem::Vocabulary { token, id, vocabulary });
        }
        Ok(Encoded { ids, types, length })
    }

    /// The text of tokens, special ones left out. Bytes that are no whole character become U+FFFD.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        let decoded = self.ask(|tokenizer| tokenizer.decode(ids, true));
        decoded.map_err(|problem| refuse(&self.file, problem.to_string()))
    }

    /// The text of tokens, special ones too.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn decode_all(&self, ids: &[u32]) -> Result<String, Error> {
        let decoded = self.ask(|tokenizer| tokenizer.decode(ids, false));
        decoded.map_err(|problem| refuse(&self.file, problem.to_string()))
    }

    /// The text that a row's tokens were made of, or both of a pair, as the tokenizer reads them back.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn texts(&self, ids: &[u32]) -> Result<Vec<String>, Error> {
        // Between the tokens that a pair is given beside those of its texts.
        let pair = self.ask(|tokenizer| tokenizer.encode_fast(("a", "a"), true));
        let pair = pair.map_err(|problem| refuse(&self.file, problem.to_string()))?;
        let given = pair.get_ids().iter().zip(pair.get_special_tokens_mask()).filter(|(_, mask)| **mask == 1);
        let marks: Vec<u32> = given.map(|(&id, _)| id).collect();
        let parts = ids.split(|id| marks.contains(id)).filter(|part| !part.is_empty());
        parts.map(|part| self.decode_all(part)).collect()
    }

    /// What the tokenizer answers; a panic in it is an error as well.
    pub(super) fn ask<T>(
        &self,
        question: impl FnOnce(&Tokenizer) -> tokenizers::Result<T>,
    ) -> Result<T, Problem> {
        let answer = caught(|| question(&self.tokenizer)).map_err(|panic| format!("it breaks down: {panic}"));
        answer.and_then(|found| found.map_err(|e| e.to_string())).map_err(Problem::Tokenizer)
    }

    /// The number of a special token, which [`Tokens::decode`] leaves out.
    pub fn special(&self, token: &str) -> Option<u32> {
        let id = self.tokenizer.token_to_id(token)?;
        self.tokenizer.get_added_tokens_decoder().get(&id).filter(|token| token.special).map(|_| id)
    }
}

const SAVE_IT: &str =
    "save the tokenizer with transformers: AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)";

fn refuse(path: &Path, message: String) -> Error {
    Error::Tokenizer { path: path.to_path_buf(), message }
}

/// The error for a tokenizer over which the tokenizers crate panics.
fn broken(path: &Path, panic: String) -> Error {
    refuse(
        path,
        format!("not a sound tokenizer: the tokenizers library breaks down over it ({panic}); {SAVE_IT}"),
    )
}

/// BERT's tokenizer from its list of word pieces, a line each.
fn word_piece(bytes: &[u8], config: &TokenizerConfig) -> Result<Tokenizer, String> {
    let text = |e: tokenizers::Error| e.to_string();
    let vocabulary = WordPiece::read_bytes(bytes).map_err(text)?;
    let number = |token: &str| {
        let number = vocabulary.get(token).copied();
        number.ok_or_else(|| {
            format!("no {token} in it, so it is not BERT's, and tokenizer.json is not there; {SAVE_IT}")
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
