//! PEFT's adapter folder: adapter_config.json and adapter_model.safetensors, written and read.
//!
//! A shared pair is written once for every layer that uses it, because other readers do not know
//! sharing; on reading, pairs that are equal bit for bit become one again. Vectors that scale B are
//! multiplied into B, except those of VeRA, for which PEFT has a format.

mod config;
mod saved;
mod targets;
mod vera;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lora_drop_transformer::{AdapterMethod, Architecture, Checkpoint, HeadKind, ModuleId, Source};
use serde_json::{Map, Value, json};

use self::config::Config;
use super::file::{
    AdapterFile, AdapterMetadata, HeadWeight, StoredPair, head_kind, is_head_tensor, pair_shape, read_tensor,
    read_vector, same_bits,
};
use super::tensors::{Tensor, write_f32};
use super::{PeftFormat, Vector, spec};
use crate::files::write_json;
use crate::folder::FILES_KEY;
use crate::{Error, Result};

/// The file with the settings, in an adapter's folder.
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
/// The file with the tensors, in an adapter's folder.
pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Suffixes of a module's path in the names of its A and B.
const LORA_A: &str = "lora_A";
const LORA_B: &str = "lora_B";
/// PEFT's older format, a pickle.
const PICKLE_FILE: &str = "adapter_model.bin";
/// Prefix of every tensor's name: the model inside PEFT's two wrappers.
const WRAPPER: &str = "base_model.model.";

impl AdapterFile {
    /// Writes the two files of PEFT into a folder that exists; `layers` is the number of the
    /// model's blocks.
    ///
    /// # Errors
    /// No module has a LoRA; a file cannot be written.
    pub fn write_peft(&self, folder: &Path, layers: usize) -> Result<()> {
        let error = |problem: &str| Error::file(folder, problem);
        if spec(self.method).peft == PeftFormat::Lora(None) && !spec(self.method).vectors.is_empty() {
            return self.folded(None).write_peft(folder, layers);
        }
        let architecture = self.architectures[0];
        if self.architectures.iter().any(|other| other.prefix() != architecture.prefix()) {
            return Err(error("an adapter of a bare encoder cannot be written as one for classification"));
        }
        let Some(first) = self.pairs.first().filter(|_| !self.modules.is_empty()) else {
            return Err(error("no module has a LoRA, and PEFT has no such adapter"));
        };

        let vera = spec(self.method).peft == PeftFormat::Vera;
        let mut tensors = Vec::<Tensor>::new();
        for (id, &pair) in &self.modules {
            let pair = &self.pairs[pair];
            let path = architecture.module_path(*id);
            let values = self.vectors.get(id).map_or(&[][..], Vec::as_slice);
            for (vector, values) in spec(self.method).split(values, pair.rank, pair.output) {
                let Some(name) = vector.peft_name else { continue };
                tensors.push((format!("{WRAPPER}{path}.{name}"), vec![values.len()], values));
            }
            if !vera {
                let name = |half: &str| format!("{WRAPPER}{path}.{half}.weight");
                tensors.push((name(LORA_A), vec![pair.rank, pair.input], &pair.a));
                tensors.push((name(LORA_B), vec![pair.output, pair.rank], &pair.b));
            }
        }
        if vera {
            tensors.extend(self.projections());
        }
        for (name, head) in &self.head {
            tensors.push((format!("{WRAPPER}{name}"), head.shape.clone(), &head.values));
        }
        let mut metadata = self.file_metadata();
        metadata.insert(FILES_KEY.to_string(), json!([CONFIG_FILE, WEIGHTS_FILE]).to_string());
        write_f32(&folder.join(WEIGHTS_FILE), &metadata, &tensors)?;
        // Last, because a folder with a configuration counts as an adapter.
        write_json(&folder.join(CONFIG_FILE), &self.config(architecture, layers, first))
    }

