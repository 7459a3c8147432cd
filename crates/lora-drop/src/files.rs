//! Files appear whole or not at all: they are written under a temporary name in the same folder and
//! then renamed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lora_drop_transformer::json;
use serde_json::{Map, Value};
use tempfile::NamedTempFile;

use crate::{Error, Result};

/// A temporary file younger than this may belong to a process that has created it and not locked it
/// yet.
const YOUNG: Duration = Duration::from_secs(2);

/// Writes a file through `write` so that `path` is, at every moment, either what it was or
/// complete.
///
/// The writer is buffered. The data and then the new name are forced to the disk before this
/// returns; an existing file is replaced. On failure the temporary file is removed and `path` is
/// untouched.
///
/// # Errors
/// `Error::Io` with `path`: the folder is missing or not writable, the disk is full, or `write`
/// failed. If `write` returns an [`Error`] inside an `io::Error` (`io::Error::other`), that one.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    try_write(path, write).map_err(|e| e.downcast().unwrap_or_else(|e| Error::io(path, e)))
}

/// Writes bytes, as `write_atomically` does.
///
/// # Errors
/// Those of `write_atomically`.
pub fn write_bytes_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |out| out.write_all(bytes))
}

/// Writes a value as indented JSON, as `write_atomically` does.
///
/// # Errors
/// Those of `write_atomically`; the value cannot be JSON.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::file(path, e))?;
    write_bytes_atomically(path, (text + "\n").as_bytes())
}

/// A file's bytes; None if there is no such file.
pub(crate) fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// A file's JSON object; None if there is no such file.
///
/// # Errors
/// The file cannot be read, or is something else (`InvalidData`).
pub(crate) fn json_object(path: &Path) -> io::Result<Option<Map<String, Value>>> {
    let Some(bytes) = read_if_there(path)? else { return Ok(None) };
    let wrong = |e| io::Error::new(ErrorKind::InvalidData, format!("not a JSON object: {e}"));
    json::from_slice(&bytes).map(Some).map_err(wrong)
}

/// `write_bytes_atomically` without waiting for the disk: after a power failure the file may be
/// damaged, so its reader must check it.
pub(crate) fn replace_unflushed(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (temporary, _) = write_aside(path, |out| out.write_all(bytes))?;
    temporary.persist(path).map(drop).map_err(|e| e.error)
}

/// The value of an environment variable, None if it is blank.
pub(crate) fn set_variable(name: &str, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    variable(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
}

/// The folder for files that programs can make again: XDG_CACHE_HOME, or `.cache` in the home
/// folder.
pub(crate) fn user_cache(variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    let set = |name: &str| set_variable(name, &variable);
    match set("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(set("HOME").or_else(|| set("USERPROFILE")).unwrap_or_default()).join(".cache"),
    }
}

/// Checks that `path` can be written, by creating and removing a temporary file in its folder.
///
/// # Errors
/// Those of `write_atomically` up to the file's content.
pub fn check_writable(path: &Path) -> Result<()> {
    write_aside(path, |_| Ok(())).map(drop).map_err(|e| Error::io(path, e))
}

fn try_write(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let (temporary, folder) = write_aside(path, write)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|e| e.error)?;
    sync_folder(&folder)
}

/// Writes a temporary file into the folder of `path`; it is removed when it is dropped. Also
/// returns the folder.
fn write_aside(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<(NamedTempFile, PathBuf)> {
    let folder = match path.parent() {
        Some(p) if p != Path::new("") => p.to_path_buf(),
        _ => PathBuf::from("."),
    };
    if !folder.is_dir() {
        let problem = format!("cannot write it, the folder {} does not exist", folder.display());
        return Err(io::Error::new(ErrorKind::NotFound, problem));
    }
    if path.is_dir() {
        return Err(io::Error::new(ErrorKind::IsADirectory, "cannot write it, a folder has this name"));
    }
    let name = path.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "not a file name"))?;
    clean_temporaries(&folder, |of| of == name);

    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    // Temporary files are private by default; this one becomes an ordinary file with the user's
    // umask.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(&folder)?;
    // A locked file is in use. On a file system without locks it stays until somebody removes it.
    _ = temporary.as_file().try_lock();
    let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file());
    write(&mut out)?;
    out.flush()?;
    drop(out);
    Ok((temporary, folder))
}

