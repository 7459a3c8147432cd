//! Settings as command line options, made from their definitions and read into a table by name.

use std::marker::PhantomData;

use clap::builder::{PossibleValuesParser, TypedValueParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command};
use lora_drop::Error;
use lora_drop::settings::{Definition, Kind, Need, RunSettings, Setting, as_options, definitions};
use toml::{Table, Value};

/// Which settings a command has as options.
pub trait OptionSet {
    /// Whether an option that is not given takes the value that the adapter was trained with.
    const INHERITS: bool;

    fn includes(setting: &Definition) -> bool;
}

/// All settings.
pub struct Train;

impl OptionSet for Train {
    const INHERITS: bool = false;

    fn includes(_: &Definition) -> bool {
        true
    }
}

/// The settings that the sample stage reads.
pub struct Score;

impl OptionSet for Score {
    const INHERITS: bool = false;

    fn includes(setting: &Definition) -> bool {
        !setting.needs.contains(&Need::FineTunes)
    }
}

/// The settings that were given as options of a command.
pub struct Given<C> {
    table: Table,
    command: PhantomData<C>,
}

impl<C> Given<C> {
    /// Values by name.
    pub fn table(&self) -> &Table {
        &self.table
    }

    pub fn into_table(self) -> Table {
        self.table
    }
}

impl<C: OptionSet> clap::Args for Given<C> {
    fn augment_args(command: Command) -> Command {
        let settings = definitions().filter(|setting| C::includes(setting));
        command.args(settings.map(|setting| option(setting, C::INHERITS)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<C: OptionSet> clap::FromArgMatches for Given<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Given { table: Table::new(), command: PhantomData };
        given.update_from_arg_matches(matches)?;
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in definitions().filter(|setting| C::includes(setting)) {
            let value = match setting.kind {
                Kind::Flag => matches.get_flag(setting.name).then_some(Value::Boolean(true)),
                Kind::List(_) => {
                    let values = matches.get_many(setting.name);
                    values.map(|values| Value::Array(values.cloned().collect()))
                }
                Kind::Several(_) => {
                    let values = matches.get_many(setting.name);
                    let values: Option<Vec<Value>> = values.map(|values| values.cloned().collect());
                    values.map(|mut values| match values.len() {
                        1 => values.remove(0),
                        _ => Value::Array(values),
                    })
                }
                _ => matches.get_one(setting.name).cloned(),
            };
            self.table.extend(value.map(|value| (setting.name.to_string(), value)));
        }
        Ok(())
    }
}

/// The option of a setting.
fn option(setting: &'static Definition, inherits: bool) -> Arg {
    let option = Arg::new(setting.name)
        .long(setting.name)
        .aliases(setting.aliases)
        .help(help(setting, inherits))
        .help_heading(Some(setting.heading).filter(|heading| !heading.is_empty()));
    match setting.kind {
        Kind::Flag => option.action(ArgAction::SetTrue),
        Kind::List(&kind) => option
            .action(ArgAction::Append)
            .value_delimiter(',')
            .value_name(setting.value_name)
            .value_parser(parser(kind)),
        Kind::Several(&kind) => {
            option.action(ArgAction::Append).value_name(setting.value_name).value_parser(parser(kind))
        }
        kind => option.value_name(setting.value_name).value_parser(parser(kind)),
    }
}

fn parser(kind: Kind) -> ValueParser {
    match kind {
        Kind::Choice(words) => PossibleValuesParser::new(words).map(Value::String).into(),
        kind => ValueParser::new(move |word: &str| kind.read(word)),
    }
}

/// What a setting means, and its default.
fn help(setting: &Definition, inherits: bool) -> String {
    let text = as_options(setting.help.trim());
    let default = match RunSettings::default().to_table().get(setting.name) {
        _ if !setting.default_in_words.is_empty() => as_options(setting.default_in_words),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Integer(number)) => number.to_string(),
        Some(Value::Float(number)) => number.to_string(),
        _ => String::new(),
    };
    // The number of threads belongs to the machine and not to the adapter.
    let inherits = inherits && setting.name != "threads";
    match (inherits, default.is_empty()) {
        (false, false) => format!("{text} [default: {default}]"),
        (true, false) => format!("{text} [default: as in training, else {default}]"),
        (true, true) => format!("{text} [default: as in training]"),
        (false, true) => text,
    }
}

/// The error for an option that nothing reads, with the reason.
pub fn no_effect(option: &str, reason: &str) -> Error {
    Error::Usage(format!("--{option} has no effect {reason}; leave it out"))
}

/// Reads one of a few words.
pub fn choice<T: Setting + Clone + Send + Sync + 'static>() -> impl TypedValueParser<Value = T> {
    let Kind::Choice(words) = T::KIND else { unreachable!("only choices are read so") };
    PossibleValuesParser::new(words).map(|word| {
        T::from_value(&Value::String(word)).unwrap_or_else(|_| unreachable!("one of the possible values"))
    })
}

/// Reads one of a few words as the value that it stands for.
pub fn word<T: Copy + Send + Sync>(words: &'static [(&'static str, T)]) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(words.iter().map(|(word, _)| *word)).map(|word| {
        let found = words.iter().find(|(known, _)| *known == word);
        found.map_or_else(|| unreachable!("one of the possible values"), |(_, value)| *value)
    })
}

/// Reads a count.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= 1 => Ok(number),
        _ => Err("expected a number from 1 up".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches};

    use super::*;

    fn parse(words: &[&str]) -> Table {
        let words = std::iter::once("train").chain(words.iter().copied());
        let matches = Given::<Train>::augment_args(Command::new("train")).get_matches_from(words);
        Given::<Train>::from_arg_matches(&matches).unwrap().into_table()
    }

    #[test]
    fn only_what_was_given_is_in_the_table() {
        assert_eq!(parse(&[]), Table::new());
        let words = [
            "--rank",
            "4",
            "--lora-alpha=2",
            "--sample-epochs",
            "3",
            "--target-modules",
            "query,key",
            "--memory-limit",
            "1.5GB",
            "--overwrite",
        ];
        let expected = "rank = 4\nalpha = 2.0\nsample-epochs = 3\ntarget-modules = [\"query\", \"key\"]\n\
                        memory-limit = \"1500MB\"\noverwrite = true";
        assert_eq!(parse(&words), expected.parse().unwrap());
        assert_eq!(parse(&["--sample-epochs", "auto"]), "sample-epochs = \"auto\"".parse().unwrap());
    }
}
