//! Downloads a model or a data set into the cache, file by file, and explains failures.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use ureq::Agent;

use super::cache::{
    INDEX, PlainName, PlainPath, RepoCache, RepoKind, WEIGHTS, is_complete, shards, whole_gguf,
};
use super::client::{Client, Fault, Info, Metadata};
use super::{Download, GgufModel, HubName, HubOptions};
use crate::panics::caught;
use crate::{Cancel, Error, Result};

/// Files that are fetched if the model has them: settings of the tokenizer, of conversations and of
/// generation.
const OPTIONAL: [&str; 6] = [
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.txt",
    "chat_template.jinja",
    "generation_config.json",
];
/// Number of attempts at a transfer that breaks off.
pub(super) const ATTEMPTS: usize = 3;
/// Interval between two checks of a flag or a lock.
const LOOK: Duration = Duration::from_millis(50);

/// Downloads what is missing of a model and returns its folder or GGUF file; see
/// `HubOptions::resolve`.
pub(super) fn model(
    options: &HubOptions,
    name: &HubName,
    cache: RepoCache,
    model: &str,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Download<'_>),
) -> Result<PathBuf> {
    connected(options, name, RepoKind::Model, cache, model, cancel, progress, |fetch| fetch.model())
}

/// Returns the GGUF models that a name without a file may mean; see `HubOptions::gguf_models`.
pub(super) fn gguf_models(
    options: &HubOptions,
    name: &HubName,
    cache: RepoCache,
    model: &str,
    cancel: &Cancel,
) -> Result<Vec<GgufModel>> {
    connected(options, name, RepoKind::Model, cache, model, cancel, &mut |_| {}, |fetch| {
        let info = fetch.info(true)?;
        let models = info.gguf_models();
        Ok(if info.is_gguf() && models.len() > 1 { models } else { Vec::new() })
    })
}

/// Calls `run` with a connection to the hub, which is shut down when `cancel` is raised. `given` is
/// the name as the user gave it.
#[expect(clippy::too_many_arguments, reason = "the fields of a Fetch")]
pub(super) fn connected<T>(
    options: &HubOptions,
    name: &HubName,
    kind: RepoKind,
    cache: RepoCache,
    given: &str,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Download<'_>),
    run: impl FnOnce(&mut Fetch) -> Result<T>,
) -> Result<T> {
    let problem = |problem: String| Error::Input(format!("{given}: {problem}"));
    let (endpoint, token) = (options.endpoint.as_deref(), options.token.as_deref());
    let client = Client::new(endpoint, token, options.timeout, cancel, kind).map_err(problem)?;
    let agent = client.agent();
    let mut fetch = Fetch { options, name, kind, cache, client, given, cancel, progress };
    watched(agent, cancel, || run(&mut fetch))
        .unwrap_or_else(|panic| Err(problem(format!("the download failed: {panic}"))))
}

/// Calls `run`, and shuts down an agent's connections when `cancel` is raised. `Err` has a panic's
/// message.
pub(super) fn watched<T>(
    agent: Agent,
    cancel: &Cancel,
    run: impl FnOnce() -> T,
) -> std::result::Result<T, String> {
    std::thread::scope(|scope| {
        // A read blocks on the network, so a second thread shuts the connections down.
        let (done, wait) = mpsc::channel::<()>();
        scope.spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = wait.recv_timeout(LOOK) {
                if cancel.is_raised() {
                    return agent.shutdown();
                }
            }
        });
        let found = caught(run);
        drop(done);
        found
    })
}

/// State of one download.
pub(super) struct Fetch<'a> {
    options: &'a HubOptions,
    pub name: &'a HubName,
    kind: RepoKind,
    pub cache: RepoCache,
    pub client: Client<'a>,
    /// The name as the user gave it, for messages.
    given: &'a str,
    cancel: &'a Cancel,
    progress: &'a mut dyn FnMut(Download<'_>),
}

