//! GGUF files that are damaged, chat templates that loop or fail, and prompts that are too long.

use crate::common::Fixture;
use serde_json::json;

/// A header: version 3, these numbers of tensors and keys, and what follows.
fn header(tensors: u64, keys: u64, rest: &[&[u8]]) -> Vec<u8> {
    let start = [&b"GGUF"[..], &3u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
    [start, rest.concat()].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A key with a value of this type.
fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(name)[..], &kind.to_le_bytes(), value].concat()
}

fn tensor(size: u64, kind: u32, offset: u64) -> Vec<u8> {
    let one = 1u32.to_le_bytes();
    [&string("x")[..], &one, &size.to_le_bytes(), &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

#[test]
fn damaged_files() {
    let architecture = key("general.architecture", 8, &string("llama"));
    let cut =
        [&string("general.architecture")[..], &8u32.to_le_bytes(), &(1u64 << 40).to_le_bytes()].concat();
    let room = vec![0; 400];
    let cases: [(&str, Vec<u8>, &[&str]); 13] = [
        ("empty", Vec::new(), &["empty"]),
        ("magic", b"GGML and so on".to_vec(), &["GGML", "GGUF"]),
        ("version", [b"GGUF".as_slice(), &9u32.to_le_bytes()].concat(), &["version 9", "2 or 3"]),
        ("tensors", header(u64::MAX, 0, &[]), &["18446744073709551615", "damaged"]),
        ("keys", header(0, 1 << 63, &[]), &["9223372036854775808", "damaged"]),
        ("string", header(0, 1, &[&cut, b"ab"]), &["general.architecture", "runs past the end"]),
        ("value", header(0, 1, &[&key("a", 77, &[0; 8])]), &["\"a\"", "number 77"]),
        (
            "type",
            header(1, 1, &[&architecture, &tensor(32, 99, 0), &room]),
            &["tensor x", "number 99", "Q4_K"],
        ),
        ("size", header(1, 1, &[&architecture, &tensor(1 << 62, 0, 0), &room]), &["tensor x", "overflows"]),
        (
            "offset",
            header(1, 1, &[&architecture, &tensor(32, 0, 1 << 63), &room]),
            &["tensor x", "truncated"],
        ),
        ("place", header(1, 1, &[&architecture, &tensor(32, 0, 7), &room]), &["tensor x", "alignment 32"]),
        (
            "alignment",
            header(0, 1, &[&key("general.alignment", 4, &7u32.to_le_bytes())]),
            &["general.alignment", "is 7", "power of two"],
        ),
        ("missing", header(0, 1, &[&architecture]), &["llama.attention.head_count", "missing"]),
    ];
    let fixture = Fixture::new();
    for (name, bytes, words) in cases {
        fixture.write(&format!("{name}.gguf"), bytes);
        let file = format!("{name}.gguf");
        let words: Vec<&str> = words.iter().copied().chain([file.as_str()]).collect();
        fixture.run(&format!("generate --model {file} --prompt x")).fails(1, &words);
        fixture.run(&format!("inspect {file}")).fails(1, &words);
    }
}

#[test]
fn templates_that_loop_or_fail() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    for (template, words) in [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            ["does it loop?", "work"],
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ["recursion", "line 1"]),
        ("{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", ["does it loop?", ""]),
        ("\n{{ raise_exception('only users') }}", ["only users", "line 2"]),
        ("{{ messages[7].content }}", ["undefined", "line 1"]),
        ("{% for m in messages %}", ["line 1", "template"]),
    ] {
        let config = json!({ "chat_template": template }).to_string();
        fixture.write("decoder/tokenizer_config.json", config);
        fixture.run("generate --model decoder --chat --prompt w3").fails(1, &words);
    }
}

#[test]
fn a_prompt_that_is_longer_than_the_context() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let prompt = "w3 ".repeat(80);
    fixture
        .run_words(&["generate", "--model", "decoder", "--prompt", &prompt])
        .fails(1, &["80 tokens", "64"]);
    fixture.write("rows.jsonl", json!({ "prompt": prompt, "completion": "w4" }).to_string());
    fixture.run("generate --model decoder --data rows.jsonl").fails(1, &["80 tokens", "64"]);
}
