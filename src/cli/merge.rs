//! `lora-drop merge`: an adapter added into its model, as a checkpoint that transformers loads.

use std::path::PathBuf;

use lora_drop::merge;
use lora_drop::report::format::{bytes, counted, grouped};
use lora_drop::settings::check_folder;
use lora_drop::{Error, Result};
use serde_json::json;

use super::console::{Console, Form, rows};
use super::interrupt::Interrupt;

const EXAMPLES: &str = "\
Examples:
  lora-drop merge --model models/minilm --adapter runs/mrpc --output merged
  lora-drop eval --model merged --data data/mrpc";

/// Add an adapter into its model and write a safetensors checkpoint
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model that the adapter was trained on: a folder as Hugging Face has them, or a hub name (org/name)
    #[arg(long, value_name = "DIR|ORG/NAME")]
    model: String,
    /// The adapter: a run's folder, a PEFT adapter's, or an adapter_compact.safetensors
    #[arg(long, value_name = "DIR|FILE")]
    adapter: PathBuf,
    /// The folder for the merged checkpoint
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Replace the checkpoint that the output folder holds
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    form: Form,
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    // With --overwrite the output may be a checkpoint: never one of those that are read.
    for (name, path) in [("model", std::path::Path::new(&args.model)), ("adapter", args.adapter.as_path())] {
        if let (Ok(input), Ok(output)) = (path.canonicalize(), args.output.canonicalize())
            && (input == output || input.starts_with(&output))
        {
            let output = args.output.display();
            return Err(Error::Usage(format!(
                "--output {output} holds the {name} itself; choose another folder"
            )));
        }
    }
    check_folder(&args.output, args.overwrite, &["model.safetensors"])?;
    interrupt.put_at_stake();
    let merged = merge::merge(&args.model, &args.adapter, &args.output, &interrupt.cancel)?;
    let object = json!({
        "output": args.output,
        "modules": merged.modules,
        "parameters": merged.parameters,
        "bytes": merged.bytes,
    });
    console.result(&args.form, &object, || {
        rows(&[
            ("output", args.output.display().to_string()),
            ("merged", counted(merged.modules, "module")),
            ("parameters", grouped(merged.parameters)),
            ("size", bytes(merged.bytes)),
        ])
    })
}
