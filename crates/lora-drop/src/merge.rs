//! An adapter merged into its base: what `lora-drop merge` does, from names to a folder that
//! transformers loads, or to a GGUF file.

mod gguf;

use std::path::Path;

use lora_drop_transformer::gguf::FileType;

use crate::adapter::{self, AdapterFile, FloatType};
use crate::folder::{Contents, OutputFolder};
use crate::loaded::labels;
use crate::model::ModelFiles;
use crate::{Cancel, Error, Result};

/// Format of the merged model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergedForm {
    /// A folder for transformers, with weights in this type; `None` keeps the type of each base
    /// weight.
    Safetensors(Option<FloatType>),
    /// One GGUF file, with matrices in this type.
    Gguf(FileType),
}

/// The size of a merged model.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Merged {
    /// Number of adapted linear layers.
    pub modules: usize,
    /// Number of values in the unique pairs.
    pub parameters: usize,
    /// Size of the written weights, in bytes.
    pub bytes: u64,
    /// Note on the adapter's weights that were left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Merges an adapter (a folder or a file) into its base (a folder, a GGUF file or a hub name) and
/// writes the model to `output`, a folder or a file; with `overwrite` a model that `merge` has
/// written there is replaced.
///
/// # Errors
/// Those of the files; the adapter does not fit the model; the model cannot be written in this
/// format. `Error::Interrupted` after `cancel` was raised, between two weights or before the files
/// appear.
pub fn merge(
    model: &str,
    path: &Path,
    form: MergedForm,
    output: &Path,
    overwrite: bool,
    cancel: &Cancel,
) -> Result<Merged> {
    let files = ModelFiles::open(model, cancel, &mut |_| {})?;
    let (adapter, note) = AdapterFile::open_for(path, Some(files.source()))?;
    let merged = merge_adapter(&files, &adapter, form, output, overwrite, cancel)?;
    Ok(Merged { note, ..merged })
}

/// Like [`merge`] for a model that is open and an adapter in memory.
///
/// # Errors
/// Those of `merge`.
pub fn merge_adapter(
    files: &ModelFiles,
    file: &AdapterFile,
    form: MergedForm,
    output: &Path,
    overwrite: bool,
    cancel: &Cancel,
) -> Result<Merged> {
    let config = &files.config;
    let weights = match form {
        MergedForm::Gguf(kind) => {
            gguf::merge(files, file, kind, output, cancel)?;
            output.to_path_buf()
        }
        MergedForm::Safetensors(dtype) => {
            let with_head = !config.architecture.is_decoder() || !file.head.is_empty();
            let labels = match with_head {
                true => Some(labels(Some(file), config, file.head(config)?)?),
                false => None,
            };
            let mut folder = OutputFolder::open(output, overwrite, Contents::Model)?;
            adapter::merge(files.source(), config, file, &folder.staging(), labels.as_ref(), dtype, cancel)?;
            // Writing to the disk takes a while after the last weight.
            cancel.check()?;
            folder.commit()?;
            output.join("model.safetensors")
        }
    };
    let bytes = std::fs::metadata(&weights).map_err(|e| Error::io(&weights, e))?.len();
    Ok(Merged { modules: file.modules.len(), parameters: file.unique_parameters(), bytes, note: None })
}
