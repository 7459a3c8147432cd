//! Training and scoring on files, and the command-line program.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lora_drop::events::Event;
use lora_drop::settings::{Place, Reader, RunSettings, definitions};
use lora_drop::train::{self as training, StoppedRun};
use lora_drop::{Error, Result};
use lora_drop_cli::{Program, render};
use pyo3::prelude::*;
use serde_json::{Value, json};
use toml::Table;

use crate::errors::exception;
use crate::work::{Cancel, EventSender, run};

/// Parses settings by name from a JSON object; a null setting counts as not given.
pub fn table(settings: &str) -> Result<Table> {
    let wrong = |problem: String| Error::Usage(format!("settings: {problem}"));
    let mut given: Value = serde_json::from_str(settings).map_err(|e| wrong(e.to_string()))?;
    if let Some(given) = given.as_object_mut() {
        given.retain(|_, value| !value.is_null());
    }
    serde_json::from_value(given).map_err(|e| wrong(e.to_string()))
}

/// Returns the settings of a run; reports the recipe's settings that do not apply as a note.
fn settings_of(
    recipe: Option<&Path>,
    given: Table,
    reader: Reader,
    events: &EventSender,
) -> Result<RunSettings> {
    let (settings, note) = RunSettings::from_layers(recipe, given, reader)?;
    note.iter().for_each(|note| events.event(&Event::Note(note)));
    Ok(settings)
}

/// Resolves names of data sets on the hub to files, downloading them if necessary.
fn locate(settings: &mut RunSettings, cancel: &lora_drop::Cancel, events: &EventSender) -> Result<()> {
    let Place { data, data_config, .. } = &mut settings.place;
    data.locate_all(data_config.as_deref(), cancel, &mut |part| events.downloading(&part))
}

/// Trains and writes the output folder, or continues the run in the folder `resume`. Returns
/// summary.json's object and the folder.
#[pyfunction]
pub fn train(
    py: Python<'_>,
    settings: &str,
    recipe: Option<PathBuf>,
    resume: Option<PathBuf>,
    listen: &Bound<'_, PyAny>,
    cancel: &Cancel,
) -> PyResult<(String, PathBuf)> {
    let given = table(settings).map_err(|error| exception(py, error))?;
    run(py, listen, cancel, |cancel, events| {
        let mut listen = |event: &Event| events.event(event);
        let (summary, output) = match resume {
            Some(folder) => {
                let mut stopped = StoppedRun::open(&folder, &given)?;
                locate(&mut stopped.settings, cancel, events)?;
                (training::resume(&stopped, Some(&render), cancel, &mut listen)?, folder)
            }
            None => {
                let mut settings = settings_of(recipe.as_deref(), given, Reader::Train, events)?;
                locate(&mut settings, cancel, events)?;
                settings.check_output()?;
                (training::run(&settings, Some(&render), cancel, &mut listen)?, settings.place.output)
            }
        };
        let text = serde_json::to_string(&summary);
        Ok((text.map_err(|e| Error::Input(format!("a result that JSON cannot hold: {e}")))?, output))
    })
}

/// Scores modules after a short training on a sample, or scores an adapter. Writes importance.json
/// into the output folder.
#[pyfunction]
pub fn score(
    py: Python<'_>,
    settings: &str,
    recipe: Option<PathBuf>,
    adapter: Option<PathBuf>,
    listen: &Bound<'_, PyAny>,
    cancel: &Cancel,
) -> PyResult<()> {
    let given = table(settings).map_err(|error| exception(py, error))?;
    run(py, listen, cancel, |cancel, events| {
        let reader = if adapter.is_some() { Reader::ScoreAdapter } else { Reader::Score };
        let mut settings = settings_of(recipe.as_deref(), given, reader, events)?;
        settings.check_importance()?;
        locate(&mut settings, cancel, events)?;
        training::score(&settings, adapter.as_deref(), cancel, &mut |event| events.event(event)).map(drop)
    })
}

/// Returns all settings of a run: a JSON array of objects with name, help, default, and aliases,
/// which are the names in other trainers.
#[pyfunction]
pub fn settings() -> String {
    let defaults = RunSettings::default().to_table();
    let all = definitions().map(|definition| {
        json!({
            "name": definition.field,
            "help": definition.help.trim(),
            "default": defaults.get(definition.name),
            "aliases": definition.aliases,
        })
    });
    Value::from(all.collect::<Vec<_>>()).to_string()
}

/// Runs the program with these arguments; `command` is the command that starts it again. Returns
/// the exit code.
#[pyfunction]
pub fn program(py: Python<'_>, command: Vec<String>, arguments: Vec<OsString>) -> u8 {
    let mut first = command.into_iter();
    let file = first.next().map(PathBuf::from).unwrap_or_default();
    let program = Program { file, first: first.collect() };
    py.detach(|| lora_drop_cli::main(Ok(program), arguments.into_iter()))
}
