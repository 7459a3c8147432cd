//! PEFT's adapter folder: adapter_config.json and adapter_model.safetensors, written and read.
//!
//! A shared pair is written once for every layer that uses it, because no reader knows sharing; on
//! reading, pairs that are equal bit for bit are one again. Vectors that scale B are worked into
//! it, but for VeRA's, which has a form of its own.

mod config;
mod targets;
mod vera;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lora_drop_transformer::{AdapterMethod, Architecture, Checkpoint, ModuleId};
use serde_json::{Map, Value, json};

use self::config::Config;
use super::file::{
    AdapterFile, HeadWeight, StoredPair, is_head_tensor, pair_shape, read_metadata, read_tensor, read_vector,
    same_bits,
};
use super::tensors::{self, FloatType};
use super::{Peft, Vector, form};
use crate::files::write_bytes_atomically;
use crate::folder::FILES_KEY;
use crate::{Error, Result};

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// PEFT's older form: a pickle.
const PICKLE_FILE: &str = "adapter_model.bin";
/// Before every tensor's name: the model inside PEFT's two wrappers.
const WRAPPER: &str = "base_model.model.";

impl AdapterFile {
    /// Writes the two files of PEFT into a folder that exists; `layers` is the number of the
    /// model's blocks.
    ///
    /// Errors where there is no LoRA.
    pub fn write_peft(&self, folder: &Path, layers: usize) -> Result<()> {
        let error = |problem: &str| Error::Input(format!("{}: {problem}", folder.display()));
        if form(self.method).peft == Peft::Lora(None) && !form(self.method).vectors.is_empty() {
            return self.folded(None).write_peft(folder, layers);
        }
        let architecture = self.architectures[0];
        if self.architectures.iter().any(|other| other.prefix() != architecture.prefix()) {
            return Err(error("an adapter of a bare encoder cannot be written as one for classification"));
        }
        let Some(first) = self.pairs.first().filter(|_| !self.modules.is_empty()) else {
            return Err(error("no module has a LoRA, and PEFT has no such adapter"));
        };

        let mut outlines = Vec::new();
        let mut values: BTreeMap<String, &[f32]> = BTreeMap::new();
        for (id, &pair) in &self.modules {
            let pair = &self.pairs[pair];
            let path = architecture.module_path(*id);
            let own = self.own.get(id).map_or(&[][..], Vec::as_slice);
            for (vector, own) in form(self.method).split(own, pair.rank, pair.output) {
                let Some(name) = vector.in_peft else { continue };
                let name = format!("{WRAPPER}{path}.{name}");
                outlines.push((name.clone(), vec![own.len()]));
                values.insert(name, own);
            }
            if form(self.method).peft == Peft::Vera {
                continue;
            }
            let (a, b) = (format!("{WRAPPER}{path}.lora_A.weight"), format!("{WRAPPER}{path}.lora_B.weight"));
            outlines.push((a.clone(), vec![pair.rank, pair.input]));
            outlines.push((b.clone(), vec![pair.output, pair.rank]));
            values.extend([(a, pair.a.as_slice()), (b, pair.b.as_slice())]);
        }
        if form(self.method).peft == Peft::Vera {
            for (name, shape, projection) in self.projections() {
                outlines.push((name.to_string(), shape.to_vec()));
                values.insert(name.to_string(), projection);
            }
        }
        for (name, weight) in &self.head {
            let name = format!("{WRAPPER}{name}");
            outlines.push((name.clone(), weight.shape.clone()));
            values.insert(name, &weight.values);
        }
        let mut metadata = self.file_metadata();
        metadata.insert(FILES_KEY.to_string(), json!([CONFIG_FILE, WEIGHTS_FILE]).to_string());
        tensors::write(&folder.join(WEIGHTS_FILE), &metadata, &outlines, &|_| FloatType::F32, |name, _| {
            Ok(Cow::Borrowed(values.get(name).copied().unwrap_or_default()))
        })?;
        // last, because a folder with a configuration counts as an adapter
        let config = self.config(architecture, layers, first);
        let text = serde_json::to_string_pretty(&config).map_err(|e| error(&e.to_string()))?;
        write_bytes_atomically(&folder.join(CONFIG_FILE), format!("{text}\n").as_bytes())
    }

