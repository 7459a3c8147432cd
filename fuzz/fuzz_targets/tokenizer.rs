//! A GGUF file's tokenizer of any tokens, merges, scores and types: it is refused with a message, or reads any text into
//! tokens that exist.
//!
//! The input is lines. The first one's bytes choose the kind and which keys there are; then come tokens, an empty line,
//! merges, an empty line, the template and the text to read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lora_drop::data::GgufTokenizer;
use lora_drop_transformer::gguf::{Array, Gguf, Value, Writer};

/// Kinds with a pattern of their own take long to build, so most inputs have the others.
const KINDS: [&str; 2] = ["gpt-2", "smollm"];
const SLOW_KINDS: [&str; 4] = ["llama-bpe", "qwen2", "tekken", "none"];

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    let (choice, rest) = text.split_once('\n').unwrap_or(("", &text));
    let choice = |i: usize| choice.as_bytes().get(i).copied().unwrap_or(b'0');
    let mut blocks = rest.splitn(3, "\n\n");
    let mut lines = || blocks.next().unwrap_or("").split('\n').map(String::from).collect::<Vec<_>>();
    let (mut tokens, merges) = (lines(), lines());
    let text = blocks.next().unwrap_or(rest);
    // All bytes, as real files have them, where the input asks for it.
    if choice(0) & 1 == 1 {
        tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    }
    let count = tokens.len();
    let each = |i: usize| usize::from(choice(i)) % (count + 1);
    let strings = |values: Vec<String>| Value::Array(Array::String(values));
    let pre = match usize::from(choice(2)) {
        number @ 252.. => SLOW_KINDS[number - 252],
        number => KINDS[number % 2],
    };
    let mut metadata = vec![
        ("ggml.model", if choice(1) & 1 == 1 { "llama" } else { "gpt2" }.into()),
        ("ggml.pre", pre.into()),
        ("ggml.tokens", strings(tokens)),
        ("ggml.add_bos_token", Value::Bool(choice(3) & 1 == 1)),
        ("ggml.add_eos_token", Value::Bool(choice(3) & 2 == 2)),
        ("ggml.add_space_prefix", Value::Bool(choice(3) & 4 == 4)),
        ("chat_template", text.into()),
    ];
    if choice(4) & 1 == 1 {
        metadata.push(("ggml.merges", strings(merges)));
    }
    if choice(4) & 2 == 2 {
        let score =
            |i: usize| f32::from_bits(u32::from(choice(5)).wrapping_mul(i as u32).wrapping_mul(0x0101_0101));
        metadata.push(("ggml.scores", Value::Array(Array::F32((0..count).map(score).collect()))));
    }
    if choice(4) & 4 == 4 {
        let kinds = (0..count).map(|i| i32::from(input[i % input.len().max(1)] % 8)).collect();
        metadata.push(("ggml.token_type", Value::Array(Array::I32(kinds))));
    }
    let names = ["ggml.bos_token_id", "ggml.eos_token_id", "ggml.unknown_token_id", "ggml.padding_token_id"];
    for (i, name) in names.into_iter().enumerate() {
        if choice(6) >> i & 1 == 1 {
            metadata.push((name, Value::U32(each(7 + i) as u32)));
        }
    }
    let metadata: Vec<_> =
        metadata.into_iter().map(|(key, value)| (format!("tokenizer.{key}"), value)).collect();
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().expect("a temporary file");
    Writer::new(&file, &metadata, Vec::new()).expect("the keys are sound").finish().expect("written");
    let file = Gguf::open(file.path()).expect("just written");
    let Ok(read) = GgufTokenizer::read(&file) else { return };
    // A text that no token covers may be refused; what comes out must be tokens, and be readable again.
    let Ok(encoding) = read.tokenizer.encode(text, true) else { return };
    assert!(encoding.get_ids().iter().all(|id| (*id as usize) < count));
    let _ = read.tokenizer.decode(encoding.get_ids(), false);
});
