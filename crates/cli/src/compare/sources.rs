//! The models and the data of cells, with hashes of their files' contents.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use lora_drop_transformer::{Architecture, ModuleKind};
use twox_hash::XxHash3_128;

use lora_drop::data::SplitFiles;
use lora_drop::hub::Download;
use lora_drop::model::ModelFiles;
use lora_drop::settings::RunSettings;
use lora_drop::{Cancel, Error, Result};

/// The endings of a model folder's files that a run reads.
const MODEL_ENDINGS: [&str; 4] = ["safetensors", "json", "jinja", "txt"];

/// Models by name and data by path, each read once.
#[derive(Debug, Default)]
pub struct Sources {
    models: BTreeMap<String, (u128, Architecture)>,
    data: BTreeMap<PathBuf, u128>,
}

impl Sources {
    /// Reads the model and the data of these settings where they are new.
    ///
    /// # Errors
    /// Those of opening the model and of finding the data's files.
    pub fn add(
        &mut self,
        settings: &RunSettings,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<()> {
        if !self.models.contains_key(&settings.place.model) {
            let files = ModelFiles::open(&settings.place.model, cancel, progress)?;
            let hash = hash_files(&model_files(&files.path)?, cancel)?;
            self.models.insert(settings.place.model.clone(), (hash, files.config.architecture));
        }
        if !self.data.contains_key(&settings.place.data) {
            let files = SplitFiles::find(&settings.place.data)?.files;
            let hash = hash_files(&files.into_values().flatten().collect::<Vec<_>>(), cancel)?;
            self.data.insert(settings.place.data.clone(), hash);
        }
        Ok(())
    }

    /// The hashes of a cell's model and data.
    pub fn hashes(&self, settings: &RunSettings) -> [u128; 2] {
        let model = self.models.get(&settings.place.model).map_or(0, |(hash, _)| *hash);
        [model, self.data.get(&settings.place.data).copied().unwrap_or(0)]
    }

    /// A module type's name in files about this model.
    pub fn module_name(&self, model: &str, kind: ModuleKind) -> String {
        let architecture = self.models.get(model).map(|(_, architecture)| architecture);
        architecture.map_or(kind.name(), |architecture| architecture.short_name(kind)).to_string()
    }
}

/// The files that a model consists of, in the order of their names.
fn model_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
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

/// A hash of files' names and contents.
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
