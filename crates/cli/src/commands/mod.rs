//! The command line: one file a command, its options documented where they stand. Exit codes: 0
//! done, 1 failed, 2 wrong usage, 130 interrupted.

mod bench;
mod chat;
mod compare;
mod completions;
mod console;
mod eval;
mod export;
mod generate;
mod inspect;
mod interrupt;
mod job;
mod man;
mod merge;
mod options;
mod outputs;
mod predict;
mod profile;
mod prune;
mod push;
mod reference;
mod score;
mod source;
mod train;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};
use lora_drop::Error;
use lora_drop::data::text::{serve_templates, set_template_worker};
use lora_drop::settings::words;
use lora_drop_compute::mapped::name_lost_files;
use lora_drop_mpi::Launch;

use console::{Console, eprint_line};
use interrupt::{Interrupt, NOTHING_SAVED};
use job::Job;

/// Fine-tune language models with LoRA-drop: find out which layers need a LoRA of their own, and
/// share one among the others.
#[derive(Parser)]
#[command(name = "lora-drop", version, after_help = EXAMPLES, max_term_width = 110, disable_help_subcommand = true, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print only warnings and errors on standard error
    #[arg(long, short, global = true)]
    quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  lora-drop train --model models/minilm --data data/mrpc --output runs/mrpc
  lora-drop compare recipes/compare-own-data.toml
  lora-drop eval --adapter runs/mrpc --data data/mrpc
  lora-drop predict --adapter runs/mrpc < rows.jsonl
  lora-drop generate --adapter runs/e2e --prompt 'name[The Eagle], food[French]'
  lora-drop inspect runs/mrpc

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
`lora-drop COMMAND --help` lists a command's options.";

#[derive(Subcommand)]
enum Command {
    Train(train::Args),
    Compare(compare::Args),
    Score(score::Args),
    Eval(eval::Args),
    Predict(predict::Args),
    Generate(generate::Args),
    Inspect(inspect::Args),
    Prune(prune::Args),
    Merge(merge::Args),
    Export(export::Args),
    Push(push::Args),
    Bench(bench::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(hide = true)]
    Reference(reference::Args),
    /// Render chat templates for the process that started this one
    #[command(hide = true, name = TEMPLATE_WORKER)]
    TemplateWorker,
}

const TEMPLATE_WORKER: &str = "template-worker";

/// How this program is started again, for the runs of `compare` and for workers.
#[derive(Clone, Debug)]
pub struct Program {
    pub file: PathBuf,
    /// Arguments before the program's own, such as those of an interpreter.
    pub first: Vec<String>,
}

impl Program {
    /// This process's file; on Linux by a name that stays right when the file is replaced.
    ///
    /// # Errors
    /// `Error::Io` if the system does not say it.
    pub fn own() -> lora_drop::Result<Self> {
        let running = PathBuf::from("/proc/self/exe");
        let found = match cfg!(target_os = "linux") && running.exists() {
            true => Ok(running),
            false => std::env::current_exe(),
        };
        let file = found.map_err(|e| Error::io(Path::new("the program's own file"), e))?;
        Ok(Program { file, first: Vec::new() })
    }

    /// A command that starts it.
    fn command(&self) -> process::Command {
        let mut command = process::Command::new(&self.file);
        command.args(&self.first);
        command
    }
}

/// Runs the command that these arguments, after the program's name, name. Returns the exit code.
pub fn main(program: lora_drop::Result<Program>, given: impl Iterator<Item = OsString>) -> u8 {
    let parsed = parser()
        .try_get_matches_from(arguments(given))
        .and_then(|mut found| Cli::from_arg_matches_mut(&mut found));
    let launch = Launch::from_environment();
    let is_first = launch.as_ref().ok().and_then(Option::as_ref).is_none_or(|launch| launch.rank == 0);
    let cli = parsed.unwrap_or_else(|error| {
        if !is_first {
            std::process::exit(error.exit_code());
        }
        if let Some(message) = unknown_word(&error) {
            eprint_line(format_args!("error: {message}"));
            std::process::exit(2);
        }
        error.exit()
    });
    if let Command::TemplateWorker = cli.command {
        return u8::from(serve_templates().is_err());
    }
    if let Ok(Program { file, first }) = &program {
        let first = first.iter().map(String::as_str);
        set_template_worker(file.clone(), &first.chain([TEMPLATE_WORKER]).collect::<Vec<_>>());
    }
    name_lost_files();
    let interrupt = Interrupt::listen(is_first);
    match launch {
        Ok(None) => exit_code(run(cli, &program, &interrupt, None), false),
        Ok(Some(launch)) => match cli.command {
            Command::Train(train::Args { dry_run: false, .. }) | Command::Eval(_) => match Job::join(&launch)
            {
                Ok(job) => job.run(|job| run(cli, &program, &interrupt, Some(job))),
                Err(error) => exit_code(job::refuse_joining(error, &launch), false),
            },
            _ => exit_code(Err(job::refuse(&launch).into()), !is_first),
        },
        Err(error) => exit_code(Err(Error::Ranks(error.to_string()).into()), false),
    }
}