    /// As few keys as PEFT needs: an unknown one makes other versions warn.
    fn config(&self, architecture: Architecture, layers: usize, pair: &StoredPair) -> Map<String, Value> {
        let modules: BTreeSet<ModuleId> = self.modules.keys().copied().collect();
        // PEFT reads alpha as an integer where it is one
        let alpha = |pair: &StoredPair| match pair.alpha {
            whole if whole.fract() == 0.0 && whole.abs() < 2f64.powi(53) => json!(whole as i64),
            other => json!(other),
        };
        // By full names, which are expressions there.
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
        let vera = form(self.method).peft == Peft::Vera;
        set("peft_type", if vera { "VERA" } else { "LORA" }.into());
        // A decoder without a head predicts tokens.
        let task = if self.head.is_empty() && architecture.is_decoder() { "CAUSAL_LM" } else { "SEQ_CLS" };
        set("task_type", task.into());
        set("base_model_name_or_path", self.base.as_str().into());
        set("r", pair.rank.into());
        if vera {
            // The projections are in the file; PEFT draws others first, by the key.
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
        if let Peft::Lora(Some(key)) = form(self.method).peft {
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

    /// The head's modules as PEFT names them: `classifier`, and `pooler` where it was trained.
    fn modules_to_save(&self, architecture: Architecture) -> BTreeSet<&str> {
        let prefix = format!("{}.", architecture.prefix());
        self.head
            .keys()
            .filter_map(|name| name.strip_prefix(&prefix).unwrap_or(name).split('.').next())
            .collect()
    }
}

/// Reads a folder of PEFT's.
pub(super) fn read(folder: &Path) -> Result<AdapterFile> {
    let (config_path, path) = (folder.join(CONFIG_FILE), folder.join(WEIGHTS_FILE));
    if !config_path.exists() {
        return Err(Error::Input(format!(
            "{}: not an adapter: {CONFIG_FILE} is not in this folder",
            folder.display()
        )));
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
        return Err(Error::Input(format!("{}: {problem}", folder.display())));
    }
    let file = Checkpoint::open_file(&path)?;
    let tensors = Tensors::sort(&file, &path)?;
    let (pairs, modules) = match form(config.method).peft {
        Peft::Vera => vera::shared_constants(&file, &path, &config, &tensors.outputs(&file))?,
        _ => tensors.pairs(&file, &path, &config)?,
    };
    let mut own = BTreeMap::new();
    for (&id, &pair) in &modules {
        let mut values = Vec::new();
        for (vector, name) in tensors.modules[&id].own(&path, &config)? {
            values.extend(read_vector(&file, &path, name, vector.side, &pairs[pair])?);
        }
        if !values.is_empty() {
            own.insert(id, values);
        }
    }
    let mut head = BTreeMap::new();
    for (name, tensor) in &tensors.head {
        let (shape, values) = read_tensor(&file, &path, tensor)?;
        head.insert(name.clone(), HeadWeight { shape, values });
    }
    let (labels, metadata) = read_metadata(&file, &path, "")?;
    Ok(AdapterFile {
        architectures: tensors.architectures,
        method: config.method,
        pairs,
        modules,
        own,
        rslora: config.rslora,
        lora_dropout: config.lora_dropout,
        head,
        labels,
        base: config.base,
        metadata,
    })
}

/// The names in the weights file, sorted by what they are.
struct Tensors {
    architectures: Vec<Architecture>,
    /// The names of A and of B.
    modules: BTreeMap<ModuleId, Halves>,
    /// Full name in the model → name in the file.
    head: BTreeMap<String, String>,
}

#[derive(Default)]
struct Halves {
    /// The module's full name.
    path: String,
    a: Option<String>,
    b: Option<String>,
    /// The names of vectors, with the method that has them and its place among that method's.
    own: Vec<(AdapterMethod, usize, String)>,
}

/// What a tensor is of its module.
#[derive(Clone, Copy)]
enum Half {
    A,
    B,
    Own(AdapterMethod, usize),
}

impl Halves {
    /// The vectors that the configuration's method has, and their names.
    fn own(&self, path: &Path, config: &Config) -> Result<Vec<(&'static Vector, &str)>> {
        let says = |method: AdapterMethod| match form(method).peft {
            Peft::Lora(key) => format!("{}: true", key.unwrap_or_default()),
            Peft::Vera | Peft::Never => "peft_type: \"VERA\"".to_string(),
        };
        let (error, config_path) =
            (|problem| Error::Input(format!("{}: {problem}", path.display())), config.path().display());
        if let Some((method, _, name)) = self.own.iter().find(|(method, ..)| *method != config.method) {
            let problem = format!("tensor {name} is there, but {config_path} does not say {}", says(*method));
            return Err(error(problem));
        }
        let vectors = form(config.method).vectors.iter().enumerate();
        vectors
            .filter_map(|(number, vector)| Some((number, vector, vector.in_peft?)))
            .map(|(number, vector, in_peft)| match self.own.iter().find(|(_, own, _)| *own == number) {
                Some((_, _, name)) => Ok((vector, name.as_str())),
                None => {
                    let says = says(config.method);
                    Err(error(format!("{} has no {in_peft}, and {config_path} says {says}", self.path)))
                }
            })
            .collect()
    }
}

impl Tensors {
    fn sort(file: &Checkpoint, path: &Path) -> Result<Self> {
        let error = |problem: String| Error::Input(format!("{}: {problem}", path.display()));
        let mut candidates = Architecture::ALL.to_vec();
        let mut modules: BTreeMap<ModuleId, Halves> = BTreeMap::new();
        let mut rest = Vec::new();
        for name in file.names().filter(|name| !vera::PROJECTIONS.contains(name)) {
            let inner = name.strip_prefix(WRAPPER).ok_or_else(|| {
                error(format!(
                    "tensor {name} does not begin with {WRAPPER:?}; PEFT would ignore it in silence"
                ))
            })?;
            let Some((module, half)) = split_lora(inner) else {
                rest.push((name, inner));
                continue;
            };
            let found: Vec<(Architecture, ModuleId)> =
                candidates.iter().filter_map(|a| module_at(*a, module).map(|id| (*a, id))).collect();
            let Some(&(_, id)) = found.first() else {
                return Err(error(format!(
                    "tensor {name}: {module} is no linear layer of a {} block, and only those can carry a LoRA here",
                    candidates.iter().map(|a| a.name()).collect::<Vec<_>>().join(", ")
                )));
            };
            candidates.retain(|a| found.iter().any(|(found, _)| found == a));
            let halves = modules.entry(id).or_default();
            halves.path = module.to_string();
            let other = match half {
                Half::A => halves.a.replace(name.to_string()),
                Half::B => halves.b.replace(name.to_string()),
                Half::Own(method, place) => {
                    let same = |own: &&(AdapterMethod, usize, String)| (own.0, own.1) == (method, place);
                    let other = halves.own.iter().find(same).map(|(.., other)| other.clone());
                    halves.own.push((method, place, name.to_string()));
                    other
                }
            };
            if let Some(other) = other {
                return Err(error(format!("tensors {other} and {name} are for the same place")));
            }
        }
        let mut head: BTreeMap<String, String> = BTreeMap::new();
        for (name, inner) in rest {
            let plain = without_infix(inner);
            if !is_head_tensor(&candidates, &plain) {
                return Err(error(format!(
                    "tensor {name} is neither a LoRA's nor a head's, and cannot be left out"
                )));
            }
            candidates.retain(|a| is_head_tensor(&[*a], &plain));
            if let Some(other) = head.insert(plain, name.to_string()) {
                return Err(error(format!("tensors {other} and {name} are for the same place")));
            }
        }
        if modules.is_empty() && head.is_empty() {
            return Err(error("it has no tensors".to_string()));
        }
        Ok(Tensors { architectures: candidates, modules, head })
    }

    /// The length of each module's last vector, which is its number of outputs; 0 without one.
    fn outputs(&self, file: &Checkpoint) -> BTreeMap<ModuleId, usize> {
        let len = |halves: &Halves| {
            let (_, _, name) = halves.own.iter().max_by_key(|(_, place, _)| *place)?;
            file.shape(name)?.first().copied()
        };
        self.modules.iter().map(|(id, halves)| (*id, len(halves).unwrap_or(0))).collect()
    }

    /// Unique pairs and the pair of each module.
    fn pairs(
        &self,
        file: &Checkpoint,
        path: &Path,
        config: &Config,
    ) -> Result<(Vec<StoredPair>, BTreeMap<ModuleId, usize>)> {
        let mut pairs: Vec<StoredPair> = Vec::new();
        let mut modules = BTreeMap::new();
        for (&id, halves) in &self.modules {
            let (Some(a), Some(b)) = (&halves.a, &halves.b) else {
                let (there, lacking) = match (&halves.a, &halves.b, &halves.own) {
                    (Some(_), ..) => ("lora_A", "lora_B"),
                    (None, Some(_), _) => ("lora_B", "lora_A"),
                    (None, None, own) => {
                        let vector = own.first().map(|(method, place, _)| &form(*method).vectors[*place]);
                        (vector.and_then(|vector| vector.in_peft).unwrap_or_default(), "lora_A and lora_B")
                    }
                };
                return Err(Error::Input(format!(
                    "{}: {} has {there} but no {lacking}",
                    path.display(),
                    halves.path
                )));
            };
            let (shape_a, a) = read_tensor(file, path, a)?;
            let (shape_b, b) = read_tensor(file, path, b)?;
            let (rank, input, output) = pair_shape(path, &halves.path, &shape_a, &shape_b)?;
            let expected = config.rank_of(&halves.path);
            if rank != expected {
                return Err(Error::Input(format!(
                    "{}: {} has rank {rank} (A is {shape_a:?}), {} says {expected}",
                    path.display(),
                    halves.path,
                    config.path().display()
                )));
            }
            let alpha = config.alpha_of(&halves.path);
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

/// `x.lora_A.weight` or `x.lora_A.default.weight` → x and A; a method's vector with or without
/// `.weight`, too, as PEFT's versions write it.
fn split_lora(name: &str) -> Option<(&str, Half)> {
    let weight = name.strip_suffix(".weight");
    let stem = weight.unwrap_or(name);
    let stem = stem.strip_suffix(".default").unwrap_or(stem);
    let module = |half: &str| stem.strip_suffix(half)?.strip_suffix('.');
    let own = |method: AdapterMethod| {
        let mut vectors = form(method).vectors.iter().enumerate();
        vectors.find_map(|(place, vector)| Some((module(vector.in_peft?)?, Half::Own(method, place))))
    };
    let half = |name, half| weight.and(module(name)).map(|module| (module, half));
    let halves = half("lora_A", Half::A).or_else(|| half("lora_B", Half::B));
    halves.or_else(|| AdapterMethod::ALL.into_iter().find_map(own))
}

/// The module of this name, also where the encoder stands alone and its names have no prefix.
fn module_at(architecture: Architecture, path: &str) -> Option<ModuleId> {
    architecture
        .module_at(path)
        .or_else(|| architecture.module_at(&format!("{}.{path}", architecture.prefix())))
}

/// A head tensor's name without the wrapper that PEFT puts around a saved module in memory.
fn without_infix(name: &str) -> String {
    name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
}

/// Whether two modules' pairs are one: equal bit for bit, and of the same strength.
fn same_pair(x: &StoredPair, y: &StoredPair) -> bool {
    let facts = |p: &StoredPair| (p.kind, p.rank, p.input, p.output, p.alpha.to_bits());
    facts(x) == facts(y) && same_bits(&x.a, &y.a) && same_bits(&x.b, &y.b)
}
