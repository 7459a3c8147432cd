//! `lora-drop man`: the manual pages, from the same options.

use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use lora_drop::files::write_bytes_atomically;
use lora_drop::format::counted;
use lora_drop::{Error, Result};

use super::Cli;
use super::console::Console;

const EXAMPLES: &str = "\
Examples:
  lora-drop man --output ~/.local/share/man/man1
  lora-drop man train > lora-drop-train.1";

/// Print a manual page, or write all of them
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The command [default: the program as a whole]
    #[arg(value_name = "COMMAND", conflicts_with = "output")]
    command: Option<String>,
    /// Write all pages into this folder, which is made if it is missing, instead of printing one
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub fn run(args: Args, console: &Console) -> Result<()> {
    let mut cli = Cli::command();
    cli.build();
    if let Some(folder) = &args.output {
        return write_all(&cli, folder, console);
    }
    let command = match &args.command {
        None => &cli,
        Some(name) => shown(&cli)
            .find(|command| command.get_name() == name)
            .ok_or_else(|| Error::Usage(format!("there is no command {name:?}; see `lora-drop --help`")))?,
    };
    console.raw(&page(command))
}

/// Writes lora-drop.1 and a page for each command, as lora-drop-train.1.
fn write_all(cli: &Command, folder: &Path, console: &Console) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let commands: Vec<&Command> = std::iter::once(cli).chain(shown(cli)).collect();
    for command in &commands {
        let name = command.get_display_name().unwrap_or(command.get_name());
        write_bytes_atomically(&folder.join(format!("{name}.1")), page(command).as_bytes())?;
    }
    console.say(format_args!("wrote {} into {}", counted(commands.len(), "page"), folder.display()));
    Ok(())
}

/// The commands that --help lists.
fn shown(cli: &Command) -> impl Iterator<Item = &Command> {
    cli.get_subcommands().filter(|command| !command.is_hide_set())
}

fn page(command: &Command) -> String {
    let mut page = Vec::new();
    let name = command.get_display_name().unwrap_or(command.get_name()).to_uppercase();
    let man = clap_mangen::Man::new(command.clone())
        .title(name)
        .date(chrono::Local::now().date_naive().to_string())
        .source(concat!("lora-drop ", env!("CARGO_PKG_VERSION")))
        .manual("lora-drop");
    // A vector takes every byte.
    man.render(&mut page).unwrap_or_default();
    let page = String::from_utf8_lossy(&page);
    // Two line breaks around an empty line are one space too many for some readers.
    let page = with_examples(&page.replace(".br\n\n.br\n", ".sp\n"));
    // Every reader knows characters by their numbers.
    page.chars()
        .map(|c| if c.is_ascii() { c.to_string() } else { format!("\\[u{:04X}]", u32::from(c)) })
        .collect()
}

/// The page with the examples below their own heading, in lines as they are.
fn with_examples(page: &str) -> String {
    let Some((before, rest)) = page.split_once(".SH EXTRA\nExamples:\n") else { return page.to_string() };
    let end = rest.find(".SH ").unwrap_or(rest.len());
    let (examples, after) = rest.split_at(end);
    format!("{before}.SH EXAMPLES\n.nf\n{}\n.fi\n{after}", examples.trim_end())
}
