//! A data set given by its name on the hub: selects its data files by the same rule as for folders,
//! and downloads them into the cache.
//!
//! A list of a data set's files is written when all of them are in the cache, and only a data set
//! with a list is used without asking the network: the cache alone does not say whether a split is
//! missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cache::{PlainName, PlainPath, RepoCache, RepoKind};
use super::client::{Fault, Info};
use super::fetch::{Fetch, connected};
use super::{Download, HubName, HubOptions, PREFIX};
use crate::data::{Error as DataError, Rows, SplitFiles, SplitName};
use crate::files::write_bytes_atomically;
use crate::{Cancel, Error, Result};

/// Branch on which the hub has Parquet conversions of data sets in other formats.
const CONVERTED: &str = "refs/convert/parquet";
/// Largest number of files of rows; a data set that is read as a whole has fewer.
const MOST_FILES: usize = 20_000;

/// The files of a data set, or of one of its configurations.
#[derive(Debug, Serialize, Deserialize)]
struct FileList {
    commit: String,
    /// Their place in the repository: a folder, a file, or shards by their common name.
    path: String,
    files: Vec<String>,
}

impl FileList {
    /// Returns the path of the data in the cache; `None` if one of the files is not there.
    fn found(&self, cache: &RepoCache) -> Option<PathBuf> {
        let folder = cache.snapshot(&PlainName::new(&self.commit)?);
        let all = self
            .files
            .iter()
            .all(|file| PlainPath::new(file).is_some_and(|file| folder.join(file.as_str()).exists()));
        let path = PlainPath::new(&self.path);
        (all && (path.is_some() || self.path.is_empty())).then(|| folder.join(&self.path))
    }
}

impl HubOptions {
    /// Returns the path of the hub's data set of this name (`org/name` or `org/name@revision`) in
    /// the cache, downloaded if needed; `None` if `data` is a path. If there are files at the path,
    /// it is one. As with models, a name that may be meant as a path is one, unless the cache has
    /// it or it begins with `hf://`. `config` chooses one of several configurations. For `cancel`
    /// and `progress` see [`HubOptions::resolve`].
    ///
    /// # Errors
    /// The hub does not know the name, refuses access or cannot be reached; there are no files of
    /// rows, or several configurations; the transfer breaks off. Each message says what to do.
    pub fn resolve_data(
        &self,
        data: &Path,
        config: Option<&str>,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<Option<PathBuf>> {
        let Some(given) = data.to_str() else { return Ok(None) };
        let is_name = given.starts_with(PREFIX);
        if !is_name && (data.exists() || Rows::is_known(data) || SplitFiles::find(data).is_ok()) {
            return Ok(None);
        }
        let name = match HubName::parse(given) {
            Ok(name) => name,
            Err(error) if is_name => return Err(error),
            Err(_) => return Ok(None),
        };
        let refuse = |problem: String| Err(Error::Input(format!("{given}: {problem}")));
        let config = config.unwrap_or_default();
        if !config.is_empty() && PlainPath::new(config).is_none() {
            return refuse(format!("`data_config = {config}` is not the name of a configuration"));
        }
        let cache = RepoCache::new(&self.cache, RepoKind::Data, &name.id);
        let list = cache.list(&format!("{}@{config}", name.revision));
        let known = fs::read(&list).ok().and_then(|text| serde_json::from_slice::<FileList>(&text).ok());
        if let Some(found) = known.and_then(|known| known.found(&cache)) {
            return Ok(Some(found));
        }
        if !is_name && name.meant_as_path().is_some() {
            return Ok(None);
        }
        if self.offline {
            let place = self.cache.display();
            return refuse(format!(
                "not complete in the cache {place}, and HF_HUB_OFFLINE forbids the download; unset it, or give a folder"
            ));
        }
        let download = |fetch: &mut Fetch<'_>| fetch.data(config, &list);
        connected(self, &name, RepoKind::Data, cache, given, cancel, progress, download).map(Some)
    }
}

impl Fetch<'_> {
    /// Downloads the data set's files, from its branch or from the branch of conversions, and then
    /// writes their list.
    fn data(&mut self, config: &str, list: &Path) -> Result<PathBuf> {
        let mut seen = Vec::new();
        for revision in [self.name.revision.as_str(), CONVERTED] {
            let info = match self.client.info(&self.name.id, revision, false) {
                Ok(info) => info,
                Err(Fault::Status(404)) if revision == CONVERTED => continue,
                Err(fault) => return Err(self.explain(fault, None)),
            };
            let commit = self.commit(&info)?;
            let Some(files) = self.data_files(&info, config)? else {
                seen = info.siblings.into_iter().map(|file| file.name).collect();
                // Only the main branch has conversions.
                if self.name.revision != "main" {
                    break;
                }
                continue;
            };
            for file in &files {
                self.get(&commit, file)?;
            }
            let list_of = FileList {
                commit: commit.to_string(),
                path: config.to_string(),
                files: files.iter().map(|file| file.as_str().to_string()).collect(),
            };
            let text = serde_json::to_vec_pretty(&list_of).map_err(|e| self.problem(e.to_string()))?;
            self.cache.write_reference(revision, &commit)?;
            list.parent().map_or(Ok(()), fs::create_dir_all).map_err(|e| Error::io(list, e))?;
            write_bytes_atomically(list, &text)?;
            return Ok(self.cache.snapshot(&commit).join(config));
        }
        let what = match config {
            "" => {
                "it has no files of rows (.parquet, .jsonl, .json, .csv, .tsv) that belong to a train split"
                    .into()
            }
            config => format!("`data_config = {config}` names no files of rows with a train split"),
        };
        let found = crate::data::list_names(&seen);
        Err(self.problem(format!("{what}; found {found}")))
    }

    /// Finds the splits' files in a repository by the rule for folders, which is applied to a
    /// folder of empty files with their names. `None` if there are none.
    fn data_files(&self, info: &Info, config: &str) -> Result<Option<Vec<PlainPath>>> {
        let names: BTreeSet<PlainPath> = info
            .siblings
            .iter()
            .filter_map(|file| PlainPath::new(&file.name))
            .filter(|file| Rows::is_known(Path::new(file.as_str())))
            .collect();
        if names.len() > MOST_FILES {
            return Err(self.problem(format!("{} files of rows, more than {MOST_FILES}", names.len())));
        }
        let folder = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), e))?;
        for name in &names {
            let path = folder.path().join(name.as_str());
            let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, ""));
            made.map_err(|e| Error::io(&path, e))?;
        }
        let inside = |path: &Path| {
            let path = path.strip_prefix(folder.path()).unwrap_or(path);
            path.to_string_lossy().into_owned()
        };
        let found = match SplitFiles::find(&folder.path().join(config)) {
            Ok(found) => found,
            Err(DataError::Candidates { candidates, .. }) => {
                let names: Vec<String> = candidates.iter().map(|path| inside(path)).collect();
                return Err(self.problem(format!(
                    "several configurations; give one of them as `data_config`: {}",
                    crate::data::list_names(&names)
                )));
            }
            Err(DataError::Io { .. } | DataError::Format { .. }) => return Ok(None),
            Err(other) => {
                let place = format!("{}/", folder.path().display());
                return Err(self.problem(other.to_string().replace(&place, "")));
            }
        };
        if !found.files.contains_key(&SplitName::Train) && !found.files.contains_key(&SplitName::Test) {
            return Ok(None);
        }
        Ok(found.files.values().flatten().map(|path| PlainPath::new(&inside(path))).collect())
    }
}
