//! A model given as a hub name (`org/name`): found in the usual cache of Hugging Face's tools, or downloaded into it.
//!
//! The one rule that is not obvious: a model whose files are all in the cache is used as it is, without asking the
//! network, so that a run can be repeated offline and with the same weights.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::files::user_cache;
use crate::panics::caught;
use crate::{Error, Result};

/// Files that are fetched where the model has them: settings of the tokenizer, of conversations and of generation.
const OPTIONAL: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "chat_template.jinja",
    "generation_config.json",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What HF_HUB_DOWNLOAD_TIMEOUT is where it is not set.
const TIMEOUT: Duration = Duration::from_secs(60);

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

/// The folder of a model: `model` itself where it is a folder, else the hub's model of this name (`org/name`, or
/// `org/name@revision` for a branch, tag or commit), by the environment's settings (`HubOptions::from_env`).
///
/// # Errors
/// See `HubOptions::resolve`.
pub fn resolve_model(model: &str, progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf> {
    HubOptions::from_env().resolve(model, progress)
}

impl HubOptions {
    /// The settings of the variables that Hugging Face's tools know: HF_ENDPOINT; HF_HUB_CACHE, or `hub` in HF_HOME;
    /// HF_TOKEN, or the file `token` in HF_HOME; HF_HUB_OFFLINE; HF_HUB_DOWNLOAD_TIMEOUT, in seconds.
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

    /// The folder of a model, downloaded if need be; see `resolve_model`. `progress` is called often.
    ///
    /// # Errors
    /// `model` is neither a folder nor a hub name; the hub does not know it, does not give it to us or cannot be
    /// reached; it has no safetensors weights or no tokenizer.json; the transfer breaks off or stands still (the next
    /// one continues it). Each message says what to do.
    pub fn resolve(&self, model: &str, progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf> {
        if Path::new(model).is_dir() {
            return Ok(PathBuf::from(model));
        }
        let name = HubName::parse(model)?;
        if let Some(folder) = name.cached(&Cache::new(self.cache.clone())) {
            return Ok(folder);
        }
        if self.offline {
            return Err(Error::Input(format!(
                "{model}: not complete in the cache {}, and HF_HUB_OFFLINE forbids the download; unset it, or give a \
                 folder",
                self.cache.display()
            )));
        }
        self.fetch(name, model, progress)
    }

    /// Downloads a model on a thread of its own, which is left behind where nothing arrives any more: hf-hub's requests cannot
    /// be given a time-out.
    fn fetch(&self, name: HubName, model: &str, progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf> {
        enum News {
            Part { file: String, done: u64, total: u64 },
            End(Result<PathBuf>),
        }
        let (send, news) = mpsc::channel();
        let (options, of) = (self.clone(), model.to_string());
        let download = move || {
            let cache = Cache::new(options.cache.clone());
            let fetch = Fetch { options: &options, name: &name, cache, model: &of };
            // Nobody listens any more where the time was up.
            let mut tell = |Download { file, done, total }: Download| {
                let _ = send.send(News::Part { file: file.to_string(), done, total });
            };
            let found = caught(|| fetch.run(&mut tell));
            let found =
                found.unwrap_or_else(|panic| Err(fetch.problem(format!("the download broke down: {panic}"))));
            let _ = send.send(News::End(found));
        };
        let problem = |problem: String| Error::Input(format!("{model}: {problem}"));
        std::thread::Builder::new()
            .name("download".into())
            .spawn(download)
            .map_err(|e| problem(format!("no thread to download on: {e}")))?;
        loop {
            match news.recv_timeout(self.timeout) {
                Ok(News::Part { file, done, total }) => progress(Download { file: &file, done, total }),
                Ok(News::End(found)) => return found,
                Err(_) => {
                    return Err(problem(format!(
                        "nothing has come from {} for {} s; run again, and it goes on where it was \
                         (HF_HUB_DOWNLOAD_TIMEOUT sets the seconds)",
                        self.address(),
                        self.timeout.as_secs_f64()
                    )));
                }
            }
        }
    }

    /// The hub, for messages.
    fn address(&self) -> &str {
        self.endpoint.as_deref().unwrap_or("the Hugging Face hub")
    }
}

/// `org/name@revision`, taken apart.
struct HubName {
    id: String,
    revision: String,
}

impl HubName {
    fn parse(model: &str) -> Result<Self> {
        if Path::new(model).exists() {
            return Err(Error::Input(format!(
                "{model}: not a folder; a model is a folder with config.json and model.safetensors"
            )));
        }
        let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
        let parts: Vec<&str> = id.split('/').collect();
        let word = |s: &str| s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        let part = |s: &&str| word(s) && s.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        let is_name = parts.len() <= 2 && parts.iter().all(part) && !id.contains("..") && !id.contains("--");
        // A revision becomes a path in the cache.
        let is_revision = revision.split('/').all(|s| !s.is_empty() && word(s) && s != "." && s != "..");
        if is_name && is_revision {
            Ok(HubName { id: id.to_string(), revision: revision.to_string() })
        } else if is_name {
            Err(Error::Input(format!(
                "{model}: {revision:?} cannot be a revision (a branch, a tag or a commit)"
            )))
        } else {
            Err(Error::Input(format!(
                "{model}: there is no such folder, and it is not a name on the hub either (org/name)"
            )))
        }
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, revision.to_string())
    }

    /// The folder of this revision in the cache, if all that is needed is in it.
    fn cached(&self, cache: &Cache) -> Option<PathBuf> {
        let repo = cache.repo(self.repo(&self.revision));
        let refs = cache.path().join(self.repo("").folder_name()).join("refs").join(&self.revision);
        // A commit's own name need not be among the refs.
        let commit = fs::read_to_string(refs).unwrap_or_else(|_| self.revision.clone());
        let folder = repo.pointer_path(plain_name(commit.trim())?);
        is_complete(&folder).then_some(folder)
    }
}

/// A file's or a commit's name that leads nowhere else.
fn plain_name(name: &str) -> Option<&str> {
    (!name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':'])).then_some(name)
}

