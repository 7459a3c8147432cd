//! What has to be the same on all ranks of a job, compared before anything is computed: what a rank
//! computes from other settings, data or weights would spoil what the others compute.

use std::collections::{BTreeMap, BTreeSet};

use lora_drop_compute::gemm::instructions;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use super::learner::Learner;
use super::prepare::Prepared;
use crate::assignment::Assignment;
use crate::data::{Label, TaskRows};
use crate::estimate::PassPlan;
use crate::events::Event;
use crate::model::locate;
use crate::ranks::Ranks;
use crate::settings::{RunSettings, TrainSettings, definition};
use crate::{Cancel, Error, Result, digest};

/// Settings that may differ: they do not affect results, or say where on a machine something is.
const FREE: [&str; 9] = [
    "model",
    "data",
    "output",
    "overwrite",
    "checkpoint-minutes",
    "save-total",
    "threads",
    "token-cache",
    "activation-cache",
];

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
    let compared = settings.to_table().into_iter().filter(|(name, _)| !FREE.contains(&name.as_str()));
    let mine = Program {
        version: env!("CARGO_PKG_VERSION").to_string(),
        kernels: instructions(settings.train.compute.dtype.precision()).to_string(),
        settings: compared.map(|(name, value)| (name, value.to_string())).collect(),
    };
    compare(ranks, &mine, |other, first| {
        if other.version != first.version {
            return Some(format!(
                "it runs version {} of the program, the first one {}",
                other.version, first.version
            ));
        }
        let names: BTreeSet<&String> = other.settings.keys().chain(first.settings.keys()).collect();
        let different = names.into_iter().find(|&name| other.settings.get(name) != first.settings.get(name));
        if let Some(name) = different {
            let shown = |program: &Program| match program.settings.get(name) {
                Some(value) => value.clone(),
                None => "not set".to_string(),
            };
            let field = definition(name).map_or(&name[..], |definition| definition.field);
            return Some(format!(
                "its `{field}` is {}, that of the first one {}",
                shown(other),
                shown(first)
            ));
        }
        (other.kernels != first.kernels).then(|| {
            format!(
                "its products use {}, those of the first one {}, and round differently; start all on processors of one kind",
                other.kernels, first.kernels
            )
        })
    })?;
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
    let model = ranks.agree(digest::of_model(&prepared.model.path, cancel))?;
    let mine = Sources {
        model: format!("{model:032x}"),
        train: of_rows(prepared.data.train()),
        dev: of_rows(prepared.data.dev()),
        labels: prepared.data.labels().map(|labels| labels.names().to_vec()).unwrap_or_default(),
    };
    compare(ranks, &mine, |other, first| {
        let different = [
            (other.model != first.model, "the files of its model"),
            (other.train != first.train, "its rows of train, their tokens or labels"),
            (other.dev != first.dev, "its rows of dev, their tokens or labels"),
            (other.labels != first.labels, "the names of its labels"),
        ];
        let (_, what) = different.into_iter().find(|(different, _)| *different)?;
        Some(format!("{what} are not those of the first one"))
    })
}

/// Loads the model as `load` does, with passes that are cut as on the first rank: under
/// `memory_limit` they depend on the memory and the threads of a process.
///
/// # Errors
/// Those of `load` on any rank.
pub fn load_alike(
    ranks: &Ranks,
    prepared: &Prepared,
    settings: &TrainSettings,
    assignment: &Assignment,
    listen: &mut dyn FnMut(&Event),
) -> Result<(Learner, PassPlan)> {
    let loaded = ranks.agree(super::load(prepared, settings, assignment, true, listen))?;
    if ranks.size() == 1 {
        return Ok(loaded);
    }
    let cut = |plan: &PassPlan| Cut {
        micro_tokens: plan.passes.cut.micro_tokens,
        recompute: plan.passes.recompute,
    };
    let first = exchange(ranks, &cut(&loaded.1))?.remove(0);
    let loaded = if cut(&loaded.1) == first {
        Ok(loaded)
    } else {
        let mut settings = settings.clone();
        settings.compute.micro_tokens = Some(first.micro_tokens);
        settings.compute.recompute = first.recompute;
        super::load(prepared, &settings, assignment, true, listen)
    };
    ranks.agree(loaded)
}

/// The program on a rank.
#[derive(Serialize, Deserialize)]
struct Program {
    version: String,
    kernels: String,
    settings: BTreeMap<String, String>,
}

/// What a rank has read.
#[derive(Serialize, Deserialize)]
struct Sources {
    model: String,
    train: String,
    dev: String,
    labels: Vec<String>,
}

/// How steps are cut into parts.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Cut {
    micro_tokens: usize,
    recompute: bool,
}

/// Gives each rank what all have.
fn exchange<T: Serialize + DeserializeOwned>(ranks: &Ranks, mine: &T) -> Result<Vec<T>> {
    let fault = |error: serde_json::Error| Error::Ranks(format!("a rank of another version: {error}"));
    let all = ranks.gather(serde_json::to_vec(mine).map_err(fault))?;
    all.iter().map(|message| serde_json::from_slice(message).map_err(fault)).collect()
}

/// Compares what each rank has with what the first one has; `differs` says what differs.
fn compare<T: Serialize + DeserializeOwned>(
    ranks: &Ranks,
    mine: &T,
    differs: impl Fn(&T, &T) -> Option<String>,
) -> Result<()> {
    let all = exchange(ranks, mine)?;
    let found = all.iter().enumerate().find_map(|(rank, other)| Some((rank, differs(other, &all[0])?)));
    ranks.agree(match found {
        Some((rank, problem)) => Err(Error::Ranks(format!("rank {rank} does not fit the others: {problem}"))),
        None => Ok(()),
    })
}

/// A hash of rows' tokens and labels.
fn of_rows(rows: TaskRows) -> String {
    let mut hash = XxHash3_128::new();
    let mut numbers = |numbers: &[u32]| {
        hash.write(&(numbers.len() as u64).to_le_bytes());
        numbers.iter().for_each(|number| hash.write(&number.to_le_bytes()));
    };
    match rows {
        TaskRows::Labelled(rows) => rows.iter().for_each(|row| {
            numbers(&row.ids);
            numbers(&row.types);
            match row.label {
                Some(Label::Class(class)) => numbers(&[1, class as u32]),
                Some(Label::Value(value)) => numbers(&[2, value.to_bits()]),
                None => numbers(&[]),
            }
        }),
        TaskRows::Text(rows) => rows.iter().for_each(|row| {
            numbers(&row.ids);
            numbers(&row.learn.iter().map(|&learn| u32::from(learn)).collect::<Vec<_>>());
        }),
    }
    format!("{:032x}", hash.finish_128())
}
