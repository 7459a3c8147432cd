//! `lora-drop merge`: an adapter added into its model, as a checkpoint that transformers loads, or
//! as a GGUF file.

use std::path::{Path, PathBuf};

use crate::report::terminal::rows;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use lora_drop::Result;
use lora_drop::adapter::FloatType;
use lora_drop::folder::Contents;
use lora_drop::format::{bytes, counted, grouped};
use lora_drop::merge::{self, MergedForm};
use lora_drop_transformer::gguf::FileType;
use serde_json::json;

use super::console::{Console, Form};
use super::interrupt::Interrupt;
use super::options::choice;
use super::outputs::{Output, base_model};

const EXAMPLES: &str = "\
Examples:
  lora-drop merge --model models/minilm --adapter runs/mrpc --output merged
  lora-drop eval --model merged --data data/mrpc
  lora-drop merge --adapter runs/e2e --gguf q8_0 --output merged.gguf";

/// Add an adapter into its model and write a safetensors checkpoint or a GGUF file
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model that the adapter was trained on: a folder as Hugging Face has them, a decoder's
    /// GGUF file, or a hub name (org/name) [default: the adapter's recipe has it]
    #[arg(long, value_name = "DIR|FILE|ORG/NAME")]
    model: Option<String>,
    /// The adapter: a run's folder, a PEFT adapter's, or an adapter_compact.safetensors
    #[arg(long, value_name = "DIR|FILE")]
    adapter: PathBuf,
    /// The folder for the merged checkpoint; with --gguf the file, whose name ends with .gguf
    #[arg(long, value_name = "DIR|FILE")]
    output: PathBuf,
    /// Write a decoder as one GGUF file with matrices of this type: f32, f16 or q8_0
    #[arg(long, value_name = "TYPE", value_parser = file_type())]
    gguf: Option<FileType>,
    /// Write the checkpoint in this type: f32, f16 or bf16 [default: each weight as the model
    /// stores it; quantized as f32]
    #[arg(long, value_name = "TYPE", value_parser = choice::<FloatType>(), conflicts_with = "gguf")]
    dtype: Option<FloatType>,
    /// Replace the checkpoint that the output folder holds, or the file
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    form: Form,
}

fn file_type() -> impl TypedValueParser<Value = FileType> {
    PossibleValuesParser::new(["f32", "f16", "q8_0"]).map(|name| match name.as_str() {
        "f32" => FileType::F32,
        "f16" => FileType::F16,
        _ => FileType::Q8_0,
    })
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    let model = base_model(args.model, &args.adapter)?;
    let (output, form) = match args.gguf {
        Some(kind) => (Output::File { ending: "gguf" }, MergedForm::Gguf(kind)),
        None => (Output::Folder(Contents::Model), MergedForm::Safetensors(args.dtype)),
    };
    let inputs = [("model", Path::new(&model)), ("adapter", &args.adapter)];
    output.check(&args.output, args.overwrite, inputs)?;
    console.fetch(&model, interrupt)?;
    interrupt.put_at_stake();
    let merged = merge::merge(&model, &args.adapter, form, &args.output, args.overwrite, &interrupt.cancel)?;
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
