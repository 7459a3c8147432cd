//! Hashes of the files of a model and of data, which identify the same contents wherever the files
//! are.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use lora_drop_transformer::gguf::part_paths;
use twox_hash::XxHash3_128;

use crate::data::SplitFiles;
use crate::settings::{DataSource, DataSources};
use crate::{Cancel, Error, Result};

/// The endings of a model folder's files that a run reads.
const MODEL_ENDINGS: [&str; 4] = ["safetensors", "json", "jinja", "txt"];

/// The hash of a model: of a GGUF file or its parts, or of a folder's files that a run reads.
///
/// # Errors
/// `Error::Io`, and `Error::Interrupted` after `cancel` was raised.
pub fn of_model(path: &Path, cancel: &Cancel) -> Result<u128> {
    hash_files(&model_files(path)?, cancel)
}

/// Hashes the files that data consists of and, for several sources, their weights.
///
/// # Errors
/// Those of `of_model`; a source has no files of rows.
pub fn of_data(data: &DataSources, cancel: &Cancel) -> Result<u128> {
    let of_source = |source: &DataSource| {
        let files = SplitFiles::find(source.place())?.files;
        hash_files(&files.into_values().flatten().collect::<Vec<_>>(), cancel)
    };
    if let [only] = data.all() {
        return of_source(only);
    }
    let mut hash = XxHash3_128::new();
    for source in data.all() {
        hash.write(&of_source(source)?.to_le_bytes());
        hash.write(&source.weight.unwrap_or(0.0).to_le_bytes());
    }
    Ok(hash.finish_128())
}

/// Lists the files of a model, in the order of their names.
fn model_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(part_paths(path).into_iter().filter(|part| part.is_file()).collect());
    }
    let io = |e| Error::io(path, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if MODEL_ENDINGS.contains(&ending) && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Hashes the names and contents of files.
fn hash_files(files: &[PathBuf], cancel: &Cancel) -> Result<u128> {
    let mut hash = XxHash3_128::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        hash.write(format!("{}:{name}", name.len()).as_bytes());
        let io = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(io)?;
        let mut bytes = 0;
        loop {
            cancel.check()?;
            match file.read(&mut buffer).map_err(io)? {
                0 => break,
                read => {
                    hash.write(&buffer[..read]);
                    bytes += read as u64;
                }
            }
        }
        hash.write(&bytes.to_le_bytes());
    }
    Ok(hash.finish_128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_of_names_and_contents() {
        let folder = tempfile::tempdir().unwrap();
        let hash = |files: &[(&str, &str)]| {
            let paths = files.iter().map(|(name, text)| {
                let path = folder.path().join(name);
                std::fs::write(&path, text).unwrap();
                path
            });
            hash_files(&paths.collect::<Vec<_>>(), &Cancel::new()).unwrap()
        };
        let one = hash(&[("train.jsonl", "ab"), ("dev.jsonl", "c")]);
        assert_eq!(one, hash(&[("train.jsonl", "ab"), ("dev.jsonl", "c")]));
        assert_ne!(one, hash(&[("train.jsonl", "a"), ("dev.jsonl", "bc")]));
        assert_ne!(one, hash(&[("train.csv", "ab"), ("dev.jsonl", "c")]));
    }
}
