//! A command's output folder: one writer at a time, files that appear together, and nothing removed
//! except the files that an earlier command wrote and listed.
//!
//! A command writes into `FOLDER/.lora-drop/next`. `commit` renames that to
//! `FOLDER/.lora-drop/commit`, which decides the commit, and then moves the files to their names.
//! It removes all files that are replaced before it moves the first, so that the folder never has
//! files of two commits. A process that finds the unfinished commit of a killed one completes it
//! (`recover`). The state is inside the folder so that a mounted folder works too.
//!
//! A run's checkpoints are there too, `FOLDER/.lora-drop/checkpoint-STEPS.safetensors`. While one
//! exists, the state outlives its process, and `resume` opens the folder as the run left it.

mod listing;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::card::{self, CARD_FILE, Card};
use crate::files::{clean_temporaries, is_temporary, read_if_there, sync_folder, write_bytes_atomically};
use crate::{Error, Result};

pub use listing::{Contents, FILES_KEY, PRUNE_FILE};
use listing::{RunListing, is_plain, listed, own_card};

/// The folder of a writer's state, inside the output folder.
const STATE: &str = ".lora-drop";
const NEXT: &str = "next";
const COMMIT: &str = "commit";
const CHECKPOINT: (&str, &str) = ("checkpoint-", ".safetensors");
const LOCK: &str = "lock";
/// A commit's list of the earlier command's files that it replaces, as JSON.
const REPLACED: &str = ".replaced";
/// The file in which a run lists its files; it is the first to be removed and the last to be moved.
const SUMMARY: &str = "summary.json";
/// How long a reader waits for a commit that another process is completing.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(2);

/// An output folder that is being written. When it is dropped, only committed files stay.
#[derive(Debug)]
pub struct OutputFolder {
    folder: PathBuf,
    /// Locked until this is dropped.
    _lock: File,
    /// Whether the folder was created by `open`.
    created: bool,
    /// An earlier command's files, until the first commit.
    replaced: Vec<String>,
    /// Names that were committed.
    committed: BTreeSet<String>,
}

impl OutputFolder {
    /// Checks that a folder may be written. Writes nothing, except to complete the commit of a
    /// killed process.
    ///
    /// # Errors
    /// `Error::Usage` if it is a file, another process writes it, it holds files and `overwrite` is
    /// not set, or it holds files that an earlier command of the same kind did not write;
    /// `Error::Io` if it cannot be read.
    pub fn check(folder: &Path, overwrite: bool, contents: Contents) -> Result<()> {
        replaceable(folder, overwrite, contents).map(drop)
    }

    /// Creates the folder if it is missing, and locks it. The files of an earlier command stay
    /// until the first commit.
    ///
    /// # Errors
    /// Those of `check`, and `Error::Io` if nothing can be written.
    pub fn open(folder: &Path, overwrite: bool, contents: Contents) -> Result<Self> {
        replaceable(folder, overwrite, contents)?;
        let created = !folder.exists();
        let state = folder.join(STATE);
        std::fs::create_dir_all(&state).map_err(|e| Error::io(folder, e))?;
        let lock = match lock(&state)? {
            Some(lock) => lock,
            None => return Err(in_use(folder)),
        };
        let mut output = OutputFolder {
            folder: folder.to_path_buf(),
            _lock: lock,
            created,
            replaced: Vec::new(),
            committed: BTreeSet::new(),
        };
        move_committed_files(folder)?;
        // Another command may have ended between the check and the lock.
        output.replaced = listed(folder, overwrite, contents)?;
        remove_folder(&state.join(NEXT))?;
        output.remove_checkpoints(0);
        std::fs::create_dir(state.join(NEXT)).map_err(|e| Error::io(&state, e))?;
        clean_temporaries(folder, |_| true);
        Ok(output)
    }

    /// Locks the folder of a run that has a checkpoint, to continue it. A run that has not
    /// committed yet keeps its staged `logs` and the staged files named in `first`; other staged
    /// files are discarded and written again. `logs[0]` is a log of every run: if it is staged, the
    /// run has not committed.
    ///
    /// # Errors
    /// `Error::Usage` if another process writes it; `Error::Io` if nothing can be written.
    pub fn resume(folder: &Path, logs: &[&str], first: &[&str]) -> Result<Self> {
        let state = folder.join(STATE);
        let lock = lock(&state)?.ok_or_else(|| in_use(folder))?;
        move_committed_files(folder)?;
        let (replaced, committed) = (Vec::new(), BTreeSet::new());
        let mut output =
            OutputFolder { folder: folder.to_path_buf(), _lock: lock, created: false, replaced, committed };
        std::fs::create_dir_all(output.staging()).map_err(|e| Error::io(&state, e))?;
        let files = RunListing::read(folder).map(RunListing::files).unwrap_or_default();
        let mut kept = BTreeSet::new();
        if logs.first().is_some_and(|log| output.staging().join(log).exists()) {
            // The files in the folder are an earlier run's.
            output.replaced = files;
            own_card(folder, &mut output.replaced);
            kept.extend(logs.iter().chain(first).map(|name| name.to_string()));
        } else {
            output.committed.extend(files);
        }
        output.discard(&kept);
        clean_temporaries(folder, |_| true);
        Ok(output)
    }

