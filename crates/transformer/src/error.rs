//! The errors of reading a model: in terms of its files, keys and tensors.

use std::fmt;
use std::path::{Path, PathBuf};

/// Why a model could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened or read.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The folder does not contain a model, or lacks a file.
    #[error("{folder}: {problem}")]
    Folder { folder: PathBuf, problem: String },
    /// config.json is not JSON, lacks a key, or describes a model that is not supported.
    #[error("{path}: {problem}")]
    Config { path: PathBuf, problem: String },
    /// A weight file or its index is damaged or inconsistent.
    #[error("{path}: {problem}")]
    Checkpoint { path: PathBuf, problem: String },
    /// One tensor of a weight file cannot be used.
    #[error("{path}: tensor {tensor}: {problem}")]
    Tensor { path: PathBuf, tensor: String, problem: String },
    /// Weights of the configuration are missing, have other shapes, or are not finite.
    #[error("{folder}: {}", weights_text(.problems))]
    Weights { folder: PathBuf, problems: Vec<WeightProblem> },
    /// A target module that the architecture does not have.
    #[error("target module {target:?} is not a linear layer of a {architecture} block; choose from {}", .known.join(", "))]
    Target { target: String, architecture: String, known: Vec<String> },
}

/// The result of reading a model.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn checkpoint(path: &Path, problem: impl Into<String>) -> Self {
        Error::Checkpoint { path: path.to_path_buf(), problem: problem.into() }
    }
}

/// What is wrong with one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightProblem {
    /// The weight's name with the architecture's prefix, as in transformers.
    pub name: String,
    pub fault: WeightFault,
}

/// The ways in which a weight can be unusable.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightFault {
    Missing {
        expected: Vec<usize>,
    },
    Shape {
        seen: Vec<usize>,
        expected: Vec<usize>,
    },
    /// The first value that is NaN or infinite, by its row-major index.
    NonFinite {
        index: usize,
        value: f32,
    },
    /// The tensor's type cannot be read as f32.
    Unreadable {
        problem: String,
    },
}

impl fmt::Display for WeightProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.fault {
            WeightFault::Missing { expected } => write!(f, "{name} is missing, expected {expected:?}"),
            WeightFault::Shape { seen, expected } => write!(f, "{name} is {seen:?}, expected {expected:?}"),
            WeightFault::NonFinite { index, value } => write!(f, "{name} has {value} at index {index}"),
            WeightFault::Unreadable { problem } => write!(f, "{name}: {problem}"),
        }
    }
}

/// Maximum number of problems that a message lists; it counts the rest.
const LISTED: usize = 10;

fn weights_text(problems: &[WeightProblem]) -> String {
    let (count, noun) = (problems.len(), if problems.len() == 1 { "weight" } else { "weights" });
    let mut text = format!("{count} {noun} cannot be used as config.json describes the model:");
    for problem in problems.iter().take(LISTED) {
        text.push_str(&format!("\n  {problem}"));
    }
    if problems.len() > LISTED {
        text.push_str(&format!("\n  and {} more", problems.len() - LISTED));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_of_weights_is_cut_and_counted() {
        let missing = |i: usize| WeightProblem {
            name: format!("w{i}"),
            fault: WeightFault::Missing { expected: vec![2, 3] },
        };
        let error = Error::Weights { folder: "m".into(), problems: (0..12).map(missing).collect() };
        let text = error.to_string();
        assert!(text.starts_with("m: 12 weights cannot be used"), "{text}");
        assert!(text.contains("\n  w9 is missing, expected [2, 3]\n  and 2 more"), "{text}");
        assert!(!text.contains("w10"), "{text}");
    }
}
