//! Text → token ids, by the model's own tokenizer and with its special tokens, cut as transformers
//! cuts.

mod files;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::utils::truncation::{
    TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};
use tokenizers::{Encoding, PostProcessor, Tokenizer};

use super::cache::Fingerprint;
use super::error::{Error, Problem};
use super::row_text::RowText;
use crate::panics::caught;
use crate::summary::SplitFacts;

/// A model's tokenizer.
pub struct Tokens {
    pub(super) tokenizer: Tokenizer,
    /// The side on which over-long text is cut: the right, unless tokenizer_config.json says left.
    pub(super) side: TruncationDirection,
    /// The token for text that the vocabulary does not have, if there is one.
    unknown: Option<u32>,
    /// Whether it reads a text as if it began with a space, as SentencePiece does.
    adds_space: bool,
    /// The tokenizer of rows that are given as words, built on first use.
    of_words: OnceLock<Tokenizer>,
    file: PathBuf,
    /// Hash of the bytes that the tokenizer was built from.
    hash: u128,
    /// Note for the user about settings in its files that have no effect.
    note: Option<String>,
}

/// One row's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// Token types as the tokenizer sets them: 1 for the second text of a pair, if the model
    /// distinguishes the texts. A model without token types does not read them.
    pub types: Vec<u32>,
    /// Number of tokens before the row was cut. For a row that is far over the limit, the number of
    /// tokens that were made, which is over the limit too.
    pub length: usize,
    /// Whether tokenisation stopped early, so `length` counts only some of the row's tokens.
    pub partly_counted: bool,
    /// For rows that are given as words: the index of each word that has a token, and the index of
    /// its first token.
    pub words: Vec<(u32, u32)>,
}

/// Limits of encoded rows.
#[derive(Clone, Copy, Debug)]
pub struct RowLimits {
    /// Largest number of tokens of a row, special tokens included.
    pub max_length: usize,
    /// Number of tokens that the model has an embedding for.
    pub vocabulary: usize,
    /// Number of token types that the model has an embedding for; `None` if it has no token types.
    pub token_types: Option<usize>,
}

/// A text's tokens, or more than are used from the side that truncation keeps.
pub(super) struct TokenizedPart {
    pub encoding: Encoding,
    /// Whether these are all tokens of the text.
    pub whole: bool,
}

/// Size in bytes, fixed or for each token that is used, below which a text is tokenised whole.
const SMALL: usize = 64 << 10;
const SMALL_PER_TOKEN: usize = 64;
/// Number of tokens near a cut that may differ from the whole text's.
const MARGIN: usize = 64;

impl Tokens {
    /// The tokenizer itself.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether it reads a text as if it began with a space, so that a part of a text has other
    /// tokens by itself.
    pub(super) fn adds_space(&self) -> bool {
        self.adds_space
    }

    /// A note for the user about settings that have no effect.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Returns the file that the tokenizer was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Starts the fingerprint of rows that this tokenizer encodes.
    pub(super) fn fingerprint(&self, kind: &str) -> Fingerprint {
        let mut fingerprint = Fingerprint::new(kind);
        fingerprint.bytes(&self.hash.to_le_bytes());
        fingerprint.number(u64::from(self.side == TruncationDirection::Left));
        fingerprint.number(u64::from(self.adds_space));
        fingerprint
    }

