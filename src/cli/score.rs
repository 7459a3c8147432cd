//! `lora-drop score`: the sample stage and the scoring alone.

use std::path::{Path, PathBuf};

use lora_drop::assign::{Assignment, Owner};
use lora_drop::score::Importance;
use lora_drop::settings::Recipe;
use lora_drop::train;
use lora_drop::{Cancel, Result};
use lora_drop_transformer::ModuleId;
use serde_json::{Value, json};

use super::console::{Console, Form};
use super::options::{ScoreOptions, given};
use super::progress;
use super::train::settings;

const EXAMPLES: &str = "\
Examples:
  lora-drop score --model models/minilm --data data/mrpc --output runs/scores
  lora-drop score --model models/minilm --data data/mrpc --output runs/scores --budget 0.5 --json
  lora-drop score --model models/minilm --data data/mrpc --output runs/scores --adapter runs/lora

Writes importance.json into the output folder. An adapter is scored as it is: nothing is trained.";

/// Find out how important each module's LoRA is, and what LoRA-drop would keep
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Settings from a TOML file; options win over it
    #[arg(value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// Score this PEFT adapter instead of a LoRA newly trained on the sample
    #[arg(long, value_name = "DIR", conflicts_with_all = ["rank", "alpha", "lora_dropout", "target_modules", "sample_epochs"])]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    options: ScoreOptions,
}

pub fn run(args: Args, console: &Console, cancel: &Cancel) -> Result<()> {
    let mut options = given(&args.options)?;
    // A recipe for another method can be scored as well: only LoRA-drop has a score.
    let lora_drop = [("method".to_string(), toml::Value::from("lora-drop"))];
    options.overlay(Recipe::from_table(toml::Table::from_iter(lora_drop))?);
    let settings = settings(args.recipe, options, console)?;
    settings.check_output()?;
    let adapter = args.adapter.as_deref();
    let (importance, assignment) = train::score(&settings, adapter, cancel, &mut progress::lines(console))?;
    let object = object(&importance, &assignment, &settings.output);
    console.result(&args.form, &object, || table(&importance, &assignment))
}

/// The object of `--json`.
fn object(importance: &Importance, assignment: &Assignment, output: &Path) -> Value {
    let modules: Vec<Value> = importance
        .modules
        .iter()
        .map(|m| {
            let owner = owner(assignment, ModuleId { layer: m.layer, kind: m.kind });
            json!({"kind": m.kind, "layer": m.layer, "score": m.score, "importance": m.importance, "lora": owner})
        })
        .collect();
    json!({
        "output": output,
        "rows": importance.rows,
        "tokens": importance.tokens,
        "steps": importance.steps,
        "settled": importance.settled,
        "modules": modules,
    })
}

fn table(importance: &Importance, assignment: &Assignment) -> String {
    let mut text = String::from("module            layer  importance  LoRA\n");
    for module in &importance.modules {
        let kind = serde_json::to_value(module.kind).ok();
        let kind = kind.as_ref().and_then(Value::as_str).unwrap_or_default();
        let owner = owner(assignment, ModuleId { layer: module.layer, kind: module.kind });
        text.push_str(&format!("{kind:16}  {:5}  {:10.4}  {owner}\n", module.layer, module.importance));
    }
    let Importance { rows, tokens, steps, .. } = importance;
    text.push_str(&format!("scored on {rows} rows ({tokens} tokens) after {steps} steps\n"));
    text
}

fn owner(assignment: &Assignment, module: ModuleId) -> &'static str {
    match assignment.owners.get(&module) {
        Some(Owner::Own) => "own",
        Some(Owner::Shared) => "shared",
        Some(Owner::None) | None => "none",
    }
}
