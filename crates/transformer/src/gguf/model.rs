//! Whole models as GGUF: their metadata, from another GGUF or from config.json, and their tensors
//! by transformers' names.

use std::io::{self, Write};

use lora_drop_compute::blocks::BlockType;
use serde_json::{Map, Value as Json};

use super::architecture::{self, GgufArchitecture};
use super::header::ALIGNMENT_KEY;
use super::rope::{DIVISORS, Llama3Scaling};
use super::tensor_type::TensorType;
use super::value::Value;
use super::write::{NewTensor, Writer, invalid};
use super::{Gguf, rotary, to_gguf_rows};
use crate::families::add_defaults;

/// What a file's matrices are stored in; vectors are F32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    F32,
    F16,
    Q8_0,
}

impl FileType {
    /// llama.cpp's number for it (`general.file_type`).
    fn number(self) -> u32 {
        match self {
            FileType::F32 => 0,
            FileType::F16 => 1,
            FileType::Q8_0 => 7,
        }
    }

    /// The type of one tensor. Rows that are no whole blocks become F16, as llama.cpp's converter
    /// has it.
    fn of(self, shape: &[usize]) -> TensorType {
        match (self, shape) {
            (FileType::F32, _) | (_, [_]) => TensorType::F32,
            (FileType::Q8_0, [.., cols]) if cols.is_multiple_of(BlockType::Q8_0.values()) => {
                TensorType::Blocks(BlockType::Q8_0)
            }
            _ => TensorType::Blocks(BlockType::F16),
        }
    }
}

/// The metadata of a model's file, for a model that was made from it: everything but what says how
/// its values are stored, or that it was split.
pub fn copied_metadata(source: &Gguf) -> Vec<(String, Value)> {
    let own = |key: &str| {
        !matches!(key, ALIGNMENT_KEY | "general.file_type" | "general.quantization_version")
            && !key.starts_with("split.")
    };
    source.header().metadata.iter().filter(|(key, _)| own(key)).cloned().collect()
}

/// The metadata of a model of transformers, from its config.json: architecture and sizes. The
/// tokenizer's keys are the caller's to add.
///
/// # Errors
/// The message names the key of config.json that is missing, or has a value that the format cannot
/// hold.
pub fn metadata_from_config(config: &Map<String, Json>, name: &str) -> Result<Vec<(String, Value)>, String> {
    let model_type = config.get("model_type").and_then(Json::as_str).ok_or("model_type is missing")?;
    let architecture = GgufArchitecture::of_model_type(model_type)
        .ok_or_else(|| format!("model_type {model_type:?} cannot be written as GGUF"))?;
    let config = &with_defaults(config, model_type);
    let integer = |key: &str| match config.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(value) => {
            let number = value.as_u64().and_then(|v| u32::try_from(v).ok());
            number.map(Some).ok_or_else(|| format!("{key} is {value}, expected a whole number"))
        }
    };
    let required = |key: &str| integer(key)?.ok_or_else(|| format!("{key} is missing"));
    let float = |key: &str| config.get(key).and_then(Json::as_f64);
    let (hidden, heads) = (required("hidden_size")?, required("num_attention_heads")?);
    let head_dim = match integer("head_dim")? {
        Some(size) => size,
        None => hidden.checked_div(heads).ok_or("num_attention_heads is 0")?,
    };
    let mut metadata = vec![
        ("general.architecture".to_string(), Value::from(architecture.name)),
        ("general.type".to_string(), "model".into()),
        ("general.name".to_string(), name.into()),
    ];
    let mut put = |key: &str, value: Value| metadata.push((format!("{}.{key}", architecture.name), value));
    put("block_count", required("num_hidden_layers")?.into());
    put("context_length", required("max_position_embeddings")?.into());
    put("embedding_length", hidden.into());
    put("feed_forward_length", required("intermediate_size")?.into());
    put("attention.head_count", heads.into());
    put("attention.head_count_kv", integer("num_key_value_heads")?.unwrap_or(heads).into());
    put("attention.key_length", head_dim.into());
    put("attention.value_length", head_dim.into());
    put("rope.dimension_count", head_dim.into());
    let own = (architecture.write)(config)?;
    if !own.iter().any(|(key, _)| *key == "rope.freq_base") {
        let theta = rope_key(config, "rope_theta").and_then(Json::as_f64).unwrap_or(10000.0);
        put("rope.freq_base", Value::F32(theta as f32));
    }
    let eps = float("rms_norm_eps").ok_or("rms_norm_eps is missing")?;
    put("attention.layer_norm_rms_epsilon", Value::F32(eps as f32));
    put("vocab_size", required("vocab_size")?.into());
    own.into_iter().for_each(|(key, value)| put(key, value));
    if let Some(kind) = rope_key(config, "rope_type").or(rope_key(config, "type")).and_then(Json::as_str) {
        match kind {
            "default" => {}
            // The divisors hold all but the context from which they were made, by which the reader
            // finds the rest.
            "llama3" => {
                let original = rope_key(config, "original_max_position_embeddings").and_then(Json::as_u64);
                let original = original.and_then(|n| u32::try_from(n).ok());
                let original = original.ok_or("rope_scaling has no original_max_position_embeddings")?;
                put("rope.scaling.original_context_length", original.into());
            }
            "linear" => {
                let factor = rope_key(config, "factor").and_then(Json::as_f64);
                put("rope.scaling.type", "linear".into());
                put("rope.scaling.factor", Value::F32(factor.ok_or("rope_scaling has no factor")? as f32));
            }
            other => return Err(format!("rope_scaling is {other:?}, expected linear or llama3")),
        }
    }
    Ok(metadata)
}