    /// Number of special tokens that are added to a single text, or to a pair.
    pub fn special_tokens(&self, pair: bool) -> usize {
        self.tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(pair))
    }

    /// Checks that rows of at most `max_length` tokens have room for a token of each text.
    ///
    /// # Errors
    /// `Error::MaxLength` if they do not.
    pub fn check_max_length(&self, max_length: usize, pair: bool) -> Result<(), Error> {
        let (special, texts) = (self.special_tokens(pair), 1 + usize::from(pair));
        if max_length < special + texts {
            return Err(Error::MaxLength { max_length, special, texts });
        }
        Ok(())
    }

    /// Encodes a row, for labels of its words or of the whole row; see [`Tokens::encode`] and
    /// [`Tokens::encode_words`].
    ///
    /// # Errors
    /// Those of the two; a row of words if labels are of whole rows, a pair if they are of words.
    pub fn encode_row(&self, row: &RowText, of_words: bool, limits: RowLimits) -> Result<Encoded, Problem> {
        match (row, of_words) {
            (RowText::One(text), false) => self.encode(text, None, limits),
            (RowText::Pair(text, pair), false) => self.encode(text, Some(pair), limits),
            (RowText::Words(_), false) => Err(Problem::Words),
            (_, true) => self.encode_words(&row.words().ok_or(Problem::PairOfWords)?, limits),
        }
    }

    /// Encodes words, each by itself as transformers does with `is_split_into_words=True`, with
    /// special tokens, cut to `max_length`.
    ///
    /// # Errors
    /// Those of [`Tokens::encode`]; no word has a token.
    pub fn encode_words(&self, words: &[&str], limits: RowLimits) -> Result<Encoded, Problem> {
        let special = self.special_tokens(false);
        let room = limits.max_length.saturating_sub(special);
        let tokenizer = self.of_words.get_or_init(|| of_words(&self.tokenizer));
        let (mut parts, mut made, mut read) = (Vec::new(), 0, 0);
        // Nearly every word has a token, so one chunk is enough for a row far over the limit.
        for chunk in words.chunks(room + 1) {
            let mut part = self.ask(|_| tokenizer.encode(chunk, false))?;
            part.get_word_ids_mut().iter_mut().flatten().for_each(|word| *word += read as u32);
            (made, read) = (made + part.len(), read + chunk.len());
            parts.push(part);
            if made > room && self.side == TruncationDirection::Right {
                break;
            }
        }
        let mut whole = Encoding::merge(parts, false);
        if made > room {
            whole.truncate(room, 0, self.side);
            whole.take_overflowing();
        }
        let whole = self.ask(|tokenizer| tokenizer.post_process(whole, None, true))?;
        let mut first: Vec<(u32, u32)> = Vec::new();
        for (place, word) in whole.get_word_ids().iter().enumerate() {
            if let Some(word) = word.filter(|word| first.last().is_none_or(|(last, _)| last != word)) {
                first.push((word, place as u32));
            }
        }
        if first.is_empty() {
            return Err(Problem::NoTokens);
        }
        let encoded = self.checked(&whole, made + special, read < words.len(), limits)?;
        Ok(Encoded { words: first, ..encoded })
    }

    /// Encodes a text or a pair, with special tokens, cut to `max_length` (see
    /// [`Tokens::check_max_length`]). In a pair the longer text is cut first, as with transformers'
    /// `truncation=True`.
    ///
    /// # Errors
    /// The tokenizer fails, makes no token at all, one whose number is not below the model's
    /// `vocabulary`, or one whose type is not below the model's `token_types`, if it has any.
    pub fn encode(&self, text: &str, pair: Option<&str>, limits: RowLimits) -> Result<Encoded, Problem> {
        let max_length = limits.max_length;
        let special = self.special_tokens(pair.is_some());
        let room = max_length.saturating_sub(special);
        let mut first = self.part(text, room)?;
        let mut second = pair.map(|pair| self.part(pair, room)).transpose()?;
        // If both texts are cut and the room is odd, the longer one gets the extra token, so it
        // must be known which one is longer.
        if let Some(second) = second.as_mut()
            && let Some(pair) = pair
            && first.encoding.len().min(second.encoding.len()) > room
        {
            let longer_than =
                |other: &TokenizedPart| if other.whole { other.encoding.len() } else { usize::MAX };
            if !first.whole {
                first = self.part(text, longer_than(second))?;
            }
            if !second.whole {
                *second = self.part(pair, longer_than(&first))?;
            }
        }
        let partly_counted = !first.whole || second.as_ref().is_some_and(|second| !second.whole);
        let (first, second) = (first.encoding, second.map(|second| second.encoding));
        let second = second.map(|mut second| {
            second.set_type_ids(vec![1; second.len()]);
            second
        });
        let length = first.len() + second.as_ref().map_or(0, |e| e.len()) + special;
        let (first, second) = if length > max_length {
            let cut = TruncationParams {
                max_length: room,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
                direction: self.side,
            };
            let (mut first, mut second) = self.ask(|_| truncate_encodings(first, second, &cut))?;
            // An encoding keeps its overflow, and post-processing would join each piece of one text
            // with each of the other.
            first.take_overflowing();
            second.as_mut().map(Encoding::take_overflowing);
            (first, second)
        } else {
            (first, second)
        };
        let whole = self.ask(|tokenizer| tokenizer.post_process(first, second, true))?;
        self.checked(&whole, length, partly_counted, limits)
    }

    /// Returns a row's tokens after checking that the model has embeddings for them.
    fn checked(
        &self,
        whole: &Encoding,
        length: usize,
        partly_counted: bool,
        limits: RowLimits,
    ) -> Result<Encoded, Problem> {
        let RowLimits { vocabulary, token_types, .. } = limits;
        let (ids, types) = (whole.get_ids().to_vec(), whole.get_type_ids().to_vec());
        if ids.is_empty() {
            return Err(Problem::NoTokens);
        }
        self.check_vocabulary(&ids, vocabulary)?;
        let beyond = |known: usize| types.iter().copied().find(|&kind| kind as usize >= known);
        if let Some((kind, known)) = token_types.and_then(|known| Some((beyond(known)?, known))) {
            return Err(Problem::TokenType { kind, known });
        }
        Ok(Encoded { ids, types, length, partly_counted, words: Vec::new() })
    }

    /// Checks that the model has an embedding for every token.
    ///
    /// # Errors
    /// `Problem::Vocabulary` with the first token that it does not have.
    pub(super) fn check_vocabulary(&self, ids: &[u32], vocabulary: usize) -> Result<(), Problem> {
        let unknown = ids.iter().find(|&&id| id as usize >= vocabulary);
        unknown.map_or(Ok(()), |&id| {
            let token = self.tokenizer.id_to_token(id).unwrap_or_default();
            Err(Problem::Vocabulary { token, id, vocabulary })
        })
    }

    /// Returns a text's tokens, without special ones. At most `most` are used: the first or, if the
    /// tokenizer cuts at the start, the last. These are all tokens or, for a much longer text, more
    /// than `most` tokens that equal the whole text's; then the cost depends on `most`. The cost
    /// depends on the text if no part is known to have the same tokens: if a word is longer than a
    /// quarter of the text, and at the end of a text without spaces.
    pub(super) fn part(&self, text: &str, most: usize) -> Result<TokenizedPart, Problem> {
        self.part_of(text, most, small(most), |text| self.ask(|tokenizer| tokenizer.encode_fast(text, false)))
    }

    /// Like [`Tokens::part`], but always from the text's start and with each token's byte offsets.
    /// If the tokenizer cuts at the start, returns the whole text's tokens.
    pub(super) fn start_with_offsets(&self, text: &str, most: usize) -> Result<TokenizedPart, Problem> {
        let encode = |text: &str| self.ask(|tokenizer| tokenizer.encode(text, false));
        match self.side {
            TruncationDirection::Right => self.part_of(text, most, small(most), encode),
            TruncationDirection::Left => Ok(TokenizedPart { encoding: encode(text)?, whole: true }),
        }
    }

    /// Encodes a part of the text if its tokens are the whole text's. The first tokens depend at
    /// most a little on the text after them: tokenizers cut a text into words and encode each word,
    /// or merge neighbours. So the tokens of a part of the text are the whole text's up to a margin
    /// before its end. This is checked with a part of twice the size; if the tokens differ, as in a
    /// word longer than the parts, both sizes are doubled.
    ///
    /// The last tokens are different: in a long run of one character, the tokens depend on where
    /// the run begins. So a part at the end begins at a space between two words.
    fn part_of(
        &self,
        text: &str,
        most: usize,
        small: usize,
        encode: impl Fn(&str) -> Result<Encoding, Problem>,
    ) -> Result<TokenizedPart, Problem> {
        let mut bytes = small / 8;
        let mut shorter: Option<Encoding> = None;
        while text.len() >= small && bytes < text.len() / 4 {
            let Some(part) = self.piece(text, bytes) else { break };
            let mut longer = encode(part)?;
            if let Some(shorter) = shorter
                && shorter.len() > most + MARGIN
                && longer.len() > most + MARGIN
                && self.kept(&shorter, most + 1) == self.kept(&longer, most + 1)
            {
                longer.truncate(most + 1, 0, self.side);
                longer.take_overflowing();
                return Ok(TokenizedPart { encoding: longer, whole: false });
            }
            shorter = Some(longer);
            bytes *= 2;
        }
        Ok(TokenizedPart { encoding: encode(text)?, whole: true })
    }

    /// Returns the start of a text, or its end, of about `bytes` bytes; `None` if the end has no
    /// space at which to begin.
    fn piece<'a>(&self, text: &'a str, bytes: usize) -> Option<&'a str> {
        let boundary = |at: usize| (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        match self.side {
            TruncationDirection::Right => Some(&text[..boundary(bytes)]),
            TruncationDirection::Left => {
                let end = &text[boundary(text.len() - bytes)..];
                let is_word = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
                let mut spaces = end.match_indices(' ').map(|(at, _)| at);
                let between = |at: &usize| {
                    is_word(end[..*at].chars().next_back()) && is_word(end[at + 1..].chars().next())
                };
                spaces.find(between).map(|at| &end[at..])
            }
        }
    }

    /// Ids of the `count` tokens that truncation keeps of an encoding, which has more.
    fn kept<'a>(&self, encoding: &'a Encoding, count: usize) -> &'a [u32] {
        let ids = encoding.get_ids();
        match self.side {
            TruncationDirection::Right => &ids[..count],
            TruncationDirection::Left => &ids[ids.len() - count..],
        }
    }

    /// Decodes tokens, without special ones. Bytes of incomplete characters become U+FFFD.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.text_of(ids, true)
    }

    /// Decodes tokens, with special ones.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub(crate) fn decode_all(&self, ids: &[u32]) -> Result<String, Error> {
        self.text_of(ids, false)
    }

    fn text_of(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        let decoded = self.ask(|tokenizer| tokenizer.decode(ids, skip_special));
        decoded.map_err(|problem| Error::file(&self.file, problem.to_string()))
    }

    /// Decodes a row's tokens to its text, or to both texts of a pair.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn texts(&self, ids: &[u32]) -> Result<Vec<String>, Error> {
        // The special tokens that the tokenizer adds to a pair separate the texts.
        let pair = self.ask(|tokenizer| tokenizer.encode_fast(("a", "a"), true));
        let pair = pair.map_err(|problem| Error::file(&self.file, problem.to_string()))?;
        let given = pair.get_ids().iter().zip(pair.get_special_tokens_mask()).filter(|(_, mask)| **mask == 1);
        let marks: Vec<u32> = given.map(|(&id, _)| id).collect();
        let parts = ids.split(|id| marks.contains(id)).filter(|part| !part.is_empty());
        parts.map(|part| self.decode_all(part)).collect()
    }

    /// Calls the tokenizer; a panic in it becomes an error.
    pub(super) fn ask<T>(
        &self,
        question: impl FnOnce(&Tokenizer) -> tokenizers::Result<T>,
    ) -> Result<T, Problem> {
        let answer = caught(|| question(&self.tokenizer)).map_err(|panic| format!("internal error: {panic}"));
        answer.and_then(|found| found.map_err(|e| e.to_string())).map_err(Problem::Tokenizer)
    }

    /// Counts the tokens that stand for text outside the vocabulary.
    pub(super) fn count_unknown(&self, ids: &[u32]) -> usize {
        self.unknown.map_or(0, |unknown| ids.iter().filter(|&&id| id == unknown).count())
    }

    /// Returns a warning if many tokens are unknown; `None` otherwise.
    pub(super) fn unknown_warning(&self, facts: &SplitFacts) -> Option<String> {
        let share = facts.unknown as f64 / facts.tokens.max(1) as f64;
        let percent = (share * 100.0).round();
        (share >= MANY_UNKNOWN).then(|| {
            format!(
                "{}: {percent} % of the tokens are unknown to the tokenizer ({}), so the model does not see their text; does \
                 the tokenizer fit the texts' language and case?",
                facts.name,
                self.file.display()
            )
        })
    }

    /// Returns the id of a special token; `None` for a token that [`Tokens::decode`] does not skip.
    pub fn special(&self, token: &str) -> Option<u32> {
        let id = self.tokenizer.token_to_id(token)?;
        self.tokenizer.get_added_tokens_decoder().get(&id).filter(|token| token.special).map(|_| id)
    }
}