    /// Returns the configuration with as few keys as PEFT needs: versions that do not know a key
    /// warn.
    fn config(&self, architecture: Architecture, layers: usize, pair: &StoredPair) -> Map<String, Value> {
        let modules: BTreeSet<ModuleId> = self.modules.keys().copied().collect();
        // PEFT reads a whole alpha as an integer.
        let alpha = |pair: &StoredPair| match pair.alpha {
            whole if whole.fract() == 0.0 && whole.abs() < 2f64.powi(53) => json!(whole as i64),
            other => json!(other),
        };
        // PEFT's patterns are regular expressions; these match full names.
        let pattern = |differs: &dyn Fn(&StoredPair) -> Option<Value>| -> Map<String, Value> {
            let other = |(id, &number): (&ModuleId, &usize)| {
                Some((regex::escape(&architecture.module_path(*id)), differs(&self.pairs[number])?))
            };
            self.modules.iter().filter_map(other).collect()
        };
        let ranks = pattern(&|other| (other.rank != pair.rank).then(|| other.rank.into()));
        let alphas = pattern(&|other| (other.alpha != pair.alpha).then(|| alpha(other)));
        let mut config = Map::new();
        let mut set = |key: &str, value: Value| config.insert(key.to_string(), value);
        let vera = spec(self.method).peft == PeftFormat::Vera;
        set("peft_type", if vera { "VERA" } else { "LORA" }.into());
        // A decoder without a head predicts tokens.
        let task = match self.head_kind {
            _ if self.head.is_empty() && architecture.is_decoder() => "CAUSAL_LM",
            HeadKind::Sequence => "SEQ_CLS",
            HeadKind::Token => config::TOKEN_CLS,
        };
        set("task_type", task.into());
        set("base_model_name_or_path", self.base.as_str().into());
        set("r", pair.rank.into());
        if vera {
            // PEFT first draws projections from this key, then replaces them with those of the
            // file.
            set("projection_prng_key", 0.into());
            set("save_projection", true.into());
        } else {
            set("lora_alpha", alpha(pair));
        }
        for (key, pattern) in [("rank_pattern", ranks), ("alpha_pattern", alphas)] {
            if !pattern.is_empty() {
                set(key, pattern.into());
            }
        }
        set("target_modules", targets::target_modules(architecture, layers, &modules));
        set("inference_mode", true.into());
        if self.rslora {
            set("use_rslora", true.into());
        }
        if let PeftFormat::Lora(Some(key)) = spec(self.method).peft {
            set(key, true.into());
        }
        if self.lora_dropout != 0.0 {
            set(if vera { "vera_dropout" } else { "lora_dropout" }, self.lora_dropout.into());
        }
        if !self.head.is_empty() {
            set("modules_to_save", json!(self.modules_to_save(architecture)));
        }
        config
    }

    /// Returns the head's modules as PEFT names them: `classifier`, and `pooler` if it was trained.
    fn modules_to_save(&self, architecture: Architecture) -> BTreeSet<&str> {
        let prefix = format!("{}.", architecture.prefix());
        self.head
            .keys()
            .filter_map(|name| name.strip_prefix(&prefix).unwrap_or(name).split('.').next())
            .collect()
    }
}

/// Reads a folder in PEFT's format; for `base` and the note see [`AdapterFile::open_for`].
pub(super) fn read(folder: &Path, base: Option<&dyn Source>) -> Result<(AdapterFile, Option<String>)> {
    let (config_path, path) = (folder.join(CONFIG_FILE), folder.join(WEIGHTS_FILE));
    if !config_path.exists() {
        return Err(Error::file(folder, format!("not an adapter: {CONFIG_FILE} is not in this folder")));
    }
    let config = Config::read(&config_path)?;
    if !path.exists() {
        let problem = if folder.join(PICKLE_FILE).exists() {
            format!(
                "only {PICKLE_FILE} is here, a pickle, which can run code; convert it once, in this folder: python -c \
                 \"import torch, safetensors.torch as s; s.save_file({{k: v.contiguous() for k, v in \
                 torch.load('{PICKLE_FILE}', weights_only=True).items()}}, '{WEIGHTS_FILE}', {{'format': 'pt'}})\""
            )
        } else {
            format!("{WEIGHTS_FILE} is not in this folder")
        };
        return Err(Error::file(folder, problem));
    }
    let file = Checkpoint::open_file(&path)?;
    let tensors = Tensors::sort(&file, &path)?;
    let (pairs, modules) = match spec(config.method).peft {
        PeftFormat::Vera => vera::shared_constants(&file, &path, &config, &tensors)?,
        _ => tensors.pairs(&file, &path, &config)?,
    };
    let mut vectors = BTreeMap::new();
    for (&id, &pair) in &modules {
        let mut values = Vec::new();
        for (vector, name) in tensors.modules[&id].vectors(&path, &config)? {
            values.extend(read_vector(&file, &path, name, vector.side, &pairs[pair])?);
        }
        if !values.is_empty() {
            vectors.insert(id, values);
        }
    }
    let mut head = BTreeMap::new();
    for (name, tensor) in &tensors.head {
        let (shape, values) = read_tensor(&file, &path, tensor)?;
        head.insert(name.clone(), HeadWeight { shape, values });
    }
    let note = saved::compare(&file, &path, &tensors.saved, base)?;
    let AdapterMetadata { labels, end_tokens, metadata } = AdapterMetadata::read(&file, &path, "")?;
    let adapter = AdapterFile {
        architectures: tensors.architectures,
        method: config.method,
        pairs,
        modules,
        vectors,
        rslora: config.rslora,
        lora_dropout: config.lora_dropout,
        head_kind: match config.of_tokens {
            true => HeadKind::Token,
            false => head_kind(labels.as_ref()),
        },
        head,
        labels,
        end_tokens,
        base: config.base,
        metadata,
    };
    Ok((adapter, note))
}

