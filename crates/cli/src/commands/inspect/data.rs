//! `inspect --data`: what training would make of a data set.

use std::path::Path;

use lora_drop::inspect::{self, DataView};
use lora_drop::settings::{Definition, Recipe};
use lora_drop::{Error, Result};

use super::super::console::Console;
use super::super::interrupt::Interrupt;
use super::super::options::{Given, OptionSet, no_effect};
use super::super::source::ROWS;
use crate::report::data_view;
use crate::report::terminal::Style;

/// The settings by which rows are read.
pub struct Rows;

/// The settings that concern tokens alone.
const TOKENS: [&str; 6] =
    ["max-length", "over-length", "prompt-template", "chat", "template-var", "token-cache"];

impl OptionSet for Rows {
    const INHERITS: bool = false;

    fn includes(setting: &Definition) -> bool {
        let of_rows = ["model", "data", "data-config", "task"].into_iter().chain(ROWS).chain(TOKENS);
        of_rows.into_iter().any(|name| name == setting.name)
    }
}

/// Reads the data that the options name; a recipe in place of the data has the options that are not
/// given.
pub fn read(options: Given<Rows>, console: &Console, interrupt: &Interrupt) -> Result<DataView> {
    let mut options = options.into_table();
    let data = options.get("data").and_then(|data| data.as_str()).unwrap_or_default().to_string();
    let mut recipe = Recipe::default();
    if Path::new(&data).extension().is_some_and(|ending| ending == "toml") {
        options.remove("data");
        recipe = Recipe::read(Path::new(&data))?;
    }
    let given: Vec<String> = options.keys().cloned().collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    recipe.overlay(Recipe::from_table(options)?);
    let mut settings = recipe.recorded()?;
    if settings.place.data.is_empty() {
        return Err(Error::Usage(format!("{data}: the recipe names no `data`")));
    }
    if settings.place.model.is_empty() {
        if let Some(name) = TOKENS.iter().find(|name| given.contains(*name)) {
            return Err(no_effect(name, "without `model`, as nothing is tokenised"));
        }
    } else {
        console.fetch(&settings.place.model, interrupt)?;
    }
    settings.place.data.check()?;
    console.fetch_data(&mut settings.place, interrupt)?;
    inspect::data(&settings, &given, &interrupt.cancel, &mut |_| {})
}

pub fn table(view: &DataView) -> String {
    data_view(view, Style::stdout())
}
