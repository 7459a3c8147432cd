//! `lora-drop eval`: a model, with an adapter or alone, measured on a split.

use std::path::PathBuf;

use lora_drop::engine_stub::evaluate::{Columns, Predictor};
use lora_drop::{Cancel, Result};
use serde_json::json;

use super::console::{Console, Form, grouped, rows};
use super::progress;

const EXAMPLES: &str = "\
Examples:
  lora-drop eval --model models/minilm --adapter runs/mrpc --data data/mrpc
  lora-drop eval --model models/minilm --adapter runs/mrpc --data data/mrpc --split test --json
  lora-drop eval --model merged --data data/mrpc

Without an adapter the model must have a classification head of its own, as merged and fully fine-tuned ones have.";

/// Measure a model on a labelled split
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// The labelled data: a folder with the split's file, or one file
    #[arg(long, value_name = "DIR|FILE")]
    data: PathBuf,
    /// Which split of the folder is measured
    #[arg(long, default_value = "dev", value_parser = ["train", "dev", "test"])]
    split: String,
    #[command(flatten)]
    columns: ColumnOptions,
    /// Column of the label [default: label]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    #[command(flatten)]
    form: Form,
}

/// What predicts: shared with `predict`.
#[derive(clap::Args)]
pub struct Source {
    /// The encoder: a folder as Hugging Face has them, or a hub name (org/name)
    #[arg(long, value_name = "DIR|ORG/NAME")]
    model: String,
    /// The adapter: a run's folder, a PEFT adapter's, or an adapter_compact.safetensors
    #[arg(long, value_name = "DIR|FILE")]
    adapter: Option<PathBuf>,
    /// Tokens of a row at most; longer ones are cut
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = max_length)]
    max_length: usize,
    /// Threads to compute with; 0 is all
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

impl Source {
    pub fn open(&self) -> Result<Predictor> {
        Predictor::open(&self.model, self.adapter.as_deref(), self.threads, self.max_length)
    }
}

/// Where the texts of a row are: shared with `predict`.
#[derive(clap::Args)]
pub struct ColumnOptions {
    /// Column of the text, or of the first text of a pair [default: found by the usual names]
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// Column of the second text of a pair [default: found by the usual names]
    #[arg(long, value_name = "NAME")]
    pub pair_column: Option<String>,
}

pub fn run(args: Args, console: &Console, cancel: &Cancel) -> Result<()> {
    let columns =
        Columns { text: args.columns.text_column, pair: args.columns.pair_column, label: args.label_column };
    let mut predictor = args.source.open()?;
    let found = predictor.evaluate(&args.data, &args.split, &columns, cancel, &mut progress::lines(console))?;
    let metrics: serde_json::Map<_, _> = found.metrics.iter().map(|(name, v)| (name.clone(), json!(v))).collect();
    let object = json!({
        "model": args.source.model,
        "adapter": args.source.adapter,
        "data": args.data,
        "split": args.split,
        "metrics": metrics,
        "loss": found.loss,
        "rows": found.rows,
        "tokens": found.tokens,
        "seconds": found.seconds,
    });
    console.result(&args.form, &object, || {
        let mut table = vec![("split", args.split.clone()), ("rows", grouped(found.rows))];
        table.extend(found.metrics.iter().map(|(name, value)| (name.as_str(), format!("{value:.4}"))));
        table.push(("loss", format!("{:.4}", found.loss)));
        table.push(("time", format!("{:.1} s", found.seconds)));
        rows(&table)
    })
}

/// The shortest row that holds a token of text has three: [CLS] token [SEP].
fn max_length(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(tokens) if tokens >= 3 => Ok(tokens),
        _ => Err("expected a number of tokens from 3 up".to_string()),
    }
}