fn with_defaults(config: &Map<String, Json>, model_type: &str) -> Map<String, Json> {
    let mut config = config.clone();
    add_defaults(&mut config, model_type);
    config
}

/// A key of `rope_scaling` or, in newer files, of `rope_parameters`, which may have an object for
/// each type of layers; `rope_theta` may stand outside of both.
fn rope_key<'a>(config: &'a Map<String, Json>, key: &str) -> Option<&'a Json> {
    let nested = ["rope_scaling", "rope_parameters"].into_iter().find_map(|outer| {
        let outer = config.get(outer)?;
        outer.get("full_attention").unwrap_or(outer).get(key)
    });
    nested.or_else(|| config.get(key).filter(|_| key == "rope_theta"))
}

/// Llama 3's divisors for `config`, which the format keeps as the tensor `rope_freqs.weight`;
/// `None` for other models.
fn divisors(config: &Map<String, Json>) -> Option<Vec<f32>> {
    let kind = rope_key(config, "rope_type").or(rope_key(config, "type"))?;
    if kind.as_str() != Some("llama3") {
        return None;
    }
    let number = |key: &str| rope_key(config, key).and_then(Json::as_f64);
    let scaling = Llama3Scaling {
        factor: number("factor")?,
        low_freq_factor: number("low_freq_factor")?,
        high_freq_factor: number("high_freq_factor")?,
        original_max_position_embeddings: number("original_max_position_embeddings")?,
    };
    let integer = |key: &str| config.get(key).and_then(Json::as_u64).map(|v| v as usize);
    let head_dim = match integer("head_dim") {
        Some(size) => size,
        None => integer("hidden_size")?.checked_div(integer("num_attention_heads")?)?,
    };
    Some(scaling.divisors(number("rope_theta").unwrap_or(10000.0), head_dim))
}

/// A model's file that is being written. Give every tensor by transformers' name, in the order of
/// the list, each whole and in transformers' order of rows, then call `finish`.
pub struct ModelWriter<W: Write> {
    writer: Writer<W>,
    architecture: &'static GgufArchitecture,
    /// For q and k of `llama`: heads, kv heads.
    sorted_by: Option<(usize, usize)>,
}

