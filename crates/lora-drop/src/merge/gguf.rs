//! The merged model as one GGUF file.

use std::io;
use std::path::Path;

use lora_drop_transformer::gguf::{FileType, ModelWriter, Value, copied_metadata, metadata_from_config};

use crate::adapter::{AdapterFile, MergedWeights, outlines};
use crate::data::gguf_tokenizer::tokenizer_metadata;
use crate::files::write_atomically;
use crate::model::{ModelFiles, WeightFiles};
use crate::{Cancel, Error, Result};

/// Writes the base with the adapter worked in. Metadata are the base's where that is a GGUF file,
/// else made from config.json and the tokenizer.
///
/// Errors where the model is no decoder, the adapter has a head or does not fit, or the tokenizer
/// has no form in GGUF.
pub(super) fn merge(
    files: &ModelFiles,
    adapter: &AdapterFile,
    kind: FileType,
    output: &Path,
    cancel: &Cancel,
) -> Result<()> {
    let refuse = |problem: &str| Error::Input(format!("{}: {problem}", files.path.display()));
    let config = &files.config;
    if !config.architecture.is_decoder() {
        return Err(refuse("an encoder; GGUF files are written of decoders"));
    }
    if let Some(name) = adapter.head.keys().next() {
        let problem =
            format!("the adapter has a head ({name}), for which GGUF has no place; merge to safetensors");
        return Err(Error::Input(problem));
    }
    let known = outlines(&files.config, None);
    let merged = MergedWeights::new(files.source(), &files.config, adapter, &known)?;
    let metadata = metadata(files)?;
    // write_atomically knows the disk's errors only; another one travels beside it
    let mut failure = None;
    let written = write_atomically(output, |out| {
        let mut writer = ModelWriter::new(out, config, &metadata, &known, kind)?;
        for (name, shape) in &known {
            let values = cancel.check().and_then(|()| merged.weight(name, shape));
            let values = values.map_err(|e| {
                failure = Some(e);
                io::Error::other("the content could not be read")
            })?;
            writer.tensor(name, &values)?;
        }
        writer.finish().map(drop)
    });
    failure.map_or(written, Err)
}

fn metadata(files: &ModelFiles) -> Result<Vec<(String, Value)>> {
    let config = match (&*files.weights, &files.config) {
        (WeightFiles::Gguf(source), _) => return Ok(copied_metadata(source)),
        (_, config) => config,
    };
    let name = files.path.file_name().unwrap_or_default().to_string_lossy();
    let refuse = |problem| Error::Input(format!("{}: {problem}", files.path.join("config.json").display()));
    let mut metadata = metadata_from_config(config, &name).map_err(refuse)?;
    let tokens = files.tokens()?;
    metadata.extend(tokenizer_metadata(&files.path, tokens.tokenizer(), &config.raw, config.vocab_size)?);
    Ok(metadata)
}
