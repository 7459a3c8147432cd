//! The folder that a command writes: one writer at a time, files that take their places together,
//! and nothing removed but what an earlier command wrote there and lists.
//!
//! A command writes into `FOLDER/.lora-drop/next`. `commit` renames that to
//! `FOLDER/.lora-drop/commit`, which decides, and moves the files to their names: first every file
//! that is replaced goes, then the new ones come, so that at no moment files of two commits stand
//! side by side. Whoever finds a `commit` that nobody is working on completes it (`recover`). The
//! state is inside the folder, not beside it, so that a mounted folder works as any other.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::adapter::TOKENIZER_FILES;
use crate::files::{clean_temporaries, is_temporary, sync_folder, write_bytes_atomically};
use crate::{Error, Result};

/// The folder of a writer's state, in the folder that it writes.
const STATE: &str = ".lora-drop";
const NEXT: &str = "next";
const COMMIT: &str = "commit";
const LOCK: &str = "lock";
/// In a commit: the names of an earlier command's files, as JSON.
const REPLACED: &str = ".replaced";
/// The file that a run lists its files in, and the first to go and the last to come.
const SUMMARY: &str = "summary.json";
/// The file in which `prune` lists its files.
pub const PRUNE_FILE: &str = "prune.json";
/// The metadata key in safetensors files under which `merge` and `export` list the files of their
/// folder, as JSON.
pub const FILES_KEY: &str = "lora_drop_files";
/// How long a reader waits for a commit that is under way.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a command writes into its folder, and by which a later one knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// A training run: summary.json lists the files.
    Run,
    /// A merged model: the metadata of model.safetensors lists them.
    Model,
    /// An adapter in PEFT's form: the metadata of adapter_model.safetensors lists them.
    Adapter,
    /// A pruning, with the adapter that is kept or without: prune.json lists them.
    Pruned,
}

/// An output folder that is being written. Dropped, it leaves what was committed and nothing else.
#[derive(Debug)]
pub struct OutputFolder {
    folder: PathBuf,
    /// Locked for as long as this lives.
    _lock: File,
    /// Whether the folder was made here.
    made: bool,
    /// An earlier command's files, until the first commit.
    replaced: Vec<String>,
    /// Names that were committed.
    placed: BTreeSet<String>,
}

impl OutputFolder {
    /// Checks that a folder may be written. Writes nothing, but to complete what a killed process
    /// had decided on.
    ///
    /// # Errors
    /// `Error::Usage` where it is a file, another process writes it, it holds files and `overwrite`
    /// is not set, or files that are not those of an earlier command of the same kind; `Error::Io`
    /// where it cannot be read.
    pub fn check(folder: &Path, overwrite: bool, contents: Contents) -> Result<()> {
        replaceable(folder, overwrite, contents).map(drop)
    }

    /// Makes the folder where it is missing, and locks it. The files of an earlier command stay
    /// until the first commit.
    ///
    /// # Errors
    /// Those of `check`, and `Error::Io` where nothing can be written.
    pub fn open(folder: &Path, overwrite: bool, contents: Contents) -> Result<Self> {
        replaceable(folder, overwrite, contents)?;
        let made = !folder.exists();
        let state = folder.join(STATE);
        std::fs::create_dir_all(&state).map_err(|e| Error::io(folder, e))?;
        let lock = match lock(&state)? {
            Some(lock) => lock,
            None => return Err(in_use(folder)),
        };
        let mut output = OutputFolder {
            folder: folder.to_path_buf(),
            _lock: lock,
            made,
            replaced: Vec::new(),
            placed: BTreeSet::new(),
        };
        place(folder)?;
        // Another command may have ended between the check and the lock.
        output.replaced = listed(folder, overwrite, contents)?;
        remove_folder(&state.join(NEXT))?;
        std::fs::create_dir(state.join(NEXT)).map_err(|e| Error::io(&state, e))?;
        clean_temporaries(folder, |_| true);
        Ok(output)
    }

    /// Where the next commit's files are written. They have to be flushed, as `write_atomically`
    /// does.
    pub fn next(&self) -> PathBuf {
        self.folder.join(STATE).join(NEXT)
    }

    /// A place on the same disk for files that end with the command.
    pub fn scratch(&self) -> PathBuf {
        self.folder.join(STATE)
    }

    /// Whether an earlier command's files are still there, which the first commit removes.
    pub fn replaces(&self) -> bool {
        !self.replaced.is_empty()
    }

