//! Collects the files of an adapter's folder for the hub: the adapter in both formats or a model
//! with its tokenizer, the card, and how it was trained. Rows of the data, logs and paths of this
//! machine are left out.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tempfile::TempDir;

use super::cache::RepoKind;
use super::{HubName, PREFIX, Repository, WEIGHTS};
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterFile, COMPACT_FILE, TOKENIZER_FILES};
use crate::card::{CARD_FILE, pushed};
use crate::files::{json_object, write_bytes_atomically, write_json};
use crate::folder::{in_use, is_being_written, recover};
use crate::settings::{RECIPE, Recipe};
use crate::{Error, Result};

/// Files of an adapter or a model, without the tokenizer's.
const FILES: [&str; 8] = [
    CARD_FILE,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    COMPACT_FILE,
    "config.json",
    WEIGHTS,
    RECIPE,
    "importance.json",
];
/// Longest repository name that the hub accepts.
const LONGEST_NAME: usize = 96;

/// The files for a repository.
#[derive(Debug)]
pub struct Parcel {
    /// `org/name`
    pub repository: String,
    pub files: Vec<ParcelFile>,
    /// Names of the folder's other files.
    pub left_out: Vec<String>,
    /// The base model's name on the hub, if it is known.
    pub base: Option<String>,
    pub warnings: Vec<String>,
    /// Folder of the files that differ from the adapter folder's.
    _rewritten: TempDir,
}

/// A file for the hub.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ParcelFile {
    /// Name in the repository.
    pub name: String,
    pub bytes: u64,
    #[serde(skip)]
    pub(super) path: PathBuf,
}

impl Parcel {
    /// Collects the files of the adapter or model in a folder for the repository `name`. In files
    /// that name the base model, its name becomes `base_model`, or its name on the hub if that is
    /// known, or is removed.
    ///
    /// # Errors
    /// `Error::Usage` for a name that the hub does not accept, or a folder without an adapter or
    /// that is being written; those of files that are not valid.
    pub fn pack(folder: &Path, name: &str, base_model: Option<&str>) -> Result<Self> {
        let repository = repository_name(name)?;
        let given = base_model.map(base_name).transpose()?;
        if !folder.is_dir() {
            let problem = "not a folder; give the folder of a run or of an adapter";
            return Err(Error::Usage(format!("{}: {problem}", folder.display())));
        }
        if is_being_written(folder) {
            return Err(in_use(folder));
        }
        recover(folder)?;
        let has = |name: &str| folder.join(name).is_file();
        let is_adapter = has(ADAPTER_CONFIG) && has(ADAPTER_WEIGHTS) || has(COMPACT_FILE);
        let is_model = has("config.json") && has(WEIGHTS);
        if !is_adapter && !is_model {
            return Err(Error::Usage(format!(
                "{} has no adapter ({ADAPTER_CONFIG} with {ADAPTER_WEIGHTS}, or {COMPACT_FILE}) and no model \
                 (config.json with {WEIGHTS})",
                folder.display()
            )));
        }
        let io = |e| Error::io(&std::env::temp_dir(), e);
        let rewritten = tempfile::tempdir().map_err(io)?;
        let mut packing = Packing { folder, rewritten: rewritten.path(), warnings: Vec::new() };
        let own = packing.own_base()?;
        let base = given.or_else(|| Repository::of(Path::new(&own), RepoKind::Model));
        let mut files = Vec::new();
        for name in FILES.into_iter().chain(TOKENIZER_FILES).filter(|name| has(name)) {
            let path = packing.file(name, &repository, &own, base.as_ref())?;
            let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
            files.push(ParcelFile { name: name.to_string(), bytes, path });
        }
        packing.warn(base.as_ref(), &own, has(CARD_FILE));
        let warnings = packing.warnings;
        let sent = |name: &String| files.iter().any(|file| file.name == *name);
        let mut left_out: Vec<String> = std::fs::read_dir(folder)
            .map_err(|e| Error::io(folder, e))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| !sent(name) && !name.starts_with('.'))
            .collect();
        left_out.sort();
        let base = base.map(|base| base.to_string());
        Ok(Parcel { repository, files, left_out, base, warnings, _rewritten: rewritten })
    }

    /// Total size of the files in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// State of collecting a folder's files.
struct Packing<'a> {
    folder: &'a Path,
    /// Folder for the files that are changed.
    rewritten: &'a Path,
    warnings: Vec<String>,
}

