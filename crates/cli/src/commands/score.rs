//! `lora-drop score`: the sample stage and the scoring alone.

use std::path::PathBuf;

use crate::report::terminal::{self as text, Style};
use lora_drop::assignment::{Assignment, Owner};
use lora_drop::events::Event;
use lora_drop::format::counted;
use lora_drop::run_record::{ModuleNames, module_names};
use lora_drop::score::Importance;
use lora_drop::settings::{Basis, Reader, RunSettings};
use lora_drop::{Result, train};
use lora_drop_transformer::ModuleId;
use serde_json::{Value, json};

use super::console::{Console, Form};
use super::interrupt::Interrupt;
use super::options::{Given, Score};
use super::train::settings;

const EXAMPLES: &str = "\
Examples:
  lora-drop score --model models/minilm --data data/mrpc --output runs/scores
  lora-drop score --model models/minilm --data data/mrpc --output runs/scores --budget 0.5 --json
  lora-drop score --model models/minilm --data data/mrpc --output runs/scores --adapter runs/lora

Writes importance.json into the output folder and changes nothing else there. With --adapter nothing is trained: the adapter
is scored as it is.";

/// Score how important each module's LoRA is, and show which ones LoRA-drop would keep
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A TOML file with settings; options override it
    #[arg(value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// Score this PEFT adapter instead of a LoRA newly trained on the sample
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    options: Given<Score>,
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt) -> Result<()> {
    let reader = if args.adapter.is_some() { Reader::ScoreAdapter } else { Reader::Score };
    let mut settings = settings(args.recipe, args.options.into_table(), reader, console)?;
    settings.check_importance()?;
    console.fetch_data(&mut settings.place, interrupt)?;
    let adapter = args.adapter.as_deref();
    let (mut terminal, mut names) = (console.terminal(), ModuleNames::new());
    let scored = train::score(&settings, adapter, &interrupt.cancel, &mut |event| match event {
        // Drawn at the end, on standard output.
        Event::Importance(_) | Event::Assignment(_) if !args.form.json => {}
        event => {
            if let Event::Model(model) = event {
                names = module_names(&model.architecture);
            }
            interrupt.follow(event);
            terminal.handle(event);
        }
    });
    terminal.finish();
    let (importance, assignment) = scored?;
    let object = object(&importance, &assignment, &settings);
    console.result(&args.form, &object, || {
        let style = Style::stdout();
        let drawn = text::importance(&importance, Some(&assignment), &names, style);
        drawn + &text::assignment(&assignment, &names) + &extent(&importance, &settings, adapter.is_some())
    })
}

/// The object of `--json`.
fn object(importance: &Importance, assignment: &Assignment, settings: &RunSettings) -> Value {
    let modules: Vec<Value> = importance
        .modules
        .iter()
        .map(|m| {
            let owner = owner(assignment, ModuleId { layer: m.layer, kind: m.kind });
            json!({"kind": m.kind, "layer": m.layer, "score": m.score, "importance": m.importance, "lora": owner})
        })
        .collect();
    json!({
        "output": settings.place.output,
        "criterion": settings.train.selection.criterion,
        "rows": importance.rows,
        "tokens": importance.tokens,
        "window": importance.window,
        "micro_tokens": importance.micro_tokens,
        "steps": importance.steps,
        "settled": importance.settled,
        "modules": modules,
    })
}

/// What the scores are based on, in a sentence.
fn extent(importance: &Importance, settings: &RunSettings, is_adapter: bool) -> String {
    let Importance { steps, settled, window, .. } = importance;
    let criterion = settings.train.selection.criterion.name();
    if settings.train.selection.criterion.basis() == Basis::Order {
        return format!("ordered by the criterion {criterion}, which looks at no rows\n");
    }
    let (rows, tokens) = (counted(window.rows, "row"), counted(window.tokens, "token"));
    let (sample, last) = (counted(importance.rows, "row"), counted(window.steps, "step"));
    let trained = match (steps, settled) {
        (0, _) => {
            let state = if is_adapter { "as the adapter is" } else { "before anything is trained" };
            return format!("scored by {criterion} on {rows} ({tokens}) {state}\n");
        }
        (&n, true) => format!("after {}, when the ranking was stable", counted(n, "step")),
        (&n, false) => format!("after {}", counted(n, "step")),
    };
    format!(
        "scored by {criterion} on the last {last} ({rows}, {tokens}; the sample has {sample}) {trained}\n"
    )
}

fn owner(assignment: &Assignment, module: ModuleId) -> &'static str {
    match assignment.owners.get(&module) {
        Some(Owner::Own) => "own",
        Some(Owner::Shared) => "shared",
        Some(Owner::None) | None => "none",
    }
}