/// Reports an outcome, unless `silent`, and returns its exit code.
fn exit_code(outcome: Result<(), Failure>, silent: bool) -> u8 {
    let (line, code) = match outcome {
        Ok(()) => return 0,
        // The reader of standard output has closed it, as `head` does when it has enough.
        Err(Failure::Error(Error::Io { source, .. })) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            return 0;
        }
        Err(Failure::Interrupted { saved }) => (format!("interrupted: {saved}"), 130),
        Err(Failure::Error(error)) => {
            (format!("error: {error}"), if let Error::Usage(_) = error { 2 } else { 1 })
        }
    };
    if !silent {
        eprint_line(line);
    }
    code
}

/// The parser of the command line. It takes numbers below zero as values, so that each option's own
/// check sees them.
fn parser() -> clap::Command {
    let understand = |arg: Arg| {
        let negative = arg.get_action().takes_values();
        arg.allow_negative_numbers(negative)
    };
    Cli::command().mut_subcommands(|command| command.mut_args(understand))
}

/// The program's name and its arguments, with dashes for underscores in options' names.
fn arguments(given: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut options = true;
    let given = given.map(move |argument| {
        options &= argument != "--";
        match argument.to_str().filter(|text| options && text.starts_with("--")) {
            Some(text) => {
                let name = text.split('=').next().unwrap_or_default();
                OsString::from(name.replace('_', "-") + &text[name.len()..])
            }
            None => argument,
        }
    });
    [OsString::from("lora-drop")].into_iter().chain(given)
}

/// What to do instead of an option that other trainers have and this one does not.
fn unknown_word(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return None };
    let word = word.split('=').next().unwrap_or_default();
    let advice = words::advice(word.trim_start_matches('-'))?;
    Some(format!("there is no option {word}: {advice}"))
}

/// Why a command failed.
enum Failure {
    Error(Error),
    /// Ctrl-C ended it; `saved` says in words what was saved.
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

/// Runs the command; of a job's ranks all but the first are quiet.
fn run(
    cli: Cli,
    program: &lora_drop::Result<Program>,
    interrupt: &Interrupt,
    job: Option<&Job>,
) -> Result<(), Failure> {
    let console = Console::new(cli.quiet || job.is_some_and(|job| !job.ranks().is_first()));
    match cli.command {
        Command::Train(args) => train::run(args, &console, interrupt, job)?,
        Command::Compare(args) => compare::run(args, program, &console, interrupt)?,
        Command::Score(args) => score::run(args, &console, interrupt)?,
        Command::Eval(args) => eval::run(args, &console, interrupt, job)?,
        Command::Predict(args) => predict::run(args, &console, interrupt)?,
        Command::Generate(args) => generate::run(args, &console, interrupt)?,
        Command::Inspect(args) => inspect::run(args, &console, interrupt)?,
        Command::Prune(args) => prune::run(args, &console, interrupt)?,
        Command::Merge(args) => merge::run(args, &console, interrupt)?,
        Command::Export(args) => export::run(args, &console, interrupt)?,
        Command::Push(args) => push::run(args, &console, interrupt)?,
        Command::Bench(args) => bench::run(args, &console, interrupt)?,
        Command::Completions(args) => completions::run(args, &console)?,
        Command::Man(args) => man::run(args, &console)?,
        Command::Reference(args) => reference::run(args, &console)?,
        // `main` runs it.
        Command::TemplateWorker => {}
    }
    Ok(())
}