fn is_complete(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).exists();
    let has_shards = || shards(&folder.join(INDEX)).is_ok_and(|names| names.iter().all(|n| has(n)));
    has("config.json") && has("tokenizer.json") && (has(WEIGHTS) || has_shards())
}

/// The weight files that an index names, sorted.
fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let text = fs::read(index).map_err(|e| Error::io(index, e))?;
    let problem = |problem: String| Error::Input(format!("{}: {problem}", index.display()));
    let parsed: Index =
        serde_json::from_slice(&text).map_err(|e| problem(format!("not an index with a weight_map: {e}")))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    match names.iter().find(|name| plain_name(name).is_none()) {
        Some(name) => Err(problem(format!("shard {name:?} is not a plain file name"))),
        None if names.is_empty() => Err(problem("its weight_map is empty".into())),
        None => Ok(names),
    }
}

/// One model's download.
struct Fetch<'a> {
    options: &'a HubOptions,
    name: &'a HubName,
    cache: Cache,
    /// As the user gave it, for messages.
    model: &'a str,
}

impl Fetch<'_> {
    fn run(&self, progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf> {
        let api = self.api()?;
        let info = api.repo(self.name.repo(&self.name.revision)).info().map_err(|e| self.explain(e, None))?;
        let has = |name: &str| info.siblings.iter().any(|s| s.rfilename == name);
        let weights = if has(WEIGHTS) { WEIGHTS } else { INDEX };
        self.check_files(has)?;
        let commit = plain_name(&info.sha).ok_or_else(|| {
            self.problem(format!("the hub calls its commit {:?}, which cannot be", info.sha))
        })?;

        // From here on by commit: the branch may move between two files.
        let remote = Remote {
            fetch: self,
            repo: api.repo(self.name.repo(commit)),
            local: self.cache.repo(self.name.repo(commit)),
            api: &api,
            folder: self.cache.repo(self.name.repo(commit)).pointer_path(commit),
        };
        for file in
            ["config.json", "tokenizer.json"].into_iter().chain(OPTIONAL.into_iter().filter(|f| has(f)))
        {
            remote.get(file, progress)?;
        }
        remote.get(weights, progress)?;
        if weights == INDEX {
            for shard in shards(&remote.folder.join(INDEX))? {
                if !has(&shard) {
                    return Err(self.problem(format!("{INDEX} names {shard}, which the model does not have")));
                }
                remote.get(&shard, progress)?;
            }
        }
        if !is_complete(&remote.folder) {
            let problem = "the hub moved it to another commit during the download; run again".to_string();
            return Err(self.problem(problem));
        }
        // Last, so that the branch's name leads to a complete folder.
        let branch = self.cache.repo(self.name.repo(&self.name.revision));
        branch.create_ref(commit).map_err(|e| Error::io(&self.options.cache, e))?;
        Ok(remote.folder)
    }

    fn api(&self) -> Result<Api> {
        let mut builder = ApiBuilder::from_cache(self.cache.clone())
            .with_progress(false)
            .with_token(self.options.token.clone())
            .with_user_agent("lora-drop", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = &self.options.endpoint {
            if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
                return Err(Error::Input(format!(
                    "HF_ENDPOINT is {endpoint:?}, expected http://... or https://..."
                )));
            }
            builder = builder.with_endpoint(endpoint.clone());
        }
        builder.build().map_err(|e| self.explain(e, None))
    }

    /// Refuses a model that could not be used, before anything is transferred.
    fn check_files(&self, has: impl Fn(&str) -> bool) -> Result<()> {
        let id = &self.name.id;
        let resave = |class: &str, what: &str| {
            format!(
                "save it with {what} from Python: python -c \"from transformers import {class} as M; \
                 M.from_pretrained('{id}').save_pretrained('model')\", and give the folder"
            )
        };
        if !has("config.json") && has("adapter_config.json") {
            Err(self.problem("this is an adapter; give its base model".into()))
        } else if !has("config.json") {
            Err(self.problem("it has no config.json, so it is not a model that transformers reads".into()))
        } else if !has(WEIGHTS) && !has(INDEX) {
            let way = resave("AutoModelForSequenceClassification", "safetensors weights");
            Err(self.problem(format!(
                "it has no {WEIGHTS} (pickles such as pytorch_model.bin are not read); {way}"
            )))
        } else if !has("tokenizer.json") {
            Err(self.problem(format!("it has no tokenizer.json; {}", resave("AutoTokenizer", "one"))))
        } else {
            Ok(())
        }
    }

    fn problem(&self, problem: String) -> Error {
        Error::Input(format!("{}: {problem}", self.model))
    }

    /// An error of the hub's, with the way out; `file` is the one being transferred.
    fn explain(&self, e: ApiError, file: Option<&str>) -> Error {
        let what = file.map_or(String::new(), |f| format!("{f}: "));
        let hub = self.options.address();
        let has_token = self.options.token.is_some();
        let text = match &e {
            ApiError::RequestError(e) => match **e {
                ureq::Error::StatusCode(404) => {
                    let revision = match self.name.revision.as_str() {
                        "main" => String::new(),
                        other => format!(" with a revision {other}"),
                    };
                    format!(
                        "{hub} has no model of this name{revision} (404), or it is private: check the spelling, set \
                         HF_TOKEN for a private one; there is no folder of this name either"
                    )
                }
                ureq::Error::StatusCode(401) if has_token => {
                    format!("{hub} does not accept the token (401): check HF_TOKEN, and the model's name")
                }
                ureq::Error::StatusCode(401) => format!(
                    "{hub} asks for a token (401): the model is private, gated, or does not exist; check the name, \
                     and set HF_TOKEN"
                ),
                ureq::Error::StatusCode(403) => format!(
                    "{hub} refuses access (403): the model is gated; accept its terms on its page, and set HF_TOKEN \
                     to a token of the same account"
                ),
                ureq::Error::StatusCode(code) => format!("{hub} answered {code}; try again later"),
                ref e => format!(
                    "no connection to {hub} ({e}), and the model is not complete in the cache {}; check the \
                     network, or give a folder",
                    self.options.cache.display()
                ),
            },
            ApiError::IoError(e) if is_local(e) => {
                format!(
                    "cannot write to the cache {} ({e}); HF_HOME chooses another",
                    self.options.cache.display()
                )
            }
            ApiError::IoError(e) => {
                format!("the transfer broke off ({e}); run again, and it goes on where it was")
            }
            ApiError::LockAcquisition(path) => {
                format!("another process is downloading it (lock {}); wait for that one", path.display())
            }
            other => format!("{hub} answered in an unexpected way: {other}"),
        };
        self.problem(format!("{what}{text}"))
    }
}

