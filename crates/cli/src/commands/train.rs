//! `lora-drop train`: all stages, from a pre-trained model and rows to an adapter.

use std::path::PathBuf;

use crate::report::render;
use crate::report::terminal::{self as text, Style};
use lora_drop::events::Event;
use lora_drop::folder::checkpoints;
use lora_drop::format;
use lora_drop::ranks::Ranks;
use lora_drop::settings::{Reader, RunSettings};
use lora_drop::summary::{Status, Summary};
use lora_drop::train::StoppedRun;
use lora_drop::{Error, train};

use toml::Table;

use super::Failure;
use super::console::{Console, Form};
use super::interrupt::{Interrupt, NOTHING_SAVED};
use super::job::Job;
use super::options::{Given, Train};
use super::profile::{ProfileOption, table};

const EXAMPLES: &str = "\
Examples:
  lora-drop train --model models/minilm --data data/mrpc --output runs/mrpc
  lora-drop train --model models/minilm --data data/mrpc --output runs/half --budget 0.5 --epochs 5
  lora-drop train --model models/minilm --data data/mrpc --output runs/lora --method lora
  lora-drop train --model smollm2.gguf --data data/mrpc --output runs/labels --task classification
  lora-drop train runs/mrpc/recipe.toml --output runs/again --seed 1
  lora-drop train --resume runs/mrpc
  lora-drop train recipe.toml --dry-run
  lora-drop train recipe.toml --profile profile.json

A recipe is a TOML file whose keys are names of options; options override it. Its paths are
relative to the current directory.";

/// Fine-tune a model on your data and write an adapter that PEFT can load
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A TOML file with settings; options override it
    #[arg(value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// Continue the run in this folder from its last checkpoint, with its settings and to the result
    /// of a run that was not stopped. `--epochs` and `--max-steps` may be raised; `--model` and
    /// `--data` say where the same model and data are now
    #[arg(long, value_name = "DIR", conflicts_with_all = ["recipe", "dry_run"])]
    resume: Option<PathBuf>,
    /// Check everything without training; print the parameters and the estimated memory and time
    #[arg(long, conflicts_with = "profile")]
    pub dry_run: bool,
    #[command(flatten)]
    profile: ProfileOption,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    options: Given<Train>,
}

pub fn run(args: Args, console: &Console, interrupt: &Interrupt, job: Option<&Job>) -> Result<(), Failure> {
    let options = args.options.into_table();
    let ranks = job.map(|job| job.ranks().clone()).unwrap_or_default();
    // The first rank completes what the stopped run was writing; only then do the others read.
    let stopped = ranks.first_then_others(|| {
        args.resume.as_deref().map(|folder| StoppedRun::open(folder, &options)).transpose()
    })?;
    let settings = match &stopped {
        Some(stopped) => stopped.settings.clone(),
        None => settings(args.recipe, options, Reader::Train, console)?,
    };
    let (mut settings, mut stopped) = (settings, stopped);
    ranks.first_then_others(|| {
        console.fetch_data(&mut settings.place, interrupt)?;
        if let Some(stopped) = &mut stopped {
            stopped.settings.place.data.clone_from(&settings.place.data);
        }
        Ok(())
    })?;
    if !ranks.is_first() {
        return follow(&settings, stopped.as_ref(), &ranks, interrupt, job);
    }
    if stopped.is_none() {
        settings.check_output()?;
    }
    args.profile.check(settings.place.overwrite, Some(&settings.place.output))?;
    console.note(job.map(Job::describe));
    let mut terminal = console.terminal();
    if args.dry_run {
        let plan = train::plan(&settings, &mut |event| {
            interrupt.follow(event);
            terminal.handle(event);
        });
        terminal.finish();
        let plan = plan?;
        console.result(&args.form, &plan, || text::plan(&plan, Style::stdout()))?;
        return Ok(());
    }
    let (summary, recorder) = args.profile.record(|| {
        let mut listen = |event: &Event| {
            interrupt.follow(event);
            terminal.handle(event);
        };
        match &stopped {
            Some(stopped) => train::resume_on(&ranks, stopped, Some(&render), &interrupt.cancel, &mut listen),
            None => train::run_on(&ranks, &settings, Some(&render), &interrupt.cancel, &mut listen),
        }
    });
    let summary = summary.and_then(|summary| {
        summary.ok_or_else(|| Error::Input("the first rank has no summary of the run".to_string()))
    });
    // An interrupted run has its profile too: a few steps are enough to see where the time goes.
    let recorder = recorder.filter(|_| matches!(summary, Ok(_) | Err(Error::Interrupted)));
    let profile =
        args.profile.write(recorder.as_ref(), settings.train.compute.dtype, settings.train.compute.threads);
    if let (Ok(Some(_)), Some(path)) = (&profile, args.profile.path()) {
        terminal.handle(&Event::Wrote(path));
    }
    terminal.finish();
    let profile = profile?;
    let summary = match summary {
        Err(Error::Interrupted) => {
            if profile.is_some() {
                console.say(table(profile.as_ref(), Style::stderr()));
            }
            let saved = without_adapter(terminal.written(), &settings);
            return Err(Failure::Interrupted { saved });
        }
        summary => summary?,
    };
    console.result(&args.form, &summary, || {
        let style = Style::stdout();
        text::result(&summary, style) + &table(profile.as_ref(), style)
    })?;
    match (summary.status, &summary.error) {
        (Status::Interrupted, _) => {
            let saved = best_epoch(&summary, &settings) + &how_to_resume(&settings);
            Err(Failure::Interrupted { saved })
        }
        (_, Some(error)) => Err(Failure::Error(Error::Input(format!(
            "{error}\n{}{}",
            best_epoch(&summary, &settings),
            how_to_resume(&settings)
        )))),
        _ => Ok(()),
    }
}

