//! `lora-drop bench`: the speed and memory of training steps on random rows, and of generation.

use lora_drop::Result;
use lora_drop::bench::{self, BenchSettings};
use lora_drop::report::format::{bytes, percent, rate};
use lora_drop::settings::{Dtype, Method, Quantise, Size};

use super::console::{Console, Form, rows};
use super::interrupt::Interrupt;
use super::options::{at_least_one, size};
use super::source::{dtype, quantise};

const EXAMPLES: &str = "\
Examples:
  lora-drop bench --model models/minilm --batch 32 --length 128
  lora-drop bench --model models/mpnet --batch 16 --length 128 --steps 20 --json
  lora-drop bench --model models/smollm2 --batch 4 --length 256
  lora-drop bench --model models/smollm2 --batch 8 --length 64 --generate 64 --steps 3";

/// Measure how fast training steps are, or generation
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model: a folder as Hugging Face has them, a GGUF file, or a hub name (org/name)
    #[arg(long, value_name = "DIR|FILE|ORG/NAME")]
    model: String,
    /// What trains
    #[arg(long, value_name = "METHOD", default_value = "lora", value_parser = ["lora", "full", "head"])]
    method: String,
    /// Rank of every LoRA pair
    #[arg(long, value_name = "R", default_value_t = 8, value_parser = at_least_one)]
    rank: usize,
    /// What linear layers multiply in
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = dtype())]
    dtype: Dtype,
    /// Store a decoder's frozen matrices in 8 or 4 bits a value [default: as their file has them]
    #[arg(long, value_name = "TYPE", value_parser = quantise())]
    quantize: Option<Quantise>,
    /// Sequences in a step
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    batch: usize,
    /// Tokens in a sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = at_least_one)]
    length: usize,
    /// Tokens of a micro-batch, into which a step is cut [default: 1024, decoders 512]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    micro_tokens: Option<usize>,
    /// Keep only the blocks' inputs in the forward pass and compute the rest again on the way back
    #[arg(long)]
    recompute: bool,
    /// Choose these two, where they are not given, so that the memory is foreseen to stay below this, such as 600MB or 1.5GB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory_limit: Option<Size>,
    /// Instead of training, continue each sequence by so many tokens, all sequences at once
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one, conflicts_with_all = ["method", "rank", "dtype", "micro_tokens", "recompute", "memory_limit"])]
    generate: Option<usize>,
    /// Steps to measure, or repetitions of the generation
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    steps: usize,
    /// Threads to compute with; 0 is all
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    form: Form,
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    let method = match args.method.as_str() {
        "full" => Method::Full,
        "head" => Method::Head,
        _ => Method::Lora,
    };
    let Args { model, rank, dtype, quantize: quantise, batch, length, micro_tokens, recompute, .. } = args;
    let Args { memory_limit, generate, steps, threads, form, .. } = args;
    let settings = BenchSettings {
        model,
        method,
        rank,
        dtype,
        quantise,
        batch,
        length,
        micro_tokens,
        recompute,
        memory_limit,
        steps,
        threads,
    };
    if let Some(new_tokens) = generate {
        let report = bench::generation(&settings, new_tokens, &interrupt.cancel)?;
        return console.result(&form, &report, || {
            rows(&[
                ("speed", format!("{} new tokens/s", rate(report.tokens_per_second))),
                (
                    "time",
                    format!("{:.3} s for {batch} × {new_tokens} tokens, prompts and all", report.seconds),
                ),
                ("memory", bytes(report.peak_rss_bytes)),
                ("threads", report.threads.to_string()),
            ])
        });
    }
    let report = bench::run(&settings, &interrupt.cancel)?;
    console.result(&form, &report, || {
        rows(&[
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
            ("memory", format!("{} ({} foreseen)", bytes(report.peak_rss_bytes), bytes(report.memory.total))),
            ("threads", report.threads.to_string()),
        ])
    })
}