impl Fetch<'_> {
    fn model(&mut self) -> Result<PathBuf> {
        let info = self.info(false)?;
        let has = |name: &str| info.has(name);
        let commit = self.commit(&info)?;
        let weights = if has(WEIGHTS) { WEIGHTS } else { INDEX };
        if self.name.file.is_some() || info.is_gguf() {
            return self.gguf(&info, &commit);
        }
        self.check_files(has)?;
        for file in
            ["config.json", "tokenizer.json"].into_iter().chain(OPTIONAL.into_iter().filter(|f| has(f)))
        {
            self.get(&commit, &known(file))?;
        }
        self.get(&commit, &known(weights))?;
        let folder = self.cache.snapshot(&commit);
        if weights == INDEX {
            for shard in shards(&folder.join(INDEX))? {
                if !has(shard.as_str()) {
                    return Err(self.problem(format!("{INDEX} names {shard}, which the model does not have")));
                }
                self.get(&commit, &shard)?;
            }
        }
        let found = is_complete(&folder).then(|| folder.clone());
        self.finish(found, &commit)
    }

    /// Downloads the requested GGUF model, or the only one.
    fn gguf(&mut self, info: &Info, commit: &PlainName) -> Result<PathBuf> {
        let file = match &self.name.file {
            Some(file) => file.clone(),
            None => match &info.gguf_models()[..] {
                [only] => PlainPath::new(&only.file).ok_or_else(|| {
                    self.problem(format!("its file {:?} has a name that is not plain", only.file))
                })?,
                _ => return Err(self.which_gguf("it has several GGUF models")),
            },
        };
        let parts = file.parts();
        if let Some(missing) = parts.iter().find(|part| !info.has(part.as_str())) {
            return Err(self.which_gguf(&format!("it has no file {missing}")));
        }
        for part in &parts {
            self.get(commit, part)?;
        }
        self.finish(whole_gguf(&self.cache.snapshot(commit), &file), commit)
    }

    /// Returns the error of a name that does not say which GGUF model is meant; it lists the
    /// models.
    fn which_gguf(&mut self, problem: &str) -> Error {
        let models = match self.info(true) {
            Ok(info) => info.gguf_models(),
            Err(e) => return e,
        };
        let Some(first) = models.first() else {
            return self.problem(format!("{problem}, and no GGUF files"));
        };
        let name = match self.name.file {
            Some(_) => self.given.rsplit_once(':').map_or(self.given, |(name, _)| name),
            None => self.given,
        };
        let listed = models.iter().map(GgufModel::described).collect::<Vec<_>>().join(", ");
        self.problem(format!("{problem}; give one of its GGUF models, as in {name}:{}: {listed}", first.file))
    }

    /// Fetches the description of the repository, with or without the sizes of its files.
    pub fn info(&self, sizes: bool) -> Result<Info> {
        let info = self.client.info(&self.name.id, &self.name.revision, sizes);
        info.map_err(|e| self.explain(e, None))
    }

    /// Makes the branch refer to the commit, once all files are there.
    fn finish(&self, found: Option<PathBuf>, commit: &PlainName) -> Result<PathBuf> {
        let found = found.ok_or_else(|| {
            let folder = self.cache.snapshot(commit);
            let what = "lost files during the download, to another program; run again";
            self.problem(format!("{} {what}", folder.display()))
        })?;
        self.cache.write_reference(&self.name.revision, commit)?;
        Ok(found)
    }

    /// Returns the commit of a description. Files are requested by commit, as the branch may move
    /// between two files.
    pub fn commit(&self, info: &Info) -> Result<PlainName> {
        PlainName::new(&info.sha).ok_or_else(|| {
            self.problem(format!("the hub gives its commit as {:?}, which is not a valid name", info.sha))
        })
    }

    /// Downloads one file into the commit's folder unless it is there.
    pub fn get(&mut self, commit: &PlainName, file: &PlainPath) -> Result<()> {
        if self.cache.snapshot(commit).join(file.as_str()).exists() {
            return Ok(());
        }
        self.fetch(commit, file).map_err(|fault| self.explain(fault, Some(file.as_str())))
    }

    fn fetch(&mut self, commit: &PlainName, file: &PlainPath) -> std::result::Result<(), Fault> {
        let Metadata { etag, size, commit: seen } = self.client.metadata(&self.name.id, commit, file)?;
        if let Some(seen) = seen.filter(|seen| seen != commit.as_str()) {
            return Err(Fault::InvalidAnswer(format!(
                "a file of commit {seen:?}, not of the requested {commit}"
            )));
        }
        let _lock = self.lock(&etag, file, size)?;
        if fs::metadata(self.cache.blob(&etag)).is_ok_and(|blob| blob.len() == size) {
            self.report(file, size, size);
        } else {
            self.transfer(commit, file, &etag, size)?;
        }
        self.cache.link(&etag, commit, file).map_err(Fault::Local)
    }

    /// Downloads a blob, continuing a partial download.
    fn transfer(
        &mut self,
        commit: &PlainName,
        file: &PlainPath,
        etag: &PlainName,
        size: u64,
    ) -> std::result::Result<(), Fault> {
        let source = (self.name.id.as_str(), commit, file);
        let mut attempts = 1..ATTEMPTS;
        loop {
            let (mut partial, mut from) = self.cache.open_partial(etag).map_err(Fault::Local)?;
            // An unfinished part that is as long as the whole file, or longer, is not valid.
            if from >= size {
                partial.set_len(0).map_err(Fault::Local)?;
                from = 0;
            }
            let progress = &mut self.progress;
            let mut report = |done| progress(Download { file: file.as_str(), done, total: size });
            let fault = match self.client.download(source, size, from, &mut partial, &mut report) {
                Ok(()) => {
                    self.cache.finish(etag, partial).map_err(Fault::Local)?;
                    self.report(file, size, size);
                    return Ok(());
                }
                Err(fault) => fault,
            };
            match (&fault, attempts.next()) {
                (Fault::Transfer(_), Some(_)) => {}
                // The hub cannot resume from there.
                (Fault::Status(416), Some(_)) => partial.set_len(0).map_err(Fault::Local)?,
                _ => return Err(fault),
            }
        }
    }

    /// Waits for the lock of a blob, as long as the process that holds it makes progress.
    fn lock(&mut self, etag: &PlainName, file: &PlainPath, size: u64) -> std::result::Result<File, Fault> {
        let length = |cache: &RepoCache| fs::metadata(cache.partial(etag)).map_or(0, |partial| partial.len());
        let (mut seen, mut since) = (length(&self.cache), Instant::now());
        loop {
            if let Some(lock) = self.cache.try_lock(etag).map_err(Fault::Local)? {
                return Ok(lock);
            }
            if self.cancel.is_raised() {
                return Err(Fault::Interrupted);
            }
            let now = length(&self.cache);
            if now != seen {
                (seen, since) = (now, Instant::now());
                self.report(file, now.min(size.saturating_sub(1)), size);
            }
            if since.elapsed() > self.options.timeout {
                return Err(Fault::Locked);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn report(&mut self, file: &PlainPath, done: u64, total: u64) {
        (self.progress)(Download { file: file.as_str(), done, total });
    }

    /// Refuses a model that cannot be used before anything is transferred.
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

    pub fn problem(&self, problem: String) -> Error {
        Error::Input(format!("{}: {problem}", self.given))
    }

    /// Converts a fault to an error that says what to do; `file` is the one being transferred.
    pub fn explain(&self, fault: Fault, file: Option<&str>) -> Error {
        let what = file.map_or(String::new(), |f| format!("{f}: "));
        let hub = self.options.endpoint.as_deref().unwrap_or("the Hugging Face hub");
        let (has_token, kind) = (self.options.token.is_some(), self.kind.name());
        let text = match fault {
            Fault::Interrupted => return Error::Interrupted,
            Fault::Status(404) => {
                let revision = match self.name.revision.as_str() {
                    "main" => String::new(),
                    other => format!(" with a revision {other}"),
                };
                format!(
                    "{hub} has no {kind} of this name{revision} (404), or it is private: check the spelling, set \
                     HF_TOKEN for a private one; there is no folder of this name either"
                )
            }
            Fault::Status(401) if has_token => {
                format!("{hub} does not accept the token (401): check HF_TOKEN, and the {kind}'s name")
            }
            Fault::Status(401) => format!(
                "{hub} asks for a token (401): the {kind} is private, gated, or does not exist; check the name, \
                 and set HF_TOKEN"
            ),
            Fault::Status(403) => format!(
                "{hub} refuses access (403): the {kind} is gated; accept its terms on its page, and set HF_TOKEN \
                 to a token of the same account"
            ),
            Fault::Status(code) | Fault::Refused(code, _) => {
                format!("{hub} answered {code}; try again later")
            }
            Fault::Connection(why) => format!(
                "no connection to {hub} ({why}), and the {kind} is not complete in the cache {}; check the \
                 network, or give a folder{}",
                self.options.cache.display(),
                self.cache.hint(self.name)
            ),
            Fault::Timeout => format!(
                "nothing has arrived from {hub} for {} s; run again to continue the download \
                 (HF_HUB_DOWNLOAD_TIMEOUT sets the seconds)",
                self.options.timeout.as_secs_f64()
            ),
            Fault::Locked => {
                "another process is downloading it and makes no progress; stop it, or wait for it".to_string()
            }
            Fault::Local(e) => format!(
                "cannot write to the cache {} ({e}); HF_HOME chooses another",
                self.options.cache.display()
            ),
            Fault::Transfer(why) => {
                format!("the transfer broke off ({why}); run again to continue it")
            }
            Fault::InvalidAnswer(why) => format!("{hub} answered in an unexpected way: {why}"),
        };
        self.problem(format!("{what}{text}"))
    }
}

/// Converts a file name that is a constant of this program.
fn known(file: &str) -> PlainPath {
    PlainPath::new(file).expect("file names in the code are plain")
}
