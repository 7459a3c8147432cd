//! `lora-drop prune`: prunes a trained adapter in closed form, or shows what each budget would keep.

use std::path::{Path, PathBuf};

use crate::report::terminal::Style;
use crate::report::{prune_page, prune_table};
use lora_drop::events::Event;
use lora_drop::folder::Contents;
use lora_drop::format::fixed;
use lora_drop::prune::{self, PruneCriterion, PruneData, PruneOptions, PruneOutput, Pruning};
use lora_drop::settings::{Budget, Definition};
use lora_drop::{Error, Result};

use super::console::{Console, Form};
use super::interrupt::Interrupt;
use super::options::{OptionSet, at_least_one, choice};
use super::outputs::Output;
use super::source::{Measure, Source, locate, open, recipe, train_settings};

const EXAMPLES: &str = "\
Examples:
  lora-drop prune --adapter runs/mrpc --data data/mrpc
  lora-drop prune --adapter runs/mrpc --data data/mrpc --budget 0.25 --output runs/mrpc-quarter
  lora-drop prune --model models/minilm --adapter peft-adapter --data data/mrpc --budget auto --output small
  lora-drop prune --adapter runs/e2e --data data/e2e --max-rows 2000 --budget 0.5 --equal-ranks --output half
  lora-drop prune --adapter runs/mrpc --data data/mrpc --budget 0.1 --finetune-steps 100 --output tenth

Pruning takes one forward pass over train and an evaluation of dev for each budget, and no training unless
--finetune-steps is given. Without --budget nothing is pruned; --output then keeps the table as prune.json and prune.html.";

/// The settings of `prune`: those of `eval`, and the metric for --budget auto.
pub struct Prunes;

impl OptionSet for Prunes {
    const INHERITS: bool = true;

    fn includes(setting: &Definition) -> bool {
        Measure::includes(setting) || setting.name == "metric"
    }
}

/// Prune a trained adapter to the directions that carry its output
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(mut_arg("adapter", |arg| arg.required(true)))]
pub struct Args {
    #[command(flatten)]
    source: Source<Prunes>,
    /// The data that the adapter was trained on: a folder with train and dev files, one file, a
    /// tenth of which is dev as in training, or a name on the hub
    #[arg(long, value_name = "DIR|FILE|ORG/NAME")]
    data: PathBuf,
    /// The folder for the pruned adapter, prune.json and prune.html
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Replace the files of an earlier `prune` in the output folder
    #[arg(long, requires = "output")]
    overwrite: bool,
    /// Keep this fraction of the adapter's unique parameters, or with auto the smallest of
    /// --budgets whose metric on dev is within the tolerance [default: prune nothing, and show a
    /// table of --budgets]
    #[arg(long, value_name = "FRACTION|auto", value_parser = budget)]
    budget: Option<Budget>,
    /// The budgets to evaluate on dev, separated by commas [default:
    /// 0.75,0.5,0.35,0.25,0.125,0.0625]
    #[arg(long, value_name = "FRACTIONS", value_delimiter = ',', value_parser = fraction)]
    budgets: Vec<f64>,
    /// What is pruned: the directions whose output on the data has the least energy (energy), those
    /// with the smallest singular values of s·B·A (svd), or the modules with the least energy (modules)
    #[arg(long, value_name = "WHAT", default_value = "energy", value_parser = choice::<PruneCriterion>())]
    by: PruneCriterion,
    /// Give all modules the same rank, the largest within the budget, for servers that need one
    #[arg(long)]
    equal_ranks: bool,
    /// With --budget auto: how far the metric may fall below the whole adapter's, in the metric's
    /// units; perplexity may rise by it [default: the standard error of the whole adapter's]
    #[arg(long, value_name = "AMOUNT", value_parser = amount)]
    tolerance: Option<f64>,
    /// Fraction of train's rows that is read, drawn from each label in proportion
    #[arg(long, value_name = "FRACTION", default_value_t = 1.0, value_parser = fraction)]
    sample_ratio: f64,
    /// Most rows of train that are read, drawn in the same way
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_rows: Option<usize>,
    /// Seed for drawing rows and for --finetune-steps
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Train the pruned adapter for this number of optimiser steps [default: none]
    #[arg(long, value_name = "N", requires = "budget", value_parser = at_least_one)]
    finetune_steps: Option<usize>,
    /// Peak learning rate of these steps [default: as in training, else 0.0005]
    #[arg(long, value_name = "RATE", requires = "finetune_steps")]
    learning_rate: Option<f64>,
    /// Sequences in a batch of these steps [default: as in training, else 32]
    #[arg(long, value_name = "N", requires = "finetune_steps", value_parser = at_least_one)]
    batch_size: Option<usize>,
    #[command(flatten)]
    form: Form,
}

fn fraction(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(fraction) if fraction > 0.0 && fraction <= 1.0 => Ok(fraction),
        _ => Err("expected a number above 0, up to 1".to_string()),
    }
}

fn budget(text: &str) -> std::result::Result<Budget, String> {
    if text == "auto" {
        return Ok(Budget::Auto);
    }
    fraction(text).map(Budget::Share).map_err(|message| format!("{message}, or auto"))
}

