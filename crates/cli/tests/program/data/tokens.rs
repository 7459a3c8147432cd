//! Tokenizer files, special tokens, cutting.

use lora_drop::data::{RowLimits, Tokens};
use serde_json::json;

use super::fixture::*;

fn limits(max_length: usize) -> RowLimits {
    RowLimits { max_length, vocabulary: WORDS, token_types: None }
}

/// tokenizer.json with the fixture's words, and with truncation and padding as
/// sentence-transformers saves them.
fn tokenizer_json(post_processor: serde_json::Value) -> String {
    let vocabulary: serde_json::Map<_, _> =
        VOCABULARY.lines().enumerate().map(|(i, word)| (word.to_string(), i.into())).collect();
    json!({
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": post_processor,
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary},
    })
    .to_string()
}

#[test]
fn own_padding_and_truncation_are_off() {
    let folder = Folder::new();
    folder.write(
        "tokenizer.json",
        tokenizer_json(json!({"type": "RobertaProcessing", "sep": ["[SEP]", 3],
        "cls": ["[CLS]", 2], "trim_offsets": true, "add_prefix_space": false})),
    );
    let tokens = folder.tokens();
    let single = tokens.encode("a b c d e", None, limits(64)).unwrap();
    assert_eq!(single.ids, [2, 5, 6, 7, 8, 9, 3]);
    // RoBERTa's pairs have two separators in the middle and no types.
    let pair = tokens.encode("a b", Some("c"), limits(64)).unwrap();
    assert_eq!((pair.ids, pair.types), (vec![2, 5, 6, 3, 3, 7, 3], vec![0; 7]));
}

#[test]
fn word_pieces_from_vocab_txt() {
    let folder = Folder::new();
    let tokens = folder.tokens();
    assert_eq!(
        (tokens.tokenizer().get_vocab_size(true), tokens.special_tokens(false), tokens.special_tokens(true)),
        (WORDS, 2, 3)
    );
    let pair = tokens.encode("Films, xyz", Some("good"), limits(64)).unwrap();
    assert_eq!(pair.ids, [2, 13, 10, 16, 1, 3, 11, 3]);
    assert_eq!(pair.types, [0, 0, 0, 0, 0, 0, 1, 1]);
    // Text that is nothing to the tokenizer still has its special tokens.
    assert_eq!(tokens.encode("\u{200b}\u{7f}", None, limits(64)).unwrap().ids, [2, 3]);
    folder.write("tokenizer_config.json", r#"{"do_lower_case": false}"#);
    assert_eq!(folder.tokens().encode("A a", None, limits(64)).unwrap().ids, [2, 1, 5, 3]);
}

#[test]
fn the_longer_text_is_cut_first() {
    let tokens = Folder::new().tokens();
    for (max_length, expected) in [
        (9, &[2, 5, 5, 5, 5, 3, 6, 6, 3][..]),
        (8, &[2, 5, 5, 5, 3, 6, 6, 3]),
        (7, &[2, 5, 5, 3, 6, 6, 3]),
        (6, &[2, 5, 5, 3, 6, 3]),
        (5, &[2, 5, 3, 6, 3]),
    ] {
        let cut = tokens.encode("a a a a", Some("b b"), limits(max_length)).unwrap();
        assert_eq!((&cut.ids[..], cut.length), (expected, 9), "{max_length}");
    }
    let single = tokens.encode("a b c d e", None, limits(4)).unwrap();
    assert_eq!((single.ids, single.length), (vec![2, 5, 6, 3], 7));
}

#[test]
fn the_side_to_cut_is_the_tokenizers() {
    let folder = Folder::new();
    folder.write("tokenizer_config.json", r#"{"truncation_side": "left"}"#);
    assert_eq!(folder.tokens().encode("a b c", None, limits(4)).unwrap().ids, [2, 6, 7, 3]);
}

#[test]
fn tokenizer_files_that_do_not_serve() {
    let message = |folder: &Folder| Tokens::open(folder.path()).err().unwrap().to_string();
    let folder = Folder::new();
    std::fs::remove_file(folder.path().join("vocab.txt")).unwrap();
    assert!(message(&folder).contains("tokenizer.json: not there; save the tokenizer with transformers"));
    folder.write("vocab.txt", "<s>\n</s>\na\n");
    assert!(message(&folder).contains("vocab.txt: it has no [CLS], so it is not a BERT vocabulary"));
    folder.write("tokenizer.json", "{\"version\": ");
    assert!(message(&folder).contains("tokenizer.json: EOF while parsing"), "{}", message(&folder));
}