/// Returns NAME if this is the name of a temporary file of this program, `.NAME.RANDOM.tmp`.
fn temporary_for(name: &OsStr) -> Option<&OsStr> {
    let inner = name.to_str()?.strip_prefix('.')?.strip_suffix(".tmp")?;
    let (target, random) = inner.rsplit_once('.')?;
    let ours = random.len() == 6 && random.bytes().all(|b| b.is_ascii_alphanumeric());
    (ours && !target.is_empty()).then(|| OsStr::new(target))
}

/// Whether this is the name of a temporary file of ours.
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    temporary_for(name).is_some()
}

/// Removes the temporary files that killed processes have left in a folder, for the names that
/// `which` picks. What cannot be read or removed stays.
pub(crate) fn clean_temporaries(folder: &Path, which: impl Fn(&OsStr) -> bool) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        if !temporary_for(&name).is_some_and(&which) {
            continue;
        }
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|time| time.elapsed().ok());
        let unused = File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if unused && age.is_some_and(|age| age > YOUNG) {
            _ = std::fs::remove_file(&path);
        }
    }
}

/// Forces a rename in this folder to the disk. Only Unix lets a folder be opened for that.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        match File::open(folder)?.sync_all() {
            // Some network and container file systems cannot do this; the file's data is on the
            // disk anyway.
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
            done => done,
        }
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_bytes_atomically(&path, b"first, and longer").unwrap();
        write_atomically(&path, |out| write!(out, "second")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(entries(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_bytes_atomically(&path, b"old").unwrap();
        let error = write_atomically(&path, |out| {
            out.write_all(&[0; 3 << 20])?;
            Err(io::Error::other("the source broke"))
        })
        .unwrap_err();
        assert_eq!(error.to_string(), format!("{}: the source broke", path.display()));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(entries(folder.path()), ["a.json"]);
    }

    #[test]
    fn temporaries_of_killed_processes_are_removed_and_those_in_use_stay() {
        let folder = tempfile::tempdir().unwrap();
        let old = std::time::SystemTime::now() - Duration::from_secs(60);
        let make = |name: &str| {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_modified(old).unwrap();
            file
        };
        let [_, used, _, _] =
            [".a.gguf.Ab12Cd.tmp", ".a.gguf.Zz99Zz.tmp", ".b.gguf.Ab12Cd.tmp", ".a.gguf.tmp"].map(make);
        used.lock().unwrap();
        // Dated in the future, so that the file is young however long this test takes.
        make(".a.gguf.Young1.tmp")
            .set_modified(std::time::SystemTime::now() + Duration::from_secs(60))
            .unwrap();
        write_bytes_atomically(&folder.path().join("a.gguf"), b"whole").unwrap();
        let left =
            [".a.gguf.Young1.tmp", ".a.gguf.Zz99Zz.tmp", ".a.gguf.tmp", ".b.gguf.Ab12Cd.tmp", "a.gguf"];
        assert_eq!(entries(folder.path()), left);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_said_plainly() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let error = write_atomically(&path, |_| full.write_all(b"x")).unwrap_err().to_string();
        assert!(error.contains("weights: the disk is full; free some space and run again"), "{error}");
        assert!(entries(folder.path()).is_empty());
    }

    #[test]
    fn a_missing_folder_and_a_folder_in_the_way_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = write_bytes_atomically(&folder.path().join("no/a"), b"").unwrap_err().to_string();
        assert!(missing.contains("no does not exist"), "{missing}");
        let taken = write_bytes_atomically(folder.path(), b"").unwrap_err().to_string();
        assert!(taken.contains("a folder has this name"), "{taken}");
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_as_readable_as_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode =
            |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
        std::fs::write(folder.path().join("plain"), b"").unwrap();
        write_bytes_atomically(&folder.path().join("ours"), b"").unwrap();
        assert_eq!(mode("ours"), mode("plain"));
    }
}