impl<W: Write> ModelWriter<W> {
    /// Writes the header. `config` is transformers' (as `Gguf::config` gives it), `metadata`
    /// everything but the file type, `tensors` transformers' names and row-major shapes. A tied
    /// `lm_head.weight` must not be among them.
    ///
    /// # Errors
    /// A name that the format has none for, a config without heads, or what [`Writer::new`]
    /// refuses.
    pub fn new(
        out: W,
        config: &Map<String, Json>,
        metadata: &[(String, Value)],
        tensors: &[(String, Vec<usize>)],
        kind: FileType,
    ) -> io::Result<Self> {
        let model_type = config.get("model_type").and_then(Json::as_str).unwrap_or_default();
        let architecture = GgufArchitecture::of_model_type(model_type)
            .ok_or_else(|| invalid(format!("model_type {model_type:?} cannot be written as GGUF")))?;
        let config = &with_defaults(config, model_type);
        let heads = |key: &str| config.get(key).and_then(Json::as_u64).map(|v| v as usize);
        let count = heads("num_attention_heads")
            .ok_or_else(|| invalid("num_attention_heads is missing in the configuration".into()))?;
        let kv_count = heads("num_key_value_heads").unwrap_or(count);
        let mut metadata = metadata.to_vec();
        metadata.push(("general.file_type".into(), Value::U32(kind.number())));
        if kind == FileType::Q8_0 {
            // The version of the block types; every file that has blocks names it.
            metadata.push(("general.quantization_version".into(), Value::U32(2)));
        }
        let divisors = divisors(config);
        let mut list = Vec::with_capacity(tensors.len() + 1);
        if let Some(divisors) = &divisors {
            let shape = vec![divisors.len()];
            list.push(NewTensor { name: DIVISORS.into(), shape, kind: TensorType::F32 });
        }
        for (name, shape) in tensors {
            let gguf = architecture
                .gguf_name(name)
                .ok_or_else(|| invalid(format!("tensor {name}: GGUF has no name for it")))?;
            list.push(NewTensor { name: gguf, shape: shape.clone(), kind: kind.of(shape) });
        }
        let mut writer = Writer::new(out, &metadata, list)?;
        if let Some(divisors) = divisors {
            writer.values(DIVISORS, &divisors)?;
        }
        let sorted_by = architecture.sorts_rows.then_some((count, kv_count));
        Ok(ModelWriter { writer, architecture, sorted_by })
    }

    /// Writes the next tensor, whole.
    ///
    /// # Errors
    /// It is not the next one, has another number of values, its rows are no whole heads, or
    /// writing fails.
    pub fn tensor(&mut self, name: &str, values: &[f32]) -> io::Result<()> {
        let gguf = self
            .architecture
            .gguf_name(name)
            .ok_or_else(|| invalid(format!("tensor {name}: GGUF has no name for it")))?;
        let shape = match self.writer.next() {
            Some(tensor) if tensor.name == gguf => tensor.shape.clone(),
            other => {
                let next = other.map_or("none", |t| t.name.as_str());
                return Err(invalid(format!("tensor {name} ({gguf}) was given, {next} is next")));
            }
        };
        // The list's check made sure that this does not overflow.
        let expected: usize = shape.iter().product();
        if values.len() != expected {
            let seen = values.len();
            return Err(invalid(format!("tensor {name}: {seen} values, expected {expected} for {shape:?}")));
        }
        let offset = self.architecture.offset(&gguf);
        if offset != 0.0 {
            let values: Vec<f32> = values.iter().map(|value| value + offset).collect();
            return self.writer.values(&gguf, &values);
        }
        match architecture::rotary_part(&gguf).zip(self.sorted_by) {
            None => self.writer.values(&gguf, values),
            Some((part, (heads, kv_heads))) => {
                let (rows, heads) = (shape[0], part.heads(heads, kv_heads));
                let order = to_gguf_rows(rows, heads).ok_or_else(|| {
                    invalid(format!("tensor {name}: {rows} rows are not {heads} heads of an even size"))
                })?;
                self.writer.values(&gguf, &rotary::sorted(values, expected / rows, &order))
            }
        }
    }

    /// Flushes and gives the stream back.
    ///
    /// # Errors
    /// A tensor is missing, or writing fails.
    pub fn finish(self) -> io::Result<W> {
        self.writer.finish()
    }
}