impl Packing<'_> {
    /// Returns the base model as the folder names it; empty if it does not.
    fn own_base(&self) -> Result<String> {
        let config = self.folder.join(ADAPTER_CONFIG);
        let compact = self.folder.join(COMPACT_FILE);
        let named = match json_object(&config).map_err(|e| Error::io(&config, e))? {
            Some(config) => config.get(BASE_KEY).and_then(Value::as_str).map(str::to_string),
            None if compact.is_file() => Some(AdapterFile::open(&compact)?.base),
            None => self.recipe()?.map(|recipe| recipe.model()),
        };
        Ok(named.unwrap_or_default())
    }

    fn recipe(&self) -> Result<Option<Recipe>> {
        let path = self.folder.join(RECIPE);
        path.is_file().then(|| Recipe::read(&path)).transpose()
    }

    /// Returns the file to send: the folder's own, or a changed copy.
    fn file(&self, name: &str, id: &str, own: &str, base: Option<&Repository>) -> Result<PathBuf> {
        let (path, other) = (self.folder.join(name), self.rewritten.join(name));
        let hub_name = base.map(Repository::to_string);
        let is_hub = |text: &str| Repository::of(Path::new(text), RepoKind::Model).is_some();
        match name {
            CARD_FILE => {
                let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
                let base = base.map(|base| base.id.as_str());
                write_bytes_atomically(&other, pushed(&text, id, own, base).as_bytes())?;
            }
            ADAPTER_CONFIG => {
                let config = json_object(&path).map_err(|e| Error::io(&path, e))?.unwrap_or_default();
                match with_base(config, base) {
                    Some(config) => write_json(&other, &config)?,
                    None => return Ok(path),
                }
            }
            COMPACT_FILE => {
                let mut adapter = AdapterFile::open(&path)?;
                let base = hub_name.unwrap_or_default();
                if adapter.base == base || base.is_empty() && is_hub(&adapter.base) {
                    return Ok(path);
                }
                adapter.base = base;
                adapter.write_compact(&other)?;
            }
            RECIPE => {
                let text = self.recipe()?.map(|recipe| recipe.portable(hub_name.as_deref()));
                write_bytes_atomically(&other, text.unwrap_or_default().as_bytes())?;
            }
            _ => return Ok(path),
        }
        Ok(other)
    }

    fn warn(&mut self, base: Option<&Repository>, own: &str, has_card: bool) {
        if base.is_none() {
            let config = json_object(&Path::new(own).join("config.json")).ok().flatten();
            let origin = config.as_ref().and_then(|config| config.get("_name_or_path")?.as_str());
            let origin =
                origin.filter(|origin| HubName::parse(origin).is_ok() && !Path::new(origin).exists());
            let hint = origin.map_or(String::new(), |origin| {
                format!(" (its config.json says that it was loaded from {origin}, and it may have been trained since)")
            });
            let which =
                if own.is_empty() { "no file names it".to_string() } else { format!("it is {own}{hint}") };
            self.warnings.push(format!(
                "the base model's name on the hub is not known: {which}; without it nobody can load the adapter by its \
                 name alone; say it with `base_model = org/name`"
            ));
        }
        if !has_card {
            let folder = self.folder.display();
            self.warnings.push(format!("{folder} has no {CARD_FILE}, so the repository gets no model card"));
        }
    }
}

const BASE_KEY: &str = "base_model_name_or_path";

/// Returns adapter_config.json with this base, or without one if it is not on the hub; `None` if
/// nothing changes.
fn with_base(mut config: Map<String, Value>, base: Option<&Repository>) -> Option<Map<String, Value>> {
    let before = config.clone();
    config.insert(BASE_KEY.to_string(), base.map(|base| base.id.clone()).into());
    if let Some(revision) = base.and_then(|base| base.revision.clone()) {
        config.insert("revision".to_string(), revision.into());
    }
    (config != before).then_some(config)
}

/// Checks the name of a repository to write to.
fn repository_name(name: &str) -> Result<String> {
    let refuse = |problem: &str| Err(Error::Usage(format!("{name:?} is not a repository's name: {problem}")));
    let bare = name.strip_prefix(PREFIX).unwrap_or(name);
    let Some((org, own)) = bare.split_once('/') else {
        return refuse("give it with your user name or an organization, as in org/name");
    };
    if bare.contains(['@', ':']) {
        return refuse("it has no revision and no file; a branch is given as `revision`");
    }
    let ends = |part: &str| part.ends_with(['-', '.']) || part.is_empty();
    if HubName::parse(bare).is_err() || ends(org) || ends(own) || own.ends_with(".git") {
        return refuse(
            "it has letters, digits, -, _ and . alone, one slash, no -- or .., no - or . at an end, and no .git",
        );
    }
    if own.len() > LONGEST_NAME {
        return refuse(&format!("it has {} characters, and the hub takes {LONGEST_NAME}", own.len()));
    }
    Ok(bare.to_string())
}

/// Reads the name of a base model on the hub.
fn base_name(name: &str) -> Result<Repository> {
    let bare = name.strip_prefix(PREFIX).unwrap_or(name);
    let HubName { id, revision, file } = HubName::parse(&format!("{PREFIX}{bare}"))
        .map_err(|_| Error::Usage(format!("`base_model = {name}` is not a name on the hub (org/name)")))?;
    let revision = Some(revision).filter(|revision| revision != super::MAIN);
    Ok(Repository { id, revision, file: file.map(|file| file.to_string()) })
}
