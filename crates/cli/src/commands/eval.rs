//! `lora-drop eval`: evaluates a model, with or without an adapter, on a split.

use std::path::{Path, PathBuf};

use crate::report::terminal::rows;
use clap::builder::PossibleValuesParser;
use lora_drop::Result;
use lora_drop::evaluate::text::Metric;
use lora_drop::evaluate::{Evaluation, GeneratedText, GenerationEvaluation, GenerationOptions, Input};
use lora_drop::events::Event;
use lora_drop::files::write_bytes_atomically;
use lora_drop::format::{duration, fixed, grouped};
use serde_json::{Map, Value, json};

use super::console::{Console, Form};
use super::generate::{DecodingArgs, prompt_line};
use super::interrupt::Interrupt;
use super::job::Job;
use super::options::at_least_one;
use super::outputs::check_file;
use super::source::{DataSplit, Measure, Source, locate, open_on};

const EXAMPLES: &str = "\
Examples:
  lora-drop eval --adapter runs/mrpc --data data/mrpc
  lora-drop eval --model models/minilm --adapter runs/mrpc --data data/mrpc --split test --json
  lora-drop eval --model merged --data data/mrpc
  lora-drop eval --adapter runs/e2e --data data/e2e --metrics bleu,nist,cider,rougeL
  lora-drop eval --adapter runs/gsm8k --data data/gsm8k --metrics exact_match --max-new-tokens 256

Without an adapter, labelled rows need a model that has a classification head, as merged and fully
fine-tuned models do. A decoder without a head is evaluated by loss and perplexity over all rows,
and with --metrics by the texts that it generates. Rows with the same prompt are then one input
with several references.";

/// Each metric by its own name, and `rouge` for all of its kinds.
fn metric_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Metric::ALL.iter().map(|metric| metric.name()).chain(["rouge"]))
}

/// Evaluate a model, with or without an adapter, on a split of labelled rows or texts
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(mut_group("DecodingArgs", |group| group.requires("metrics")))]
pub struct Args {
    #[command(flatten)]
    source: Source<Measure>,
    /// The data: a folder with the split's file, one file, or a name on the hub
    #[arg(long, value_name = "DIR|FILE|ORG/NAME")]
    data: PathBuf,
    /// The split to evaluate. A single file is evaluated as a whole, unless it is the one that the
    /// adapter was trained on [default: dev]
    #[arg(long, value_name = "SPLIT", value_parser = ["train", "dev", "test"])]
    split: Option<String>,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    generation: Generation,
    #[command(flatten)]
    decoding: DecodingArgs,
}

