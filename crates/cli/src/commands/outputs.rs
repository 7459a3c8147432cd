//! Where commands write: over files that are there only when told to, and `merge` and `export`
//! never over what they read.

use std::path::Path;

use lora_drop::folder::{Contents, OutputFolder};
use lora_drop::{Error, Result};

use super::source;

/// Refuses to write a file that is there already, unless it may be replaced; `option` is what names
/// it.
pub fn check_file(option: &str, path: &Path, overwrite: bool) -> Result<()> {
    if path.exists() && !overwrite {
        let shown = path.display();
        return Err(Error::Usage(format!(
            "{option} {shown} exists; choose another file, or give --overwrite"
        )));
    }
    Ok(())
}

/// What is written.
pub enum Output<'a> {
    /// A folder of these contents.
    Folder(Contents),
    /// A file whose name ends so, without the dot.
    File { ending: &'a str },
}

impl Output<'_> {
    /// Checks that `path` may be written and holds none of the inputs, which are given by their
    /// options' names.
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
            Output::Folder(_) if is("gguf") || is("safetensors") => {
                Err(Error::Usage(format!("--output {shown} is named like a file, but a folder is written")))
            }
            Output::Folder(contents) => OutputFolder::check(path, overwrite, *contents),
            Output::File { ending } if !is(ending) => {
                Err(Error::Usage(format!("--output {shown}: give a file's name that ends with .{ending}")))
            }
            Output::File { .. } if path.is_dir() => {
                Err(Error::Usage(format!("--output {shown} is a folder; give a file's name")))
            }
            Output::File { .. } => check_file("--output", path, overwrite),
        }
    }
}

/// The adapter's base: as it was given, else as the recipe in the adapter's folder names it.
pub fn base_model(given: Option<String>, adapter: &Path) -> Result<String> {
    let recipe = if given.is_some() { None } else { source::recipe_of(adapter)? };
    source::base_model(given, recipe.as_ref())
}