    /// The names of the files that the next commit places.
    pub fn staged(&self) -> Result<BTreeSet<String>> {
        Ok(entries(&self.next())?.into_iter().collect())
    }

    /// The names of the files that are committed or will be by the next commit.
    pub fn names(&self) -> Result<BTreeSet<String>> {
        Ok(self.placed.union(&self.staged()?).cloned().collect())
    }

    /// Removes the files in `next` that are not among `keep`: half of what was to be committed.
    pub fn discard(&self, keep: &BTreeSet<String>) {
        for name in entries(&self.next()).unwrap_or_default() {
            if !keep.contains(&name) {
                _ = std::fs::remove_file(self.next().join(name));
            }
        }
    }

    /// Lets the files in `next` take their places, together. Returns their paths.
    ///
    /// # Errors
    /// `Error::Io`. Where the files had been decided on, the next command that opens the folder
    /// completes the work.
    pub fn commit(&mut self) -> Result<Vec<PathBuf>> {
        let state = self.folder.join(STATE);
        let (next, commit) = (state.join(NEXT), state.join(COMMIT));
        let names = entries(&next)?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let replaced = serde_json::to_vec(&self.replaced).unwrap_or_default();
        write_bytes_atomically(&next.join(REPLACED), &replaced)?;
        let io = |e| Error::io(&self.folder, e);
        std::fs::rename(&next, &commit).map_err(io)?;
        sync_folder(&state).map_err(io)?;
        place(&self.folder)?;
        std::fs::create_dir(&next).map_err(io)?;
        self.replaced.clear();
        self.placed.extend(names.iter().cloned());
        Ok(names.iter().map(|name| self.folder.join(name)).collect())
    }
}

impl Drop for OutputFolder {
    /// Removes the writer's state, and a folder that was made for nothing. What fails here is left
    /// to the next command.
    fn drop(&mut self) {
        clear(&self.folder.join(STATE));
        if self.made {
            _ = std::fs::remove_dir(&self.folder);
        }
    }
}

/// A folder that one process at a time adds files to, and of which none is replaced together with
/// others. Dropped, it is free.
#[derive(Debug)]
pub struct FolderLock {
    folder: PathBuf,
    _lock: File,
}

impl FolderLock {
    /// Makes the folder where it is missing, and locks it.
    ///
    /// # Errors
    /// `Error::Usage` where another process has it, or a file is in the way; `Error::Io` where
    /// nothing can be written.
    pub fn take(folder: &Path) -> Result<Self> {
        if folder.ancestors().any(|part| part.is_file()) {
            return Err(no_folder(folder));
        }
        let state = folder.join(STATE);
        std::fs::create_dir_all(&state).map_err(|e| Error::io(folder, e))?;
        let lock = lock(&state)?.ok_or_else(|| in_use(folder))?;
        clean_temporaries(folder, |_| true);
        Ok(FolderLock { folder: folder.to_path_buf(), _lock: lock })
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        clear(&self.folder.join(STATE));
    }
}

/// Checks that a folder may be written by a command that goes on in its own folder: it is empty,
/// not there, or has a file or folder of one of these names. `what` is what it is then: "a
/// comparison".
///
/// # Errors
/// `Error::Usage` where it is a file, another process writes it, or it holds other files;
/// `Error::Io` where it cannot be read.
pub fn check_free(folder: &Path, own: &[&str], what: &str) -> Result<()> {
    if folder.ancestors().any(|part| part.is_file()) {
        return Err(no_folder(folder));
    }
    if is_being_written(folder) {
        return Err(in_use(folder));
    }
    if !folder.exists() || own.iter().any(|name| folder.join(name).exists()) {
        return Ok(());
    }
    match entries(folder)?.iter().find(|name| *name != STATE) {
        Some(name) => Err(Error::Usage(format!(
            "{} holds {name} and is not {what}; choose another folder",
            folder.display()
        ))),
        None => Ok(()),
    }
}

/// Removes a writer's state but for a commit that is still to be completed; the lock's file last,
/// while it is locked, so that nobody who waits for it takes it for the one to lock.
fn clear(state: &Path) {
    _ = std::fs::remove_dir_all(state.join(NEXT));
    if !state.join(COMMIT).exists() {
        _ = std::fs::remove_file(state.join(LOCK));
        _ = std::fs::remove_dir(state);
    }
}

