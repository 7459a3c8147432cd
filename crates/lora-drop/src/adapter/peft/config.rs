//! adapter_config.json: what PEFT must be told, and what of PEFT's many options this program
//! understands.

use std::path::{Path, PathBuf};

use lora_drop_transformer::{AdapterMethod, json};
use regex::Regex;
use serde_json::{Map, Value};

use crate::adapter::{Peft, form};
use crate::{Error, Result};

/// Far above a configuration with a pattern for every module of a large model.
const MOST_BYTES: u64 = 16 << 20;

/// Options that do not change what the saved tensors mean: how the training went, or which modules
/// it chose.
const HARMLESS: [&str; 22] = [
    "auto_mapping",
    "corda_config",
    "d_initial",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "projection_prng_key",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "save_projection",
    "target_modules",
    "auto_map",
];

/// Initialisations that leave the base's weights alone. PiSSA, OLoRA, LoftQ and the like change
/// them.
const PLAIN_INITIALISATIONS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// What a reader needs of adapter_config.json.
pub(super) struct Config {
    path: PathBuf,
    rank: usize,
    alpha: f64,
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
    pub method: AdapterMethod,
    pub rslora: bool,
    pub lora_dropout: f64,
    pub base: String,
}

impl Config {
    /// Reads and checks the file. Every option that would change the arithmetic and is not
    /// supported is an error, and so is an option of a name that is not known, unless it is
    /// switched off.
    pub fn read(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
        if size > MOST_BYTES {
            return Err(Error::Input(format!(
                "{}: {size} bytes, no adapter_config.json is so large",
                path.display()
            )));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let map: Map<String, Value> = json::from_slice(&bytes)
            .map_err(|e| Error::Input(format!("{}: not a JSON object: {e}", path.display())))?;
        let keys = Keys { map, path };

        let vera = match keys.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => false,
            Some(Value::String(kind)) if kind == "VERA" => true,
            None => return Err(keys.error("the key peft_type is missing, expected \"LORA\"".to_string())),
            Some(other) => return Err(keys.unsupported("peft_type", other, "\"LORA\" or \"VERA\"")),
        };
        keys.refuse_unless("task_type", "\"SEQ_CLS\", \"CAUSAL_LM\" or \"FEATURE_EXTRACTION\"", |v| {
            v == "SEQ_CLS" || v == "CAUSAL_LM" || v == "FEATURE_EXTRACTION"
        })?;
        keys.refuse_unless("bias", "\"none\"", |v| v == "none")?;
        keys.refuse_unless(
            "init_lora_weights",
            "true, false, \"gaussian\", \"orthogonal\" or \"eva\"",
            |v| v.is_boolean() || v.as_str().is_some_and(|v| PLAIN_INITIALISATIONS.contains(&v)),
        )?;
        keys.refuse_unless("modules_to_save", "classifier, score and pooler", |v| {
            let known = |m: &Value| m == "classifier" || m == "score" || m == "pooler";
            v.as_array().is_some_and(|modules| modules.iter().all(known))
        })?;

        let whole = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let number = |v: &Value| v.as_f64().filter(|n| n.is_finite());
        let switch = |method: &AdapterMethod| match form(*method).peft {
            Peft::Lora(key) => key,
            _ => None,
        };
        let mut method = if vera { AdapterMethod::Vera } else { AdapterMethod::Lora };
        for other in AdapterMethod::ALL {
            let Some(key) = switch(&other) else { continue };
            if keys.read(key, "true or false", Value::as_bool)? == Some(true) {
                method = other;
            }
        }
        if vera {
            for key in ["use_dora", "use_rslora", "rank_pattern", "alpha_pattern"] {
                keys.refuse_unless(key, "none of VeRA's keys", is_off)?;
            }
        }
        let rank = keys.read("r", "an integer from 1 up", whole)?;
        let dropout = if vera { "vera_dropout" } else { "lora_dropout" };
        // VeRA has no strength: its scale is 1.
        let rank = rank.unwrap_or(if vera { 256 } else { 8 });
        let alpha = if vera { Some(rank as f64) } else { keys.read("lora_alpha", "a number", number)? };
        let config = Config {
            method,
            path: path.to_path_buf(),
            rank,
            alpha: alpha.unwrap_or(8.0),
            rank_pattern: keys.patterns("rank_pattern", "an integer from 1 up", whole)?,
            alpha_pattern: keys.patterns("alpha_pattern", "a number", number)?,
            rslora: keys.read("use_rslora", "true or false", Value::as_bool)?.unwrap_or(false),
            lora_dropout: keys.read(dropout, "a number", number)?.unwrap_or(0.0),
            base: keys
                .read("base_model_name_or_path", "a string", |v| v.as_str().map(str::to_string))?
                .unwrap_or_default(),
        };
        let read = [
            "peft_type",
            "task_type",
            "bias",
            "init_lora_weights",
            "modules_to_save",
            "r",
            "lora_alpha",
            "rank_pattern",
            "alpha_pattern",
            "use_rslora",
            dropout,
            "base_model_name_or_path",
        ];
        for (key, value) in &keys.map {
            let known = read.contains(&key.as_str()) || HARMLESS.contains(&key.as_str());
            let known = known || AdapterMethod::ALL.iter().filter_map(switch).any(|switch| switch == key);
            if !known && !is_off(value) {
                return Err(keys.unsupported(key, value, "switched off"));
            }
        }
        Ok(config)
    }

