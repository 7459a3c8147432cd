//! The cache that Hugging Face's tools share: `models--org--name` with blobs by ETag, snapshots by
//! commit that link to them, and refs from branches to commits.
//!
//! Every part of a path that comes from a server or from a file in the cache is a `PlainName`, so
//! that no path leads out of the cache.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use lora_drop_transformer::gguf::part_paths;

use super::{GgufModel, HubName};
use crate::files::write_bytes_atomically;
use crate::{Error, Result};

pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Longest name in bytes; file systems take 255, with suffixes.
const LONGEST: usize = 200;

/// A name that is one part of a path and has no special meaning there: ASCII letters and digits,
/// `.`, `_` and `-`, not beginning with a dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PlainName(String);

impl PlainName {
    pub fn new(name: &str) -> Option<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let fits = !name.is_empty() && name.len() <= LONGEST && !name.starts_with('.');
        (fits && name.chars().all(plain)).then(|| PlainName(name.to_string()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PlainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file's path in a repository: plain names with slashes between them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PlainPath(String);

impl PlainPath {
    pub fn new(path: &str) -> Option<Self> {
        path.split('/').all(|part| PlainName::new(part).is_some()).then(|| PlainPath(path.to_string()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Number of folders above the file.
    fn depth(&self) -> usize {
        self.0.matches('/').count()
    }

    /// Returns this file, or all parts of the model if the file is one of several.
    pub fn parts(&self) -> Vec<PlainPath> {
        let paths = part_paths(Path::new(&self.0));
        paths.iter().map(|path| PlainPath(path.to_string_lossy().into_owned())).collect()
    }
}

impl fmt::Display for PlainPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RepoKind {
    Model,
    Data,
}

impl RepoKind {
    /// Name in the hub's addresses and in the cache.
    pub fn plural(self) -> &'static str {
        match self {
            RepoKind::Model => "models",
            RepoKind::Data => "datasets",
        }
    }

    /// Name in messages.
    #[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "only downloads have messages"))]
    pub fn name(self) -> &'static str {
        match self {
            RepoKind::Model => "model",
            RepoKind::Data => "data set",
        }
    }
}

/// One model's or data set's part of the cache.
pub(super) struct RepoCache {
    /// `cache/models--org--name`
    root: PathBuf,
    /// `cache/.locks/models--org--name`
    locks: PathBuf,
}

impl RepoCache {
    /// Creates the part for `id`, `org/name` or `name`, which `HubName` has checked.
    pub fn new(cache: &Path, kind: RepoKind, id: &str) -> Self {
        let folder = format!("{}--{}", kind.plural(), id.replace('/', "--"));
        RepoCache { root: cache.join(&folder), locks: cache.join(".locks").join(&folder) }
    }

    /// Returns the folder of a commit.
    pub fn snapshot(&self, commit: &PlainName) -> PathBuf {
        self.root.join("snapshots").join(commit.as_str())
    }

    /// Returns the path of a file's content, by its ETag.
    pub fn blob(&self, etag: &PlainName) -> PathBuf {
        self.root.join("blobs").join(etag.as_str())
    }

    /// Returns the path of a partial download, which becomes the blob when it is complete.
    pub fn partial(&self, etag: &PlainName) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Returns the path of the list of a data set's downloaded files, by revision and
    /// configuration.
    pub fn list(&self, name: &str) -> PathBuf {
        self.root.join("lora-drop").join(format!("{}.json", name.replace('/', "--")))
    }

    /// Returns the folder of a revision (a branch, a tag or a commit), or this GGUF file in it (the
    /// first of several parts), if it has all files that are needed.
    pub fn complete(&self, revision: &str, file: Option<&PlainPath>) -> Option<PathBuf> {
        let folder = self.folder(revision)?;
        match file {
            Some(file) => whole_gguf(&folder, file),
            None => is_complete(&folder).then_some(folder),
        }
    }

    fn folder(&self, revision: &str) -> Option<PathBuf> {
        // A commit need not be among the refs.
        let commit = fs::read_to_string(self.reference(revision)).unwrap_or_else(|_| revision.to_string());
        Some(self.snapshot(&PlainName::new(commit.trim())?))
    }

    /// Names the GGUF files of a name's revision that are in the cache, as the end of a message;
    /// empty if there are none. The hub may have more, so none is taken without its name.
    pub fn hint(&self, name: &HubName) -> String {
        let folder = self.folder(&name.revision).filter(|_| name.file.is_none());
        let entries = folder.into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        let names = entries.filter_map(|entry| Some((entry.ok()?.file_name().into_string().ok()?, None)));
        let models = GgufModel::list(names);
        let revision = match name.revision.as_str() {
            "main" => String::new(),
            other => format!("@{other}"),
        };
        let named = models.iter().map(|model| format!("{}{revision}:{}", name.id, model.file));
        let named = named.collect::<Vec<_>>().join(" or ");
        if named.is_empty() { named } else { format!(", or {named}, which is in the cache") }
    }

    /// Makes a branch refer to a commit.
    pub fn write_reference(&self, revision: &str, commit: &PlainName) -> Result<()> {
        let path = self.reference(revision);
        make_parent(&path).map_err(|e| Error::io(&path, e))?;
        write_bytes_atomically(&path, commit.as_str().as_bytes())
    }

    /// Returns the path of a revision's ref. A revision may have slashes; `HubName` has checked
    /// that each part is a plain name.
    fn reference(&self, revision: &str) -> PathBuf {
        self.root.join("refs").join(revision)
    }

    /// Locks a blob for writing until the file is dropped; None while another process has the lock.
    pub fn try_lock(&self, etag: &PlainName) -> io::Result<Option<File>> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::create(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            // Some network file systems have no locks; two writers only cost a second download
            // there.
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => Ok(Some(file)),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// Opens a blob's partial file for appending, and returns its length.
    pub fn open_partial(&self, etag: &PlainName) -> io::Result<(File, u64)> {
        let path = self.partial(etag);
        make_parent(&path)?;
        let file = File::options().append(true).create(true).open(&path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    }

    /// Turns a complete partial file into the blob.
    pub fn finish(&self, etag: &PlainName, partial: File) -> io::Result<()> {
        partial.sync_all()?;
        drop(partial);
        fs::rename(self.partial(etag), self.blob(etag))
    }

    /// Links a blob into a commit's folder under a file's name.
    pub fn link(&self, etag: &PlainName, commit: &PlainName, file: &PlainPath) -> io::Result<()> {
        let pointer = self.snapshot(commit).join(file.as_str());
        make_parent(&pointer)?;
        // A link may be left whose blob was deleted.
        match fs::remove_file(&pointer) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let root = "../".repeat(2 + file.depth());
        match symlink(Path::new(&root).join("blobs").join(etag.as_str()), &pointer) {
            // Another process was faster.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // The file system or the user's rights do not allow links.
            Err(_) => fs::rename(self.blob(etag), &pointer),
            Ok(()) => Ok(()),
        }
    }
}

#[cfg(unix)]
use std::os::unix::fs::symlink;
#[cfg(windows)]
use std::os::windows::fs::symlink_file as symlink;

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Returns the path of this GGUF file in a folder, or of its first part; `None` unless all parts
/// are there.
pub(super) fn whole_gguf(folder: &Path, file: &PlainPath) -> Option<PathBuf> {
    let parts: Vec<PathBuf> = file.parts().iter().map(|part| folder.join(part.as_str())).collect();
    parts.iter().all(|part| part.exists()).then(|| parts[0].clone())
}

pub(super) fn is_complete(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).exists();
    let has_shards = || shards(&folder.join(INDEX)).is_ok_and(|names| names.iter().all(|n| has(n.as_str())));
    has("config.json") && has("tokenizer.json") && (has(WEIGHTS) || has_shards())
}

/// Returns the weight files that an index names, sorted.
pub(super) fn shards(index: &Path) -> Result<Vec<PlainPath>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let text = fs::read(index).map_err(|e| Error::io(index, e))?;
    let problem = |problem: String| Error::file(index, problem);
    let parsed: Index =
        serde_json::from_slice(&text).map_err(|e| problem(format!("not an index with a weight_map: {e}")))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(problem("its weight_map is empty".into()));
    }
    let plain = |name: String| {
        PlainPath::new(&name)
            .filter(|path| path.depth() == 0)
            .ok_or_else(|| problem(format!("shard {name:?} is not a plain file name")))
    };
    names.into_iter().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_lead_nowhere_else() {
        for name in ["etag-model.safetensors", "0123abc", "a..b", "model-00001-of-00002.safetensors"] {
            assert_eq!(PlainName::new(name).unwrap().as_str(), name);
        }
        let long = "x".repeat(LONGEST + 1);
        for name in
            ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "a\\b", "C:x", "a b", "a\n", "\u{1b}[31m", &long]
        {
            assert_eq!(PlainName::new(name), None, "{name:?}");
        }
        assert_eq!(PlainPath::new("BF16/a.gguf").unwrap().depth(), 1);
        for path in ["", "/a", "a/", "a//b", "../a", "a/../b", "a/.b", "a/b c"] {
            assert_eq!(PlainPath::new(path), None, "{path:?}");
        }
    }
}
