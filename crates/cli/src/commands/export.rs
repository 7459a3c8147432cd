//! `lora-drop export`: an adapter in another form, for PEFT, for lora-drop or for llama.cpp.

use std::path::{Path, PathBuf};

use crate::report::terminal::rows;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use lora_drop::Result;
use lora_drop::export::{self, AdapterForm};
use lora_drop::folder::Contents;
use lora_drop::format::{bytes, counted, grouped};
use serde_json::json;

use super::console::{Console, Form};
use super::interrupt::Interrupt;
use super::outputs::{Output, base_model};

const EXAMPLES: &str = "\
Examples:
  lora-drop export --adapter runs/e2e --to gguf --output e2e.gguf
  lora-drop export --model models/smollm2 --adapter e2e.safetensors --to peft --output e2e-peft";

/// Write an adapter in another form: PEFT's folder, the compact file, or a GGUF file for llama.cpp
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The adapter: a run's folder, a PEFT adapter's, or an adapter_compact.safetensors
    #[arg(long, value_name = "DIR|FILE")]
    adapter: PathBuf,
    /// The model that the adapter was trained on: a folder as Hugging Face has them, a decoder's
    /// GGUF file, or a hub name (org/name) [default: the adapter's recipe has it]
    #[arg(long, value_name = "DIR|FILE|ORG/NAME")]
    model: Option<String>,
    /// The form: peft (a folder), compact (a .safetensors file) or gguf (a .gguf file, of decoders)
    #[arg(long, value_name = "FORM", value_parser = adapter_form())]
    to: AdapterForm,
    /// The folder or the file to write
    #[arg(long, value_name = "DIR|FILE")]
    output: PathBuf,
    /// Replace the adapter that is there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    form: Form,
}

fn adapter_form() -> impl TypedValueParser<Value = AdapterForm> {
    PossibleValuesParser::new(["peft", "compact", "gguf"]).map(|name| match name.as_str() {
        "peft" => AdapterForm::Peft,
        "compact" => AdapterForm::Compact,
        _ => AdapterForm::Gguf,
    })
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    let model = base_model(args.model, &args.adapter)?;
    let output = match args.to {
        AdapterForm::Peft => Output::Folder(Contents::Adapter),
        AdapterForm::Compact => Output::File { ending: "safetensors" },
        AdapterForm::Gguf => Output::File { ending: "gguf" },
    };
    let inputs = [("model", Path::new(&model)), ("adapter", &args.adapter)];
    output.check(&args.output, args.overwrite, inputs)?;
    console.fetch(&model, interrupt)?;
    // It takes a moment, and ends in good order.
    interrupt.put_at_stake();
    let exported = export::export(&args.adapter, &model, args.to, &args.output, args.overwrite)?;
    let object = json!({
        "output": args.output,
        "modules": exported.modules,
        "parameters": exported.parameters,
        "bytes": exported.bytes,
    });
    console.result(&args.form, &object, || {
        rows(&[
            ("output", args.output.display().to_string()),
            ("adapted", counted(exported.modules, "module")),
            ("parameters", grouped(exported.parameters)),
            ("size", bytes(exported.bytes)),
        ])
    })
}