    /// Path of a file: among the next commit's files if it is there, else in the folder.
    pub fn path_of(&self, name: &str) -> PathBuf {
        let next = self.staging().join(name);
        if next.exists() { next } else { self.folder.join(name) }
    }

    /// The path for the checkpoint after this number of steps.
    pub fn checkpoint(&self, steps: usize) -> PathBuf {
        let (before, after) = CHECKPOINT;
        self.folder.join(STATE).join(format!("{before}{steps}{after}"))
    }

    /// Removes all checkpoints but the latest `keep`.
    pub fn remove_checkpoints(&self, keep: usize) {
        let mut found = checkpoints(&self.folder);
        found.truncate(found.len().saturating_sub(keep));
        for path in found {
            _ = std::fs::remove_file(path);
        }
    }

    /// The folder for the next commit's files. They must be flushed, as `write_atomically` does.
    pub fn staging(&self) -> PathBuf {
        self.folder.join(STATE).join(NEXT)
    }

    /// A folder on the same disk for files that are removed at the end of the command.
    pub fn scratch(&self) -> PathBuf {
        self.folder.join(STATE)
    }

    /// Whether there are files of an earlier command, which the first commit removes.
    pub fn replaces(&self) -> bool {
        !self.replaced.is_empty()
    }

    /// Stages the model card, unless the folder has a README.md that somebody wrote or changed.
    ///
    /// # Errors
    /// `Error::Io` if it cannot be written.
    pub(crate) fn stage_card(&self, card: &Card) -> Result<()> {
        if card::is_kept(&self.folder) {
            return Ok(());
        }
        write_bytes_atomically(&self.staging().join(CARD_FILE), card.text().as_bytes())
    }

    /// Returns the note on a README.md that the card does not replace.
    pub(crate) fn kept_card(&self) -> Option<String> {
        card::is_kept(&self.folder).then(|| card::kept_note(&self.folder))
    }

    /// The names of the next commit's files.
    ///
    /// # Errors
    /// `Error::Io` if they cannot be listed.
    pub(crate) fn staged(&self) -> Result<BTreeSet<String>> {
        Ok(entries(&self.staging())?.into_iter().collect())
    }

    /// The names of the files that are committed or belong to the next commit.
    ///
    /// # Errors
    /// Those of `staged`.
    pub fn names(&self) -> Result<BTreeSet<String>> {
        Ok(self.committed.union(&self.staged()?).cloned().collect())
    }

    /// Removes the next commit's files that are not among `keep`.
    pub(crate) fn discard(&self, keep: &BTreeSet<String>) {
        for name in entries(&self.staging()).unwrap_or_default() {
            if !keep.contains(&name) {
                _ = std::fs::remove_file(self.staging().join(name));
            }
        }
    }

    /// Moves the files in `next` to their names, all together. Returns their paths.
    ///
    /// # Errors
    /// `Error::Io`. If the commit was already decided, the next command that opens the folder
    /// completes it.
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
        move_committed_files(&self.folder)?;
        std::fs::create_dir(&next).map_err(io)?;
        self.replaced.clear();
        self.committed.extend(names.iter().cloned());
        Ok(names.iter().map(|name| self.folder.join(name)).collect())
    }
}

impl Drop for OutputFolder {
    /// Removes the writer's state, and the folder if it was created and is empty. What cannot be
    /// removed here is left to the next command.
    fn drop(&mut self) {
        clear_state(&self.folder.join(STATE));
        if self.created {
            _ = std::fs::remove_dir(&self.folder);
        }
    }
}

/// Lock of a folder to which one process at a time adds single files. Dropping it unlocks the
/// folder.
#[derive(Debug)]
pub struct FolderLock {
    folder: PathBuf,
    _lock: File,
}

impl FolderLock {
    /// Creates the folder if it is missing, and locks it.
    ///
    /// # Errors
    /// `Error::Usage` if another process has locked it or a part of the path is a file; `Error::Io`
    /// if nothing can be written.
    pub fn acquire(folder: &Path) -> Result<Self> {
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
        clear_state(&self.folder.join(STATE));
    }
}

