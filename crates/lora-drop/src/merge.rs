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

/// What the merged model is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergedForm {
    /// A folder for transformers, in this type; without one each weight in what the base stores it
    /// in.
    Safetensors(Option<FloatType>),
    /// One GGUF file, matrices in this type.
    Gguf(FileType),
}

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

/// Adds an adapter (a folder or a file) to its base (a folder, a GGUF file or a hub name) and
/// writes the model to `output`, a folder or a file; with `overwrite` a model that `merge` has
/// written there is replaced.
///
/// Raising `cancel` ends it between two weights with `Error::Interrupted` and no file written.
pub fn merge(
    model: &str,
    path: &Path,
    form: MergedForm,
    output: &Path,
    overwrite: bool,
    cancel: &Cancel,
) -> Result<Merged> {
    let files = ModelFiles::open(model, cancel, &mut |_| {})?;
    merge_open(&files, (path, &AdapterFile::open(path)?), form, output, overwrite, cancel)
}

/// The same of a model that is open and an adapter in memory.
pub fn merge_adapter(
    model: &ModelFiles,
    adapter: &AdapterFile,
    form: MergedForm,
    output: &Path,
    overwrite: bool,
    cancel: &Cancel,
) -> Result<Merged> {
    merge_open(model, (Path::new("the adapter"), adapter), form, output, overwrite, cancel)
}

fn merge_open(
    files: &ModelFiles,
    (path, file): (&Path, &AdapterFile),
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
                true => Some(labels(Some(file), config, file.outputs(config, path)?)?),
                false => None,
            };
            let mut folder = OutputFolder::open(output, overwrite, Contents::Model)?;
            adapter::merge(files.source(), config, file, &folder.next(), labels.as_ref(), dtype, cancel)?;
            folder.commit()?;
            output.join("model.safetensors")
        }
    };
    let bytes = std::fs::metadata(&weights).map_err(|e| Error::io(&weights, e))?.len();
    Ok(Merged { modules: file.modules.len(), parameters: file.unique_parameters(), bytes })
}
