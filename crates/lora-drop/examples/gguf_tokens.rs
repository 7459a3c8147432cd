//! Prints the tokens of each line of standard input, by the tokenizer of a GGUF file, with its
//! special tokens: `cargo run --release --example gguf_tokens -- model.gguf < lines`.
//! tools/golden/gguf_tokens.py compares them with transformers'. A line is a JSON string, so that
//! texts may have line ends.

use std::io::{BufRead, Write};

use lora_drop::data::GgufTokenizer;
use lora_drop_transformer::gguf::Gguf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("give the path of a GGUF file")?;
    let tokenizer = GgufTokenizer::read(&Gguf::open(path.as_ref())?)?.tokenizer;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let text: String = serde_json::from_str(&line?)?;
        let encoding = tokenizer.encode(text, true).map_err(|e| e.to_string())?;
        writeln!(out, "{}", serde_json::to_string(encoding.get_ids())?)?;
    }
    Ok(out.flush()?)
}
