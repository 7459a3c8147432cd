//! `lora-drop bench`: the speed and memory of training steps on random rows, of generation and of
//! single products.

use crate::report;
use crate::report::terminal::{Style, rows};
use clap::builder::PossibleValuesParser;
use lora_drop::bench::{self, BenchSettings};
use lora_drop::format::{bytes, fixed, percent, rate};
use lora_drop::profile::Profile;
use lora_drop::settings::{Definition, Method, RunSettings, Situation, Task};
use lora_drop::{Error, Result};
use serde::Serialize;

use super::console::{Console, Form};
use super::interrupt::Interrupt;
use super::options::{Given, Takes, at_least_one};
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

/// Measure how fast training steps are, or generation, or single products
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What trains
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
    /// Instead of training, generate this many tokens for each sequence, all sequences at once
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one, conflicts_with_all = ["method", "rank", "micro-tokens", "recompute", "memory-limit"])]
    generate: Option<usize>,
    /// Instead of the speed, find what collecting the scores adds to a step
    #[arg(long, conflicts_with_all = ["generate", "profile"])]
    score: bool,
    /// Instead of training, multiply with each kind of linear layer alone: its product forward,
    /// that of its input's gradient and those of its LoRA, for as many rows as a part of a step has
    #[arg(long, conflicts_with_all = ["generate", "profile", "score"])]
    kernels: bool,
    /// Steps to measure, pairs of them with --score, repetitions of the generation, or samples of
    /// each product
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

impl Takes for Bench {
    const INHERITS: bool = false;

    fn takes(setting: &Definition) -> bool {
        let of_machine = setting.heading == "Speed and memory" && setting.name != "activation-cache";
        of_machine || ["model", "rank"].contains(&setting.name)
    }
}

/// A report, with the profile where one was made.
#[derive(Serialize)]
struct Measured<'a, T> {
    #[serde(flatten)]
    report: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<&'a Profile>,
}

/// Those of one stage.
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
    if kernels {
        let found = bench::kernels(&settings, &interrupt.cancel)?;
        return console.result(&form, &found, || report::kernels(&found, Style::stdout()));
    }
    if let Some(new_tokens) = generate {
        let (report, recorder) =
            args.profile.record(|| bench::generation(&settings, new_tokens, &interrupt.cancel));
        let report = report?;
        interrupt.put_at_stake();
        let profile = args.profile.write(recorder.as_ref(), dtype, threads)?;
        let measured = Measured { report: &report, profile: profile.as_ref() };
        return console.result(&form, &measured, || {
            let rows = rows(&[
                ("speed", format!("{} new tokens/s", rate(report.tokens_per_second))),
                (
                    "time",
                    format!(
                        "{:.3} s for {batch} × {new_tokens} tokens, including the prompts",
                        report.seconds
                    ),
                ),
                ("memory", bytes(report.peak_rss_bytes)),
                ("threads", report.threads.to_string()),
            ]);
            rows + &table(profile.as_ref(), Style::stdout())
        });
    }
    if score {
        let report = bench::scoring(&settings, &interrupt.cancel)?;
        return console.result(&form, &report, || {
            rows(&[
                ("scoring", format!("{:+.2} % of a step's time", 100.0 * report.added_share)),
                ("step", format!("{:.3} s", report.seconds_per_step)),
                ("scored", format!("{:.3} s", report.seconds_per_scored_step)),
                ("threads", report.threads.to_string()),
            ])
        });
    }
    let (report, recorder) = args.profile.record(|| bench::run(&settings, &interrupt.cancel));
    let report = report?;
    interrupt.put_at_stake();
    let profile = args.profile.write(recorder.as_ref(), dtype, threads)?;
    let measured = Measured { report: &report, profile: profile.as_ref() };
    console.result(&form, &measured, || {
        let rows = rows(&[
            ("speed", format!("{} tokens/s", rate(report.tokens_per_second))),
            ("step", format!("{:.3} s", report.seconds_per_step)),
            (
                "peak",
                format!(
                    "{} of what the matrix kernel reaches ({:.1} of {:.1} GFLOP/s)",
                    percent(report.share_of_peak),
                    report.gflops,
                    report.peak_gflops
                ),
            ),
            (
                "moved",
                format!(
                    "{} of operands and results a step, {} GB/s",
                    bytes(report.bytes_per_step),
                    fixed(report.gb_per_second, 1)
                ),
            ),
            (
                "memory",
                format!("{} ({} estimated)", bytes(report.peak_rss_bytes), bytes(report.memory.total)),
            ),
            ("threads", report.threads.to_string()),
        ]);
        rows + &table(profile.as_ref(), Style::stdout())
    })
}
