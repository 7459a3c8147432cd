//! Where `merge` and `export` write: never over what they read, and over files that are there only when told to.

use std::path::{Path, PathBuf};

use lora_drop::settings::{TrainSettings, check_folder};
use lora_drop::{Error, Result};

/// What is written.
pub enum Output<'a> {
    /// A folder that, with --overwrite, may hold this file already.
    Folder { mark: &'a str },
    /// A file whose name ends so, without the dot.
    File { ending: &'a str },
}

impl Output<'_> {
    /// Checks that `path` may be written and holds none of the inputs, which are given by their options' names.
    pub fn check(&self, path: &Path, overwrite: bool, inputs: [(&str, &Path); 2]) -> Result<()> {
        let shown = path.display();
        for (name, input) in inputs {
            if let (Ok(input), Ok(output)) = (input.canonicalize(), path.canonicalize())
                && (input == output || input.starts_with(&output))
            {
                let problem = format!("--output {shown} holds the {name} itself; choose another place");
                return Err(Error::Usage(problem));
            }
        }
        let is = |ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
        match self {
            Output::Folder { .. } if is("gguf") || is("safetensors") => {
                Err(Error::Usage(format!("--output {shown} is named like a file, but a folder is written")))
            }
            Output::Folder { mark } => check_folder(path, overwrite, &[mark]),
            Output::File { ending } if !is(ending) => {
                Err(Error::Usage(format!("--output {shown}: give a file's name that ends with .{ending}")))
            }
            Output::File { .. } if path.is_dir() => {
                Err(Error::Usage(format!("--output {shown} is a folder; give a file's name")))
            }
            Output::File { .. } if path.exists() && !overwrite => Err(Error::Usage(format!(
                "--output {shown} is there already; choose another, or give --overwrite"
            ))),
            Output::File { .. } => Ok(()),
        }
    }
}

/// The adapter's base: as it was given, else as the recipe in the adapter's folder names it.
pub fn base_model(given: Option<String>, adapter: &Path) -> Result<String> {
    let recipe: PathBuf = adapter.join("recipe.toml");
    match given {
        Some(model) => Ok(model),
        None if recipe.is_file() => Ok(TrainSettings::from_recipe(&recipe)?.model),
        None => Err(Error::Usage(
            "--model is missing, and the adapter's folder has no recipe.toml that names it".to_string(),
        )),
    }
}
