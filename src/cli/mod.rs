//! The command line: one file a command, its options documented where they stand. Exit codes: 0 done, 1 failed,
//! 2 wrong usage, 130 interrupted.

mod bench;
mod chat;
mod completions;
mod console;
mod eval;
mod export;
mod generate;
mod inspect;
mod interrupt;
mod merge;
mod options;
mod outputs;
mod predict;
mod profile;
mod reference;
mod score;
mod source;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lora_drop::Error;

use console::Console;
use interrupt::{Interrupt, NOTHING_SAVED};

/// Fine-tune language models with LoRA-drop: find out which layers need a LoRA of their own, share one among the rest.
#[derive(Parser)]
#[command(name = "lora-drop", version, after_help = EXAMPLES, max_term_width = 110, disable_help_subcommand = true, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say nothing on standard error but warnings and errors
    #[arg(long, short, global = true)]
    quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  lora-drop train --model models/minilm --data data/mrpc --output runs/mrpc
  lora-drop eval --adapter runs/mrpc --data data/mrpc
  lora-drop predict --adapter runs/mrpc < rows.jsonl
  lora-drop generate --adapter runs/e2e --prompt 'name[The Eagle], food[French]'
  lora-drop inspect runs/mrpc

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
`lora-drop COMMAND --help` tells each command's options.";

#[derive(Subcommand)]
enum Command {
    Train(train::Args),
    Score(score::Args),
    Eval(eval::Args),
    Predict(predict::Args),
    Generate(generate::Args),
    Inspect(inspect::Args),
    Merge(merge::Args),
    Export(export::Args),
    Bench(bench::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Reference(reference::Args),
}

/// Parses, runs the command and turns its outcome into an exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let interrupt = Interrupt::listen();
    match run(cli, &interrupt) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of standard output has gone, as `head` does: it has what it wanted.
        Err(Failure::Error(Error::Io { source, .. })) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(Failure::Interrupted { saved }) => {
            console::say(format_args!("interrupted: {saved}"));
            ExitCode::from(130)
        }
        Err(Failure::Error(error)) => {
            console::say(format_args!("error: {error}"));
            ExitCode::from(if let Error::Usage(_) = error { 2 } else { 1 })
        }
    }
}

/// Why a command did not do its work.
enum Failure {
    Error(Error),
    /// Ctrl-C ended it; `saved` says in words what is left of the work.
    Interrupted {
        saved: String,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Interrupted => Failure::Interrupted { saved: NOTHING_SAVED.to_string() },
            error => Failure::Error(error),
        }
    }
}

fn run(cli: Cli, interrupt: &Interrupt) -> Result<(), Failure> {
    let console = Console::new(cli.quiet);
    match cli.command {
        Command::Train(args) => train::run(args, &console, interrupt)?,
        Command::Score(args) => score::run(args, &console, interrupt)?,
        Command::Eval(args) => eval::run(args, &console, interrupt)?,
        Command::Predict(args) => predict::run(args, &console, interrupt)?,
        Command::Generate(args) => generate::run(args, &console, interrupt)?,
        Command::Inspect(args) => inspect::run(args, &console)?,
        Command::Merge(args) => merge::run(args, &console, interrupt)?,
        Command::Export(args) => export::run(args, &console, interrupt)?,
        Command::Bench(args) => bench::run(args, &console, interrupt)?,
        Command::Completions(args) => completions::run(args, &console)?,
        Command::Reference(args) => reference::run(args, &console)?,
    }
    Ok(())
}
