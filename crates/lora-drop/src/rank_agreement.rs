//! Checks that all ranks of a job have the same settings, data and weights before anything is
//! computed. A rank that differs would spoil the results of all.

use std::collections::{BTreeMap, BTreeSet};

use lora_drop_compute::gemm::instructions;
use lora_drop_transformer::Parameters;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use crate::data::{Label, TaskRows};
use crate::evaluate::GenerationOptions;
use crate::events::Event;
use crate::loaded::{Arithmetic, Loaded};
use crate::model::locate;
use crate::ranks::Ranks;
use crate::settings::{Dtype, RunSettings, changes_no_result, definition};
use crate::train::{Prepared, RELOCATABLE_SETTINGS};
use crate::{Cancel, Result, digest};

/// Checks that all ranks run the same program with the same settings on processors of one kind. The
/// first rank downloads the model where it is on the hub; the others then find it in the cache, or
/// download it if they have another.
///
/// # Errors
/// `Error::Ranks` with what differs on which rank; those of the download.
pub fn on_settings(
    ranks: &Ranks,
    settings: &RunSettings,
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Event),
) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let free = |name: &str| changes_no_result(name) || RELOCATABLE_SETTINGS.contains(&name);
    let compared = settings.to_table().into_iter().filter(|(name, _)| !free(name));
    let compared = compared.map(|(name, value)| (name, value.to_string())).collect();
    ranks.compare(Ok(Program::here(settings.train.compute.dtype, compared)), Program::differs)?;
    let mut located = Ok(());
    if ranks.is_first() {
        let tell = &mut |download: crate::hub::Download| {
            listen(&Event::Downloading { file: download.file, done: download.done, total: download.total });
        };
        located = locate(&settings.place.model, cancel, tell).map(drop);
    }
    ranks.agree(located)
}

/// Checks that all ranks have the same model and the same rows.
///
/// # Errors
/// `Error::Ranks` with what differs on which rank; the model's files cannot be read.
pub fn on_sources(ranks: &Ranks, prepared: &Prepared, cancel: &Cancel) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let data = &prepared.data;
    let mine = prepared.model_hash(cancel).map(|model| {
        vec![
            ("the files of its model".to_string(), hex(model)),
            ("its rows of train, their tokens or labels".to_string(), of_rows(data.train())),
            ("its rows of dev, their tokens or labels".to_string(), of_rows(data.dev())),
            ("the names of its labels".to_string(), format!("{:?}", data.labels().map(|l| l.names()))),
        ]
    });
    compare(ranks, mine)
}

/// Checks that all ranks begin with the same trained values of the same modules: those of a new
/// adapter, of one that is given, or of a checkpoint.
///
/// # Errors
/// `Error::Ranks` with the rank where they differ.
pub fn on_start(ranks: &Ranks, parameters: &Parameters) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let what = "the values of the adapter or checkpoint that it begins with".to_string();
    compare(ranks, Ok(vec![(what, of_parameters(parameters))]))
}

/// Checks that all ranks have the same program, model and adapter, on processors of one kind.
///
/// # Errors
/// `Error::Ranks` with what differs on which rank; the model's files cannot be read.
pub fn on_model(ranks: &Ranks, loaded: &Loaded, cancel: &Cancel) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let Arithmetic { quantize, dtype } = loaded.arithmetic;
    let stored = quantize.map_or("the file's".to_string(), |quantize| quantize.to_string());
    let settings = [("dtype", dtype.to_string()), ("quantize", stored)];
    let settings = settings.map(|(name, value)| (name.to_string(), value)).into();
    ranks.compare(Ok(Program::here(dtype, settings)), Program::differs)?;
    let mine = digest::of_model(&loaded.files.path, cancel).map(|model| {
        vec![
            ("the files of its model".to_string(), hex(model)),
            ("the values of its adapter".to_string(), of_parameters(&loaded.parameters)),
            ("the names of its labels".to_string(), format!("{:?}", loaded.labels)),
        ]
    });
    compare(ranks, mine)
}

/// Checks that all ranks have the same rows to measure.
///
/// # Errors
/// `Error::Ranks` with the rank where they differ.
pub fn on_rows(ranks: &Ranks, rows: TaskRows) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let what = "its rows, their tokens or labels".to_string();
    compare(ranks, Ok(vec![(what, of_rows(rows))]))
}

