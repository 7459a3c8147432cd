//! Adapters written in other formats, as by `lora-drop export`.

use std::path::Path;

use crate::adapter::AdapterFile;
use crate::card::{BaseModel, Card};
use crate::folder::{Contents, OutputFolder};
use crate::model::ModelFiles;
use crate::settings::{RECIPE, Recipe};
use crate::{Cancel, Error, Result};

/// The forms of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterForm {
    /// A folder with adapter_config.json and adapter_model.safetensors.
    Peft,
    /// One safetensors file with each unique pair once.
    Compact,
    /// One GGUF file for llama.cpp.
    Gguf,
}

/// The size of an exported adapter.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Exported {
    /// Number of adapted linear layers.
    pub modules: usize,
    /// Number of values in the unique pairs.
    pub parameters: usize,
    /// Size of the file with the tensors, in bytes.
    pub bytes: u64,
    /// What was left out of the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The note on a README.md that was kept in place of the adapter's card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_card: Option<String>,
}

/// Reads an adapter (a folder or a file) and writes it to `output`, a folder for PEFT's format,
/// else a file. `model` is its base (a folder, a GGUF file or a hub name). With `overwrite`, an
/// adapter that `export` has written there is replaced.
///
/// # Errors
/// The adapter is not valid, does not fit the model, or cannot be written in this form.
pub fn export(
    path: &Path,
    model: &str,
    form: AdapterForm,
    output: &Path,
    overwrite: bool,
) -> Result<Exported> {
    let base = ModelFiles::open(model, &Cancel::new(), &mut |_| {})?;
    let (mut file, note) = AdapterFile::open_for(path, Some(base.source()))?;
    let config = &base.config;
    file.check_fit(config)?;
    file.architectures = vec![config.architecture];
    let mut kept_card = None;
    let weights = match form {
        AdapterForm::Peft => {
            let mut folder = OutputFolder::open(output, overwrite, Contents::Adapter)?;
            kept_card = folder.kept_card();
            file.write_peft(&folder.staging(), config.layers)?;
            let head = file.head(config).ok().filter(|_| !file.head.is_empty());
            let recipe = path.join(RECIPE);
            let settings = recipe.is_file().then(|| Recipe::read(&recipe)?.recorded()).transpose()?;
            let here = std::path::absolute(model).ok().filter(|path| path.exists());
            let name = here.as_deref().and_then(Path::to_str).unwrap_or(model);
            let base = BaseModel { name, path: &base.path, head };
            folder.stage_card(&Card::of_adapter(&file, base, settings.as_ref(), output))?;
            folder.commit()?;
            output.join("adapter_model.safetensors")
        }
        AdapterForm::Compact => {
            file.write_compact(output)?;
            output.to_path_buf()
        }
        AdapterForm::Gguf => {
            if !config.architecture.is_decoder() {
                let problem = "an encoder, and GGUF adapters are written only for decoders";
                return Err(Error::Input(format!("{model}: {problem}")));
            }
            file.write_gguf(output, config)?;
            output.to_path_buf()
        }
    };
    let bytes = std::fs::metadata(&weights).map_err(|e| Error::io(&weights, e))?.len();
    Ok(Exported { modules: file.modules.len(), parameters: file.unique_parameters(), bytes, note, kept_card })
}
