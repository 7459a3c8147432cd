//! The GGUF models among the files of a repository or a folder.

use std::collections::BTreeMap;

use lora_drop_transformer::gguf::PartName;

use crate::format::{bytes, counted};
use crate::model::is_gguf;

/// A GGUF model: one file, or parts of one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GgufModel {
    /// The file, or the first part, with the folders that it is in.
    pub file: String,
    /// Number of files.
    pub parts: usize,
    /// Size of all files, in bytes; None if it is not known.
    pub bytes: Option<u64>,
}

impl GgufModel {
    /// Returns the models among these files, each with its size, sorted by name. Image encoders
    /// (files `mmproj...`) are left out.
    pub(crate) fn list<S: AsRef<str>>(files: impl Iterator<Item = (S, Option<u64>)>) -> Vec<Self> {
        let mut models = BTreeMap::new();
        for (name, size) in files {
            let name = name.as_ref();
            let plain = name.rsplit('/').next().unwrap_or(name);
            if !is_gguf(name.as_ref()) || plain.starts_with("mmproj") {
                continue;
            }
            let part = PartName::parse(name);
            let (file, parts) = match &part {
                Some(part) => (part.all().next().expect("the first"), part.count),
                None => (name.to_string(), 1),
            };
            let new = || GgufModel { file: file.clone(), parts, bytes: Some(0) };
            let model = models.entry(file.clone()).or_insert_with(new);
            model.bytes = model.bytes.zip(size).map(|(sum, size)| sum.saturating_add(size));
        }
        models.into_values().collect()
    }

    /// Describes the model by its file and size: `model.gguf (1.2 GB)`.
    pub fn described(&self) -> String {
        let parts = (self.parts > 1).then(|| counted(self.parts, "part"));
        let about: Vec<_> = parts.into_iter().chain(self.bytes.map(bytes)).collect();
        if about.is_empty() { self.file.clone() } else { format!("{} ({})", self.file, about.join(", ")) }
    }
}
