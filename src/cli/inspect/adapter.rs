//! A PEFT adapter: rank, strength, and which modules own their pair and which share one, as the file's values show it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use lora_drop::{Error, Result};
use lora_drop_transformer::Checkpoint;
use serde::Serialize;
use serde_json::Value;

use crate::cli::console::{bytes, grouped, rows};

/// The object of `--json`.
#[derive(Serialize)]
pub struct Adapter {
    kind: &'static str,
    path: PathBuf,
    /// adapter_config.json's own values.
    rank: Option<u64>,
    alpha: Option<f64>,
    base_model: Option<String>,
    modules: Vec<ModuleType>,
    /// Values in all pairs of the file, and in the different ones.
    lora_parameters_full: usize,
    lora_parameters: usize,
    /// Tensors that belong to no pair: the head.
    head: Vec<String>,
    head_parameters: usize,
    bytes: u64,
}

/// The modules of one type, by layer.
#[derive(Serialize)]
struct ModuleType {
    name: String,
    own: Vec<usize>,
    shared: Vec<usize>,
}

/// One module's pair: the names of A and B.
#[derive(Default)]
struct Pair<'a> {
    a: Option<&'a str>,
    b: Option<&'a str>,
}

/// Reads an adapter's folder, or its safetensors file.
pub fn read(path: &Path) -> Result<Adapter> {
    let (folder, file) = if path.is_dir() {
        (path, path.join("adapter_model.safetensors"))
    } else {
        (path.parent().unwrap_or(Path::new("")), path.to_path_buf())
    };
    let config = config(&folder.join("adapter_config.json"))?;
    let weights = Checkpoint::open_file(&file)?;
    let size = |name: &str| weights.shape(name).map_or(0, |shape| shape.iter().product::<usize>());

    let mut pairs: BTreeMap<&str, Pair> = BTreeMap::new();
    let mut head = Vec::new();
    for name in weights.names() {
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            pairs.entry(module).or_default().a = Some(name);
        } else if let Some(module) = name.strip_suffix(".lora_B.weight") {
            pairs.entry(module).or_default().b = Some(name);
        } else {
            head.push(name.to_string());
        }
    }
    // A pair is known by its type and its bytes: a shared one is written once for every layer that uses it.
    let mut owners: HashMap<(String, &[u8], &[u8]), Vec<usize>> = HashMap::new();
    let (mut full, mut unique) = (0, 0);
    for (module, pair) in &pairs {
        let (Some(a), Some(b)) = (pair.a, pair.b) else {
            let missing = if pair.a.is_some() { "lora_B" } else { "lora_A" };
            return Err(Error::Input(format!("{}: {module} has no {missing}.weight", file.display())));
        };
        let (kind, layer) = split(module);
        let key = (kind, weights.bytes(a).unwrap_or_default(), weights.bytes(b).unwrap_or_default());
        let layers = owners.entry(key).or_default();
        full += size(a) + size(b);
        if layers.is_empty() {
            unique += size(a) + size(b);
        }
        layers.push(layer);
    }
    let mut types: BTreeMap<String, ModuleType> = BTreeMap::new();
    for ((kind, ..), layers) in owners {
        let entry = types.entry(kind.clone());
        let entry = entry.or_insert(ModuleType { name: kind, own: Vec::new(), shared: Vec::new() });
        if layers.len() == 1 { &mut entry.own } else { &mut entry.shared }.extend(layers);
    }
    for kind in types.values_mut() {
        kind.own.sort_unstable();
        kind.shared.sort_unstable();
    }
    let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_string);
    Ok(Adapter {
        kind: "adapter",
        path: path.to_path_buf(),
        rank: config.get("r").and_then(Value::as_u64),
        alpha: config.get("lora_alpha").and_then(Value::as_f64),
        base_model: text("base_model_name_or_path"),
        modules: types.into_values().collect(),
        lora_parameters_full: full,
        lora_parameters: unique,
        head_parameters: head.iter().map(|name| size(name)).sum(),
        head,
        bytes: std::fs::metadata(&file).map_err(|e| Error::io(&file, e))?.len(),
    })
}

fn config(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::Input(format!("{}: not valid JSON: {e}", path.display())))
}

/// The module's name behind its layer's number, and the number: `attention.self.query` and 3.
fn split(module: &str) -> (String, usize) {
    let parts: Vec<&str> = module.split('.').collect();
    let number = parts.iter().rev().find_map(|part| part.parse().ok());
    let place = parts.iter().rposition(|part| part.parse::<usize>().is_ok());
    let name = place.map_or(module.to_string(), |place| parts[place + 1..].join("."));
    (name, number.unwrap_or(0))
}

impl Adapter {
    pub fn table(&self) -> String {
        let shown = |value: Option<String>| value.unwrap_or_else(|| "not said".to_string());
        let (unique, full) = (grouped(self.lora_parameters), grouped(self.lora_parameters_full));
        let mut table = vec![
            ("base model", shown(self.base_model.clone())),
            ("rank", shown(self.rank.map(|rank| rank.to_string()))),
            ("alpha", shown(self.alpha.map(|alpha| alpha.to_string()))),
            ("LoRA", format!("{unique} parameters, written as {full}")),
            ("head", format!("{} parameters in {} tensors", grouped(self.head_parameters), self.head.len())),
            ("size", bytes(self.bytes)),
        ];
        for kind in &self.modules {
            let own = super::runs::numbers(&kind.own);
            let shared = super::runs::numbers(&kind.shared);
            table.push(("module", format!("{}: own in {own}, shared in {shared}", kind.name)));
        }
        rows(&table)
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_module_has_a_type_and_a_layer() {
        let module = "base_model.model.bert.encoder.layer.11.attention.self.query";
        assert_eq!(split(module), ("attention.self.query".to_string(), 11));
        assert_eq!(split("pooler.dense"), ("pooler.dense".to_string(), 0));
    }
}
