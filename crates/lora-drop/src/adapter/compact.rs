//! `adapter_compact.safetensors`: each unique pair once, and in the metadata the map from modules
//! to pairs.
//!
//! The tensors are `lora.query.3.A` (rank, in) and `.B` (out, rank) for each pair of the map, each
//! module's own vectors, (rank) or (out), if the method has any, and the head under its own names.
//! An A that several pairs share is written once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lora_drop_transformer::{AdapterMethod, Architecture, Checkpoint, ModuleId, ModuleKind};
use serde::{Deserialize, Serialize};

use super::bank::pair_name;
use super::file::{
    AdapterFile, AdapterMetadata, HeadWeight, StoredPair, head_kind, is_head_tensor, pair_shape, read_tensor,
    read_vector,
};
use super::tensors::{Tensor, write_f32};
use super::{Vector, methods_in_files, spec};
use crate::{Error, Result};

/// Name of the file in an adapter's folder.
pub const COMPACT_FILE: &str = "adapter_compact.safetensors";
/// Metadata key of the map, which identifies the file as a compact adapter.
pub(super) const MAP_KEY: &str = "lora_drop.adapter";
/// Format version of the map; a reader refuses any other.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Map {
    version: u32,
    /// Architecture names, comma-separated if the module names fit several: `bert`, `llama,gemma3`.
    architecture: Option<String>,
    /// `None` for LoRA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    base: String,
    rslora: bool,
    lora_dropout: f64,
    pairs: Vec<MapPair>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MapPair {
    /// The name of its tensors, without `.A` and `.B`.
    name: String,
    /// The pair whose A it shares, if it has none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    a: Option<String>,
    kind: ModuleKind,
    shared: bool,
    alpha: f64,
    layers: Vec<usize>,
}

/// The version alone, checked before the rest is parsed.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl AdapterFile {
    /// Writes the compact file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_compact(&self, path: &Path) -> Result<()> {
        let (mut pairs, mut tensors) = (Vec::new(), Vec::<Tensor>::new());
        let (pair_names, first) = (self.pair_names(), self.first_with_same_a());
        for ((number, pair), layers) in self.pairs.iter().enumerate().zip(self.layers()) {
            let name = pair_names[number].clone();
            let other = (first[number] != number).then(|| pair_names[first[number]].clone());
            if other.is_none() {
                tensors.push((format!("{name}.A"), vec![pair.rank, pair.input], &pair.a));
            }
            tensors.push((format!("{name}.B"), vec![pair.output, pair.rank], &pair.b));
            let StoredPair { kind, shared, alpha, .. } = *pair;
            pairs.push(MapPair { name, a: other, kind, shared, alpha, layers });
        }
        for (id, values) in &self.vectors {
            let pair = &self.pairs[self.modules[id]];
            // Vectors that are too short are written as they are; a reader refuses them.
            for (vector, values) in spec(self.method).split(values, pair.rank, pair.output) {
                tensors.push((vector_name(vector, *id), vec![values.len()], values));
            }
        }
        tensors.extend(
            self.head.iter().map(|(name, head)| (name.clone(), head.shape.clone(), &head.values[..])),
        );
        let map = Map {
            version: VERSION,
            architecture: Some(names(&self.architectures, ",")),
            method: (self.method != AdapterMethod::Lora).then(|| self.method.name().to_string()),
            base: self.base.clone(),
            rslora: self.rslora,
            lora_dropout: self.lora_dropout,
            pairs,
        };
        let map = serde_json::to_string(&map).map_err(|e| Error::file(path, e))?;
        let mut metadata = self.file_metadata();
        metadata.insert(MAP_KEY.to_string(), map);
        write_f32(path, &metadata, &tensors)
    }
}

/// The name of a module's own vector.
fn vector_name(vector: &Vector, id: ModuleId) -> String {
    format!("{}.{}", pair_name(id, false), vector.name)
}

