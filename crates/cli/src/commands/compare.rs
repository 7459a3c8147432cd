//! `lora-drop compare`: a table of tasks, methods and seeds, each cell a process of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::compare::{Comparison, Counts, Event, Outcome, Run, TableFile, Work, summary_table};
use crate::report::terminal::{Style, Table};
use lora_drop::folder::checkpoints;
use lora_drop::format::{self, counted, duration, fixed, grouped, percent};
use lora_drop::summary::Plan;
use lora_drop::{Cancel, Error, train};
use serde::Serialize;
use serde_json::json;
use toml::Value;

use super::console::{Console, Form};
use super::interrupt::{Interrupt, pass_on};
use super::{Failure, Program, prune};

const EXAMPLES: &str = "\
Examples:
  lora-drop compare recipes/compare-own-data.toml --dry-run
  lora-drop compare recipes/compare-own-data.toml
  lora-drop compare recipes/compare-glue.toml --jobs 2 --threads 8
  lora-drop compare recipes/compare-glue.toml --output runs/all --from runs/first runs/second --summary

A finished run is reused as long as its settings, data, model and the program's version are the same:
stop with Ctrl-C and repeat the command to continue. docs/compare.md describes the file.";

/// The file in a cell's folder with the run's messages.
const LOG: &str = "log.txt";
/// The time between two checks of a running process.
const LOOK: Duration = Duration::from_millis(50);

/// Train every method on every task with several seeds, and find the smallest adapter that is good
/// enough
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A TOML file with tasks, methods and seeds
    #[arg(value_name = "TABLE")]
    table: PathBuf,
    /// The folder for the runs, the tables and the page; overrides the one in the file
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Number of runs at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: u16,
    /// Number of threads of all runs together, shared evenly; 0 uses all cores
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=4096))]
    threads: u16,
    /// Also use the finished runs of other comparisons, which are in these folders
    #[arg(long, value_name = "DIR", num_args = 1..)]
    from: Vec<PathBuf>,
    /// Run nothing; write the tables and the page from the runs that have finished
    #[arg(long, conflicts_with = "dry_run")]
    summary: bool,
    /// Run and write nothing; list the methods with their parameters and their finished runs
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    form: Form,
}

pub fn run(
    args: Args,
    program: &lora_drop::Result<Program>,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let table = TableFile::read(&args.table)?;
    check_prunes(&args.table, &table)?;
    let output = args.output.clone().or_else(|| table.output.clone()).ok_or_else(|| {
        let shown = args.table.display();
        Error::Usage(format!("--output is missing: give it, or the key output in {shown}"))
    })?;
    let comparison = console.downloading(interrupt, |progress| {
        Comparison::open(table, &output, &args.from, &interrupt.cancel, progress)
    })?;
    if args.dry_run {
        return Ok(dry_run(&args, &comparison, console)?);
    }
    let foreign_cells = comparison.foreign_cells()?;
    console.note((foreign_cells > 0).then(|| {
        format!(
            "{} in {} {} other settings, data, models or versions and will not be changed",
            counted(foreign_cells, "finished run"),
            output.display(),
            if foreign_cells == 1 { "has" } else { "have" }
        )
    }));
    let counts = if args.summary {
        comparison.write()?
    } else {
        run_cells(&args, program, &comparison, console, interrupt)?
    };
    show(&args, &comparison, console)?;
    if counts.failed > 0 && !args.summary {
        return Err(Failure::Error(Error::Input(format!(
            "{} of {} failed; the tables and each run's {LOG} have the errors; repeat the command to retry them",
            counts.failed,
            counted(counts.of, "run")
        ))));
    }
    Ok(())
}

