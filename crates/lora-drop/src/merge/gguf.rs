//! The merged model as one GGUF file.

use std::io;
use std::path::Path;

use lora_drop_transformer::gguf::{FileType, ModelWriter, Value, copied_metadata, metadata_from_config};

use crate::adapter::{AdapterFile, MergedWeights, untied, weight_shapes};
use crate::data::gguf_tokenizer::tokenizer_metadata;
use crate::files::write_atomically;
use crate::model::{ModelFiles, WeightFiles};
use crate::{Cancel, Error, Result};

/// Writes the base with the adapter merged. The metadata are copied from a GGUF base, or made from
/// config.json and the tokenizer.
///
/// # Errors
/// The model is not a decoder, the adapter has a head or does not fit, or the tokenizer cannot be
/// written as GGUF; the file cannot be written.
pub(super) fn merge(
    files: &ModelFiles,
    adapter: &AdapterFile,
    kind: FileType,
    output: &Path,
    cancel: &Cancel,
) -> Result<()> {
    let config = &files.config;
    if !config.architecture.is_decoder() {
        return Err(Error::file(&files.path, "an encoder, and GGUF files are written only for decoders"));
    }
    if let Some(name) = adapter.head.keys().next() {
        let problem =
            format!("the adapter has a head ({name}), which GGUF cannot store; merge to safetensors");
        return Err(Error::Input(problem));
    }
    let untied = untied(config, adapter);
    let known = weight_shapes(&untied, None);
    let merged = MergedWeights::new(files.source(), config, adapter, &known)?;
    let mut metadata = metadata(files)?;
    end_with(&mut metadata, &adapter.end_tokens);
    write_atomically(output, |out| {
        let mut writer = ModelWriter::new(out, &untied, &metadata, &known, kind)?;
        for (name, shape) in &known {
            let values = cancel.check().and_then(|()| merged.weight(name, shape));
            writer.tensor(name, &values.map_err(io::Error::other)?)?;
        }
        writer.finish().map(drop)
    })
}

/// Adds the tokens that the adapter has learned to end a text with. Besides the end-of-sequence
/// token, llama.cpp looks for an end-of-turn (eot) and an end-of-message (eom) token.
fn end_with(metadata: &mut Vec<(String, Value)>, ends: &[u32]) {
    let key = |name: &str| format!("tokenizer.ggml.{name}_token_id");
    let known = ["eos", "eot", "eom"].map(key);
    let is_known = |end: u32, metadata: &[(String, Value)]| {
        metadata.iter().any(|(key, value)| known.contains(key) && value.as_u64() == Some(end.into()))
    };
    let new: Vec<u32> = ends.iter().copied().filter(|&end| !is_known(end, metadata)).collect();
    for (key, end) in known[1..].iter().zip(new) {
        metadata.retain(|(known, _)| known != key);
        metadata.push((key.clone(), Value::U32(end)));
    }
}

fn metadata(files: &ModelFiles) -> Result<Vec<(String, Value)>> {
    if let WeightFiles::Gguf(source) = &*files.weights {
        return Ok(copied_metadata(source));
    }
    let config = &files.config;
    let name = files.path.file_name().unwrap_or_default().to_string_lossy();
    let refuse = |problem| Error::file(&files.path.join("config.json"), problem);
    let mut metadata = metadata_from_config(config, &name).map_err(refuse)?;
    let tokens = files.tokens()?;
    metadata.extend(tokenizer_metadata(&files.path, tokens.tokenizer(), &config.raw, config.vocab_size)?);
    Ok(metadata)
}