    /// The rank that the module of this full name (`bert.encoder.layer.0.attention.self.query`)
    /// should have.
    pub fn rank_of(&self, module: &str) -> usize {
        first_match(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// The module's alpha.
    pub fn alpha_of(&self, module: &str) -> f64 {
        first_match(&self.alpha_pattern, module).unwrap_or(self.alpha)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
}

/// What says that an option is not used.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) | Value::String(_) => false,
    }
}

/// The file's object, for messages that name the file and the key.
struct Keys<'a> {
    map: Map<String, Value>,
    path: &'a Path,
}

impl Keys<'_> {
    /// The value; null counts as absent, as PEFT writes it.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn error(&self, problem: String) -> Error {
        Error::Input(format!("{}: {problem}", self.path.display()))
    }

    fn unsupported(&self, key: &str, seen: &Value, expected: &str) -> Error {
        self.error(format!("{key} is {}, which is not supported; expected {expected}", shortened(seen)))
    }

    fn refuse_unless(&self, key: &str, expected: &str, fits: impl Fn(&Value) -> bool) -> Result<()> {
        match self.get(key).filter(|v| !fits(v)) {
            Some(seen) => Err(self.unsupported(key, seen, expected)),
            None => Ok(()),
        }
    }

    fn read<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key)
            .map(|v| {
                read(v).ok_or_else(|| self.error(format!("{key} is {}, expected {expected}", shortened(v))))
            })
            .transpose()
    }

    /// A map from regular expressions to values. As in PEFT an expression means a whole name, or
    /// its end after a dot, and the first that matches counts.
    fn patterns<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<(Regex, T)>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let map = value
            .as_object()
            .ok_or_else(|| self.error(format!("{key} is {}, expected an object", shortened(value))))?;
        map.iter()
            .map(|(pattern, value)| {
                let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).map_err(|_| {
                    self.error(format!("{key}: the regular expression {pattern:?} cannot be read"))
                })?;
                let value = read(value).ok_or_else(|| {
                    self.error(format!("{key}: {pattern:?} is {}, expected {expected}", shortened(value)))
                })?;
                Ok((regex, value))
            })
            .collect()
    }
}

/// A value for a message: a hostile one may be megabytes long.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 { text } else { text.chars().take(77).chain("...".chars()).collect() }
}
