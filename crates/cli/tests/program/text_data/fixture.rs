//! A folder with a small byte-level tokenizer, as the Llama family has them: a token a byte, two
//! merges, BOS in front.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lora_drop::data::text::{ChatTemplate, SpecialTokens, TextDataset, TextOptions};
use lora_drop::data::{Error, Tokens};
use serde_json::{Value, json};

pub const BOS: u32 = 300;
pub const EOS: u32 = 301;
pub const VOCABULARY: usize = 304;

/// A ChatML template that marks nothing.
pub const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                          {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        folder.write("tokenizer.json", tokenizer().to_string());
        folder
    }

    /// A folder with this train file and a sound dev file of the same columns.
    pub fn with(name: &str, train: impl AsRef<[u8]>, dev: &str) -> Self {
        let folder = Folder::new();
        folder.write(name, train);
        folder.write("dev.jsonl", dev);
        folder
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub fn tokens(&self) -> Tokens {
        Tokens::open(self.path()).unwrap()
    }

    pub fn load(&self, template: Option<&str>, options: &TextOptions) -> Result<TextDataset, Error> {
        let template = template.map(chat);
        TextDataset::load(self.path(), &self.tokens(), template.as_ref(), options)
    }
}

pub fn chat(source: &str) -> ChatTemplate {
    let special =
        SpecialTokens(vec![("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())]);
    ChatTemplate::parse(source, special).unwrap()
}

pub fn options() -> TextOptions {
    TextOptions { max_length: 200, ..TextOptions::new(VOCABULARY, Some(EOS)) }
}

/// The characters that stand for bytes in byte-level vocabularies: printable ones for themselves,
/// others from 256 on.
fn byte_characters() -> Vec<char> {
    let printable = |b: &u32| (33..=126).contains(b) || (161..=172).contains(b) || (174..=255).contains(b);
    let mut next = 256;
    let mut character = |b: u32| {
        if printable(&b) {
            return char::from_u32(b).unwrap();
        }
        next += 1;
        char::from_u32(next - 1).unwrap()
    };
    (0..256).map(&mut character).collect()
}

fn tokenizer() -> Value {
    let bytes = byte_characters();
    let mut vocabulary: BTreeMap<String, u32> =
        bytes.iter().enumerate().map(|(i, c)| (c.to_string(), i as u32)).collect();
    let (space, line) = (bytes[b' ' as usize], bytes[b'\n' as usize]);
    vocabulary.insert(format!("{space}b"), 256);
    vocabulary.insert(format!("{line}{line}"), 257);
    let special = [("<s>", BOS), ("</s>", EOS), ("<|im_start|>", 302), ("<|im_end|>", 303)];
    let added: Vec<Value> = special
        .iter()
        .map(|(content, id)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    // The added tokens' numbers have to follow the vocabulary.
    for id in 258..BOS {
        vocabulary.insert(format!("unused{id}"), id);
    }
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {"type": "Sequence", "processors": [byte_level, {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}}
        }]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": [[space.to_string(), "b"], [line.to_string(), line.to_string()]]}
    })
}

/// Tokens as a text that shows them: special tokens by name, bytes as characters.
pub fn show(ids: &[u32]) -> String {
    let mut bytes = Vec::new();
    for &id in ids {
        match id {
            0..256 => bytes.push(id as u8),
            256 => bytes.extend(b" b"),
            257 => bytes.extend(b"\n\n"),
            300 => bytes.extend(b"<s>"),
            301 => bytes.extend(b"</s>"),
            302 => bytes.extend(b"<|im_start|>"),
            303 => bytes.extend(b"<|im_end|>"),
            other => panic!("token {other}"),
        }
    }
    String::from_utf8(bytes).unwrap()
}
