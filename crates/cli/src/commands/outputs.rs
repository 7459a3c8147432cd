//! Where commands write: over existing files only with `--overwrite`, and never over what they
//! read. Also what `merge` and `export` have in common.

use std::path::{Path, PathBuf};

use crate::report::terminal::rows;
use lora_drop::folder::{Contents, OutputFolder};
use lora_drop::format::{bytes, counted, grouped};
use lora_drop::use_settings::{base_model, recipe_of};
use lora_drop::{Error, Result};
use serde_json::json;

use super::console::{Console, Form};
use super::interrupt::Interrupt;

/// Checks that a file can be written: its folder exists, and nothing stands there, unless it is a
/// file that may be replaced. `option` is the option that names it.
pub fn check_file(option: &str, path: &Path, overwrite: bool) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let problem = if path.is_dir() {
        " is a folder; give a file's name".to_string()
    } else if path.exists() && !overwrite {
        " exists; choose another file, or give --overwrite".to_string()
    } else if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        format!(": the folder {} does not exist", folder.display())
    } else {
        return Ok(());
    };
    Err(Error::Usage(format!("{option} {}{problem}", path.display())))
}

/// What is written.
pub enum Output {
    /// A folder with these contents.
    Folder(Contents),
    /// A file whose name has this ending, without the dot.
    File { ending: &'static str },
}

impl Output {
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
            Output::File { .. } => check_file("--output", path, overwrite),
        }
    }
}

/// The options that `merge` and `export` have in common.
#[derive(clap::Args)]
pub struct Conversion {
    /// The model that the adapter was trained on: a folder in Hugging Face's format, a decoder's
    /// GGUF file, or a name on the hub (org/name) [default: the one in the adapter's recipe]
    #[arg(long, value_name = "DIR|FILE|ORG/NAME")]
    model: Option<String>,
    /// The adapter: a run's folder, a PEFT adapter's, or an adapter_compact.safetensors
    #[arg(long, value_name = "DIR|FILE")]
    pub adapter: PathBuf,
    /// The folder or the file to write
    #[arg(long, value_name = "DIR|FILE")]
    pub output: PathBuf,
    /// Replace the model or the adapter that is there
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    form: Form,
}

impl Conversion {
    /// Checks the output, downloads the model if need be, and returns its name. From then on Ctrl-C
    /// ends the command in good order.
    pub fn prepare(&self, output: &Output, console: &Console, interrupt: &Interrupt) -> Result<String> {
        let recipe = if self.model.is_some() { None } else { recipe_of(&self.adapter)? };
        let model = base_model(self.model.clone(), recipe.as_ref())?;
        let inputs = [("model", Path::new(&model)), ("adapter", &self.adapter)];
        output.check(&self.output, self.overwrite, inputs)?;
        console.fetch(&model, interrupt)?;
        interrupt.put_at_stake();
        Ok(model)
    }

    /// Prints what was written: `done` to this number of modules, with their parameters and the
    /// file's bytes.
    pub fn report(
        &self,
        console: &Console,
        done: &str,
        modules: usize,
        parameters: usize,
        size: u64,
    ) -> Result<()> {
        let object =
            json!({"output": self.output, "modules": modules, "parameters": parameters, "bytes": size});
        console.result(&self.form, &object, || {
            rows(&[
                ("output", self.output.display().to_string()),
                (done, counted(modules, "module")),
                ("parameters", grouped(parameters)),
                ("size", bytes(size)),
            ])
        })
    }
}
