//! The files that an earlier command wrote into its folder: only those that it lists may be
//! replaced.

use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{STATE, SUMMARY, checkpoints, no_folder};
use crate::adapter::TOKENIZER_FILES;
use crate::card::{CARD_FILE, is_kept};
use crate::files::is_temporary;
use crate::{Error, Result};

/// The file in which `prune` lists its files.
pub const PRUNE_FILE: &str = "prune.json";
/// The metadata key in safetensors files under which `merge` and `export` list the files of their
/// folder, as JSON.
pub const FILES_KEY: &str = "lora_drop_files";
/// What a command writes into its folder, and how a later command recognises it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// A training run: summary.json lists the files.
    Run,
    /// A merged model: the metadata of model.safetensors lists them.
    Model,
    /// An adapter in PEFT's format: the metadata of adapter_model.safetensors lists them.
    Adapter,
    /// A pruning, with or without the pruned adapter: prune.json lists them.
    Pruned,
}

/// The files of an earlier command that a new one replaces; none if the folder is missing or empty.
///
/// # Errors
/// `Error::Usage` if the folder holds files that a command with these contents did not write, or
/// that may not be replaced without `overwrite`; `Error::Io` if it cannot be read.
pub(super) fn listed(folder: &Path, overwrite: bool, contents: Contents) -> Result<Vec<String>> {
    let shown = folder.display();
    let mut entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) if e.kind() == ErrorKind::NotADirectory => {
            return Err(no_folder(folder));
        }
        Err(e) => return Err(Error::io(folder, e)),
    };
    let counts = |name: &std::ffi::OsStr| name != STATE && !is_temporary(name);
    let resumable = !checkpoints(folder).is_empty();
    if !resumable && !entries.any(|entry| entry.is_ok_and(|entry| counts(&entry.file_name()))) {
        return Ok(Vec::new());
    }
    let (files, measured, what) = match contents {
        Contents::Run => {
            let listing = RunListing::read(folder);
            let measured = listing.as_ref().is_none_or(|listing| listing.best_epoch > 0.0);
            (listing.map(RunListing::files), measured, "a run, whose summary.json lists its files")
        }
        Contents::Model => {
            (metadata_files(folder, "model.safetensors"), true, "a model that lora-drop has merged")
        }
        Contents::Adapter => {
            let files = metadata_files(folder, "adapter_model.safetensors");
            (files, true, "an adapter that lora-drop has exported")
        }
        Contents::Pruned => {
            let listing: Option<PruneListing> = read_json(&folder.join(PRUNE_FILE));
            let files = listing.filter(|_| !folder.join(SUMMARY).exists()).map(|listing| listing.outputs);
            (files, true, "a pruning, whose prune.json lists its files")
        }
    };
    match files {
        // A run that measured no epoch and has no checkpoint has nothing to lose.
        Some(files) if overwrite || !measured && !resumable => {
            let mut files: Vec<String> = files.into_iter().filter(|name| is_plain(name)).collect();
            own_card(folder, &mut files);
            Ok(files)
        }
        _ if !overwrite && resumable => Err(Error::Usage(format!(
            "{shown} has a run that is not finished: continue it with `resume = {shown}`, choose another folder, or give \
             `overwrite`"
        ))),
        _ if !overwrite => Err(Error::Usage(format!(
            "{shown} is in use: the folder is not empty; choose another, or give `overwrite`"
        ))),
        _ => Err(Error::Usage(format!(
            "{shown} is not what `overwrite` may replace: it holds files, and is not {what}; choose another \
             folder, or remove the files yourself"
        ))),
    }
}

/// Lists the card among a command's files only if it is unchanged since it was written: a card that
/// somebody has changed is theirs.
pub(super) fn own_card(folder: &Path, files: &mut Vec<String>) {
    files.retain(|name| name != CARD_FILE);
    if folder.join(CARD_FILE).exists() && !is_kept(folder) {
        files.push(CARD_FILE.to_string());
    }
}

/// The part of a run's summary.json that says what it wrote. All fields but `outputs` must be
/// there, so that another program's file of this name is not taken for a run's.
#[derive(Deserialize)]
pub(super) struct RunListing {
    #[serde(rename = "version")]
    _version: String,
    method: String,
    #[serde(rename = "status")]
    _status: String,
    /// 0 if the run has measured no epoch.
    best_epoch: f64,
    /// None for a run of version 0.1.
    outputs: Option<Vec<String>>,
}

impl RunListing {
    /// Reads the listing of the run in a folder, if there is one.
    pub fn read(folder: &Path) -> Option<Self> {
        read_json(&folder.join(SUMMARY))
    }

    /// The names of the run's files.
    pub fn files(self) -> Vec<String> {
        let files = self.outputs.unwrap_or_else(|| files_of_0_1(&self.method));
        files.into_iter().filter(|name| is_plain(name)).collect()
    }
}

/// The files of a run by version 0.1, which did not list them.
fn files_of_0_1(method: &str) -> Vec<String> {
    let run = [SUMMARY, "recipe.toml", "report.html", "metrics.jsonl", "importance.json"];
    let model: &[&str] = match method {
        "full" => &["config.json", "model.safetensors"],
        _ => &["adapter_config.json", "adapter_model.safetensors", "adapter_compact.safetensors"],
    };
    let tokenizer: &[&str] = if method == "full" { &TOKENIZER_FILES } else { &[] };
    run.iter().chain(model).chain(tokenizer).map(|name| name.to_string()).collect()
}

/// The part of prune.json that says what `prune` wrote.
#[derive(Deserialize)]
struct PruneListing {
    outputs: Vec<String>,
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Reads the list of files in a safetensors file's metadata. None for a folder with a summary,
/// which is a run's, or with prune.json, which is a pruning's.
fn metadata_files(folder: &Path, name: &str) -> Option<Vec<String>> {
    let path = folder.join(name);
    if folder.join(SUMMARY).exists() || folder.join(PRUNE_FILE).exists() || !path.is_file() {
        return None;
    }
    let file = lora_drop_transformer::Checkpoint::open_file(&path).ok()?;
    serde_json::from_str(file.metadata().get(FILES_KEY)?).ok()
}

/// Whether a listed name is a plain name in the folder itself. A list is untrusted: it may have
/// come from anywhere.
pub(super) fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None))
}