fn amount(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(amount) if amount >= 0.0 && f64::is_finite(amount) => Ok(amount),
        _ => Err("expected a number from 0 up".to_string()),
    }
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    check_meaning(&args)?;
    let source = args.source.resolve()?;
    // clap requires --adapter.
    let adapter = source.adapter.clone().unwrap_or_default();
    if let Some(output) = &args.output {
        let inputs = [("model", Path::new(source.model())), ("adapter", adapter.as_path())];
        Output::Folder(Contents::Pruned).check(output, args.overwrite, inputs)?;
    }
    let data = locate(&source, &args.data, console, interrupt)?;
    let finetune = args.finetune_steps.map(|steps| {
        let mut settings = train_settings(&source, &data);
        settings.place.output = args.output.clone().unwrap_or_default();
        let optimisation = &mut settings.train.optimisation;
        optimisation.max_steps = Some(steps);
        optimisation.learning_rate = args.learning_rate.unwrap_or(optimisation.learning_rate);
        optimisation.batch_size = args.batch_size.unwrap_or(optimisation.batch_size);
        optimisation.seed = args.seed;
        settings
    });
    let options = PruneOptions {
        by: args.by,
        budget: args.budget,
        budgets: if args.budgets.is_empty() { PruneOptions::BUDGETS.to_vec() } else { args.budgets },
        equal_ranks: args.equal_ranks,
        metric: source.settings.train.optimisation.metric,
        tolerance: args.tolerance,
        sample_ratio: args.sample_ratio,
        max_rows: args.max_rows,
        seed: args.seed,
        finetune: finetune.map(Box::new),
    };
    let recipe = recipe(&source, &args.data)?;
    let place = args.output.map(|folder| PruneOutput {
        folder,
        overwrite: args.overwrite,
        recipe,
        page: Some(prune_page),
    });
    let predictor = open(&source, console, interrupt)?;
    let rows = PruneData { data: &data, reading: &source.reading };
    let mut terminal = console.terminal();
    let mut listen = |event: &Event| {
        interrupt.follow(event);
        terminal.handle(event);
    };
    let cancel = &interrupt.cancel;
    let pruning = prune::run(predictor, &adapter, rows, &options, place.as_ref(), cancel, &mut listen);
    terminal.finish();
    let pruning = pruning?;
    console.result(&args.form, &pruning, || {
        prune_table(&pruning, Style::stdout()) + &decision(&pruning, &options).unwrap_or_default()
    })
}

/// Checks options of `prune` that another command will give it, in addition to the adapter, the data
/// and the output folder.
///
/// # Errors
/// What is wrong with them, in words.
pub fn check(options: impl Iterator<Item = String>) -> std::result::Result<(), String> {
    let places = ["prune", "--adapter=A", "--data=D", "--output=O"].map(str::to_string);
    let parsed = <Args as clap::Args>::augment_args(clap::Command::new("prune"))
        .try_get_matches_from(places.into_iter().chain(options))
        .and_then(|matches| <Args as clap::FromArgMatches>::from_arg_matches(&matches));
    let args = parsed.map_err(|error| {
        let said = error.to_string();
        let first = said.lines().next().unwrap_or_default();
        first.strip_prefix("error: ").unwrap_or(first).to_string()
    })?;
    check_meaning(&args).map_err(|error| error.to_string())
}

/// Refuses options that nothing would read.
fn check_meaning(args: &Args) -> Result<()> {
    let budget = args.budget;
    let refuse = |option: &str, reason: &str| Err(Error::Usage(format!("--{option} has no effect {reason}")));
    if budget != Some(Budget::Auto) && args.tolerance.is_some() {
        return refuse("tolerance", "without --budget auto");
    }
    if let (Some(Budget::Share(_)), false) = (budget, args.budgets.is_empty()) {
        return refuse("budgets", "with one --budget");
    }
    if args.by == PruneCriterion::Modules && args.equal_ranks {
        return refuse("equal-ranks", "with --by modules, which leaves ranks as they are");
    }
    if args.by == PruneCriterion::Svd && (args.max_rows.is_some() || args.sample_ratio < 1.0) {
        let option = if args.max_rows.is_some() { "max-rows" } else { "sample-ratio" };
        return refuse(option, "with --by svd, which reads no row of train");
    }
    if budget.is_some() && args.output.is_none() {
        return Err(Error::Usage("--output is missing: the folder for the pruned adapter".to_string()));
    }
    Ok(())
}

/// What --budget auto kept, and why.
fn decision(pruning: &Pruning, options: &PruneOptions) -> Option<String> {
    let (kept, tolerance) = (pruning.kept()?, pruning.tolerance?);
    if options.budget != Some(Budget::Auto) {
        return None;
    }
    let (metric, tolerance) = (pruning.metric.as_deref()?, fixed(tolerance, 4));
    Some(if kept.budget < 1.0 {
        format!(
            "kept: {} of the parameters, the smallest share with which {metric} stays within {tolerance} of the whole adapter's\n",
            kept.budget
        )
    } else {
        format!("kept: the whole adapter; with less, {metric} leaves the tolerance of {tolerance}\n")
    })
}
