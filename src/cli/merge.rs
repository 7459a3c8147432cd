//! `lora-drop merge`: an adapter added into its model, as a checkpoint that transformers loads.

use std::path::PathBuf;

use lora_drop::adapter::{self, AdapterFile};
use lora_drop::evaluate::Predictor;
use lora_drop::hub::resolve_model;
use lora_drop::settings::check_folder;
use lora_drop::{Error, Result};
use lora_drop_transformer::{Checkpoint, EncoderConfig};
use serde_json::json;

use super::console::{Console, Form, bytes, rows};

const EXAMPLES: &str = "\
Examples:
  lora-drop merge --model models/minilm --adapter runs/mrpc --output merged
  lora-drop eval --model merged --data data/mrpc";

/// Add an adapter into its model and write a safetensors checkpoint
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The encoder that the adapter was trained on: a folder as Hugging Face has them, or a hub name (org/name)
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

pub fn run(args: Args, console: &Console) -> Result<()> {
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
    // Put together first: it checks that the adapter and its head fit, and knows the labels.
    let labels = Predictor::open(&args.model, Some(&args.adapter), 0, usize::MAX)?.labels().names().to_vec();
    let folder = resolve_model(&args.model, &mut |_| {})?;
    let (config, base) = (EncoderConfig::read(&folder)?, Checkpoint::open(&folder)?);
    let adapter = AdapterFile::open(&args.adapter)?;
    adapter::merge(&base, &config, &adapter, &args.output, &labels)?;

    let weights = args.output.join("model.safetensors");
    let size = std::fs::metadata(&weights).map_err(|e| Error::io(&weights, e))?.len();
    let object = json!({
        "model": args.model,
        "adapter": args.adapter,
        "output": args.output,
        "modules": adapter.modules.len(),
        "labels": labels,
        "bytes": size,
    });
    console.result(&args.form, &object, || {
        rows(&[
            ("output", args.output.display().to_string()),
            ("merged", format!("{} modules", adapter.modules.len())),
            ("size", bytes(size)),
        ])
    })
}