/// Trains on a rank other than the first, which alone reports what happens.
fn follow(
    settings: &RunSettings,
    stopped: Option<&StoppedRun>,
    ranks: &Ranks,
    interrupt: &Interrupt,
    job: Option<&Job>,
) -> Result<(), Failure> {
    if let Some(job) = job {
        job.log_into(&settings.place.output);
    }
    let mut listen = |event: &Event| interrupt.follow(event);
    match stopped {
        Some(stopped) => train::resume_on(ranks, stopped, None, &interrupt.cancel, &mut listen)?,
        None => train::run_on(ranks, settings, None, &interrupt.cancel, &mut listen)?,
    };
    Ok(())
}

/// What an interrupted run has saved before an epoch was measured.
fn without_adapter(written: &[PathBuf], settings: &RunSettings) -> String {
    let resume = how_to_resume(settings);
    if !resume.is_empty() {
        return format!("no epoch was evaluated yet; the run's state is saved{resume}");
    }
    let files: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
    if files.is_empty() {
        return NOTHING_SAVED.to_string();
    }
    format!("no epoch was evaluated yet, so no model was saved; files written: {}", files.join(", "))
}

/// How a run that was stopped can be continued, if it can.
fn how_to_resume(settings: &RunSettings) -> String {
    let output = &settings.place.output;
    if checkpoints(output).is_empty() {
        return String::new();
    }
    format!("\nto continue: lora-drop train --resume {}", output.display())
}

/// What an interrupted run has saved of its best epoch.
fn best_epoch(summary: &Summary, settings: &RunSettings) -> String {
    let value = summary.metrics.get(&summary.metric).map_or(f64::NAN, |value| *value);
    format!(
        "the best epoch so far, {} of {} ({} {}), is saved in {}",
        format::epoch(summary.best_epoch),
        summary.epochs,
        summary.metric,
        format::fixed(value, 4),
        settings.place.output.display()
    )
}

/// The settings of a run: options override the recipe, which overrides the defaults.
pub fn settings(
    recipe: Option<PathBuf>,
    options: Table,
    reader: Reader,
    console: &Console,
) -> lora_drop::Result<RunSettings> {
    let (settings, note) = RunSettings::from_layers(recipe.as_deref(), options, reader)?;
    console.note(note);
    Ok(settings)
}
