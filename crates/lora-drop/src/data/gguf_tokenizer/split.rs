//! How byte-level BPE's text is split into words before merging, by the names that GGUF files have
//! for the kinds.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::normalizer::NormalizedString;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

/// A kind of splitting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitKind {
    /// GPT-2: words, numbers and signs, each with a space before it.
    Gpt2,
    /// Digits one by one, and the rest as GPT-2.
    Smollm,
    /// Llama 3: up to three digits.
    Llama3,
    /// Qwen 2 to 3: digits one by one, and text composed (NFC) first.
    Qwen2,
    /// Mistral's Tekken: words also split where capitals start, digits one by one.
    Tekken,
}

const NAMES: [(&str, SplitKind); 10] = [
    ("default", SplitKind::Gpt2),
    ("gpt-2", SplitKind::Gpt2),
    ("gpt2", SplitKind::Gpt2),
    ("smollm", SplitKind::Smollm),
    ("llama-bpe", SplitKind::Llama3),
    ("llama3", SplitKind::Llama3),
    ("llama-v3", SplitKind::Llama3),
    ("qwen2", SplitKind::Qwen2),
    ("deepseek-r1-qwen", SplitKind::Qwen2),
    ("tekken", SplitKind::Tekken),
];

/// Endings of English verbs and pronouns, words with one sign before them.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
/// Capitals and then small letters, or capitals alone with small letters after them if there are
/// any.
const CASED_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*";
/// Line ends with what white space stands before them; white space but its last character, which
/// joins the next word.
const SPACES: &str = r"\s*[\r\n]+|\s+(?!\S)|\s+";

impl SplitKind {
    /// The kind that `tokenizer.ggml.pre` names.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// The pattern of a word; `None` where GPT-2's, which the library has, is used.
    fn pattern(self) -> Option<String> {
        const SIGNS: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*";
        match self {
            SplitKind::Gpt2 | SplitKind::Smollm => None,
            SplitKind::Llama3 => Some([WORDS, r"\p{N}{1,3}", SIGNS, SPACES].join("|")),
            SplitKind::Qwen2 => Some([WORDS, r"\p{N}", SIGNS, SPACES].join("|")),
            SplitKind::Tekken => {
                Some([CASED_WORDS, r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", SPACES].join("|"))
            }
        }
    }

    pub(super) fn pre_tokenizer(self) -> Result<PreTokenizerWrapper, String> {
        let gpt2 = ByteLevel::new(false, true, true);
        Ok(match (self, self.pattern()) {
            (SplitKind::Smollm, _) => sequence(Digits::new(true).into(), gpt2),
            (_, None) => gpt2.into(),
            (_, Some(pattern)) => {
                let words = Split::new(SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated, false);
                sequence(words.map_err(|e| e.to_string())?.into(), gpt2.use_regex(false))
            }
        })
    }

    /// Whether a word that is a token is taken whole, even where the merges do not lead to it.
    pub(super) fn ignores_merges(self) -> bool {
        matches!(self, SplitKind::Llama3 | SplitKind::Tekken)
    }

    /// Whether text is composed (NFC) first.
    pub(super) fn composes(self) -> bool {
        self == SplitKind::Qwen2
    }

    /// Whether texts start with a bos token when the file does not say.
    pub(super) fn adds_bos(self) -> bool {
        matches!(self, SplitKind::Llama3 | SplitKind::Tekken)
    }
}

fn sequence(first: PreTokenizerWrapper, then: ByteLevel) -> PreTokenizerWrapper {
    Sequence::new(vec![first, then.into()]).into()
}

/// The text as byte-level BPE spells it, a character for each byte.
pub(super) fn in_byte_alphabet(text: &str) -> Result<String, String> {
    let mut spelled = PreTokenizedString::from(NormalizedString::from(text));
    ByteLevel::new(false, true, false).pre_tokenize(&mut spelled).map_err(|e| e.to_string())?;
    let splits = spelled.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    Ok(splits.into_iter().map(|(piece, _, _)| piece).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(kind: SplitKind, text: &str) -> Vec<String> {
        let mut splits = PreTokenizedString::from(text);
        kind.pre_tokenizer().unwrap().pre_tokenize(&mut splits).unwrap();
        let splits = splits.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (from, to), _)| text[from..to].to_string()).collect()
    }

    #[test]
    fn numbers_tell_the_kinds_apart() {
        let text = "a 1234's";
        assert_eq!(words(SplitKind::Gpt2, text), ["a", " 1234", "'s"]);
        assert_eq!(words(SplitKind::Smollm, text), ["a", " ", "1", "2", "3", "4", "'s"]);
        assert_eq!(words(SplitKind::Llama3, text), ["a", " ", "123", "4", "'s"]);
        assert_eq!(words(SplitKind::Qwen2, text), ["a", " ", "1", "2", "3", "4", "'s"]);
        assert_eq!(words(SplitKind::Tekken, text), ["a", " ", "1", "2", "3", "4", "'s"]);
    }

    #[test]
    fn capitals_and_line_ends_tell_the_kinds_apart() {
        assert_eq!(words(SplitKind::Llama3, "HelloWorld ."), ["HelloWorld", " ."]);
        assert_eq!(words(SplitKind::Tekken, "HelloWorld ."), ["Hello", "World", " ."]);
        assert_eq!(words(SplitKind::Llama3, "IT'S\n\nx"), ["IT", "'S", "\n\n", "x"]);
        assert_eq!(words(SplitKind::Gpt2, "IT'S\n\nx"), ["IT", "'", "S", "\n", "\n", "x"]);
        assert_eq!(words(SplitKind::Tekken, "a.//b"), ["a", ".//", "b"]);
    }

    #[test]
    fn bytes_are_spelled_by_characters() {
        assert_eq!(in_byte_alphabet(" é\n").unwrap(), "ĠÃ©Ċ");
    }
}
