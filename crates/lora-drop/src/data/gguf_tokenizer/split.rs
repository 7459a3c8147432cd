//! Rules that split text into words before byte-level BPE merges, under the names that GGUF files
//! give them.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::normalizer::NormalizedString;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

use super::text;

/// English contractions, and runs of letters with at most one sign or space before them.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
/// Any capitals followed by small letters, or capitals followed by any small letters, so a new word
/// starts at a capital after a small letter.
const CASED_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*";
/// Line ends with the white space before them; white space without its last character, which joins
/// the next word.
const SPACES: &str = r"\s*[\r\n]+|\s+(?!\S)|\s+";

const SIGNS: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*";

/// A rule that splits text into words.
pub(super) struct SplitKind {
    /// Its names in `tokenizer.ggml.pre`; the first one is written.
    pub names: &'static [&'static str],
    words: Words,
    /// Whether a word that is a token is taken whole, even if the merges do not produce it.
    pub ignores_merges: bool,
    /// Whether text is composed (NFC) first.
    pub composes: bool,
    /// Whether texts start with a bos token when the file does not say.
    pub adds_bos: bool,
}

/// Definition of a word.
enum Words {
    /// As in GPT-2: words, numbers and signs, each with the space before it.
    Gpt2,
    /// As in GPT-2, but single digits.
    SingleDigits,
    /// A match of one of these patterns.
    Patterns([&'static str; 4]),
}

/// All rules, in the order in which a tokenizer is compared with them.
pub(super) static KINDS: [SplitKind; 5] = [
    SplitKind {
        names: &["smollm"],
        words: Words::SingleDigits,
        ignores_merges: false,
        composes: false,
        adds_bos: false,
    },
    // Llama 3: up to three digits.
    SplitKind {
        names: &["llama-bpe", "llama3", "llama-v3"],
        words: Words::Patterns([WORDS, r"\p{N}{1,3}", SIGNS, SPACES]),
        ignores_merges: true,
        composes: false,
        adds_bos: true,
    },
    // Qwen 2 to 3: single digits.
    SplitKind {
        names: &["qwen2", "deepseek-r1-qwen"],
        words: Words::Patterns([WORDS, r"\p{N}", SIGNS, SPACES]),
        ignores_merges: false,
        composes: true,
        adds_bos: false,
    },
    // Mistral: words are also split where capitals start; single digits.
    SplitKind {
        names: &["tekken"],
        words: Words::Patterns([CASED_WORDS, r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", SPACES]),
        ignores_merges: true,
        composes: false,
        adds_bos: true,
    },
    SplitKind {
        names: &["gpt-2", "gpt2", "default"],
        words: Words::Gpt2,
        ignores_merges: false,
        composes: false,
        adds_bos: false,
    },
];

impl SplitKind {
    pub fn pre_tokenizer(&self) -> Result<PreTokenizerWrapper, String> {
        let gpt2 = ByteLevel::new(false, true, true);
        Ok(match &self.words {
            Words::Gpt2 => gpt2.into(),
            Words::SingleDigits => sequence(Digits::new(true).into(), gpt2),
            Words::Patterns(patterns) => {
                let pattern = SplitPattern::Regex(patterns.join("|"));
                let words = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(text)?;
                sequence(words.into(), gpt2.use_regex(false))
            }
        })
    }
}

fn sequence(first: PreTokenizerWrapper, then: ByteLevel) -> PreTokenizerWrapper {
    Sequence::new(vec![first, then.into()]).into()
}

/// Spells a text as byte-level BPE does, with one character for each byte.
pub(super) fn in_byte_alphabet(text: &str) -> Result<String, String> {
    let mut spelled = PreTokenizedString::from(NormalizedString::from(text));
    ByteLevel::new(false, true, false).pre_tokenize(&mut spelled).map_err(super::text)?;
    let splits = spelled.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    Ok(splits.into_iter().map(|(piece, _, _)| piece).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(kind: &str, text: &str) -> Vec<String> {
        let kind = KINDS.iter().find(|known| known.names.contains(&kind)).unwrap();
        let mut splits = PreTokenizedString::from(text);
        kind.pre_tokenizer().unwrap().pre_tokenize(&mut splits).unwrap();
        let splits = splits.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (from, to), _)| text[from..to].to_string()).collect()
    }

    #[test]
    fn numbers_tell_the_kinds_apart() {
        let text = "a 1234's";
        assert_eq!(words("gpt-2", text), ["a", " 1234", "'s"]);
        assert_eq!(words("smollm", text), ["a", " ", "1", "2", "3", "4", "'s"]);
        assert_eq!(words("llama-bpe", text), ["a", " ", "123", "4", "'s"]);
        assert_eq!(words("qwen2", text), ["a", " ", "1", "2", "3", "4", "'s"]);
        assert_eq!(words("tekken", text), ["a", " ", "1", "2", "3", "4", "'s"]);
    }

    #[test]
    fn capitals_and_line_ends_tell_the_kinds_apart() {
        assert_eq!(words("llama-bpe", "HelloWorld ."), ["HelloWorld", " ."]);
        assert_eq!(words("tekken", "HelloWorld ."), ["Hello", "World", " ."]);
        assert_eq!(words("llama-bpe", "IT'S\n\nx"), ["IT", "'S", "\n\n", "x"]);
        assert_eq!(words("gpt-2", "IT'S\n\nx"), ["IT", "'", "S", "\n", "\n", "x"]);
        assert_eq!(words("tekken", "a.//b"), ["a", ".//", "b"]);
    }

    #[test]
    fn bytes_are_spelled_by_characters() {
        assert_eq!(in_byte_alphabet(" é\n").unwrap(), "ĠÃ©Ċ");
    }
}
