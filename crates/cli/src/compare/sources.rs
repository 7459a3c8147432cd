//! The files that cells read, with hashes of their contents: models, data, scores, adapters.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use lora_drop_transformer::{Architecture, ModuleKind};

use lora_drop::digest;
use lora_drop::hub::Download;
use lora_drop::model::ModelFiles;
use lora_drop::settings::RunSettings;
use lora_drop::{Cancel, Result};

/// Models by name and other files by path, each read once.
#[derive(Debug, Default)]
pub struct Sources {
    models: BTreeMap<String, (u128, Architecture)>,
    data: BTreeMap<String, u128>,
    others: BTreeMap<PathBuf, u128>,
}

impl Sources {
    /// Reads the files that these settings name, unless they were read before.
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
            let hash = digest::of_model(&files.path, cancel)?;
            self.models.insert(settings.place.model.clone(), (hash, files.config.architecture));
        }
        if let Entry::Vacant(hash) = self.data.entry(data_key(settings)) {
            let mut sources = settings.place.data.clone();
            sources.locate(settings.place.data_config.as_deref(), cancel, progress)?;
            hash.insert(digest::of_data(&sources, cancel)?);
        }
        for (_, path) in others(settings) {
            if !self.others.contains_key(path) {
                self.others.insert(path.to_path_buf(), digest::of_model(path, cancel)?);
            }
        }
        Ok(())
    }

    /// The hashes of what a cell reads, by the names of its settings.
    pub fn hashes(&self, settings: &RunSettings) -> Vec<(&'static str, u128)> {
        let model = self.models.get(&settings.place.model).map_or(0, |(hash, _)| *hash);
        let data = self.data.get(&data_key(settings)).copied().unwrap_or(0);
        let others = others(settings).map(|(name, path)| (name, self.others.get(path).copied().unwrap_or(0)));
        [("model", model), ("data", data)].into_iter().chain(others).collect()
    }

    /// A module type's name in files about this model.
    pub fn module_name(&self, model: &str, kind: ModuleKind) -> String {
        let architecture = self.models.get(model).map(|(_, architecture)| architecture);
        architecture.map_or(kind.name(), |architecture| architecture.short_name(kind)).to_string()
    }
}

/// The name of a cell's data.
fn data_key(settings: &RunSettings) -> String {
    format!("{} {}", settings.place.data, settings.place.data_config.as_deref().unwrap_or_default())
}

/// The files beside model and data that a cell reads, by the names of its settings.
fn others(settings: &RunSettings) -> impl Iterator<Item = (&'static str, &Path)> {
    let scores = settings.train.selection.scores.as_deref().map(|path| ("scores", path));
    let adapter = settings.train.adapter.init_adapter.as_deref().map(|path| ("init-adapter", path));
    scores.into_iter().chain(adapter)
}
