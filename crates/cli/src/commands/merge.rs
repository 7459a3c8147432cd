//! `lora-drop merge`: merges an adapter into its model and writes a checkpoint that transformers
//! loads, or a GGUF file.

use clap::builder::TypedValueParser;
use lora_drop::Result;
use lora_drop::adapter::FloatType;
use lora_drop::folder::Contents;
use lora_drop::merge::{self, MergedForm};
use lora_drop_transformer::gguf::FileType;

use super::console::Console;
use super::interrupt::Interrupt;
use super::options::{choice, word};
use super::outputs::{Conversion, Output};

const EXAMPLES: &str = "\
Examples:
  lora-drop merge --model models/minilm --adapter runs/mrpc --output merged
  lora-drop eval --model merged --data data/mrpc
  lora-drop merge --adapter runs/e2e --gguf q8_0 --output merged.gguf";

/// Merge an adapter into its model and write a safetensors checkpoint or a GGUF file
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    conversion: Conversion,
    /// Write a decoder as one GGUF file, with matrices of this type
    #[arg(long, value_name = "TYPE", value_parser = file_type())]
    gguf: Option<FileType>,
    /// Write the checkpoint's weights in this type [default: as the model stores each weight,
    /// quantized ones as f32]
    #[arg(long, value_name = "TYPE", value_parser = choice::<FloatType>(), conflicts_with = "gguf")]
    dtype: Option<FloatType>,
}

fn file_type() -> impl TypedValueParser<Value = FileType> {
    word(&[("f32", FileType::F32), ("f16", FileType::F16), ("q8_0", FileType::Q8_0)])
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    let (output, form) = match args.gguf {
        Some(kind) => (Output::File { ending: "gguf" }, MergedForm::Gguf(kind)),
        None => (Output::Folder(Contents::Model), MergedForm::Safetensors(args.dtype)),
    };
    let Conversion { adapter, output: path, overwrite, .. } = &args.conversion;
    let model = args.conversion.prepare(&output, console, interrupt)?;
    let merged = merge::merge(&model, adapter, form, path, *overwrite, &interrupt.cancel)?;
    console.note(merged.note);
    args.conversion.report(console, "merged", merged.modules, merged.parameters, merged.bytes)
}
