//! The models and the data of cells, with hashes of their files' contents.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lora_drop_transformer::{Architecture, ModuleKind};

use lora_drop::digest;
use lora_drop::hub::Download;
use lora_drop::model::ModelFiles;
use lora_drop::settings::RunSettings;
use lora_drop::{Cancel, Result};

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
            let hash = digest::of_model(&files.path, cancel)?;
            self.models.insert(settings.place.model.clone(), (hash, files.config.architecture));
        }
        if !self.data.contains_key(&settings.place.data) {
            let hash = digest::of_data(&settings.place.data, cancel)?;
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
