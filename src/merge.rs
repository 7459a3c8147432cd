//! An adapter merged into its base: what `lora-drop merge` does, from names to a folder that transformers loads.

use std::path::Path;

use lora_drop_transformer::ModelConfig;

use crate::adapter::{self, AdapterFile};
use crate::evaluate::labels;
use crate::model::ModelFiles;
use crate::{Cancel, Error, Result};

/// What was merged.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Merged {
    /// Linear layers that a pair was added to.
    pub modules: usize,
    /// Values in the unique pairs.
    pub parameters: usize,
    /// Size of the written weights.
    pub bytes: u64,
}

/// Adds an adapter (a folder or a file) to its base (a folder or a hub name) and writes a checkpoint folder.
///
/// Raising `cancel` ends it between two weights with `Error::Interrupted` and no file written.
pub fn merge(model: &str, path: &Path, output: &Path, cancel: &Cancel) -> Result<Merged> {
    let files = ModelFiles::open(model, &mut |_| {})?;
    let (config, checkpoint) = (&files.config, files.checkpoint()?);
    let file = AdapterFile::open(path)?;
    let with_head = matches!(config, ModelConfig::Encoder(_)) || !file.head.is_empty();
    let labels = match with_head {
        true => Some(labels(Some(&file), config, file.outputs(config, path)?)?),
        false => None,
    };
    adapter::merge(checkpoint, config, &file, output, labels.as_ref(), cancel)?;
    let weights = output.join("model.safetensors");
    let bytes = std::fs::metadata(&weights).map_err(|e| Error::io(&weights, e))?.len();
    Ok(Merged { modules: file.modules.len(), parameters: file.unique_parameters(), bytes })
}
