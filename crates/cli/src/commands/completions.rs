//! `lora-drop completions`: prints a shell's completions of the command line.

use clap::CommandFactory;
use clap_complete::Shell;
use lora_drop::Result;

use super::Cli;
use super::console::Console;

const EXAMPLES: &str = "\
Examples:
  lora-drop completions bash > ~/.local/share/bash-completion/completions/lora-drop
  lora-drop completions fish > ~/.config/fish/completions/lora-drop.fish";

/// Print completions for a shell
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub fn run(args: Args, console: &Console) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lora-drop", &mut text);
    console.raw(&String::from_utf8_lossy(&text))
}