/// Runs the cells that are not finished, and shows the progress.
fn run_cells(
    args: &Args,
    program: &lora_drop::Result<Program>,
    comparison: &Comparison,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Counts, Failure> {
    let before = comparison.counts()?;
    let output = comparison.folder().display();
    console.say(format!(
        "{}: {} in {output}, {} finished",
        comparison.table.name,
        counted(before.of, "run"),
        before.finished
    ));
    let jobs = usize::from(args.jobs);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if args.threads == 0 { cores } else { args.threads.into() };
    let threads = (threads / jobs).max(1);
    let program = program.as_ref().map_err(|e| Error::Input(e.to_string()))?;
    interrupt.put_at_stake();
    let overall = console.overall(before.of);
    let work = |work: &Work, run: &Path| {
        let cell = |mut command: Command| {
            command.args(["--threads", &threads.to_string(), "--json"]);
            run_cell(command, &run.with_file_name(LOG), &interrupt.cancel)
        };
        if matches!(work, Work::Train { .. }) && !checkpoints(run).is_empty() {
            match cell(resumed(program, run)) {
                // Where it cannot be continued it begins again.
                Err(Error::Input(_)) => {}
                ended => return ended,
            }
        }
        cell(command(program, work, run))
    };
    let run = Run { jobs, work: &work, cancel: &interrupt.cancel };
    let counts = comparison.run(&run, &mut |event| {
        if let Some(line) = line(comparison, event) {
            overall.line(&line);
        }
        let Counts { finished, failed, of } = event.counts;
        let (left, title) = (left(event), event.cell.title(&comparison.table));
        overall.set(finished + failed, format!("{}/{of}{left}  {title}", finished + failed));
    });
    overall.finish();
    match counts {
        Err(Error::Interrupted) => {
            let Counts { finished, of, .. } = comparison.counts()?;
            let saved = format!(
                "{finished} of {} are finished and kept in {output}; repeat the command to continue",
                counted(of, "run")
            );
            Err(Failure::Interrupted { saved })
        }
        counts => Ok(counts?),
    }
}

/// The time that is left, where it is known.
fn left(event: &Event) -> String {
    event.seconds_left.map_or(String::new(), |seconds| format!("  {} left", format::time_left(seconds)))
}

/// The line that reports a cell that has ended.
fn line(comparison: &Comparison, event: &Event) -> Option<String> {
    let result = event.result?;
    let title = event.cell.title(&comparison.table);
    let Counts { finished, failed, of } = event.counts;
    let left = left(event);
    Some(match &result.outcome {
        Outcome::Finished(measured) => format!(
            "{}/{of}  {title}  {} {}  {}{left}",
            finished + failed,
            measured.summary.metric,
            fixed(measured.score(comparison.table.score), 4),
            duration(measured.summary.total_seconds),
        ),
        Outcome::Failed { error } => format!("{}/{of}  {title}  failed: {error}", finished + failed),
    })
}

/// The command for a cell's work. It replaces what an unfinished run left in the cell's folder.
fn command(program: &Program, work: &Work, run: &Path) -> Command {
    let mut command = program.command();
    match work {
        Work::Train { settings } => _ = command.arg("train").arg(settings),
        Work::Prune { adapter, data, options } => {
            command.arg("prune").arg("--adapter").arg(adapter).arg("--data").arg(data);
            command.args(prune_arguments(options));
        }
    }
    command.arg("--output").arg(run).arg("--overwrite");
    command
}

/// The command that continues a run which was stopped.
fn resumed(program: &Program, run: &Path) -> Command {
    let mut command = program.command();
    command.args(["train", "--resume"]).arg(run);
    command
}

/// Options of `prune` as its arguments.
fn prune_arguments(options: &toml::Table) -> impl Iterator<Item = String> {
    options.iter().filter_map(|(name, value)| match value {
        Value::Boolean(given) => given.then(|| format!("--{name}")),
        Value::String(text) => Some(format!("--{name}={text}")),
        other => Some(format!("--{name}={other}")),
    })
}

/// Refuses options that `prune` would refuse, before anything is trained.
fn check_prunes(path: &Path, table: &TableFile) -> lora_drop::Result<()> {
    for line in &table.lines {
        let Some(prune) = &line.prune else { continue };
        prune::check(prune_arguments(&prune.options)).map_err(|problem| {
            Error::Usage(format!("{}: method {:?}: {problem}", path.display(), line.label))
        })?;
    }
    Ok(())
}

/// Runs a cell as a process of its own, whose failure does not end this one; its messages go into a
/// file.
fn run_cell(mut command: Command, path: &Path, cancel: &Cancel) -> Result<(), Error> {
    let log = File::create(path).map_err(|e| Error::io(path, e))?;
    let program = PathBuf::from(command.get_program());
    let io = |e| Error::io(&program, e);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().map_err(io)?;
    let status = wait(child, cancel).map_err(io)?;
    if status.success() {
        return Ok(());
    }
    cancel.check()?;
    let said = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let said = String::from_utf8_lossy(&said);
    let error = said.rfind("error: ").map(|start| said[start + "error: ".len()..].trim().to_string());
    Err(Error::Input(
        error.unwrap_or_else(|| format!("its process {}; see {}", ended(status), path.display())),
    ))
}

/// Waits for a process, and passes an interruption on to it.
fn wait(mut child: Child, cancel: &Cancel) -> std::io::Result<ExitStatus> {
    let mut passed_on = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if cancel.is_raised() && !passed_on {
            passed_on = true;
            pass_on(&child);
        }
        std::thread::sleep(LOOK);
    }
}

