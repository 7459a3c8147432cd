//! Writes a safetensors model as GGUF, in F32, F16 and Q8_0, and its LoRA tensors as an adapter:
//! `cargo run --release -p lora-drop-transformer --example gguf_write -- MODEL_DIR
//! ADAPTER.safetensors OUT_DIR`. tools/golden/gguf_files.py checks the files with transformers and
//! the gguf package.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use lora_drop_transformer::gguf::{
    AdapterPair, FileType, GgufArchitecture, ModelWriter, metadata_from_config, write_adapter,
};
use lora_drop_transformer::{Checkpoint, ModelConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, adapter, out] = &paths[..] else {
        return Err(
            "give a model's folder, a safetensors file of LoRA tensors, and a folder to write to".into()
        );
    };
    let config = ModelConfig::read(folder)?;
    let model = Checkpoint::open(folder)?;
    let metadata = metadata_from_config(&config, "checked")?;
    let tensors: Vec<(String, Vec<usize>)> = model
        .names()
        .map(|name| (name.to_string(), model.shape(name).unwrap_or_default().to_vec()))
        .collect();
    for (name, kind) in [("f32", FileType::F32), ("f16", FileType::F16), ("q8_0", FileType::Q8_0)] {
        let file = BufWriter::new(File::create(out.join(format!("{name}.gguf")))?);
        let mut writer = ModelWriter::new(file, &config, &metadata, &tensors, kind)?;
        for (name, _) in &tensors {
            writer.tensor(name, &model.tensor(name)?)?;
        }
        writer.finish()?;
    }

    let lora = Checkpoint::open_file(adapter)?;
    let mut pairs = Vec::new();
    for name in lora.names() {
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            pairs.push((module, lora.tensor(name)?, lora.tensor(&format!("{module}.lora_B.weight"))?));
        }
    }
    let pairs: Vec<AdapterPair> =
        pairs.iter().map(|(module, a, b)| AdapterPair { module, rank: a.shape()[0], a, b }).collect();
    let architecture = GgufArchitecture::of_config(&config)?;
    write_adapter(
        BufWriter::new(File::create(out.join("adapter.gguf"))?),
        architecture,
        16.0,
        (config.heads, config.kv_heads),
        &pairs,
    )?;
    Ok(())
}