/// Completes a commit that its process did not live to complete, so that readers see all of its
/// files. Waits a moment where the process is alive and working on it.
///
/// # Errors
/// `Error::Io` where the folder cannot be written, or the process takes longer.
pub fn recover(folder: &Path) -> Result<()> {
    let state = folder.join(STATE);
    let began = Instant::now();
    while state.join(COMMIT).is_dir() {
        if let Some(_lock) = lock(&state)? {
            place(folder)?;
            clear(&state);
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(in_use(folder));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Whether a process writes this folder now.
pub fn is_being_written(folder: &Path) -> bool {
    let path = folder.join(STATE).join(LOCK);
    let file = File::options().read(true).write(true).open(path);
    file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Locks the state's lock file; None where another process has it.
fn lock(state: &Path) -> Result<Option<File>> {
    let path = state.join(LOCK);
    loop {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = file.map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            // Some network file systems have no locks: there, two processes are the user's to
            // avoid.
            Err(TryLockError::Error(_)) => return Ok(Some(file)),
        }
        // The one who held it before may have removed it meanwhile; then another may lock a new
        // one.
        if same_file(&file, &path) {
            let written = file
                .set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| write!(file, "{}", std::process::id()));
            written.map_err(|e| Error::io(&path, e))?;
            return Ok(Some(file));
        }
    }
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// Elsewhere an open file cannot be removed.
#[cfg(not(unix))]
fn same_file(_: &File, _: &Path) -> bool {
    true
}

/// The error of an output folder that cannot be one.
pub(crate) fn no_folder(path: &Path) -> Error {
    Error::Usage(format!("{} is a file, or has one on its way; name a folder", path.display()))
}

/// The error of a folder that another process writes, with that process's number where it can be
/// read.
pub(crate) fn in_use(folder: &Path) -> Error {
    let mut number = String::new();
    let file = File::open(folder.join(STATE).join(LOCK));
    let who = match file.and_then(|mut file| file.read_to_string(&mut number)) {
        Ok(_) if !number.is_empty() => format!("process {number}"),
        _ => "another process".to_string(),
    };
    Error::Usage(format!(
        "{}: {who} is writing this folder; wait for its end, or choose another folder",
        folder.display()
    ))
}

/// Moves the files of a decided commit to their names, if there is one; what was moved already
/// stays.
fn place(folder: &Path) -> Result<()> {
    let commit = folder.join(STATE).join(COMMIT);
    if !commit.is_dir() {
        return Ok(());
    }
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |e| Error::io(&path, e)
    };
    let mut names = entries(&commit)?;
    let list = commit.join(REPLACED);
    let remove = |name: &str| {
        let path = folder.join(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(&path, e)),
            _ => Ok(()),
        }
    };
    // As long as the list is there nothing has been moved, so every file of these names is an old
    // one.
    match std::fs::read(&list) {
        Ok(text) => {
            let replaced: Vec<String> = serde_json::from_slice(&text).unwrap_or_default();
            let plain = replaced.iter().filter(|name| is_plain(name));
            let mut gone: Vec<&str> = plain.chain(&names).map(String::as_str).collect();
            // While it is there, it says that the others are.
            gone.sort_by_key(|name| *name != SUMMARY);
            for name in gone {
                remove(name)?;
            }
            sync_folder(folder).map_err(io(folder))?;
            std::fs::remove_file(&list).map_err(io(&list))?;
            sync_folder(&commit).map_err(io(&commit))?;
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(&list, e)),
    }
    names.sort_by_key(|name| name == SUMMARY);
    for name in names {
        std::fs::rename(commit.join(&name), folder.join(&name)).map_err(io(&folder.join(&name)))?;
    }
    sync_folder(folder).map_err(io(folder))?;
    remove_folder(&commit)
}

/// The files of an earlier command that a new one replaces; none where there is none, or the folder
/// is not there.
fn replaceable(folder: &Path, overwrite: bool, contents: Contents) -> Result<Vec<String>> {
    if is_being_written(folder) {
        return Err(in_use(folder));
    }
    recover(folder)?;
    listed(folder, overwrite, contents)
}

fn listed(folder: &Path, overwrite: bool, contents: Contents) -> Result<Vec<String>> {
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
    if !entries.any(|entry| entry.is_ok_and(|entry| counts(&entry.file_name()))) {
        return Ok(Vec::new());
    }
    let (files, measured) = match contents {
        Contents::Run => run_files(folder),
        Contents::Model => (metadata_files(folder, "model.safetensors"), true),
        Contents::Adapter => (metadata_files(folder, "adapter_model.safetensors"), true),
        Contents::Pruned => (pruned_files(folder), true),
    };
    match files {
        // A run that measured no epoch has nothing that is lost.
        Some(files) if overwrite || !measured => Ok(files),
        _ if !overwrite => Err(Error::Usage(format!(
            "{shown} is in use: the folder is not empty; choose another, or give `overwrite`"
        ))),
        _ => {
            let what = match contents {
                Contents::Run => "a run, whose summary.json lists its files",
                Contents::Model => "a model that lora-drop has merged",
                Contents::Adapter => "an adapter that lora-drop has exported",
                Contents::Pruned => "a pruning, whose prune.json lists its files",
            };
            Err(Error::Usage(format!(
                "{shown} is not what `overwrite` may replace: it holds files, and is not {what}; choose another \
                 folder, or remove the files yourself"
            )))
        }
    }
}

/// The part of a summary that says what a run wrote.
#[derive(Deserialize)]
struct Listing {
    #[serde(rename = "version")]
    _version: String,
    method: String,
    #[serde(rename = "status")]
    _status: String,
    best_epoch: usize,
    outputs: Option<Vec<String>>,
}

/// The files that a run's summary lists, and whether it has measured an epoch.
fn run_files(folder: &Path) -> (Option<Vec<String>>, bool) {
    let text = std::fs::read(folder.join(SUMMARY)).unwrap_or_default();
    let Ok(listing) = serde_json::from_slice::<Listing>(&text) else { return (None, true) };
    let files = listing.outputs.unwrap_or_else(|| files_of_0_1(&listing.method));
    (Some(files.into_iter().filter(|name| is_plain(name)).collect()), listing.best_epoch > 0)
}

/// The files of a run by version 0.1, which did not list them.
fn files_of_0_1(method: &str) -> Vec<String> {
    let run = ["summary.json", "recipe.toml", "report.html", "metrics.jsonl", "importance.json"];
    let model: &[&str] = match method {
        "full" => &["config.json", "model.safetensors"],
        _ => &["adapter_config.json", "adapter_model.safetensors", "adapter_compact.safetensors"],
    };
    let tokenizer: &[&str] = if method == "full" { &TOKENIZER_FILES } else { &[] };
    run.iter().chain(model).chain(tokenizer).map(|name| name.to_string()).collect()
}

/// The files that prune.json lists.
fn pruned_files(folder: &Path) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Listing {
        outputs: Vec<String>,
    }
    let text = std::fs::read(folder.join(PRUNE_FILE)).ok().filter(|_| !folder.join(SUMMARY).exists())?;
    let listing: Listing = serde_json::from_slice(&text).ok()?;
    Some(listing.outputs.into_iter().filter(|name| is_plain(name)).collect())
}

