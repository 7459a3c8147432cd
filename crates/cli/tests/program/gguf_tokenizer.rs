//! Tokenizers from small GGUF files made here: tokens, special tokens, text back, and what is
//! refused.

use std::path::Path;

use lora_drop::data::gguf_tokenizer::{tokenizer_metadata, write_tokenizer};
use lora_drop::data::{GgufTokenizer, Tokens};
use lora_drop_transformer::gguf::{Array, Gguf, Value, Writer};
use serde_json::{Value as Json, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

type Entries = Vec<(String, Value)>;

fn strings<S: AsRef<str>>(values: &[S]) -> Value {
    Value::Array(Array::String(values.iter().map(|v| v.as_ref().to_string()).collect()))
}

fn read(entries: &Entries) -> Result<GgufTokenizer, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, Writer::new(Vec::new(), entries, Vec::new()).unwrap().finish().unwrap()).unwrap();
    GgufTokenizer::read(&Gguf::open(&path).unwrap()).map_err(|e| e.to_string())
}

fn set(entries: &mut Entries, key: &str, value: Value) {
    let key = format!("tokenizer.{key}");
    entries.retain(|(name, _)| *name != key);
    entries.push((key, value));
}

fn from(pairs: Vec<(&str, Value)>) -> Entries {
    pairs.into_iter().map(|(key, value)| (format!("tokenizer.{key}"), value)).collect()
}

/// Two control tokens, one of the user's, all bytes, and some merges.
fn byte_level(pre: &str) -> Entries {
    let mut bytes: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    bytes.sort();
    let mut tokens: Vec<String> = ["<s>", "</s>", "<think>"].map(String::from).to_vec();
    tokens.extend(bytes);
    // "ĠĠ" is two spaces; no merge leads to "hey".
    tokens.extend(["Ġa", "he", "12", "ĠĠ", "hey"].map(String::from));
    let kinds = (0..tokens.len()).map(|i| {
        if i < 2 {
            3
        } else if i == 2 {
            4
        } else {
            1
        }
    });
    from(vec![
        ("ggml.model", "gpt2".into()),
        ("ggml.pre", pre.into()),
        ("ggml.token_type", Value::Array(Array::I32(kinds.collect()))),
        ("ggml.tokens", strings(&tokens)),
        ("ggml.merges", strings(&["Ġ a", "h e", "1 2", "Ġ Ġ"])),
        ("ggml.bos_token_id", Value::U32(0)),
        ("ggml.eos_token_id", Value::U32(1)),
        ("ggml.add_bos_token", Value::Bool(false)),
        ("chat_template", "{{ messages }}".into()),
    ])
}

fn sentence_piece() -> Entries {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "a", "b", "ab", "▁a", "▁ab", "ba"].map(String::from));
    let mut scores = vec![0.0f32; 259];
    // "ab" is merged before "▁a", and "ba" before both.
    scores.extend([-9.0, -9.0, -9.0, -2.0, -3.0, -4.0, -1.0]);
    let kinds = (0..tokens.len()).map(|i| match i {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    });
    from(vec![
        ("ggml.model", "llama".into()),
        ("ggml.token_type", Value::Array(Array::I32(kinds.collect()))),
        ("ggml.tokens", strings(&tokens)),
        ("ggml.scores", Value::Array(Array::F32(scores))),
        ("ggml.unknown_token_id", Value::U32(0)),
        ("ggml.bos_token_id", Value::U32(1)),
        ("ggml.eos_token_id", Value::U32(2)),
    ])
}

fn tokens(read: &GgufTokenizer, text: &str) -> Vec<String> {
    read.tokenizer.encode(text, true).unwrap().get_tokens().to_vec()
}

#[test]
fn byte_level_bpe_splits_as_its_kind_says() {
    let gpt2 = read(&byte_level("gpt-2")).unwrap();
    assert_eq!(tokens(&gpt2, "hey a  12"), ["he", "y", "Ġa", "Ġ", "Ġ", "12"]);
    let smollm = read(&byte_level("smollm")).unwrap();
    assert_eq!(tokens(&smollm, "hey a  12"), ["he", "y", "Ġa", "ĠĠ", "1", "2"]);
    // Llama 3 takes a word that is a token as it is.
    let llama = read(&byte_level("llama-bpe")).unwrap();
    assert_eq!(tokens(&llama, "hey a  12"), ["hey", "Ġa", "Ġ", "Ġ", "12"]);
    let ids = smollm.tokenizer.encode("hé a", true).unwrap().get_ids().to_vec();
    assert_eq!(smollm.tokenizer.decode(&ids, true).unwrap(), "hé a");
}

