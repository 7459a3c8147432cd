//! Metadata of a GGUF file, by key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Number, Value as Json};

use super::header::Header;
use super::value::Value;
use crate::error::{Error, Result};

/// A file's header, with an index of its metadata.
pub struct Metadata {
    pub path: PathBuf,
    pub header: Header,
    index: BTreeMap<String, usize>,
}

impl Metadata {
    pub fn new(path: &Path, header: Header) -> Self {
        let index = header.metadata.iter().enumerate().map(|(i, (key, _))| (key.clone(), i)).collect();
        Metadata { path: path.to_path_buf(), header, index }
    }

    /// Returns the value under `key`.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.header.metadata[i].1)
    }

    /// Whether there is a tensor with this name of llama.cpp's.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.header.tensors.iter().any(|tensor| tensor.name == name)
    }

    /// Returns the string under `key`.
    pub fn text(&self, key: &str) -> Result<&str> {
        let value = self.value(key).ok_or_else(|| self.key_fault(key, "is missing"))?;
        value.as_str().ok_or_else(|| self.wrong_type(key, value, "a string"))
    }

    pub fn wrong_type(&self, key: &str, value: &Value, expected: &str) -> Error {
        self.key_fault(key, &format!("is {value} ({}), expected {expected}", value.type_name()))
    }

    pub fn key_fault(&self, key: &str, problem: &str) -> Error {
        Error::checkpoint(&self.path, format!("metadata key {key:?} {problem}"))
    }
}

/// The keys of one architecture: `count("block_count")` reads `llama.block_count`.
pub struct GgufKeys<'a> {
    pub file: &'a Metadata,
    pub architecture: &'static str,
}

impl GgufKeys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    pub fn fault(&self, name: &str, problem: &str) -> crate::Error {
        self.file.key_fault(&self.key(name), problem)
    }

    pub fn optional(&self, name: &str) -> Option<&Value> {
        self.file.value(&self.key(name))
    }

    pub fn text(&self, name: &str) -> Result<&str> {
        self.file.text(&self.key(name))
    }

    /// Reads a count of at least 1; an array of counts must have the same one for all blocks.
    pub fn count(&self, name: &str) -> Result<usize> {
        self.optional_count(name)?.ok_or_else(|| self.fault(name, "is missing"))
    }

    pub fn optional_count(&self, name: &str) -> Result<Option<usize>> {
        match self.optional_integer(name)? {
            Some(0) => Err(self.fault(name, "is 0, expected 1 or more")),
            other => Ok(other),
        }
    }

    pub fn optional_integer(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.optional(name) else { return Ok(None) };
        let number = match value.as_integers().as_deref() {
            Some([first, rest @ ..]) if rest.iter().all(|v| v == first) => u64::try_from(*first).ok(),
            Some([_, ..]) => {
                let problem = "differs from block to block, expected one number for all";
                return Err(self.fault(name, problem));
            }
            _ => value.as_u64(),
        };
        // Larger numbers cannot be sizes of a model, and their products could overflow.
        match number.and_then(|n| u32::try_from(n).ok()) {
            Some(number) => Ok(Some(number as usize)),
            None => {
                let expected = "a whole number below 4294967296";
                Err(self.file.wrong_type(&self.key(name), value, expected))
            }
        }
    }

    /// Reads a number above 0.
    pub fn positive(&self, name: &str) -> Result<Json> {
        let value = self.optional(name).ok_or_else(|| self.fault(name, "is missing"))?;
        let number = value.as_f64().filter(|v| *v > 0.0).and_then(Number::from_f64);
        let wrong = || self.file.wrong_type(&self.key(name), value, "a number above 0");
        number.map(Json::Number).ok_or_else(wrong)
    }
}

/// Heads of attention, the same in all blocks.
pub struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Attention {
    pub fn read(keys: &GgufKeys) -> Result<Self> {
        let heads = keys.count("attention.head_count")?;
        let kv_heads = keys.optional_count("attention.head_count_kv")?.unwrap_or(heads);
        let hidden = keys.count("embedding_length")?;
        let head_dim = match keys.optional_count("attention.key_length")? {
            Some(size) => size,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let problem = format!("is {heads}, which does not divide embedding_length {hidden}");
                return Err(keys.fault("attention.head_count", &problem));
            }
        };
        if !heads.is_multiple_of(kv_heads) {
            let problem = format!("is {kv_heads}, which does not divide head_count {heads}");
            return Err(keys.fault("attention.head_count_kv", &problem));
        }
        for key in ["attention.value_length", "rope.dimension_count"] {
            if let Some(size) = keys.optional_count(key)?.filter(|size| *size != head_dim) {
                return Err(keys.fault(key, &format!("is {size}, expected the size of a head, {head_dim}")));
            }
        }
        Ok(Attention { heads, kv_heads, head_dim })
    }
}
