//! `lora-drop inspect`: shows what a model, an adapter or a run consists of, compares runs, and
//! shows what training would make of a data set.

mod adapter;
mod data;
mod model;

use std::path::{Path, PathBuf};

use crate::report::terminal::{self as text, Style};
use lora_drop::folder::recover;
use lora_drop::model::{gguf_file, is_gguf};
use lora_drop::summary::Summary;
use lora_drop::{Error, Result};
use serde::Serialize;
use serde_json::json;

use super::console::{Console, Form};
use super::interrupt::Interrupt;
use super::options::{Given, no_effect};

const EXAMPLES: &str = "\
Examples:
  lora-drop inspect models/minilm
  lora-drop inspect sentence-transformers/all-MiniLM-L6-v2
  lora-drop inspect runs/mrpc
  lora-drop inspect runs/mrpc/adapter_compact.safetensors --json
  lora-drop inspect runs/lora runs/lora-drop runs/half
  lora-drop inspect --data data/mrpc
  lora-drop inspect --data data/mrpc --model models/minilm
  lora-drop inspect --data recipe.toml";

/// Show the parameters and modules of a model, an adapter or a run, or compare several runs; with
/// --data show what training would make of the rows
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A model's folder, GGUF file or hub name (org/name, org/name:file.gguf), an adapter's folder or file, a run's
    /// folder; or several runs
    #[arg(value_name = "PATH|ORG/NAME", required_unless_present = "data", conflicts_with = "data")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    rows: Given<data::Rows>,
    #[command(flatten)]
    form: Form,
}

/// A run's object of `--json`.
#[derive(Serialize)]
struct Run<'a> {
    kind: &'static str,
    path: &'a Path,
    #[serde(flatten)]
    summary: &'a Summary,
}

impl<'a> Run<'a> {
    fn new(path: &'a Path, summary: &'a Summary) -> Self {
        Run { kind: "run", path, summary }
    }
}

/// What a path turns out to be.
enum Kind {
    Model,
    Adapter,
    Run,
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    if args.paths.is_empty() {
        let found = data::read(args.rows, console, interrupt)?;
        return console.result(&args.form, &found, || data::table(&found));
    }
    if let Some(name) = args.rows.table().keys().next() {
        return Err(no_effect(name, "without `data`"));
    }
    let [path] = args.paths.as_slice() else {
        let runs = args.paths.iter().map(|path| match kind(path)? {
            Kind::Run => Ok((path.clone(), Summary::read(path)?)),
            _ => Err(Error::Usage(format!(
                "{} is not a run (no summary.json); only runs are compared",
                path.display()
            ))),
        });
        let runs: Vec<_> = runs.collect::<Result<_>>()?;
        let objects: Vec<Run> = runs.iter().map(|(path, run)| Run::new(path, run)).collect();
        return console.result(&args.form, &json!({"kind": "runs", "runs": objects}), || {
            let named: Vec<_> = runs.iter().map(|(p, run)| (p.display().to_string(), run.clone())).collect();
            text::comparison(&named, Style::stdout())
        });
    };
    match kind(path)? {
        Kind::Model => {
            let name = path.to_str().ok_or_else(|| {
                Error::Usage(format!("{}: the name is not UTF-8; give it another", path.display()))
            })?;
            let listed = model::gguf_models(name, interrupt)?;
            if !listed.models.is_empty() {
                return console.result(&args.form, &listed, || listed.table());
            }
            console.fetch(name, interrupt)?;
            let found = model::read(name)?;
            console.result(&args.form, &found, || found.table())
        }
        Kind::Adapter => {
            let found = adapter::read(path)?;
            console.result(&args.form, &found, || found.table())
        }
        Kind::Run => {
            let summary = Summary::read(path)?;
            console.result(&args.form, &Run::new(path, &summary), || {
                text::result(&summary, Style::stdout()) + &text::details(&summary)
            })
        }
    }
}

fn kind(path: &Path) -> Result<Kind> {
    // A path that does not exist may be a model on the hub, which is decided where models are opened.
    if !path.exists() {
        return Ok(Kind::Model);
    }
    recover(path)?;
    let has = |file: &str| path.join(file).is_file();
    if has("summary.json") {
        Ok(Kind::Run)
    } else if path.is_file() && is_gguf(path) {
        Ok(Kind::Model)
    } else if has("adapter_config.json") || has("adapter_compact.safetensors") || path.is_file() {
        Ok(Kind::Adapter)
    } else if has("config.json") || gguf_file(path)?.is_some() {
        Ok(Kind::Model)
    } else {
        Err(Error::Input(format!(
            "{}: neither a model (config.json, or one GGUF file), nor an adapter (adapter_config.json), nor a run (summary.json)",
            path.display()
        )))
    }
}
