//! Prints, for each line of token ids (a JSON list) on standard input, the logits behind the last token and the losses
//! of all tokens but the first: `cargo run --release --example decoder_numbers -- model.gguf < ids`. The model is a
//! GGUF file or a folder. tools/golden/real_decoder.py compares them with transformers'.

use std::io::{BufRead, Write};
use std::sync::atomic::AtomicBool;

use lora_drop::Cancel;
use lora_drop::model::ModelFiles;
use lora_drop_transformer::decoder::Texts;
use lora_drop_transformer::encoder::Memory;
use lora_drop_transformer::{LoraTable, ModelConfig, Parameters};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).ok_or("give a GGUF file or a folder")?;
    let files = ModelFiles::open(&name, &Cancel::new(), &mut |_| {})?;
    let ModelConfig::Decoder(config) = &files.config else { return Err("the model is an encoder".into()) };
    let decoder = files.decoder(config, None)?;
    let (parameters, table) = (Parameters::new(), LoraTable::empty(config.layers));
    let mut memory = Memory::default();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let ids: Vec<u32> = serde_json::from_str(&line?)?;
        if ids.len() < 2 || ids.iter().any(|&id| id as usize >= config.vocab_size) {
            return Err("a line has at least two tokens, all of the vocabulary".into());
        }
        let offsets = [0, ids.len()];
        let texts = Texts { ids: &ids, offsets: &offsets, learn: &vec![true; ids.len()] };
        let stop = AtomicBool::new(false);
        let losses =
            decoder.losses(&parameters, &table, texts, None, &mut memory, &stop).map_err(|_| "stopped")?;
        let mut cache = decoder.new_cache();
        let logits = decoder.extend(&parameters, &table, &ids, &offsets, &mut [&mut cache], &mut memory);
        writeln!(out, "{}", serde_json::json!({ "losses": losses, "logits": logits }))?;
    }
    Ok(out.flush()?)
}