/// Reads the compact file.
pub(super) fn read(path: &Path) -> Result<AdapterFile> {
    let error = |problem: String| Error::file(path, problem);
    let file = Checkpoint::open_file(path)?;
    let text = file
        .metadata()
        .get(MAP_KEY)
        .ok_or_else(|| error(format!("not a compact adapter: its metadata has no {MAP_KEY}")))?;
    let in_map = |e: serde_json::Error| error(format!("metadata {MAP_KEY}: {e}"));
    let Version { version } = serde_json::from_str(text).map_err(in_map)?;
    if version != VERSION {
        return Err(error(format!(
            "its format has version {version}, but this program reads version {VERSION}; use a newer program"
        )));
    }
    let map: Map = serde_json::from_str(text).map_err(in_map)?;
    let architectures = match &map.architecture {
        // Version 0.1 wrote no architecture for a bare encoder.
        None => vec![Architecture::Bert, Architecture::Roberta],
        Some(list) => {
            let known = |name: &str| Architecture::ALL.into_iter().find(|a| a.name() == name);
            list.split(',').map(known).collect::<Option<Vec<_>>>().ok_or_else(|| {
                let known = names(&Architecture::ALL, ", ");
                error(format!("its architecture is {list:?}, expected one or more of {known}"))
            })?
        }
    };

    let method = match &map.method {
        None => AdapterMethod::Lora,
        Some(name) => methods_in_files().find(|method| method.name() == name).ok_or_else(|| {
            let known: Vec<_> = methods_in_files().map(AdapterMethod::name).collect();
            let known = known.join(" or ");
            error(format!("its method is {name:?}, expected {known}: use a newer program"))
        })?,
    };

    let mut pairs = Vec::new();
    let mut modules = BTreeMap::new();
    let mut used = BTreeSet::new();
    for (number, pair) in map.pairs.into_iter().enumerate() {
        let tensor = |owner: &str, half: &str| -> Result<_> {
            let name = format!("{owner}.{half}");
            if !file.contains(&name) {
                return Err(error(format!("tensor {name} is missing")));
            }
            let read = read_tensor(&file, path, &name)?;
            Ok((name, read))
        };
        let (name_a, (shape_a, a)) = tensor(pair.a.as_deref().unwrap_or(&pair.name), "A")?;
        let (name_b, (shape_b, b)) = tensor(&pair.name, "B")?;
        if !(used.insert(name_a) || pair.a.is_some()) | !used.insert(name_b) {
            return Err(error(format!("the pair {} occurs twice", pair.name)));
        }
        let (rank, input, output) = pair_shape(path, &pair.name, &shape_a, &shape_b)?;
        if pair.layers.is_empty() {
            return Err(error(format!("the pair {} belongs to no layer", pair.name)));
        }
        for layer in pair.layers {
            let id = ModuleId { layer, kind: pair.kind };
            if modules.insert(id, number).is_some() {
                return Err(error(format!("layer {layer} {} has two pairs", pair.kind.name())));
            }
        }
        pairs.push(StoredPair {
            kind: pair.kind,
            shared: pair.shared,
            a,
            b,
            rank,
            input,
            output,
            alpha: pair.alpha,
        });
    }

    let mut vectors = BTreeMap::new();
    for (&id, &pair) in &modules {
        let pair: &StoredPair = &pairs[pair];
        let mut values = Vec::new();
        for vector in spec(method).vectors(pair.shared) {
            let name = vector_name(vector, id);
            if !file.contains(&name) {
                return Err(error(format!(
                    "tensor {name} is missing, which every {} adapter has",
                    method.name()
                )));
            }
            values.extend(read_vector(&file, path, &name, vector.side, pair)?);
            used.insert(name);
        }
        if !values.is_empty() {
            vectors.insert(id, values);
        }
    }

    let mut head = BTreeMap::new();
    for name in file.names().filter(|name| !used.contains(*name)) {
        if !is_head_tensor(&architectures, name) {
            return Err(error(format!("tensor {name} is neither in the map nor part of a head")));
        }
        let (shape, values) = read_tensor(&file, path, name)?;
        head.insert(name.to_string(), HeadWeight { shape, values });
    }
    let AdapterMetadata { labels, end_tokens, metadata } = AdapterMetadata::read(&file, path, MAP_KEY)?;
    Ok(AdapterFile {
        architectures,
        method,
        pairs,
        modules,
        vectors,
        rslora: map.rslora,
        lora_dropout: map.lora_dropout,
        head_kind: head_kind(labels.as_ref()),
        head,
        labels,
        end_tokens,
        base: map.base,
        metadata,
    })
}

fn names(architectures: &[Architecture], between: &str) -> String {
    architectures.iter().map(|a| a.name()).collect::<Vec<_>>().join(between)
}