/// The files that the metadata of a safetensors file lists. A folder with a summary is a run's,
/// whatever else is in it, and one with prune.json a pruning's.
fn metadata_files(folder: &Path, name: &str) -> Option<Vec<String>> {
    let path = folder.join(name);
    if folder.join(SUMMARY).exists() || folder.join(PRUNE_FILE).exists() || !path.is_file() {
        return None;
    }
    let file = lora_drop_transformer::Checkpoint::open_file(&path).ok()?;
    let files: Vec<String> = serde_json::from_str(file.metadata().get(FILES_KEY)?).ok()?;
    Some(files.into_iter().filter(|name| is_plain(name)).collect())
}

/// Whether a listed name is one in the folder itself: lists come from files, and files from
/// anywhere.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None))
}

/// The names of a folder's files, without the list of replaced ones.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let io = |e| Error::io(folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if name != REPLACED && !is_temporary(&name) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn remove_folder(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(folder, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(epoch: usize, outputs: &[&str]) -> String {
        serde_json::json!({"version": "0", "method": "lora", "status": "running", "best_epoch": epoch,
                           "outputs": outputs})
        .to_string()
    }

    fn names(folder: &Path) -> Vec<String> {
        entries(folder).unwrap()
    }

    fn complaint<T: std::fmt::Debug>(result: Result<T>) -> String {
        match result {
            Err(Error::Usage(message)) => message,
            other => panic!("expected a usage error, got {other:?}"),
        }
    }

    /// A run's folder with a file of the user's in it.
    fn old_run(folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        for (name, text) in [
            ("summary.json", summary(2, &["summary.json", "old.bin", "../outside"])),
            ("old.bin", "old".into()),
            ("notes.txt", "mine".into()),
        ] {
            std::fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn files_take_their_places_together_and_old_ones_go_then() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        std::fs::write(root.path().join("outside"), "not listed").unwrap();
        old_run(&folder);
        assert!(complaint(OutputFolder::open(&folder, false, Contents::Run)).contains("give `overwrite`"));

        let mut output = OutputFolder::open(&folder, true, Contents::Run).unwrap();
        std::fs::write(output.next().join("summary.json"), "new").unwrap();
        std::fs::write(output.next().join("new.bin"), "new").unwrap();
        assert!(output.replaces());
        assert_eq!(names(&folder), [".lora-drop", "notes.txt", "old.bin", "summary.json"]);
        let placed = output.commit().unwrap();
        assert_eq!(placed, [folder.join("new.bin"), folder.join("summary.json")]);
        assert!(!output.replaces());
        drop(output);
        assert_eq!(names(&folder), ["new.bin", "notes.txt", "summary.json"]);
        assert!(root.path().join("outside").exists());
    }

    #[test]
    fn without_a_commit_everything_is_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        let (folder, fresh) = (root.path().join("run"), root.path().join("fresh"));
        old_run(&folder);
        for path in [&folder, &fresh] {
            let output = OutputFolder::open(path, true, Contents::Run).unwrap();
            std::fs::write(output.next().join("new.bin"), "new").unwrap();
        }
        assert_eq!(names(&folder), ["notes.txt", "old.bin", "summary.json"]);
        assert!(!fresh.exists());
    }

    #[test]
    fn one_writer_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let first = OutputFolder::open(root.path(), false, Contents::Run).unwrap();
        assert!(is_being_written(root.path()));
        let message = complaint(OutputFolder::open(root.path(), true, Contents::Run));
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        drop(first);
        assert!(!is_being_written(root.path()));
        OutputFolder::open(root.path(), false, Contents::Run).unwrap();
    }

    /// A process may end at any moment of a commit: whatever it has left, the next one completes
    /// it.
    #[test]
    fn a_decided_commit_is_completed_from_every_state() {
        for moved in 0..=2 {
            let root = tempfile::tempdir().unwrap();
            let folder = root.path();
            old_run(folder);
            let commit = folder.join(STATE).join(COMMIT);
            std::fs::create_dir_all(&commit).unwrap();
            for name in ["old.bin", "summary.json"] {
                std::fs::write(commit.join(name), summary(3, &["old.bin", "summary.json"])).unwrap();
            }
            match moved {
                0 => std::fs::write(commit.join(REPLACED), r#"["summary.json", "old.bin"]"#).unwrap(),
                1 => {
                    std::fs::remove_file(folder.join("summary.json")).unwrap();
                    std::fs::rename(commit.join("old.bin"), folder.join("old.bin")).unwrap();
                }
                _ => {
                    for name in ["old.bin", "summary.json"] {
                        std::fs::rename(commit.join(name), folder.join(name)).unwrap();
                    }
                }
            }
            recover(folder).unwrap();
            assert_eq!(names(folder), ["notes.txt", "old.bin", "summary.json"]);
            for name in ["old.bin", "summary.json"] {
                let text = std::fs::read_to_string(folder.join(name)).unwrap();
                assert!(text.contains("\"best_epoch\":3"), "{moved}: {name}");
            }
        }
    }

    #[test]
    fn a_run_without_an_epoch_and_leftovers_are_in_nobodys_way() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path();
        std::fs::write(folder.join(".model.safetensors.Ab12Cd.tmp"), "half").unwrap();
        std::fs::create_dir_all(folder.join(STATE).join(NEXT)).unwrap();
        OutputFolder::check(folder, false, Contents::Model).unwrap();
        std::fs::write(folder.join("summary.json"), summary(0, &["summary.json", "recipe.toml"])).unwrap();
        let output = OutputFolder::open(folder, false, Contents::Run).unwrap();
        assert!(output.replaces());
    }

    #[test]
    fn what_no_command_lists_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path();
        for name in ["config.json", "model.safetensors", "metrics.jsonl"] {
            std::fs::write(folder.join(name), "a base model").unwrap();
        }
        for contents in [Contents::Run, Contents::Model, Contents::Adapter] {
            assert!(complaint(OutputFolder::open(folder, true, contents)).contains("may replace"));
        }
        std::fs::write(folder.join("summary.json"), "{}").unwrap();
        assert!(complaint(OutputFolder::open(folder, true, Contents::Run)).contains("may replace"));
        std::fs::remove_dir_all(folder).unwrap();
        std::fs::write(folder, "").unwrap();
        assert!(complaint(OutputFolder::check(folder, true, Contents::Run)).contains("is a file"));
    }
}
