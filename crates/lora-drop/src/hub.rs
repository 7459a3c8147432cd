//! A model (`org/name`, `org/name:file.gguf`) or a data set (`org/name`) given by its name on the
//! hub: found in the usual cache of Hugging Face's tools, or downloaded into it. Adapters are
//! uploaded to a repository there.
//!
//! A model whose files are all in the cache is used without asking the network, so that a run can
//! be repeated offline and with the same weights.

#[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "only downloads write to the cache"))]
mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod data;
#[cfg(feature = "hub")]
mod fetch;
mod gguf;
#[cfg(feature = "hub")]
mod parcel;
#[cfg(feature = "hub")]
mod push;
#[cfg(feature = "hub")]
mod upload;

use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

pub(crate) use cache::{INDEX, RepoKind, WEIGHTS};
use cache::{PlainName, PlainPath, RepoCache};
pub use gguf::GgufModel;
#[cfg(feature = "hub")]
pub use parcel::{Parcel, ParcelFile};
#[cfg(feature = "hub")]
pub use push::{PushOptions, Pushed};

use crate::files::{set_variable, user_cache};
use crate::model::is_gguf;
use crate::{Cancel, Error, Result};

/// Timeout unless HF_HUB_DOWNLOAD_TIMEOUT is set.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Prefix that marks a name on the hub, whatever folders exist.
const PREFIX: &str = "hf://";
/// Branch of a name without a revision.
const MAIN: &str = "main";

/// Progress of one file's download or upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Download<'a> {
    /// `model.safetensors`
    pub file: &'a str,
    /// Bytes transferred so far.
    pub done: u64,
    /// Size of the file in bytes.
    pub total: u64,
}

/// Settings of the hub and the cache. Not `Debug`, because the token is a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The hub's address, without a final slash; `None` is the public hub.
    pub endpoint: Option<String>,
    /// The cache's folder, which contains `models--org--name`.
    pub cache: PathBuf,
    /// The access token, sent to the endpoint only; None for public models.
    pub token: Option<String>,
    /// Whether the network is never used.
    pub offline: bool,
    /// A download fails when nothing has arrived for this time.
    pub timeout: Duration,
}

/// Returns a model's name without `hf://`, which other programs do not understand.
pub fn plain(model: &str) -> &str {
    model.strip_prefix(PREFIX).unwrap_or(model)
}

/// A repository on the hub, as a model or a data set is named: `org/name@revision:file.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repository {
    /// `org/name`
    pub id: String,
    /// The revision, if the name has one.
    pub revision: Option<String>,
    /// The GGUF file in it, if the name has one.
    pub file: Option<String>,
}

impl Repository {
    /// Returns the repository that a model's or a data set's path means: a name on the hub, or a
    /// place in the cache; `None` for any other path.
    pub fn of(path: &Path, kind: RepoKind) -> Option<Self> {
        let text = path.to_str()?;
        if text.starts_with(PREFIX) || !path.exists() {
            let HubName { id, revision, file } = HubName::parse(text).ok()?;
            let revision = Some(revision).filter(|revision| revision != MAIN);
            return Some(Repository { id, revision, file: file.map(|file| file.to_string()) });
        }
        let mut parts = path.components();
        let id = parts.find_map(|part| {
            let Component::Normal(name) = part else { return None };
            let name = name.to_str()?.strip_prefix(kind.plural())?.strip_prefix("--")?;
            Some(name.replace("--", "/"))
        })?;
        // `snapshots` and the commit precede the file.
        let rest: PathBuf = parts.skip(2).collect();
        let file = rest.to_str().filter(|_| is_gguf(&rest)).map(str::to_string);
        Some(Repository { id, revision: None, file })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))?;
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