#[test]
fn qwen2_composes_text() {
    let qwen = read(&byte_level("qwen2")).unwrap();
    assert_eq!(tokens(&qwen, "e\u{301}"), tokens(&qwen, "é"));
    let gpt2 = read(&byte_level("gpt-2")).unwrap();
    assert_ne!(tokens(&gpt2, "e\u{301}"), tokens(&gpt2, "é"));
}

#[test]
fn special_tokens_are_found_in_text_and_frame_it() {
    let mut entries = byte_level("smollm");
    let plain = read(&entries).unwrap();
    assert_eq!(tokens(&plain, "<s>a<think>"), ["<s>", "a", "<think>"]);
    assert_eq!((plain.bos, plain.eos, plain.unknown, plain.padding), (Some(0), Some(1), None, None));
    assert_eq!(plain.chat_template.as_deref(), Some("{{ messages }}"));
    // Control tokens are special, the user's are text.
    let ids = plain.tokenizer.encode("<s>a<think>", true).unwrap().get_ids().to_vec();
    assert_eq!(plain.tokenizer.decode(&ids, true).unwrap(), "a<think>");

    set(&mut entries, "ggml.add_bos_token", Value::Bool(true));
    set(&mut entries, "ggml.add_eos_token", Value::Bool(true));
    let framed = read(&entries).unwrap();
    assert_eq!(tokens(&framed, "a"), ["<s>", "a", "</s>"]);
    assert_eq!(framed.tokenizer.encode("a", false).unwrap().get_tokens(), ["a"]);
}

/// Found by the fuzz target `tokenizer`: the library's templates have a syntax in which these mean
/// something.
#[test]
fn any_text_can_be_a_special_token() {
    for name in ["$b", "$A", "x:1", "$", ":", " "] {
        let mut entries = byte_level("smollm");
        let mut tokens: Vec<String> = ["<s>", name, "<think>"].map(String::from).to_vec();
        tokens.extend(ByteLevel::alphabet().into_iter().map(String::from).filter(|token| token != name));
        tokens.extend(["Ġa", "he", "12", "ĠĠ", "hey"].map(String::from));
        let kinds = (0..tokens.len()).map(|i| if i < 2 { 3 } else { 1 });
        set(&mut entries, "ggml.token_type", Value::Array(Array::I32(kinds.collect())));
        set(&mut entries, "ggml.tokens", strings(&tokens));
        set(&mut entries, "ggml.bos_token_id", Value::U32(1));
        set(&mut entries, "ggml.add_bos_token", Value::Bool(true));
        let model = read(&entries).unwrap();
        assert_eq!(model.tokenizer.encode("he", true).unwrap().get_tokens(), [name, "he"]);
        let pair = model.tokenizer.encode(("he", "12"), true).unwrap();
        assert_eq!(pair.get_type_ids(), [0, 0, 0, 1, 1]);
    }
}

/// tests/golden/gguf, written by tools/golden/golden_gguf.py.
#[test]
fn tokens_of_gemma_are_those_of_transformers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/gguf/gemma3.gguf");
    let model = GgufTokenizer::read(&Gguf::open(Path::new(path)).unwrap()).unwrap();
    let texts: Json =
        serde_json::from_str(include_str!("../../../../tests/golden/gguf/gemma3.json")).unwrap();
    for case in texts.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let found = model.tokenizer.encode(text, true).unwrap();
        assert_eq!(json!(found.get_ids()), case["tokens"], "{text:?}");
    }
}

#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let model = read(&sentence_piece()).unwrap();
    assert_eq!(tokens(&model, "ab"), ["<s>", "▁ab"]);
    assert_eq!(tokens(&model, "aba"), ["<s>", "▁a", "ba"]);
    assert_eq!(tokens(&model, "é"), ["<s>", "▁", "<0xC3>", "<0xA9>"]);
    let ids = model.tokenizer.encode("ab é", true).unwrap().get_ids().to_vec();
    assert_eq!(model.tokenizer.decode(&ids, true).unwrap(), "ab é");

    let mut entries = sentence_piece();
    set(&mut entries, "ggml.add_space_prefix", Value::Bool(false));
    assert_eq!(tokens(&read(&entries).unwrap(), "ab"), ["<s>", "ab"]);
}

/// The tokenizer as transformers' files, and these as a GGUF file's keys again.
fn there_and_back(entries: &Entries) -> (Entries, GgufTokenizer) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, Writer::new(Vec::new(), entries, Vec::new()).unwrap().finish().unwrap()).unwrap();
    write_tokenizer(&Gguf::open(&path).unwrap(), folder.path()).unwrap();
    let tokens = Tokens::open(folder.path()).unwrap();
    let count = tokens.tokenizer().get_vocab_size(true) + 2;
    let again =
        tokenizer_metadata(folder.path(), tokens.tokenizer(), &serde_json::Map::new(), count).unwrap();
    let read = read(&again).unwrap();
    (again, read)
}

