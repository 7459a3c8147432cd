//! `lora-drop reference` (hidden): docs/options.md, written from the options themselves so that it
//! cannot drift.

use std::collections::BTreeSet;

use clap::{Arg, Command, CommandFactory};
use lora_drop::Result;

use super::Cli;
use super::console::Console;

/// Print docs/options.md
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: Args, console: &Console) -> Result<()> {
    console.raw(&markdown())
}

/// Every command with its options, as Markdown.
fn markdown() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut text = String::from(
        "# Options\n\n\
         Written by `lora-drop reference > docs/options.md` from the options themselves. The options of `train` are the \
         keys of a recipe as well.\n\
         Every command takes `--quiet` (`-q`), which leaves only warnings and errors on standard error. Exit codes: 0 done, \
         1 failed, 2 wrong usage, 130 interrupted.\n",
    );
    for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
        section(command, &mut text);
    }
    text.push_str(
        "\n## Other names\n\nOptions can also be given by the names that other trainers use, with dashes or underscores. \
         Recipes use the names above.\n\n| option | other names |\n|---|---|\n",
    );
    let mut named = BTreeSet::new();
    for option in cli.get_subcommands().flat_map(Command::get_arguments) {
        let (Some(name), Some(aliases)) = (option.get_long(), option.get_all_aliases()) else { continue };
        if named.insert(name) {
            let aliases: Vec<String> = aliases.iter().map(|alias| format!("`--{alias}`")).collect();
            text.push_str(&format!("| `--{name}` | {} |\n", aliases.join(", ")));
        }
    }
    text
}

fn section(command: &Command, text: &mut String) {
    let about = command.get_about().map(|about| about.to_string()).unwrap_or_default();
    text.push_str(&format!("\n## {}\n\n{about}.\n", command.get_name()));
    let mut heading = None;
    let shown = |arg: &&Arg| !["help", "quiet"].contains(&arg.get_id().as_str());
    let mut args: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    // Options without a heading come first, as in --help; the sort keeps the order otherwise.
    args.sort_by_key(|arg| arg.get_help_heading().is_some());
    for arg in args {
        if heading != Some(arg.get_help_heading()) {
            heading = Some(arg.get_help_heading());
            let title = arg.get_help_heading().map_or(String::new(), |title| format!("\n**{title}**\n"));
            text.push_str(&format!("{title}\n| option | meaning |\n|---|---|\n"));
        }
        text.push_str(&row(arg));
    }
    if let Some(examples) = command.get_after_help() {
        text.push_str(&format!("\n```\n{}\n```\n", examples.to_string().trim_end()));
    }
}

fn row(arg: &Arg) -> String {
    let takes_value = arg.get_action().takes_values();
    let value = arg.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
    let name = match arg.get_long() {
        Some(long) if takes_value => format!("--{long} {value}"),
        Some(long) => format!("--{long}"),
        None => value,
    };
    let mut meaning = arg.get_help().map(|help| help.to_string()).unwrap_or_default();
    if takes_value {
        let values: Vec<_> =
            arg.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect();
        if !values.is_empty() {
            meaning.push_str(&format!(" ({})", values.join(", ")));
        }
        let defaults: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
        if !defaults.is_empty() {
            meaning.push_str(&format!(" [default: {}]", defaults.join(" ")));
        }
    }
    format!("| `{}` | {} |\n", name.replace('|', "\\|"), meaning.replace('|', "\\|").trim())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_options_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/options.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page == super::markdown(), "run: lora-drop reference > docs/options.md");
    }
}
