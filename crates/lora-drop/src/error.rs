//! The library's error type, from which the program makes its exit code.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use lora_drop_transformer::Stopped;

/// Why an operation of the library failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings or arguments that are wrong or exclude each other (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// The caller's [`Cancel`](crate::Cancel) was raised (exit code 130, a shell's for Ctrl-C).
    #[error("interrupted")]
    Interrupted,
    /// A loss, gradient, weight, logit or score is infinite or NaN; the message says which, where,
    /// and what to try.
    #[error("{0}")]
    NotFinite(String),
    /// Reading or writing this path failed.
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
    /// The processes of a job differ, one of them has failed, or they have lost each other.
    #[error("{0}")]
    Ranks(String),
    /// Anything else that is wrong with the input; the message names the file and place, what was
    /// found, and what to do.
    #[error("{0}")]
    Input(String),
}

impl Error {
    /// Wraps an error of the operating system on this path, and adds advice to the usual ones.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_path_buf(), source: plain(source) }
    }

    /// An `Error::Input` about this file or folder.
    pub(crate) fn file(path: &Path, problem: impl std::fmt::Display) -> Self {
        Error::Input(format!("{}: {problem}", path.display()))
    }
}

/// The result of the library's operations.
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

/// Adds advice to the usual errors of the operating system.
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
