//! `lora-drop bench`: the speed and memory of training steps on random rows, of generation and of
//! single products.

use crate::report;
use crate::report::terminal::{Style, rows};
use clap::builder::PossibleValuesParser;
use lora_drop::bench::{self, BenchSettings};
use lora_drop::format::{bytes, fixed, percent, rate};
use lora_drop::settings::{Definition, Method, RunSettings, Situation, Task};
use lora_drop::{Error, Result};
use serde_json::json;

use super::console::{Console, Form};
use super::interrupt::Interrupt;
use super::options::{Given, OptionSet, at_least_one};
use super::profile::{ProfileOption, table};

const EXAMPLES: &str = "\
Examples:
  lora-drop bench --model models/minilm --batch 32 --length 128
  lora-drop bench --model models/mpnet --batch 16 --length 128 --steps 20 --json
  lora-drop bench --model models/smollm2 --batch 4 --length 256
  lora-drop bench --model models/smollm2 --batch 8 --length 64 --generate 64 --steps 3
  lora-drop bench --model models/minilm --score --steps 100
  lora-drop bench --model models/smollm2 --batch 4 --length 256 --profile profile.json
  lora-drop bench --model models/smollm2 --batch 4 --length 256 --kernels";

/// Measure the speed and memory of training steps, of generation or of single matrix products
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What is trained
    #[arg(long, value_name = "METHOD", default_value = "lora", value_parser = PossibleValuesParser::new(methods().map(Method::name)))]
    method: String,
    #[command(flatten)]
    settings: Given<Bench>,
    /// Sequences in a step
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one, alias = "batch-size")]
    batch: usize,
    /// Tokens in a sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = at_least_one)]
    length: usize,
    /// Instead of training, generate this number of tokens for each sequence, all sequences at once
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one, conflicts_with_all = ["method", "rank", "micro-tokens", "recompute", "memory-limit"])]
    generate: Option<usize>,
    /// Instead of the speed, measure what collecting scores adds to the time of a step
    #[arg(long, conflicts_with_all = ["generate", "profile"])]
    score: bool,
    /// Instead of training, measure each kind of linear layer alone: the products of its forward
    /// pass, of its input's gradient and of its LoRA, for the rows of a micro-batch
    #[arg(long, conflicts_with_all = ["generate", "profile", "score"])]
    kernels: bool,
    /// Number of steps to measure; with --score pairs of steps, with --generate repetitions, with
    /// --kernels samples of each product
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    steps: usize,
    #[command(flatten)]
    profile: ProfileOption,
    /// Replace the file of --profile if it exists
    #[arg(long, requires = "profile")]
    overwrite: bool,
    #[command(flatten)]
    form: Form,
}

/// The settings of `bench`.
struct Bench;

impl OptionSet for Bench {
    const INHERITS: bool = false;

    fn includes(setting: &Definition) -> bool {
        let of_machine = setting.heading == "Speed and memory" && setting.name != "activation-cache";
        of_machine || ["model", "rank"].contains(&setting.name)
    }
}

/// The methods without a sample stage.
fn methods() -> impl Iterator<Item = Method> {
    Method::ALL.iter().copied().filter(|method| !method.has_sample())
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    let method = methods().find(|method| method.name() == args.method).unwrap_or(Method::Lora);
    let read = Situation { method, ..Situation::of_model(true, Task::Text, None) };
    read.check(args.settings.table().keys().map(String::as_str))?;
    args.profile.check(args.overwrite, None)?;
    let Args { generate, score, kernels, batch, length, steps, form, .. } = args;
    let mut given = RunSettings::default();
    given.apply(args.settings.table())?;
    let (model, rank, compute) = (given.place.model, given.train.adapter.rank, given.train.compute);
    let (dtype, threads) = (compute.dtype, compute.threads);
    if model.is_empty() {
        return Err(Error::Usage(
            "`model` is missing: a folder, a GGUF file or a hub name (org/name)".to_string(),
        ));
    }
    let settings = BenchSettings { model, method, rank, batch, length, steps, compute };
    console.fetch(&settings.model, interrupt)?;
    let cancel = &interrupt.cancel;
    if kernels {
        let found = bench::kernels(&settings, cancel)?;
        return console.result(&form, &found, || report::kernels(&found, Style::stdout()));
    }
    // The report as an object and as rows, and what was recorded if a profile is wanted.
    let (mut object, mut shown, threads_used, recorder) = if let Some(new_tokens) = generate {
        let (found, recorder) = args.profile.record(|| bench::generation(&settings, new_tokens, cancel));
        let found = found?;
        let time = format!("{:.3} s for {batch} × {new_tokens} tokens, including the prompts", found.seconds);
        let shown = vec![
            ("speed", format!("{} new tokens/s", rate(found.tokens_per_second))),
            ("time", time),
            ("memory", bytes(found.peak_rss_bytes)),
        ];
        (json!(found), shown, found.threads, recorder)
    } else if score {
        let found = bench::scoring(&settings, cancel)?;
        let shown = vec![
            ("scoring", format!("{:+.2} % of a step's time", 100.0 * found.added_share)),
            ("step", format!("{:.3} s", found.seconds_per_step)),
            ("scored", format!("{:.3} s", found.seconds_per_scored_step)),
        ];
        (json!(found), shown, found.threads, None)
    } else {
        let (found, recorder) = args.profile.record(|| bench::run(&settings, cancel));
        let found = found?;
        let peak = format!(
            "{} of what the matrix kernel reaches ({:.1} of {:.1} GFLOP/s)",
            percent(found.share_of_peak),
            found.gflops,
            found.peak_gflops
        );
        let moved = format!(
            "{} of operands and results a step, {} GB/s",
            bytes(found.bytes_per_step),
            fixed(found.gb_per_second, 1)
        );
        let memory = format!("{} ({} estimated)", bytes(found.peak_rss_bytes), bytes(found.memory.total));
        let shown = vec![
            ("speed", format!("{} tokens/s", rate(found.tokens_per_second))),
            ("step", format!("{:.3} s", found.seconds_per_step)),
            ("peak", peak),
            ("moved", moved),
            ("memory", memory),
        ];
        (json!(found), shown, found.threads, recorder)
    };
    shown.push(("threads", threads_used.to_string()));
    interrupt.put_at_stake();
    let profile = args.profile.write(recorder.as_ref(), dtype, threads)?;
    if let Some(profile) = &profile {
        object["profile"] = json!(profile);
    }
    console.result(&form, &object, || rows(&shown) + &table(profile.as_ref(), Style::stdout()))
}
