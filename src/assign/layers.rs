//! Keep the layers that somebody names: the first, the last, or ones drawn at random, to compare a choice with.

use std::collections::BTreeSet;

use lora_drop_transformer::ModuleId;

use crate::{Error, Result};

/// All modules of these layers.
pub(super) fn keep(modules: &[ModuleId], layers: &[usize]) -> Result<BTreeSet<ModuleId>> {
    let last = modules.iter().map(|id| id.layer).max().unwrap_or(0);
    if let Some(layer) = layers.iter().find(|layer| **layer > last) {
        return Err(Error::Usage(format!(
            "--keep-layers names layer {layer}, but the model's layers are 0 to {last}"
        )));
    }
    Ok(modules.iter().filter(|id| layers.contains(&id.layer)).copied().collect())
}