/// Tensor names of a weights file, by role.
struct Tensors {
    architectures: Vec<Architecture>,
    modules: BTreeMap<ModuleId, ModuleTensors>,
    /// Full name in the model → name in the file.
    head: BTreeMap<String, String>,
    /// Whole weights of the base: full name in the model → name in the file.
    saved: BTreeMap<String, String>,
}

/// Tensor names of a module.
#[derive(Default)]
struct ModuleTensors {
    /// The module's full name.
    path: String,
    /// What follows the path (`lora_A`, `lora_magnitude_vector`) → name in the file.
    names: BTreeMap<&'static str, String>,
}

impl ModuleTensors {
    /// Returns the vectors of the configuration's method with their tensor names; an error if one
    /// is missing or belongs to another method.
    fn vectors(&self, path: &Path, config: &Config) -> Result<Vec<(&'static Vector, &str)>> {
        let says = |name: &str| match method_of(name).map(|method| spec(method).peft) {
            Some(PeftFormat::Lora(key)) => format!("{}: true", key.unwrap_or_default()),
            Some(PeftFormat::Vera | PeftFormat::Never) => "peft_type: \"VERA\"".to_string(),
            None => "peft_type: \"LORA\"".to_string(),
        };
        let config_path = config.path().display();
        let other = |name: &&str| match method_of(name) {
            Some(method) => method != config.method,
            None => spec(config.method).peft == PeftFormat::Vera,
        };
        if let Some(name) = self.names.keys().copied().find(other) {
            let (tensor, says) = (&self.names[name], says(name));
            let problem = format!("tensor {tensor} is there, but {config_path} does not say {says}");
            return Err(Error::file(path, problem));
        }
        let vectors = spec(config.method).vectors.iter();
        vectors
            .filter_map(|vector| Some((vector, vector.peft_name?)))
            .map(|(vector, name)| match self.names.get(name) {
                Some(tensor) => Ok((vector, tensor.as_str())),
                None => {
                    let says = says(name);
                    Err(Error::file(
                        path,
                        format!("{} has no {name}, and {config_path} says {says}", self.path),
                    ))
                }
            })
            .collect()
    }
}

impl Tensors {
    fn sort(file: &Checkpoint, path: &Path) -> Result<Self> {
        let error = |problem: String| Error::file(path, problem);
        let twice =
            |other: String, name: &str| error(format!("tensors {other} and {name} are for the same place"));
        let mut candidates = Architecture::ALL.to_vec();
        let mut modules: BTreeMap<ModuleId, ModuleTensors> = BTreeMap::new();
        let mut rest = Vec::new();
        for name in file.names().filter(|name| !vera::PROJECTIONS.contains(name)) {
            let inner = name.strip_prefix(WRAPPER).ok_or_else(|| {
                error(format!("tensor {name} does not begin with {WRAPPER:?}; PEFT would silently ignore it"))
            })?;
            if let Some((module, _)) = inner.split_once(".lora_embedding_") {
                return Err(error(format!(
                    "tensor {name}: a LoRA on embeddings ({module}) is not supported; merge the adapter into its base with \
                     PEFT (merge_and_unload, save_pretrained) and give the merged model"
                )));
            }
            let Some((module, half)) = split_lora(inner) else {
                rest.push((name, inner));
                continue;
            };
            let found: Vec<(Architecture, ModuleId)> =
                candidates.iter().filter_map(|a| module_at(*a, module).map(|id| (*a, id))).collect();
            let Some(&(_, id)) = found.first() else {
                return Err(error(format!(
                    "tensor {name}: {module} is not a linear layer of a {} block or a decoder's lm_head, and only those can \
                     have a LoRA here",
                    candidates.iter().map(|a| a.name()).collect::<Vec<_>>().join(", ")
                )));
            };
            candidates.retain(|a| found.iter().any(|(found, _)| found == a));
            let tensors = modules.entry(id).or_default();
            tensors.path = module.to_string();
            if let Some(other) = tensors.names.insert(half, name.to_string()) {
                return Err(twice(other, name));
            }
        }
        let (mut head, mut saved) = (BTreeMap::new(), BTreeMap::new());
        for (name, inner) in rest {
            let plain = without_infix(inner);
            if saved::is_saved(&plain) {
                if let Some(other) = saved.insert(plain, name.to_string()) {
                    return Err(twice(other, name));
                }
                continue;
            }
            if !is_head_tensor(&candidates, &plain) {
                return Err(error(format!(
                    "tensor {name} belongs to neither a LoRA nor a head, and cannot be left out"
                )));
            }
            candidates.retain(|a| is_head_tensor(&[*a], &plain));
            if let Some(other) = head.insert(plain, name.to_string()) {
                return Err(twice(other, name));
            }
        }
        if modules.is_empty() && head.is_empty() && saved.is_empty() {
            return Err(error("it has no tensors".to_string()));
        }
        Ok(Tensors { architectures: candidates, modules, head, saved })
    }

