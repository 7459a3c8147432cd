//! `lora-drop export`: writes an adapter in another format, for PEFT, lora-drop or llama.cpp.

use clap::builder::TypedValueParser;
use lora_drop::Result;
use lora_drop::export::{self, AdapterForm};
use lora_drop::folder::Contents;

use super::console::Console;
use super::interrupt::Interrupt;
use super::options::word;
use super::outputs::{Conversion, Output};

const EXAMPLES: &str = "\
Examples:
  lora-drop export --adapter runs/e2e --to gguf --output e2e.gguf
  lora-drop export --model models/smollm2 --adapter e2e.safetensors --to peft --output e2e-peft";

/// Write an adapter in another format: PEFT's folder, the compact file, or a GGUF file for llama.cpp
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    conversion: Conversion,
    /// The format: a folder for PEFT, a compact .safetensors file, or for decoders a .gguf file
    #[arg(long, value_name = "FORMAT", value_parser = adapter_form())]
    to: AdapterForm,
}

fn adapter_form() -> impl TypedValueParser<Value = AdapterForm> {
    word(&[("peft", AdapterForm::Peft), ("compact", AdapterForm::Compact), ("gguf", AdapterForm::Gguf)])
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    let output = match args.to {
        AdapterForm::Peft => Output::Folder(Contents::Adapter),
        AdapterForm::Compact => Output::File { ending: "safetensors" },
        AdapterForm::Gguf => Output::File { ending: "gguf" },
    };
    let Conversion { adapter, output: path, overwrite, .. } = &args.conversion;
    let model = args.conversion.prepare(&output, console, interrupt)?;
    let exported = export::export(adapter, &model, args.to, path, *overwrite)?;
    console.note(exported.note);
    console.warn(exported.kept_card);
    args.conversion.report(console, "adapted", exported.modules, exported.parameters, exported.bytes)
}
