//! Reading adapter_config.json: the options of PEFT that this program supports.

use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use lora_drop_transformer::{AdapterMethod, json};
use serde_json::{Map, Value};

use crate::adapter::{PeftFormat, spec};
use crate::{Error, Result};

/// Largest file that is read; a pattern for every module of a large model needs less.
const MOST_BYTES: u64 = 16 << 20;

/// Options that do not change what the saved tensors mean: they say how the training went, or which
/// modules it chose.
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

/// Names of head modules in `modules_to_save`.
const HEADS: [&str; 3] = ["classifier", "score", "pooler"];

/// Initialisations that leave the base's weights unchanged, unlike PiSSA, OLoRA and LoftQ.
const PLAIN_INITIALISATIONS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// Contents of adapter_config.json that a reader needs.
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
    /// Whether the task labels tokens.
    pub of_tokens: bool,
}

/// The task_type of token classification.
pub(super) const TOKEN_CLS: &str = "TOKEN_CLS";

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// An unsupported or unknown option is not switched off; a value is wrong; the file cannot be
    /// read.
    pub fn read(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
        if size > MOST_BYTES {
            return Err(Error::file(path, format!("{size} bytes is too large for an adapter_config.json")));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let map: Map<String, Value> =
            json::from_slice(&bytes).map_err(|e| Error::file(path, format!("not a JSON object: {e}")))?;
        let mut keys = Keys { map, path };

        let vera = match keys.take("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => false,
            Some(Value::String(kind)) if kind == "VERA" => true,
            None => return Err(Error::file(path, "the key peft_type is missing, expected \"LORA\"")),
            Some(other) => return Err(keys.unsupported("peft_type", &other, "\"LORA\" or \"VERA\"")),
        };
        let of_tokens = keys.map.get("task_type").is_some_and(|task| task == TOKEN_CLS);
        keys.refuse_unless(
            "task_type",
            "\"SEQ_CLS\", \"TOKEN_CLS\", \"CAUSAL_LM\" or \"FEATURE_EXTRACTION\"",
            |v| [TOKEN_CLS, "SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION"].iter().any(|task| v == task),
        )?;
        keys.refuse_unless("bias", "\"none\"", |v| v == "none")?;
        keys.refuse_unless(
            "init_lora_weights",
            "true, false, \"gaussian\", \"orthogonal\" or \"eva\"",
            |v| v.is_boolean() || v.as_str().is_some_and(|v| PLAIN_INITIALISATIONS.contains(&v)),
        )?;
        if let Some(modules) = keys.take("modules_to_save") {
            let known =
                |m: &&Value| m.as_str().is_some_and(|m| HEADS.contains(&m) || super::saved::is_known(m));
            let list = modules.as_array().map_or(std::slice::from_ref(&modules), Vec::as_slice);
            if let Some(other) = list.iter().find(|module| !known(module)) {
                return Err(Error::file(
                    path,
                    format!(
                        "modules_to_save has {}: the training changed this module as a whole, which is only supported of \
                         heads ({}); merge the adapter into its base with PEFT (merge_and_unload, save_pretrained) and \
                         give the merged model",
                        shortened(other),
                        HEADS.join(", ")
                    ),
                ));
            }
        }

        let whole = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let number = |v: &Value| v.as_f64().filter(|n| n.is_finite());
        let text = |v: &Value| v.as_str().map(str::to_string);
        let rank = keys.read("r", "an integer from 1 up", whole)?;
        let base = keys.read("base_model_name_or_path", "a string", text)?.unwrap_or_default();
        let mut config = Config {
            path: path.to_path_buf(),
            rank: rank.unwrap_or(if vera { 256 } else { 8 }),
            alpha: 8.0,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            method: if vera { AdapterMethod::Vera } else { AdapterMethod::Lora },
            rslora: false,
            lora_dropout: 0.0,
            base,
            of_tokens,
        };
        if vera {
            // VeRA has no alpha: its scale is 1.
            config.alpha = config.rank as f64;
            config.lora_dropout = keys.read("vera_dropout", "a number", number)?.unwrap_or(0.0);
        } else {
            for method in AdapterMethod::ALL {
                let PeftFormat::Lora(Some(key)) = spec(method).peft else { continue };
                if keys.read(key, "true or false", Value::as_bool)? == Some(true) {
                    config.method = method;
                }
            }
            config.alpha = keys.read("lora_alpha", "a number", number)?.unwrap_or(config.alpha);
            config.rank_pattern = keys.patterns("rank_pattern", "an integer from 1 up", whole)?;
            config.alpha_pattern = keys.patterns("alpha_pattern", "a number", number)?;
            config.rslora = keys.read("use_rslora", "true or false", Value::as_bool)?.unwrap_or(false);
            config.lora_dropout = keys.read("lora_dropout", "a number", number)?.unwrap_or(0.0);
        }
        let unknown = |(key, value): &(&String, &Value)| !HARMLESS.contains(&key.as_str()) && !is_off(value);
        match keys.map.iter().find(unknown) {
            Some((key, value)) => Err(keys.unsupported(key, value, "switched off")),
            None => Ok(config),
        }
    }

    /// Returns the rank that the configuration gives the module of this full name
    /// (`bert.encoder.layer.0.attention.self.query`).
    ///
    /// # Errors
    /// A pattern takes too long to match.
    pub fn rank_of(&self, module: &str) -> Result<usize> {
        Ok(self.first_match(&self.rank_pattern, module)?.unwrap_or(self.rank))
    }

    /// Returns the module's alpha.
    ///
    /// # Errors
    /// Those of [`Self::rank_of`].
    pub fn alpha_of(&self, module: &str) -> Result<f64> {
        Ok(self.first_match(&self.alpha_pattern, module)?.unwrap_or(self.alpha))
    }

    fn first_match<T: Copy>(&self, patterns: &[(Regex, T)], module: &str) -> Result<Option<T>> {
        for (pattern, value) in patterns {
            let matched = pattern.is_match(module);
            let problem = |e| format!("the regular expression {:?} cannot be matched: {e}", pattern.as_str());
            if matched.map_err(|e| Error::file(&self.path, problem(e)))? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a value switches an option off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) | Value::String(_) => false,
    }
}

