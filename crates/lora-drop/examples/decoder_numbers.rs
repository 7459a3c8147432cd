//! Prints, for each line of token ids (a JSON list) on standard input, the logits after the last
//! token and the losses of all tokens but the first: `cargo run --release --example decoder_numbers
//! -- model.gguf < ids`. The model is a GGUF file or a folder. tools/golden/real_decoder.py
//! compares them with transformers'.

use std::io::{BufRead, Write};
use std::sync::atomic::AtomicBool;

use lora_drop::Cancel;
use lora_drop::model::ModelFiles;
use lora_drop_compute::random::Key;
use lora_drop_transformer::{AdapterTable, Context, Memory, Parameters, Sequences, Texts, Trained};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).ok_or("give a GGUF file or a folder")?;
    let files = ModelFiles::open(&name, &Cancel::new(), &mut |_| {})?;
    if !files.config.architecture.is_decoder() {
        return Err("the model is an encoder".into());
    }
    let (mut parameters, table) = (Parameters::new(), AdapterTable::empty(files.config.layers));
    let decoder = files.load(None, Trained::Head, None, Key::new(0), &mut parameters)?;
    let mut memory = Memory::default();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let ids: Vec<u32> = serde_json::from_str(&line?)?;
        if ids.len() < 2 || ids.iter().any(|&id| id as usize >= files.config.vocab_size) {
            return Err("a line has at least two tokens, all of the vocabulary".into());
        }
        let offsets = [0, ids.len()];
        let texts = Texts { ids: &ids, offsets: &offsets, learn: &vec![true; ids.len()] };
        let stop = AtomicBool::new(false);
        let context = Context::new(parameters.read(), &table, &mut memory, &stop);
        let losses = decoder.net.losses(context, texts).map_err(|_| "stopped")?;
        let mut cache = decoder.new_cache();
        let context = Context::new(parameters.read(), &table, &mut memory, &stop);
        let sequences = Sequences { ids: &ids, types: &[], offsets: &offsets, labelled: &[] };
        let logits = decoder.net.extend(context, sequences, &mut [&mut cache]).map_err(|_| "stopped")?;
        writeln!(out, "{}", serde_json::json!({ "losses": losses, "logits": logits }))?;
    }
    Ok(out.flush()?)
}
