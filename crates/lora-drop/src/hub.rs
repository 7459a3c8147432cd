//! A model given as a hub name (`org/name`): found in the usual cache of Hugging Face's tools, or
//! downloaded into it.
//!
//! The one rule that is not obvious: a model whose files are all in the cache is used as it is,
//! without asking the network, so that a run can be repeated offline and with the same weights.

#[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "only downloads write to the cache"))]
mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod fetch;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cache::{PlainName, RepoCache};

use crate::files::user_cache;
use crate::{Cancel, Error, Result};

/// What HF_HUB_DOWNLOAD_TIMEOUT is where it is not set.
const TIMEOUT: Duration = Duration::from_secs(60);
/// What makes a name one of the hub, whatever folders are there.
const PREFIX: &str = "hf://";

/// How far the download of one file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Download<'a> {
    /// `model.safetensors`
    pub file: &'a str,
    /// Bytes.
    pub done: u64,
    /// Bytes.
    pub total: u64,
}

/// Where models come from and where they are kept.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The hub's address, without a slash at the end; `None`: the public hub.
    pub endpoint: Option<String>,
    /// The cache's folder, which has `models--org--name` in it.
    pub cache: PathBuf,
    pub token: Option<String>,
    /// Never ask the network.
    pub offline: bool,
    /// A download ends when nothing has arrived for so long.
    pub timeout: Duration,
}

/// The token is a secret.
impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("offline", &self.offline)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// The folder of a model, by the environment's settings (`HubOptions::from_env`); see
/// `HubOptions::resolve`.
///
/// # Errors
/// See `HubOptions::resolve`.
pub fn resolve_model(
    model: &str,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Download<'_>),
) -> Result<PathBuf> {
    HubOptions::from_env().resolve(model, cancel, progress)
}

/// A hub's name as other programs know it: without the `hf://` that only we understand.
pub fn plain(model: &str) -> &str {
    model.strip_prefix(PREFIX).unwrap_or(model)
}

impl HubOptions {
    /// The settings of the variables that Hugging Face's tools know: HF_ENDPOINT; HF_HUB_CACHE, or
    /// `hub` in HF_HOME; HF_TOKEN, or the file `token` in HF_HOME; HF_HUB_OFFLINE;
    /// HF_HUB_DOWNLOAD_TIMEOUT, in seconds.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// `from_env` for any source of variables.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let home = set("HF_HOME").map_or_else(|| user_cache(&variable).join("huggingface"), PathBuf::from);
        let token_file = || {
            let text = fs::read_to_string(home.join("token")).ok()?;
            Some(text.trim().to_string()).filter(|t| !t.is_empty())
        };
        let is_on = |v: String| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        HubOptions {
            endpoint: set("HF_ENDPOINT").map(|e| e.trim_end_matches('/').to_string()),
            token: set("HF_TOKEN").or_else(token_file),
            offline: set("HF_HUB_OFFLINE").is_some_and(is_on),
            timeout: set("HF_HUB_DOWNLOAD_TIMEOUT")
                .and_then(|seconds| seconds.parse().ok())
                .filter(|&seconds: &u64| seconds > 0)
                .map_or(TIMEOUT, Duration::from_secs),
            cache: set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
        }
    }

    /// The folder of a model: `model` itself where it is a folder, else the hub's model of this
    /// name, downloaded if need be. A name is `org/name` or `org/name@revision` (a branch, a tag or
    /// a commit). What may be meant as a path is none: a name without a slash, and one whose first
    /// part is there as a folder, unless the cache has it or `hf://` stands before it.
    ///
    /// `progress` is called often. Raising `cancel` ends the download within a tenth of a second,
    /// or, while a connection is being made, within `timeout`; what has arrived stays, and the next
    /// download goes on from there.
    ///
    /// # Errors
    /// `model` is neither a folder nor a hub name; the hub does not know it, does not give it to us
    /// or cannot be reached; it has no safetensors weights or no tokenizer.json; the hub's answers
    /// cannot be; the transfer breaks off or stands still. Each message says what to do.
    /// `Error::Interrupted` once `cancel` is raised.
    pub fn resolve(
        &self,
        model: &str,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<PathBuf> {
        let is_name = model.starts_with(PREFIX);
        if !is_name && Path::new(model).is_dir() {
            return Ok(PathBuf::from(model));
        }
        if !is_name && Path::new(model).exists() {
            return Err(Error::Input(format!(
                "{model}: not a folder; a model is a folder with config.json and model.safetensors"
            )));
        }
        let name = HubName::parse(model)?;
        let cache = RepoCache::new(&self.cache, &name.id);
        if let Some(folder) = cache.complete(&name.revision) {
            return Ok(folder);
        }
        if let Some(seen) = name.meant_as_path().filter(|_| !is_name) {
            return Err(Error::Input(format!(
                "{model}: there is no such folder{seen}; for the model of this name on the hub give {PREFIX}{model}"
            )));
        }
        if self.offline {
            return Err(Error::Input(format!(
                "{model}: not complete in the cache {}, and HF_HUB_OFFLINE forbids the download; unset it, or give a \
                 folder",
                self.cache.display()
            )));
        }
        #[cfg(feature = "hub")]
        return fetch::model(self, &name, cache, model, cancel, progress);
        #[cfg(not(feature = "hub"))]
        {
            let _ = (cancel, progress);
            Err(Error::Input(format!(
                "{model}: not complete in the cache {}, and this build has no hub feature to download it; give a folder",
                self.cache.display()
            )))
        }
    }
}

/// `org/name@revision`, taken apart.
struct HubName {
    id: String,
    revision: String,
}

impl HubName {
    fn parse(model: &str) -> Result<Self> {
        let bare = plain(model);
        let (id, revision) = bare.split_once('@').unwrap_or((bare, "main"));
        let parts: Vec<&str> = id.split('/').collect();
        let is_name = parts.len() <= 2
            && parts.iter().all(|part| PlainName::new(part).is_some() && !part.starts_with('-'))
            && !id.contains("..")
            && !id.contains("--");
        // A revision becomes a path in the cache.
        let is_revision = revision.split('/').all(|part| PlainName::new(part).is_some());
        if is_name && is_revision {
            Ok(HubName { id: id.to_string(), revision: revision.to_string() })
        } else if is_name {
            Err(Error::Input(format!(
                "{model}: {revision:?} cannot be a revision (a branch, a tag or a commit)"
            )))
        } else if model.starts_with(PREFIX) {
            Err(Error::Input(format!("{model}: not a name on the hub ({PREFIX}org/name)")))
        } else {
            Err(Error::Input(format!(
                "{model}: there is no such folder, and it is not a name on the hub either (org/name)"
            )))
        }
    }

    /// Whether someone who wrote this may have meant a path, and what speaks for it.
    fn meant_as_path(&self) -> Option<String> {
        match self.id.split_once('/') {
            None => Some(String::new()),
            Some((first, _)) if Path::new(first).exists() => Some(format!(" in {first}")),
            Some(_) => None,
        }
    }
}