/// Checks that a folder may be written by a command that continues in its own folder: the folder is
/// missing or empty, or has a file or folder of one of the names in `own`. `what` names such a
/// folder in the message: "a comparison".
///
/// # Errors
/// `Error::Usage` if it is a file, another process writes it, or it holds other files; `Error::Io`
/// if it cannot be read.
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

/// The checkpoints of the run in a folder, the latest last.
pub fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    checkpoints_in(&folder.join(STATE))
}

fn checkpoints_in(state: &Path) -> Vec<PathBuf> {
    let (before, after) = CHECKPOINT;
    let steps = |name: &str| name.strip_prefix(before)?.strip_suffix(after)?.parse::<usize>().ok();
    let names = entries(state).unwrap_or_default();
    let found: BTreeMap<usize, PathBuf> =
        names.iter().filter_map(|name| Some((steps(name)?, state.join(name)))).collect();
    found.into_values().collect()
}

/// Removes a writer's state. Checkpoints stay with the files that wait for the next commit, and so
/// does a commit that must still be completed. The lock file is removed last and while it is
/// locked, so that a waiting process notices that it is gone.
fn clear_state(state: &Path) {
    if checkpoints_in(state).is_empty() {
        _ = std::fs::remove_dir_all(state.join(NEXT));
        // Temporary files of killed processes; this process has none left when it gets here.
        for entry in std::fs::read_dir(state).into_iter().flatten().flatten() {
            if is_temporary(&entry.file_name()) {
                _ = std::fs::remove_file(entry.path());
            }
        }
    }
    if !state.join(COMMIT).exists() {
        _ = std::fs::remove_file(state.join(LOCK));
        _ = std::fs::remove_dir(state);
    }
}

