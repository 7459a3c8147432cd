//! A log: a file that grows while a run goes on.
//!
//! Other files are written under a temporary name and renamed; a log is not. Instead each line or
//! record is one write, and a partial write is removed again, so an interrupted run leaves whole
//! lines and records. Bytes that cannot be written wait in memory for the next write, so a disk
//! that is full for a moment loses nothing.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A log. It is open only during a write, so that its folder can be renamed.
#[derive(Debug)]
pub struct GrowingFile {
    path: PathBuf,
    /// Bytes that could not be written yet.
    waiting: Vec<u8>,
}

impl GrowingFile {
    /// Starts an empty file, and replaces one that exists.
    ///
    /// # Errors
    /// `Error::Io` with the path.
    pub fn create(path: &Path) -> Result<Self> {
        File::create(path).map_err(|e| Error::io(path, e))?;
        Ok(GrowingFile { path: path.to_path_buf(), waiting: Vec::new() })
    }

    /// Continues a file after its first `bytes` bytes; anything after them is removed.
    ///
    /// # Errors
    /// `Error::Io`; `Error::Input` if the file is shorter.
    pub fn resume(path: &Path, bytes: u64) -> Result<Self> {
        let file = File::options().write(true).open(path).map_err(|e| Error::io(path, e))?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if length < bytes {
            let problem = format!("it has {length} bytes, and had {bytes} when the checkpoint was written");
            return Err(Error::file(path, problem));
        }
        file.set_len(bytes).map_err(|e| Error::io(path, e))?;
        Ok(GrowingFile { path: path.to_path_buf(), waiting: Vec::new() })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Continues in the same file after it was renamed to `path`.
    pub fn moved(&mut self, path: &Path) {
        self.path = path.to_path_buf();
    }

    /// Forces the file to the disk, and returns its length in bytes.
    ///
    /// # Errors
    /// `Error::Io` with the path.
    pub fn length(&mut self) -> Result<u64> {
        self.flush(true)?;
        Ok(std::fs::metadata(&self.path).map_err(|e| Error::io(&self.path, e))?.len())
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// `Error::Io` with the path, as when the disk is full. The bytes wait for the next call.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.waiting.extend_from_slice(bytes);
        self.flush(false)
    }

    /// Writes the waiting bytes, and with `to_disk` forces the file to the disk.
    ///
    /// # Errors
    /// `Error::Io` with the path.
    pub fn flush(&mut self, to_disk: bool) -> Result<()> {
        self.write(to_disk).map_err(|e| Error::io(&self.path, e))
    }

    fn write(&mut self, to_disk: bool) -> std::io::Result<()> {
        // A file that was removed is not created again: a log without its beginning would look like
        // a whole one.
        let mut file = File::options().append(true).open(&self.path)?;
        let whole = file.metadata()?.len();
        if let Err(e) = file.write_all(&self.waiting) {
            // Removes the partial write if it can; the first error is the one to report.
            _ = file.set_len(whole);
            return Err(e);
        }
        self.waiting.clear();
        if to_disk { file.sync_all() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_failed_write_are_written_with_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("log"), folder.path().join("aside"));
        let mut log = GrowingFile::create(&path).unwrap();
        log.append(b"1\n").unwrap();
        std::fs::rename(&path, &aside).unwrap();
        assert!(log.append(b"2\n").is_err());
        std::fs::rename(&aside, &path).unwrap();
        log.append(b"3\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n2\n3\n");
    }

    #[test]
    fn a_file_is_continued_where_it_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "1\n2\n3\n").unwrap();
        let mut log = GrowingFile::resume(&path, 4).unwrap();
        log.append(b"4\n").unwrap();
        assert_eq!(log.length().unwrap(), 6);
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n2\n4\n");
        let error = GrowingFile::resume(&path, 7).unwrap_err().to_string();
        assert!(error.ends_with("it has 6 bytes, and had 7 when the checkpoint was written"), "{error}");
    }

    /// /dev/full refuses every write, as a full disk does.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let mut log = GrowingFile::create(Path::new("/dev/full")).unwrap();
        let error = log.append(b"line\n").unwrap_err().to_string();
        assert!(error.starts_with("/dev/full: ") && error.contains("space"), "{error}");
    }
}