fn ended(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let memory = if signal == libc::SIGKILL { ", as the system does where memory runs out" } else { "" };
        return format!("was ended by signal {signal}{memory}");
    }
    status.code().map_or("ended".to_string(), |code| format!("ended with exit code {code}"))
}

/// The result on standard output.
fn show(args: &Args, comparison: &Comparison, console: &Console) -> lora_drop::Result<()> {
    let folder = comparison.folder();
    if args.form.json {
        let path = folder.join("compare.json");
        return console.raw(&std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?);
    }
    let findings = comparison.findings()?;
    let text = summary_table(&comparison.table, &findings, Style::stdout());
    console.print(&text)?;
    console.say(format!("Wrote {}: compare.html, table.md, table.csv, compare.json", folder.display()));
    Ok(())
}

/// A line of the table on a task, before it is run.
#[derive(Serialize)]
struct Planned {
    task: String,
    line: String,
    runs: usize,
    finished: usize,
    plan: Plan,
}

/// Lists the lines that train, with their parameters and the number of finished runs.
fn dry_run(args: &Args, comparison: &Comparison, console: &Console) -> lora_drop::Result<()> {
    let table = &comparison.table;
    let mut planned = Vec::new();
    for (task, name) in table.tasks.iter().map(|task| &task.name).enumerate() {
        for (index, line) in table.lines.iter().enumerate().filter(|(_, line)| line.tasks.contains(&task)) {
            if line.prune.is_some() {
                continue;
            }
            let given = table.given(task, index, table.seeds[0], &line.tried()[0])?;
            // A folder that does not exist, because those of the cells may hold finished runs.
            let settings = table.settings(&given, &comparison.folder().join("cells").join("plan"))?;
            let plan =
                train::plan(&settings, &mut |_| {}).map_err(|error| in_cell(error, &line.label, name))?;
            let Counts { finished, of, .. } = comparison.counts_of(task, index)?;
            planned.push(Planned { task: name.clone(), line: line.label.clone(), runs: of, finished, plan });
        }
    }
    let left = planned.iter().map(|p| (p.runs - p.finished) as f64 * p.plan.seconds);
    let seconds = left.sum::<f64>() / f64::from(args.jobs);
    let runs: usize = planned.iter().map(|p| p.runs - p.finished).sum();
    let object = json!({"name": table.name, "lines": planned, "runs_left": runs, "seconds_left": seconds});
    console.result(&args.form, &object, || {
        let with_lora = |p: &Planned, text: String| {
            if p.plan.lora_parameters_full == 0 { format::NONE.to_string() } else { text }
        };
        let shown = Table::new(&planned)
            .text("task", |p| p.task.clone())
            .text("method", |p| p.line.clone())
            .number("finished", |p| format!("{}/{}", p.finished, p.runs))
            .number("parameters", |p| {
                let (least, most) = p.plan.lora_parameters;
                let from = if least == most { String::new() } else { format!("{}–", grouped(least)) };
                with_lora(p, from + &grouped(most))
            })
            .number("at most", |p| {
                with_lora(p, percent(p.plan.lora_parameters.1 as f64 / p.plan.lora_parameters_full as f64))
            })
            .optional()
            .number("steps", |p| grouped(p.plan.train_steps + p.plan.sample_steps))
            .optional()
            .number("each about", |p| duration(p.plan.seconds))
            .number("memory", |p| format::bytes(p.plan.memory_bytes))
            .optional()
            .fit(Style::stdout().width);
        format!("{shown}{} to make, about {} (nothing was run)\n", counted(runs, "run"), duration(seconds))
    })
}

/// The same error with its cell.
fn in_cell(error: Error, line: &str, task: &str) -> Error {
    match error {
        Error::Usage(message) => Error::Usage(format!("method {line:?} on task {task:?}: {message}")),
        error @ (Error::Input(_) | Error::Data(_) | Error::Model(_)) => {
            Error::Input(format!("method {line:?} on task {task:?}: {error}"))
        }
        other => other,
    }
}