/// The file's keys that have not been read yet, and its path for error messages.
struct Keys<'a> {
    map: Map<String, Value>,
    path: &'a Path,
}

impl Keys<'_> {
    /// Removes and returns a value; null, which PEFT writes for unset options, counts as absent.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.shift_remove(key).filter(|value| !value.is_null())
    }

    fn unsupported(&self, key: &str, seen: &Value, expected: &str) -> Error {
        let seen = shortened(seen);
        Error::file(self.path, format!("{key} is {seen}, which is not supported; expected {expected}"))
    }

    fn refuse_unless(&mut self, key: &str, expected: &str, fits: impl Fn(&Value) -> bool) -> Result<()> {
        match self.take(key).filter(|value| !fits(value)) {
            Some(seen) => Err(self.unsupported(key, &seen, expected)),
            None => Ok(()),
        }
    }

    fn read<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let wrong = || Error::file(self.path, format!("{key} is {}, expected {expected}", shortened(&value)));
        read(&value).ok_or_else(wrong).map(Some)
    }

    /// Reads a map from regular expressions, in Python's syntax, to values. As in PEFT, an
    /// expression matches a whole name or its end after a dot, and the first match counts.
    fn patterns<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<(Regex, T)>> {
        let map = self.read(key, "an object", |value| value.as_object().cloned())?.unwrap_or_default();
        let error = |problem: String| Error::file(self.path, format!("{key}: {problem}"));
        map.iter()
            .map(|(pattern, value)| {
                let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
                    .map_err(|e| error(format!("the regular expression {pattern:?} cannot be read: {e}")))?;
                let wrong = || error(format!("{pattern:?} is {}, expected {expected}", shortened(value)));
                Ok((regex, read(value).ok_or_else(wrong)?))
            })
            .collect()
    }
}

/// Shortens a value for an error message, as a hostile one may be megabytes long.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 { text } else { text.chars().take(77).chain("...".chars()).collect() }
}