impl HubOptions {
    /// Reads the settings from the environment variables of Hugging Face's tools: HF_ENDPOINT;
    /// HF_HUB_CACHE, or `hub` in HF_HOME; HF_TOKEN, or the content of the file that
    /// HF_TOKEN_PATH names, by default `token` in HF_HOME; HF_HUB_OFFLINE;
    /// HF_HUB_DOWNLOAD_TIMEOUT, in seconds.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Like `from_env`, for any source of variables.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| set_variable(name, &variable);
        let home = set("HF_HOME").map_or_else(|| user_cache(&variable).join("huggingface"), PathBuf::from);
        let saved_token = || {
            let path = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
            let text = fs::read_to_string(path).ok()?;
            Some(text.trim().to_string()).filter(|t| !t.is_empty())
        };
        let is_on = |v: String| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        HubOptions {
            endpoint: set("HF_ENDPOINT").map(|e| e.trim_end_matches('/').to_string()),
            token: set("HF_TOKEN").or_else(saved_token),
            offline: set("HF_HUB_OFFLINE").is_some_and(is_on),
            timeout: set("HF_HUB_DOWNLOAD_TIMEOUT")
                .and_then(|seconds| seconds.parse().ok())
                .filter(|&seconds: &u64| seconds > 0)
                .map_or(TIMEOUT, Duration::from_secs),
            cache: set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
        }
    }

    /// Returns the folder of a model: `model` itself if it is a folder, or else the hub's model of
    /// this name, downloaded if needed. A name is `org/name` or `org/name@revision` (a branch, a
    /// tag or a commit), with `:file.gguf` at its end for one GGUF model of a repository; if a
    /// repository has no safetensors, its name alone means its only GGUF model. The path of a GGUF
    /// model is that of the file, or of its first part. A name that may be meant as a path is
    /// refused, unless the cache has it or it begins with `hf://`: a name without a slash, or one
    /// whose first part is an existing folder.
    ///
    /// `progress` is called often. Raising `cancel` ends the download within a tenth of a second,
    /// or, during a connection attempt, within `timeout`; the next download continues from what has
    /// arrived.
    ///
    /// # Errors
    /// `model` is neither a folder nor a hub name; the hub does not know it, refuses access or
    /// cannot be reached; it has no safetensors weights or no tokenizer.json, nor just one GGUF
    /// model; the hub's answers are not valid; the transfer breaks off or makes no progress. Each
    /// message says what to do.
    /// `Error::Interrupted` once `cancel` is raised.
    pub fn resolve(
        &self,
        model: &str,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<PathBuf> {
        let (name, cache) = match self.find(model)? {
            Found::Here(path) => return Ok(path),
            Found::Missing(name, cache) => (name, cache),
        };
        #[cfg(feature = "hub")]
        return fetch::model(self, &name, cache, model, cancel, progress);
        #[cfg(not(feature = "hub"))]
        {
            let _ = (cancel, progress, name, cache);
            Err(Error::Input(format!(
                "{model}: not complete in the cache {}, and this build has no hub feature to download it; give a \
                 folder",
                self.cache.display()
            )))
        }
    }

    /// Returns the GGUF models from which a hub name has to choose one by `:file.gguf`: those of a
    /// repository without safetensors that has several. Empty for every other name.
    ///
    /// # Errors
    /// Those of [`HubOptions::resolve`].
    pub fn gguf_models(&self, model: &str, cancel: &Cancel) -> Result<Vec<GgufModel>> {
        #[cfg(feature = "hub")]
        if let Found::Missing(name, cache) = self.find(model)?
            && name.file.is_none()
        {
            return fetch::gguf_models(self, &name, cache, model, cancel);
        }
        let _ = (model, cancel);
        Ok(Vec::new())
    }

    /// Finds a model in its folder or in the cache.
    fn find(&self, model: &str) -> Result<Found> {
        let refuse = |problem: String| Err(Error::Input(format!("{model}: {problem}")));
        let is_name = model.starts_with(PREFIX);
        if !is_name && Path::new(model).is_dir() {
            return Ok(Found::Here(PathBuf::from(model)));
        }
        if !is_name && Path::new(model).exists() {
            return refuse("not a folder; a model is a folder with config.json and model.safetensors".into());
        }
        let name = HubName::parse(model)?;
        let cache = RepoCache::new(&self.cache, RepoKind::Model, &name.id);
        if let Some(path) = cache.complete(&name.revision, name.file.as_ref()) {
            return Ok(Found::Here(path));
        }
        if let Some(seen) = name.meant_as_path().filter(|_| !is_name) {
            return refuse(format!(
                "there is no such folder{seen}; for the model of this name on the hub give {PREFIX}{model}"
            ));
        }
        let place = self.cache.display();
        if self.offline {
            return refuse(format!(
                "not complete in the cache {place}, and HF_HUB_OFFLINE forbids the download; unset it, or give a \
                 folder{}",
                cache.hint(&name)
            ));
        }
        Ok(Found::Missing(name, cache))
    }
}

/// Result of looking for a model locally.
enum Found {
    /// A folder, or a GGUF file in the cache.
    Here(PathBuf),
    /// Not found; on the hub, if anywhere.
    Missing(HubName, RepoCache),
}

/// The parts of `org/name@revision:file.gguf`.
struct HubName {
    id: String,
    revision: String,
    file: Option<PlainPath>,
}

impl HubName {
    fn parse(model: &str) -> Result<Self> {
        let bare = plain(model);
        let (bare, file) = bare.split_once(':').map_or((bare, None), |(bare, file)| (bare, Some(file)));
        let (id, revision) = bare.split_once('@').unwrap_or((bare, MAIN));
        let parts: Vec<&str> = id.split('/').collect();
        let is_name = parts.len() <= 2
            && parts.iter().all(|part| PlainName::new(part).is_some() && !part.starts_with('-'))
            && !id.contains("..")
            && !id.contains("--");
        // A revision becomes a path in the cache.
        let is_revision = revision.split('/').all(|part| PlainName::new(part).is_some());
        let path = file.map(|file| PlainPath::new(file).filter(|path| is_gguf(path.as_str().as_ref())));
        if is_name && is_revision && path != Some(None) {
            return Ok(HubName { id: id.to_string(), revision: revision.to_string(), file: path.flatten() });
        }
        let problem = if let Some(file) = file.filter(|_| is_name && is_revision) {
            format!("{file:?} is not a GGUF file's name (org/name:file.gguf, org/name@revision:file.gguf)")
        } else if is_name {
            format!("{revision:?} cannot be a revision (a branch, a tag or a commit)")
        } else if model.starts_with(PREFIX) {
            format!("not a name on the hub ({PREFIX}org/name)")
        } else {
            "there is no such folder, and it is not a name on the hub either (org/name)".to_string()
        };
        Err(Error::Input(format!("{model}: {problem}")))
    }

    /// Returns why this may be meant as a path, as the end of a message; `None` if it is not.
    fn meant_as_path(&self) -> Option<String> {
        match self.id.split_once('/') {
            None => Some(String::new()),
            Some((first, _)) if Path::new(first).exists() => Some(format!(" in {first}")),
            Some(_) => None,
        }
    }
}
