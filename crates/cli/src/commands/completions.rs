//! `lora-drop completions`: prints a shell's completions of the command line: commands, options, the
//! words that an option takes, and paths.

use clap::builder::ValueHint;
use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;
use lora_drop::Result;

use super::Cli;
use super::console::Console;

const EXAMPLES: &str = "\
Examples:
  lora-drop completions bash > ~/.local/share/bash-completion/completions/lora-drop
  lora-drop completions zsh > ~/.zfunc/_lora-drop
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
    let cli = Cli::command();
    let shown = cli.get_subcommands().filter(|command| !command.is_hide_set());
    let mut cli = Command::new("lora-drop")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .args(cli.get_arguments().cloned())
        .subcommands(shown.map(|command| command.clone().mut_args(hinted)));
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut cli, "lora-drop", &mut text);
    // clap_complete's bash takes the dash in the program's name for a space in one of two places.
    console.raw(&String::from_utf8_lossy(&text).replace("lora__subcmd__drop", "lora__drop"))
}

/// An argument whose values are completed as the name of its value says: `DIR|FILE|ORG/NAME`.
fn hinted(arg: Arg) -> Arg {
    let names = arg.get_value_names().unwrap_or_default();
    let is = |part: &str| names.iter().any(|name| name.split('|').any(|one| one == part));
    let hint = match () {
        () if is("FILE") || is("PATH") => ValueHint::AnyPath,
        () if is("DIR") => ValueHint::DirPath,
        () => return arg,
    };
    arg.value_hint(hint)
}
