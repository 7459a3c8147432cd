//! The library's error: each room's own, and what the binary's exit code depends on.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use lora_drop_transformer::Stopped;

/// Why an operation of the library failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Options that are wrong or do not go together (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// The caller's cancel flag was raised (exit code 130, as a shell has it for Ctrl-C).
    #[error("interrupted")]
    Interrupted,
    /// A loss, a gradient, a weight, a logit or a score is infinite or no number; the message says
    /// which, where and what to try.
    #[error("{0}")]
    NotFinite(String),
    /// Input or output failed, on this path.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// Data is wrong: a file's structure, a row, a label.
    #[error(transparent)]
    Data(crate::data::Error),
    /// A model's files are wrong: a configuration, a weight, a GGUF file.
    #[error(transparent)]
    Model(lora_drop_transformer::Error),
    /// The device failed.
    #[error(transparent)]
    Device(lora_drop_compute::device::DeviceError),
    /// Anything else that is wrong with what was given; the message names file, place, what was
    /// seen and what to do.
    #[error("{0}")]
    Input(String),
}

impl Error {
    /// Wraps an error of the system on this path; the usual ones say what to do.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_path_buf(), source: plain(source) }
    }

    /// An `Error::Input` about this file or folder.
    pub(crate) fn file(path: &Path, problem: impl std::fmt::Display) -> Self {
        Error::Input(format!("{}: {problem}", path.display()))
    }
}

pub type Result<T> = std::result::Result<T, Error>;

impl From<lora_drop_transformer::Error> for Error {
    fn from(e: lora_drop_transformer::Error) -> Self {
        match e {
            lora_drop_transformer::Error::Io { path, source } => Error::Io { path, source },
            error @ lora_drop_transformer::Error::Target { .. } => {
                Error::Usage(format!("`target_modules`: {error}"))
            }
            other => Error::Model(other),
        }
    }
}

impl From<Stopped> for Error {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Asked => Error::Interrupted,
            Stopped::Device(error) => Error::Device(error),
        }
    }
}

/// Adds what to do to the usual errors of the system.
fn plain(e: io::Error) -> io::Error {
    let advice = match e.kind() {
        ErrorKind::StorageFull => "the disk is full; free some space and run again",
        ErrorKind::QuotaExceeded => "the disk quota is used up; free some space and run again",
        ErrorKind::FileTooLarge => "the file is larger than the file system or the limit (ulimit -f) allows",
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only; choose another folder",
        ErrorKind::PermissionDenied => "no permission; change the mode or the owner, or choose another place",
        _ => return e,
    };
    io::Error::new(e.kind(), format!("{advice} ({e})"))
}
