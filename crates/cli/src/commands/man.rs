//! `lora-drop man`: the manual pages, from the same options.

use clap::CommandFactory;
use lora_drop::{Error, Result};

use super::Cli;
use super::console::Console;

const EXAMPLES: &str = "\
Examples:
  lora-drop man > ~/.local/share/man/man1/lora-drop.1
  lora-drop man train > ~/.local/share/man/man1/lora-drop-train.1";

/// Print a manual page
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The command [default: the program as a whole]
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

pub fn run(args: Args, console: &Console) -> Result<()> {
    let mut cli = Cli::command();
    cli.build();
    let command = match &args.command {
        None => &cli,
        Some(name) => cli
            .find_subcommand(name)
            .ok_or_else(|| Error::Usage(format!("there is no command {name:?}; see `lora-drop --help`")))?,
    };
    let mut page = Vec::new();
    // A vector takes every byte.
    clap_mangen::Man::new(command.clone()).render(&mut page).unwrap_or_default();
    console.raw(&String::from_utf8_lossy(&page))
}