/// Share of unknown tokens from which a warning is given.
const MANY_UNKNOWN: f64 = 0.2;

/// Builds a tokenizer of single words. Each word gets a leading space if the tokenizer's tokens
/// contain the space before a word, as transformers requires.
fn of_words(tokenizer: &Tokenizer) -> Tokenizer {
    let mut tokenizer = tokenizer.clone();
    if let Some(PreTokenizerWrapper::ByteLevel(bytes)) = tokenizer.get_pre_tokenizer() {
        let bytes = bytes.add_prefix_space(true);
        tokenizer.with_pre_tokenizer(Some(bytes));
    }
    tokenizer
}

/// Returns the bytes below which a text is tokenised whole if `most` of its tokens are used.
fn small(most: usize) -> usize {
    SMALL.max(most.saturating_mul(SMALL_PER_TOKEN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn tokens(normalizer: Value, pre_tokenizer: Value, model: Value, side: TruncationDirection) -> Tokens {
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null, "model": model,
        });
        let tokenizer = tokenizer.to_string().parse().expect("a sound tokenizer");
        Tokens { side, ..Tokens::of_tokenizer(tokenizer, PathBuf::new(), b"") }
    }

    /// Returns a BPE model over these letters with these merges, in order.
    fn bpe(letters: &str, merges: &[(&str, &str)]) -> Value {
        let joined = merges.iter().map(|(a, b)| format!("{a}{b}"));
        let pieces = ["?".to_string()].into_iter().chain(letters.chars().map(String::from)).chain(joined);
        let vocabulary: serde_json::Map<_, _> =
            pieces.enumerate().map(|(i, piece)| (piece, json!(i))).collect();
        json!({ "type": "BPE", "unk_token": "?", "vocab": vocabulary, "merges": merges })
    }

    /// Tokenizers of each kind that models have: WordPiece, byte-level BPE after GPT-2's and Llama
    /// 3's patterns, BPE over the whole text as Llama 2's, Unigram.
    fn kinds(side: TruncationDirection) -> Vec<(&'static str, Tokens)> {
        let marked = [
            ("▁", "▁"),
            ("▁▁", "▁▁"),
            ("a", "b"),
            ("▁", "ab"),
            ("a", "a"),
            ("aa", "aa"),
            ("aaaa", "aaaa"),
            ("1", "2"),
            ("b", "\n"),
        ];
        let bytes = [
            ("Ġ", "a"),
            ("a", "a"),
            ("aa", "aa"),
            ("a", "b"),
            ("1", "2"),
            ("Ġ", "Ġ"),
            ("b", "!"),
            ("Ã", "¼"),
        ];
        let letters = "abĠ12!?ÃĊ¼▁æĹ¥";
        let byte_level = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
        let llama3 = json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "behavior": "Isolated", "invert": false, "pattern": { "Regex":
              "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+" } },
            byte_level(false),
        ] });
        let llama2 = json!({ "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" }, { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] });
        let word_pieces = ["[UNK]", "a", "b", "ab", "##a", "##b", "##ab", "1", "##2", "!", "ü"];
        let vocabulary: serde_json::Map<_, _> =
            word_pieces.iter().enumerate().map(|(i, piece)| (piece.to_string(), json!(i))).collect();
        let word_piece = json!({ "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                                 "max_input_chars_per_word": 100, "vocab": vocabulary });
        let bert = json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                           "strip_accents": null, "lowercase": true });
        let pieces = [
            ("?", 0.0),
            ("▁", -2.0),
            ("a", -3.0),
            ("b", -3.1),
            ("▁a", -2.5),
            ("ab", -4.0),
            ("aa", -4.1),
            ("1", -5.0),
        ];
        let unigram = json!({ "type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false });
        let metaspace =
            json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
        vec![
            ("word pieces", tokens(bert, json!({ "type": "BertPreTokenizer" }), word_piece, side)),
            ("GPT-2", tokens(Value::Null, byte_level(true), bpe(letters, &bytes), side)),
            ("Llama 3", tokens(Value::Null, llama3, bpe(letters, &bytes), side)),
            ("Llama 2", tokens(llama2, Value::Null, bpe("ab▁12!\nü日", &marked), side)),
            ("Unigram", tokens(Value::Null, metaspace, unigram, side)),
        ]
    }

    /// Texts of words, runs of one character, white space, digits, punctuation and multi-byte
    /// characters.
    fn text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            8 => "[ab]{1,6} ",
            3 => "[ab1! \n]{1,9}",
            1 => (prop_oneof!["a", " ", "1", "ab", "12", "!", "ü", "日"], 1usize..400).prop_map(|(s, n)| s.repeat(n)),
            1 => "[ü日a \t]{1,5}",
        ];
        proptest::collection::vec(piece, 1..200).prop_map(|pieces| pieces.concat())
    }

    /// Checks that the used tokens are the same as if the whole text were tokenised; returns
    /// whether it was not.
    fn same_tokens(tokens: &Tokens, text: &str, most: usize) -> bool {
        let encode = |text: &str| tokens.ask(|tokenizer| tokenizer.encode_fast(text, false));
        let part = tokens.part_of(text, most, 64, encode).unwrap();
        let whole = encode(text).unwrap();
        match part.whole {
            true => assert_eq!(part.encoding.get_ids(), whole.get_ids()),
            false => {
                assert!(whole.len() > most);
                assert_eq!(part.encoding.len(), most + 1);
                assert_eq!(part.encoding.get_ids(), tokens.kept(&whole, most + 1));
            }
        }
        !part.whole
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn the_start_or_the_end_alone_gives_the_whole_texts_tokens(text in text(), most in 1usize..80) {
            for side in [TruncationDirection::Right, TruncationDirection::Left] {
                for (_, tokens) in kinds(side) {
                    same_tokens(&tokens, &text, most);
                }
            }
        }
    }

    #[test]
    fn a_long_text_is_not_tokenised_whole() {
        let text = "ab a bb1 12! ü ".repeat(1000);
        for side in [TruncationDirection::Right, TruncationDirection::Left] {
            for (kind, tokens) in kinds(side) {
                assert!(same_tokens(&tokens, &text, 30), "{kind}");
            }
        }
    }

    #[test]
    fn words_are_tokenised_one_by_one() {
        let words = ["ab", "aab", "b1", "a"];
        for side in [TruncationDirection::Right, TruncationDirection::Left] {
            for (kind, tokens) in kinds(side) {
                // Tokens contain the space before a word.
                let space = if kind == "GPT-2" { " " } else { "" };
                let ids = |word: &str| {
                    tokens.part(&format!("{space}{word}"), 99).unwrap().encoding.get_ids().to_vec()
                };
                let each: Vec<(u32, u32)> = (0..)
                    .zip(words)
                    .flat_map(|(number, word)| ids(word).into_iter().map(move |id| (number, id)))
                    .collect();
                for max_length in [99, 5] {
                    let limits = RowLimits { max_length, vocabulary: 100, token_types: None };
                    let found = tokens.encode_words(&words, limits).unwrap();
                    let cut = each.len().saturating_sub(max_length);
                    let kept = if side == TruncationDirection::Left {
                        &each[cut..]
                    } else {
                        &each[..each.len() - cut]
                    };
                    assert_eq!(found.ids, kept.iter().map(|(_, id)| *id).collect::<Vec<_>>(), "{kind}");
                    let first = |i: usize| i == 0 || kept[i - 1].0 != kept[i].0;
                    let places = (0..kept.len()).filter(|&i| first(i)).map(|i| (kept[i].0, i as u32));
                    assert_eq!(found.words, places.collect::<Vec<_>>(), "{kind}");
                    assert_eq!((found.length, found.partly_counted), (each.len(), false), "{kind}");
                }
                let many = vec!["ab"; 10_000];
                let found = tokens
                    .encode_words(&many, RowLimits { max_length: 5, vocabulary: 100, token_types: None });
                assert_eq!(found.unwrap().partly_counted, side == TruncationDirection::Right, "{kind}");
            }
        }
    }

    #[test]
    fn where_a_run_begins_decides_its_end() {
        // Of 4,001 letters the last one is left over, and of 4,000 none.
        for count in [4000, 4001, 4002, 4003] {
            for (_, tokens) in kinds(TruncationDirection::Left) {
                same_tokens(&tokens, &format!("b {}", "a".repeat(count)), 20);
                same_tokens(&tokens, &"1".repeat(count), 20);
            }
        }
    }

    #[test]
    fn pairs_are_cut_as_if_both_were_tokenised_whole() {
        let cut = |first: &str, second: &str, max_length: usize| {
            let (_, tokens) = kinds(TruncationDirection::Right).remove(0);
            let limits = RowLimits { max_length, vocabulary: 100, token_types: None };
            tokens.encode(first, Some(second), limits).unwrap()
        };
        let (huge, larger, small) = ("a b ".repeat(17_000), "b a ".repeat(17_001), "b ".repeat(30));
        // An odd room: the longer text gets the extra token, or the second text if both are equally
        // long.
        for (first, second, of_first) in [
            (&huge, &larger, 5),
            (&larger, &huge, 6),
            (&huge, &huge, 5),
            (&huge, &small, 6),
            (&small, &huge, 5),
        ] {
            let cut = cut(first, second, 11);
            assert_eq!(cut.types.iter().filter(|kind| **kind == 0).count(), of_first);
            assert_eq!(cut.ids.len(), 11);
        }
        let even = cut(&huge, &larger, 10);
        assert_eq!((even.ids.len(), even.types.iter().sum::<u32>()), (10, 5));
        let few = cut("a b", &huge, 10);
        assert_eq!((few.types.iter().sum::<u32>(), few.partly_counted), (8, true));
    }
}