/// Whether it is our disk that failed, and not the transfer.
fn is_local(e: &std::io::Error) -> bool {
    use ErrorKind::*;
    matches!(
        e.kind(),
        StorageFull
            | QuotaExceeded
            | ReadOnlyFilesystem
            | PermissionDenied
            | NotADirectory
            | AlreadyExists
            | NotFound
    )
}

/// A model's files at one commit, there and here.
struct Remote<'a> {
    fetch: &'a Fetch<'a>,
    api: &'a Api,
    repo: ApiRepo,
    local: CacheRepo,
    /// The cache's folder of the commit.
    folder: PathBuf,
}

impl Remote<'_> {
    /// Brings one file into the cache's folder unless it is there.
    fn get(&self, file: &str, progress: &mut dyn FnMut(Download<'_>)) -> Result<()> {
        let pointer = self.folder.join(file);
        if pointer.exists() {
            return Ok(());
        }
        // A link whose blob someone has deleted would be in the way.
        let _ = fs::remove_file(&pointer);
        let mut attempts = 1..3;
        let mut report = Report { file: file.to_string(), done: 0, total: 0, progress };
        loop {
            let e = match self.repo.download_with_progress(file, &mut report) {
                Ok(path) => return self.check_size(&path, report.total, file),
                Err(e) => e,
            };
            match (&e, attempts.next()) {
                // The partial file stays, and the next attempt continues it.
                (ApiError::IoError(io), Some(_)) if !is_local(io) => {}
                // There is nothing to continue: the partial file is already as long as the whole, or longer.
                (ApiError::InvalidResume, Some(_)) => self.drop_partial(file)?,
                (ApiError::RequestError(e), Some(_)) if matches!(**e, ureq::Error::StatusCode(416)) => {
                    self.drop_partial(file)?
                }
                _ => return Err(self.fetch.explain(e, Some(file))),
            }
        }
    }

    fn drop_partial(&self, file: &str) -> Result<()> {
        let metadata =
            self.api.metadata(&self.repo.url(file)).map_err(|e| self.fetch.explain(e, Some(file)))?;
        let partial = self.local.blob_path(metadata.etag()).with_extension("part");
        fs::remove_file(&partial).map_err(|e| Error::io(&partial, e))
    }

    /// A file of another length than announced is not left in the cache.
    fn check_size(&self, path: &Path, expected: u64, file: &str) -> Result<()> {
        let seen = fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
        if seen == expected {
            return Ok(());
        }
        if let Ok(blob) = path.canonicalize() {
            let _ = fs::remove_file(blob);
        }
        let _ = fs::remove_file(path);
        Err(self.fetch.problem(format!("{file}: {seen} bytes arrived, expected {expected}; run again")))
    }
}

/// Hands hf-hub's progress on.
struct Report<'a> {
    file: String,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Download<'_>),
}

impl Report<'_> {
    fn tell(&mut self) {
        (self.progress)(Download { file: &self.file, done: self.done, total: self.total });
    }
}

impl hf_hub::api::Progress for &mut Report<'_> {
    fn init(&mut self, size: usize, _file: &str) {
        (self.done, self.total) = (0, size as u64);
        self.tell();
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.tell();
    }

    fn finish(&mut self) {
        self.tell();
    }
}