    /// Returns the unique pairs, and the index of each module's pair.
    fn pairs(
        &self,
        file: &Checkpoint,
        path: &Path,
        config: &Config,
    ) -> Result<(Vec<StoredPair>, BTreeMap<ModuleId, usize>)> {
        let mut pairs: Vec<StoredPair> = Vec::new();
        let mut modules = BTreeMap::new();
        for (&id, ModuleTensors { path: module, names }) in &self.modules {
            let (Some(a), Some(b)) = (names.get(LORA_A), names.get(LORA_B)) else {
                let there = names.keys().next().copied().unwrap_or_default();
                let lacking: Vec<&str> =
                    [LORA_A, LORA_B].into_iter().filter(|half| !names.contains_key(half)).collect();
                let problem = format!("{module} has {there} but no {}", lacking.join(" and "));
                return Err(Error::file(path, problem));
            };
            let (shape_a, a) = read_tensor(file, path, a)?;
            let (shape_b, b) = read_tensor(file, path, b)?;
            let (rank, input, output) = pair_shape(path, module, &shape_a, &shape_b)?;
            let expected = config.rank_of(module)?;
            if rank != expected {
                let config = config.path().display();
                let problem =
                    format!("{module} has rank {rank} (A is {shape_a:?}), {config} says {expected}");
                return Err(Error::file(path, problem));
            }
            let alpha = config.alpha_of(module)?;
            let pair = StoredPair { kind: id.kind, shared: false, a, b, rank, input, output, alpha };
            let number = match pairs.iter().position(|known| same_pair(known, &pair)) {
                Some(known) => {
                    pairs[known].shared = true;
                    known
                }
                None => {
                    pairs.push(pair);
                    pairs.len() - 1
                }
            };
            modules.insert(id, number);
        }
        Ok((pairs, modules))
    }
}

/// Returns the method that has a vector of this name in PEFT's files; `None` for A and B.
fn method_of(name: &str) -> Option<AdapterMethod> {
    let has =
        |method: &AdapterMethod| spec(*method).vectors.iter().any(|vector| vector.peft_name == Some(name));
    AdapterMethod::ALL.into_iter().find(has)
}

/// Splits `x.lora_A.weight` or `x.lora_A.default.weight` into x and `lora_A`. A method's vector may
/// lack `.weight`, as some versions of PEFT write it.
fn split_lora(name: &str) -> Option<(&str, &'static str)> {
    let weight = name.strip_suffix(".weight");
    let stem = weight.unwrap_or(name);
    let stem = stem.strip_suffix(".default").unwrap_or(stem);
    let vectors = AdapterMethod::ALL.into_iter().flat_map(|method| spec(method).vectors);
    let mut halves = [LORA_A, LORA_B]
        .into_iter()
        .filter(|_| weight.is_some())
        .chain(vectors.filter_map(|vector| vector.peft_name));
    halves.find_map(|half| Some((stem.strip_suffix(half)?.strip_suffix('.')?, half)))
}

/// Finds the module of this name; the names of a bare encoder lack the prefix.
fn module_at(architecture: Architecture, path: &str) -> Option<ModuleId> {
    architecture
        .module_at(path)
        .or_else(|| architecture.module_at(&format!("{}.{path}", architecture.prefix())))
}

/// Removes the infixes of PEFT's in-memory wrappers from a tensor's name.
fn without_infix(name: &str) -> String {
    [".modules_to_save.default.", ".modules_to_save.", ".base_layer."]
        .into_iter()
        .fold(name.to_string(), |name, infix| name.replace(infix, "."))
}

/// Whether two modules' pairs are the same: equal bit for bit, and with the same alpha.
fn same_pair(x: &StoredPair, y: &StoredPair) -> bool {
    let facts = |p: &StoredPair| (p.kind, p.rank, p.input, p.output, p.alpha.to_bits());
    facts(x) == facts(y) && same_bits(&x.a, &y.a) && same_bits(&x.b, &y.b)
}