/// Completes the commit of a killed process, so that readers see all of its files. If the process
/// is still running, waits a moment for it.
///
/// # Errors
/// `Error::Io` if the folder cannot be written, `Error::Usage` if the process takes longer.
pub fn recover(folder: &Path) -> Result<()> {
    let state = folder.join(STATE);
    let began = Instant::now();
    while state.join(COMMIT).is_dir() {
        if let Some(_lock) = lock(&state)? {
            move_committed_files(folder)?;
            clear_state(&state);
            return Ok(());
        }
        if began.elapsed() > COMMIT_TIMEOUT {
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

/// Locks the state's lock file; None if another process has it.
fn lock(state: &Path) -> Result<Option<File>> {
    let path = state.join(LOCK);
    loop {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = file.map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            // Some network file systems have no locks; there the user must avoid a second process.
            Err(TryLockError::Error(_)) => return Ok(Some(file)),
        }
        // The process that held the lock may have removed the file meanwhile, and another may lock
        // a new one.
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

/// On other systems an open file cannot be removed, so the name still belongs to it.
#[cfg(not(unix))]
fn same_file(_: &File, _: &Path) -> bool {
    true
}

/// The error for an output folder that is a file.
pub(crate) fn no_folder(path: &Path) -> Error {
    Error::Usage(format!("{} is a file, or a part of its path is one; name a folder", path.display()))
}

/// The error for a folder that another process writes, with the process's number if it can be read.
pub(crate) fn in_use(folder: &Path) -> Error {
    let mut number = String::new();
    let file = File::open(folder.join(STATE).join(LOCK));
    let who = match file.and_then(|mut file| file.read_to_string(&mut number)) {
        Ok(_) if !number.is_empty() => format!("process {number}"),
        _ => "another process".to_string(),
    };
    Error::Usage(format!(
        "{}: {who} is writing this folder; wait until it ends, or choose another folder",
        folder.display()
    ))
}

/// Moves the files of a decided commit to their names, if there is one; files that were moved
/// already stay.
fn move_committed_files(folder: &Path) -> Result<()> {
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
    // While the list exists, nothing has been moved, so every file with one of these names is old.
    if let Some(text) = read_if_there(&list).map_err(io(&list))? {
        let replaced: Vec<String> = serde_json::from_slice(&text).unwrap_or_default();
        let plain = replaced.iter().filter(|name| is_plain(name));
        let mut gone: Vec<&str> = plain.chain(&names).map(String::as_str).collect();
        // The summary goes first: while it is there, it lists the others.
        gone.sort_by_key(|name| *name != SUMMARY);
        for name in gone {
            let path = folder.join(name);
            if_there(std::fs::remove_file(&path)).map_err(io(&path))?;
        }
        sync_folder(folder).map_err(io(folder))?;
        std::fs::remove_file(&list).map_err(io(&list))?;
        sync_folder(&commit).map_err(io(&commit))?;
    }
    names.sort_by_key(|name| name == SUMMARY);
    for name in names {
        std::fs::rename(commit.join(&name), folder.join(&name)).map_err(io(&folder.join(&name)))?;
    }
    sync_folder(folder).map_err(io(folder))?;
    remove_folder(&commit)
}

/// The files of an earlier command that a new one replaces; none if the folder is missing or empty.
fn replaceable(folder: &Path, overwrite: bool, contents: Contents) -> Result<Vec<String>> {
    if is_being_written(folder) {
        return Err(in_use(folder));
    }
    recover(folder)?;
    listed(folder, overwrite, contents)
}

/// Names of a folder's entries, sorted, without the list of replaced files and temporary files.
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
    if_there(std::fs::remove_dir_all(folder)).map_err(|e| Error::io(folder, e))
}

/// Treats a file or folder that does not exist as removed.
fn if_there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
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
    fn a_commit_moves_all_files_and_removes_old_ones() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        std::fs::write(root.path().join("outside"), "not listed").unwrap();
        old_run(&folder);
        assert!(complaint(OutputFolder::open(&folder, false, Contents::Run)).contains("give `overwrite`"));

        let mut output = OutputFolder::open(&folder, true, Contents::Run).unwrap();
        std::fs::write(output.staging().join("summary.json"), "new").unwrap();
        std::fs::write(output.staging().join("new.bin"), "new").unwrap();
        assert!(output.replaces());
        assert_eq!(names(&folder), [".lora-drop", "notes.txt", "old.bin", "summary.json"]);
        let committed = output.commit().unwrap();
        assert_eq!(committed, [folder.join("new.bin"), folder.join("summary.json")]);
        assert!(!output.replaces());
        drop(output);
        assert_eq!(names(&folder), ["new.bin", "notes.txt", "summary.json"]);
        assert!(root.path().join("outside").exists());
    }

    /// A committed run that was resumed and killed before its next commit has its recipe staged,
    /// but not its log.
    #[test]
    fn the_log_tells_whether_a_run_has_committed() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        for committed in [true, false] {
            old_run(&folder);
            let output = OutputFolder::open(&folder, true, Contents::Run).unwrap();
            let staged = if committed { &["recipe.toml"][..] } else { &["log", "recipe.toml", "part"] };
            staged.iter().for_each(|name| std::fs::write(output.staging().join(name), "new").unwrap());
            std::fs::write(output.checkpoint(3), "state").unwrap();
            drop(output);
            assert_eq!(checkpoints(&folder).len(), 1);
            assert!(complaint(OutputFolder::open(&folder, false, Contents::Run)).contains("`resume = "));

            let output = OutputFolder::resume(&folder, &["log"], &["recipe.toml"]).unwrap();
            assert_eq!(output.replaces(), !committed);
            let left: Vec<&str> = if committed { vec![] } else { vec!["log", "recipe.toml"] };
            assert_eq!(names(&output.staging()), left);
            let log = if committed { folder.join("log") } else { output.staging().join("log") };
            assert_eq!(output.path_of("log"), log);
            output.remove_checkpoints(0);
            drop(output);
            assert!(!folder.join(STATE).exists());
        }
    }

    #[test]
    fn runs_of_0_1_list_no_files_and_other_summaries_are_no_runs() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(root.path().join(name), text).unwrap();
        write("adapter_model.safetensors", "old");
        write("notes.txt", "mine");
        let old = r#"{"version": "0.1.0", "method": "lora", "status": "finished", "best_epoch": 2}"#;
        write("summary.json", old);
        let mut output = OutputFolder::open(root.path(), true, Contents::Run).unwrap();
        std::fs::write(output.staging().join("new"), "").unwrap();
        output.commit().unwrap();
        drop(output);
        assert_eq!(names(root.path()), ["new", "notes.txt"]);
        write("summary.json", r#"{"best_epoch": 2, "outputs": ["notes.txt"]}"#);
        let refused = OutputFolder::open(root.path(), true, Contents::Run);
        assert!(complaint(refused).contains("is not what `overwrite` may replace"));
    }

    #[test]
    fn without_a_commit_everything_is_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        let (folder, fresh) = (root.path().join("run"), root.path().join("fresh"));
        old_run(&folder);
        for path in [&folder, &fresh] {
            let output = OutputFolder::open(path, true, Contents::Run).unwrap();
            std::fs::write(output.staging().join("new.bin"), "new").unwrap();
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
    fn runs_without_an_epoch_and_leftovers_are_replaced() {
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
    fn unlisted_files_are_never_replaced() {
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
