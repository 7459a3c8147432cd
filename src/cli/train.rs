//! `lora-drop train`: all stages, from a pre-trained encoder and labelled rows to an adapter.

use std::path::PathBuf;

use lora_drop::settings::{Recipe, TrainSettings};
use lora_drop::train::{self, Plan};
use lora_drop::{Cancel, Error, Result};

use super::console::{Console, Form, bytes, grouped, rows};
use super::inspect::summary_table;
use super::options::{TrainOptions, given};
use super::progress;

const EXAMPLES: &str = "\
Examples:
  lora-drop train --model models/minilm --data data/mrpc --output runs/mrpc
  lora-drop train --model models/minilm --data data/mrpc --output runs/half --budget 0.5 --epochs 5
  lora-drop train --model models/minilm --data data/mrpc --output runs/lora --method lora
  lora-drop train runs/mrpc/recipe.toml --output runs/again --seed 1
  lora-drop train recipe.toml --dry-run

Options win over the recipe. A recipe is a TOML file with the options' names as keys;
its paths are relative to the current directory.";

/// Fine-tune an encoder on labelled rows and write an adapter that PEFT loads
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Settings from a TOML file; options win over it
    #[arg(value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// Check everything and train nothing: parameters, memory and time foreseen
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    options: TrainOptions,
}

pub fn run(args: Args, console: &Console, cancel: &Cancel) -> Result<()> {
    let settings = settings(args.recipe, given(&args.options)?, console)?;
    settings.check_output()?;
    if args.dry_run {
        let plan = train::plan(&settings, &mut progress::lines(console))?;
        return console.result(&args.form, &plan, || plan_table(&plan, &settings));
    }
    let summary = train::run(&settings, cancel, &mut progress::lines(console))?;
    console.result(&args.form, &summary, || summary_table(&summary))?;
    if summary.status == "interrupted" { Err(Error::Interrupted) } else { Ok(()) }
}

/// The options above the recipe above the defaults.
pub fn settings(recipe: Option<PathBuf>, options: Recipe, console: &Console) -> Result<TrainSettings> {
    let mut below = recipe.as_deref().map(Recipe::read).transpose()?.unwrap_or_default();
    let put_away = below.overlay(options);
    if !put_away.is_empty() {
        console.say(format_args!("note: the options put away the recipe's {}", put_away.join(", ")));
    }
    below.settings()
}

fn plan_table(plan: &Plan, settings: &TrainSettings) -> String {
    let mut table = vec![
        ("method", settings.method.name().to_string()),
        (
            "model",
            format!("{} ({}, {} layers)", plan.model.model, plan.model.architecture, plan.model.layers),
        ),
        ("parameters", grouped(plan.model.parameters)),
        ("trainable", format!("{} before modules are shared", grouped(plan.trainable_parameters))),
    ];
    for split in &plan.data.splits {
        table.push((
            "data",
            format!("{}: {} rows, {} tokens", split.name, grouped(split.rows), grouped(split.tokens)),
        ));
    }
    table.extend([
        ("steps", grouped(plan.steps)),
        ("memory", format!("about {}", bytes(plan.memory_bytes))),
        ("time", format!("about {:.0} s", plan.seconds)),
    ]);
    rows(&table)
}