/// The options of generated text.
#[derive(clap::Args)]
#[command(next_help_heading = "Generated text")]
struct Generation {
    /// Generate a text for each prompt and compare it with the references by these metrics,
    /// separated by commas; rouge stands for all of its kinds [default: none, because generating
    /// takes long]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = metric_names())]
    metrics: Vec<String>,
    /// Generate for the first N prompts only; loss and perplexity are still those of all rows
    #[arg(long, value_name = "N", requires = "metrics", value_parser = at_least_one)]
    limit: Option<usize>,
    /// Write prompts, references and generated texts to this file as JSON Lines; it appears when all
    /// are done
    #[arg(long, value_name = "FILE", requires = "metrics")]
    predictions: Option<PathBuf>,
    /// Replace the file of --predictions if it exists
    #[arg(long, requires = "predictions")]
    overwrite: bool,
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt, job: Option<&Job>) -> Result<()> {
    let wanted = generation_options(&args.generation, &args.decoding)?;
    let ranks = job.map(|job| job.ranks().clone()).unwrap_or_default();
    let source = args.source.resolve()?;
    let data = ranks.first_then_others(|| locate(&source, &args.data, console, interrupt))?;
    let split = DataSplit::of(&data, args.split, &source.reading)?;
    let mut predictor = open_on(&source, &ranks, console, interrupt)?;
    console.note(job.map(Job::describe));
    console.note(split.note);
    let (data, cancel) = (data.as_path(), &interrupt.cancel);
    // What is wrong with the prompts is reported before the work begins.
    let read = |options| predictor.inputs(data, &split.name, &source.reading, options);
    let inputs = wanted.as_ref().map(read).transpose()?.unwrap_or_default();
    let mut terminal = console.terminal();
    let mut listen = |event: &Event| terminal.handle(event);
    let found =
        predictor.evaluate(data, &split.name, &source.reading, cancel, &mut listen).and_then(|found| {
            let generate = |options| predictor.evaluate_generation(&inputs, options, cancel, &mut listen);
            Ok((found, wanted.as_ref().map(generate).transpose()?))
        });
    terminal.finish();
    let (found, generated) = found?;
    if !ranks.is_first() {
        return Ok(());
    }
    let only_class = predictor.labels().and_then(|labels| found.answers.only_class(labels.names()));
    let predictions = args.generation.predictions;
    if let (Some(path), Some(generated)) = (&predictions, &generated) {
        // From here on Ctrl-C must not leave half a file.
        interrupt.put_at_stake();
        write_predictions(path, &inputs, generated)?;
    }
    let metrics: Map<_, _> =
        all_metrics(&found, generated.as_ref()).map(|(name, value)| (name.clone(), json!(value))).collect();
    let mut object = json!({
        "model": source.model(),
        "adapter": source.adapter,
        "data": args.data,
        "split": split.shown,
        "metrics": metrics,
        "loss": found.loss,
        "rows": found.rows,
        "tokens": found.tokens,
        "seconds": found.seconds,
    });
    let positive = predictor.labels().and_then(|labels| labels.positive()).map(String::from);
    if let Some(positive) = &positive {
        object["positive_class"] = json!(positive);
    }
    if let Some(only) = &only_class {
        object["only_class"] = json!(only);
    }
    if let Some(generated) = &generated {
        object["generation"] = json!({
            "inputs": inputs.len(),
            "references": inputs.iter().map(|input| input.references.len()).sum::<usize>(),
            "tokens": generated.tokens,
            "seconds": generated.seconds,
            "predictions": predictions,
        });
    }
    console.result(&args.form, &object, || {
        let mut table = vec![("split", split.shown.clone()), ("rows", grouped(found.rows))];
        if let Some(generated) = &generated {
            let rate = generated.tokens as f64 / generated.seconds;
            let (texts, tokens) = (grouped(inputs.len()), grouped(generated.tokens));
            table.push(("texts", format!("{texts}, of {tokens} tokens, {rate:.1} tok/s")));
        }
        let metrics = all_metrics(&found, generated.as_ref());
        let named = positive.map(|class| format!("F1 ({class})"));
        table.extend(metrics.map(|(name, value)| {
            let name = named.as_deref().filter(|_| name == "f1").unwrap_or(name);
            (name, fixed(*value, 4))
        }));
        table.push(("loss", fixed(found.loss, 4)));
        if let Some(only) = &only_class {
            table.push(("note", only.to_string()));
        }
        let seconds = found.seconds + generated.as_ref().map_or(0.0, |generated| generated.seconds);
        table.push(("time", duration(seconds)));
        rows(&table)
    })
}

/// What --metrics and the options that go with it ask for; None without it.
fn generation_options(generation: &Generation, decoding: &DecodingArgs) -> Result<Option<GenerationOptions>> {
    let Generation { metrics: names, limit, predictions, overwrite } = generation;
    if names.is_empty() {
        return Ok(None);
    }
    if let Some(path) = predictions {
        check_file("--predictions", path, *overwrite)?;
    }
    let is_named = |metric: &Metric| {
        names.iter().any(|name| name == metric.name() || name == "rouge" && metric.name().starts_with(name))
    };
    let metrics: Vec<Metric> = Metric::ALL.iter().copied().filter(is_named).collect();
    let decoding = decoding.options()?;
    Ok(Some(GenerationOptions { metrics, limit: *limit, decoding }))
}

/// All metrics: those of the rows, then those of the generated texts.
fn all_metrics<'a>(
    found: &'a Evaluation,
    generated: Option<&'a GenerationEvaluation>,
) -> impl Iterator<Item = &'a (String, f64)> {
    found.metrics.iter().chain(generated.into_iter().flat_map(|generated| &generated.metrics))
}

/// A line of JSON for each input: prompt or turns, references, prediction.
fn write_predictions(path: &Path, inputs: &[Input], generated: &GenerationEvaluation) -> Result<()> {
    let line = |(input, written): (&Input, &GeneratedText)| {
        let mut line: Value = prompt_line(&input.prompt);
        line["references"] = json!(input.references);
        line["prediction"] = json!(written.text);
        line["finish"] = json!(written.finish);
        line["tokens"] = json!(written.tokens);
        line.to_string() + "\n"
    };
    let text: String = inputs.iter().zip(&generated.texts).map(line).collect();
    write_bytes_atomically(path, text.as_bytes())
}
