//! `lora-drop eval`: a model, with an adapter or alone, measured on a split.

use std::path::PathBuf;

use lora_drop::Result;
use lora_drop::report::format::{duration, fixed, grouped};
use serde_json::json;

use super::console::{Console, Form, rows};
use super::interrupt::Interrupt;
use super::source::{ColumnOptions, Source};

const EXAMPLES: &str = "\
Examples:
  lora-drop eval --adapter runs/mrpc --data data/mrpc
  lora-drop eval --model models/minilm --adapter runs/mrpc --data data/mrpc --split test --json
  lora-drop eval --model merged --data data/mrpc

Without an adapter the model must have a classification head of its own, as merged and fully fine-tuned ones have.";

/// Measure a model, with an adapter or alone, on a labelled split
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
    /// Column of the label [default: as in training]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    #[command(flatten)]
    form: Form,
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    let mut source = args.source.resolve(args.columns)?;
    let columns = &mut source.reading.columns;
    columns.label = args.label_column.or(columns.label.take());
    let mut predictor = source.open()?;
    let mut terminal = console.terminal();
    let found =
        predictor.evaluate(&args.data, &args.split, &source.reading, &interrupt.cancel, &mut |event| {
            terminal.handle(event)
        });
    terminal.finish();
    let found = found?;
    let metrics: serde_json::Map<_, _> =
        found.metrics.iter().map(|(name, v)| (name.clone(), json!(v))).collect();
    let object = json!({
        "model": source.model,
        "adapter": source.adapter,
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
        table.extend(found.metrics.iter().map(|(name, value)| (name.as_str(), fixed(*value, 4))));
        table.push(("loss", fixed(found.loss, 4)));
        table.push(("time", duration(found.seconds)));
        rows(&table)
    })
}