#[test]
fn tokenizers_become_files_and_keys_again() {
    let value = |entries: &Entries, key: &str| {
        entries.iter().find(|(name, _)| *name == format!("tokenizer.{key}")).map(|(_, value)| value.clone())
    };
    let texts = ["hey a  12", "<s>he<think>", "h\u{e9} e\u{301} don't\n\n", "ab aba  ba </s>"];
    let mut cases: Vec<Entries> =
        ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"].into_iter().map(byte_level).collect();
    cases.push(sentence_piece());
    let mut unprefixed = sentence_piece();
    set(&mut unprefixed, "ggml.add_space_prefix", Value::Bool(false));
    set(&mut unprefixed, "ggml.add_eos_token", Value::Bool(true));
    cases.push(unprefixed);
    for entries in cases {
        let first = read(&entries).unwrap();
        let (again, last) = there_and_back(&entries);
        for key in ["ggml.model", "chat_template", "ggml.add_space_prefix"] {
            let (before, after) = (value(&entries, key), value(&again, key));
            assert!(before.is_none() || before == after, "{key}: {before:?}, {after:?}");
        }
        if let Some(pre) = value(&entries, "ggml.pre") {
            assert_eq!(value(&again, "ggml.pre"), Some(pre));
        }
        assert_eq!((first.bos, first.eos), (last.bos, last.eos));
        for text in texts {
            assert_eq!(tokens(&first, text), tokens(&last, text), "{text}");
            let ids = first.tokenizer.encode(text, true).unwrap().get_ids().to_vec();
            for skip in [false, true] {
                assert_eq!(
                    first.tokenizer.decode(&ids, skip).unwrap(),
                    last.tokenizer.decode(&ids, skip).unwrap()
                );
            }
        }
    }
}

#[test]
fn invalid_tokenizer_metadata_is_refused() {
    let refused = |mut entries: Entries, key: &str, value: Option<Value>, expected: &str| {
        let name = format!("tokenizer.{key}");
        entries.retain(|(known, _)| *known != name);
        entries.extend(value.map(|value| (name, value)));
        let problem = read(&entries).unwrap_err();
        assert!(problem.contains("model.gguf: ") && problem.contains(expected), "{problem}");
    };
    let bpe = || byte_level("gpt-2");
    refused(bpe(), "ggml.pre", Some("viking".into()), r#"is "viking", expected one of smollm, llama-bpe"#);
    refused(bpe(), "ggml.pre", None, "tokenizer.ggml.pre is missing");
    refused(bpe(), "ggml.model", Some("bert".into()), r#"is "bert", expected gpt2 or llama"#);
    refused(bpe(), "ggml.model", None, "tokenizer.ggml.model is missing");
    refused(bpe(), "ggml.tokens", None, "tokenizer.ggml.tokens is missing");
    refused(bpe(), "ggml.tokens", Some(Value::U32(1)), "is 1 (u32), expected an array of strings");
    refused(bpe(), "ggml.tokens", Some(strings::<&str>(&[])), "has 0 tokens");
    refused(
        bpe(),
        "ggml.tokens",
        Some(strings(&["a", "b", "a"])),
        r#"the token "a" twice (the second is 2)"#,
    );
    refused(bpe(), "ggml.token_type", Some(Value::Array(Array::I32(vec![1]))), "expected 264 integers");
    refused(bpe(), "ggml.merges", None, "tokenizer.ggml.merges is missing");
    refused(bpe(), "ggml.merges", Some(strings(&["ab"])), r#"merge 0, "ab", is no pair"#);
    refused(bpe(), "ggml.merges", Some(strings(&["h e", "z q"])), "merge 1");
    refused(bpe(), "ggml.add_bos_token", Some(Value::U32(1)), "expected a bool");
    refused(sentence_piece(), "ggml.scores", None, "tokenizer.ggml.scores is missing");
    refused(sentence_piece(), "ggml.scores", Some(Value::Array(Array::F32(vec![0.0]))), "expected 266 f32");
    let needed = |seen: &str| {
        format!("the tokenizer adds this token to texts, but tokenizer.ggml.bos_token_id is {seen}")
    };
    refused(sentence_piece(), "ggml.bos_token_id", None, &needed("missing"));
    refused(
        sentence_piece(),
        "ggml.bos_token_id",
        Some(Value::U32(266)),
        &needed("266, expected a number below 266"),
    );
    // No text has this one: the token is not needed.
    let mut unneeded = bpe();
    set(&mut unneeded, "ggml.bos_token_id", Value::U32(264));
    assert_eq!(read(&unneeded).unwrap().bos, None);
}