/// Checks that all ranks generate for the same prompts in the same way.
///
/// # Errors
/// `Error::Ranks` with the rank where they differ.
pub fn on_inputs(ranks: &Ranks, prompts: &[Vec<u32>], options: &GenerationOptions) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let mut hash = XxHash3_128::new();
    prompts.iter().for_each(|prompt| add(&mut hash, prompt));
    let mine = vec![
        ("its prompts".to_string(), hex(hash.finish_128())),
        ("its options for generating".to_string(), format!("{options:?}")),
    ];
    compare(ranks, Ok(mine))
}

/// The program on a rank.
#[derive(Serialize, Deserialize)]
struct Program {
    version: String,
    kernels: String,
    settings: BTreeMap<String, String>,
}

impl Program {
    fn here(dtype: Dtype, settings: BTreeMap<String, String>) -> Self {
        Program {
            version: env!("CARGO_PKG_VERSION").to_string(),
            kernels: instructions(dtype.precision()).to_string(),
            settings,
        }
    }

    /// How this rank's program differs from that of the first one.
    fn differs(&self, first: &Program) -> Option<String> {
        if self.version != first.version {
            return Some(format!(
                "it runs version {} of the program, the first one {}",
                self.version, first.version
            ));
        }
        let names: BTreeSet<&String> = self.settings.keys().chain(first.settings.keys()).collect();
        let different = names.into_iter().find(|&name| self.settings.get(name) != first.settings.get(name));
        if let Some(name) = different {
            let shown = |program: &Program| match program.settings.get(name) {
                Some(value) => value.clone(),
                None => "not set".to_string(),
            };
            let field = definition(name).map_or(&name[..], |definition| definition.field);
            return Some(format!("its `{field}` is {}, that of the first one {}", shown(self), shown(first)));
        }
        (self.kernels != first.kernels).then(|| {
            format!(
                "its products use {}, those of the first one {}, and round differently; start all on processors of one kind",
                self.kernels, first.kernels
            )
        })
    }
}

/// Checks that all ranks have the same values, each given by its name and a hash.
fn compare(ranks: &Ranks, mine: Result<Vec<(String, String)>>) -> Result<()> {
    ranks.compare(mine, |mine, first| {
        let (what, _) = mine.iter().zip(first).find_map(|(mine, first)| (mine != first).then_some(mine))?;
        Some(format!("{what} are not those of the first one"))
    })
}

fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}

/// A hash of parameters' names and values.
fn of_parameters(parameters: &Parameters) -> String {
    let mut hash = XxHash3_128::new();
    for parameter in parameters.list() {
        hash.write(format!("{}:{}{:?}", parameter.name.len(), parameter.name, parameter.shape).as_bytes());
    }
    parameters.values().iter().for_each(|value| hash.write(&value.to_le_bytes()));
    hex(hash.finish_128())
}

/// Adds numbers and their count to a hash.
fn add(hash: &mut XxHash3_128, numbers: &[u32]) {
    hash.write(&(numbers.len() as u64).to_le_bytes());
    numbers.iter().for_each(|number| hash.write(&number.to_le_bytes()));
}

/// A hash of rows' tokens and labels.
fn of_rows(rows: TaskRows) -> String {
    let mut hash = XxHash3_128::new();
    let mut numbers = |numbers: &[u32]| add(&mut hash, numbers);
    match rows {
        TaskRows::Labelled(rows) => rows.iter().for_each(|row| {
            numbers(&row.ids);
            numbers(&row.types);
            numbers(&row.labelled);
            match &row.label {
                Some(Label::Value(value)) => numbers(&[2, value.to_bits()]),
                Some(label) => {
                    numbers(&label.classes().iter().map(|&class| class as u32).collect::<Vec<_>>());
                }
                None => numbers(&[]),
            }
        }),
        TaskRows::Text(rows) => rows.iter().for_each(|row| {
            numbers(&row.ids);
            numbers(&row.learn.iter().map(|&learn| u32::from(learn)).collect::<Vec<_>>());
        }),
    }
    hex(hash.finish_128())
}
