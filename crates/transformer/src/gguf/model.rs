//! Writing of whole models as GGUF: their metadata, from another GGUF file or from config.json, and
//! their tensors by transformers' names.

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
use crate::config::ModelConfig;

/// The type of a file's matrices; vectors are always F32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    F32,
    F16,
    /// 8 bits per value, and an f16 scale for each 32.
    Q8_0,
}

impl FileType {
    /// Returns its number in `general.file_type`.
    fn number(self) -> u32 {
        match self {
            FileType::F32 => 0,
            FileType::F16 => 1,
            FileType::Q8_0 => 7,
        }
    }

    /// Returns the type of a tensor of this shape. If its rows are not whole blocks, it is F16, as
    /// in llama.cpp's converter.
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

/// Returns the metadata of a file for a model that is derived from it: all keys except those on how
/// its values are stored and how it was split.
pub fn copied_metadata(source: &Gguf) -> Vec<(String, Value)> {
    let own = |key: &str| {
        !matches!(key, ALIGNMENT_KEY | "general.file_type" | "general.quantization_version")
            && !key.starts_with("split.")
    };
    source.header().metadata.iter().filter(|(key, _)| own(key)).cloned().collect()
}

/// Returns the metadata of a transformers model: architecture and sizes, without the tokenizer's
/// keys.
///
/// # Errors
/// A message with the key of config.json whose value the format cannot hold.
pub fn metadata_from_config(config: &ModelConfig, name: &str) -> Result<Vec<(String, Value)>, String> {
    let architecture = GgufArchitecture::of_config(config)?;
    let mut metadata = vec![
        ("general.architecture".to_string(), Value::from(architecture.name)),
        ("general.type".to_string(), "model".into()),
        ("general.name".to_string(), name.into()),
    ];
    let mut put = |key: &str, value: Value| metadata.push((format!("{}.{key}", architecture.name), value));
    // Sizes fit u32: the configuration's check bounds them.
    for (key, size) in [
        ("block_count", config.layers),
        ("context_length", config.max_positions),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ] {
        put(key, Value::U32(size as u32));
    }
    let own = (architecture.write)(config)?;
    let rope = |key: &str| rope_key(&config.raw, key);
    if !own.iter().any(|(key, _)| *key == "rope.freq_base") {
        let theta = rope("rope_theta").and_then(Json::as_f64).unwrap_or(10000.0);
        put("rope.freq_base", Value::F32(theta as f32));
    }
    put("attention.layer_norm_rms_epsilon", Value::F32(config.norm_eps));
    put("vocab_size", Value::U32(config.vocab_size as u32));
    own.into_iter().for_each(|(key, value)| put(key, value));
    match rope_type(&config.raw) {
        None | Some("default") => {}
        // The divisors determine all of the scaling except the original context, which the reader
        // needs to find the other numbers.
        Some("llama3") => {
            let original = rope("original_max_position_embeddings").and_then(Json::as_u64);
            let original = original.and_then(|n| u32::try_from(n).ok());
            let original = original.ok_or("rope_scaling has no original_max_position_embeddings")?;
            put("rope.scaling.original_context_length", original.into());
        }
        Some("linear") => {
            let factor = rope("factor").and_then(Json::as_f64).ok_or("rope_scaling has no factor")?;
            put("rope.scaling.type", "linear".into());
            put("rope.scaling.factor", Value::F32(factor as f32));
        }
        Some(other) => return Err(format!("rope_scaling is {other:?}, expected linear or llama3")),
    }
    Ok(metadata)
}

/// Returns a key of `rope_scaling` or, in newer files, of `rope_parameters`, which may have an
/// object for each type of layers; `rope_theta` may stand outside of both.
fn rope_key<'a>(config: &'a Map<String, Json>, key: &str) -> Option<&'a Json> {
    let nested = ["rope_scaling", "rope_parameters"].into_iter().find_map(|outer| {
        let outer = config.get(outer)?;
        outer.get("full_attention").unwrap_or(outer).get(key)
    });
    nested.or_else(|| config.get(key).filter(|_| key == "rope_theta"))
}

fn rope_type(config: &Map<String, Json>) -> Option<&str> {
    rope_key(config, "rope_type").or(rope_key(config, "type")).and_then(Json::as_str)
}

/// Returns Llama 3's divisors, which the format stores as the tensor `rope_freqs.weight`; `None`
/// for other models.
fn divisors(config: &ModelConfig) -> Option<Vec<f32>> {
    if rope_type(&config.raw) != Some("llama3") {
        return None;
    }
    let number = |key: &str| rope_key(&config.raw, key).and_then(Json::as_f64);
    let scaling = Llama3Scaling {
        factor: number("factor")?,
        low_freq_factor: number("low_freq_factor")?,
        high_freq_factor: number("high_freq_factor")?,
        original_max_position_embeddings: number("original_max_position_embeddings")?,
    };
    Some(scaling.divisors(number("rope_theta").unwrap_or(10000.0), config.head_dim))
}

fn gguf_name(architecture: &GgufArchitecture, name: &str) -> io::Result<String> {
    architecture.gguf_name(name).ok_or_else(|| invalid(format!("tensor {name}: GGUF has no name for it")))
}

/// Writes a model's file. Pass every tensor by transformers' name, in the order of the list,
/// complete and with rows in transformers' order, then call `finish`.
pub struct ModelWriter<W: Write> {
    writer: Writer<W>,
    architecture: &'static GgufArchitecture,
    /// Numbers of query and of key and value heads, by which rows of q and k are sorted; None if
    /// they are not.
    sorted_by: Option<(usize, usize)>,
}

impl<W: Write> ModelWriter<W> {
    /// Writes the header. `metadata` is everything but the file type, `tensors` transformers' names
    /// and row-major shapes, without a tied `lm_head.weight`.
    ///
    /// # Errors
    /// Returns an error for an architecture or a tensor that the format has no name for, and for
    /// what [`Writer::new`] refuses.
    pub fn new(
        out: W,
        config: &ModelConfig,
        metadata: &[(String, Value)],
        tensors: &[(String, Vec<usize>)],
        kind: FileType,
    ) -> io::Result<Self> {
        let architecture = GgufArchitecture::of_config(config).map_err(invalid)?;
        let mut metadata = metadata.to_vec();
        metadata.push(("general.file_type".into(), Value::U32(kind.number())));
        if kind == FileType::Q8_0 {
            // Version of the block types, which every file with blocks states.
            metadata.push(("general.quantization_version".into(), Value::U32(2)));
        }
        let divisors = divisors(config);
        let mut list = Vec::with_capacity(tensors.len() + 1);
        if let Some(divisors) = &divisors {
            let shape = vec![divisors.len()];
            list.push(NewTensor { name: DIVISORS.into(), shape, kind: TensorType::F32 });
        }
        for (name, shape) in tensors {
            list.push(NewTensor {
                name: gguf_name(architecture, name)?,
                shape: shape.clone(),
                kind: kind.of(shape),
            });
        }
        let mut writer = Writer::new(out, &metadata, list)?;
        if let Some(divisors) = divisors {
            writer.values(DIVISORS, &divisors)?;
        }
        let sorted_by = architecture.sorts_rows.then_some((config.heads, config.kv_heads));
        Ok(ModelWriter { writer, architecture, sorted_by })
    }

    /// Writes the next tensor.
    ///
    /// # Errors
    /// Returns an error if it is not the next one in the list, has another number of values, its
    /// rows are not whole heads, or writing fails.
    pub fn tensor(&mut self, name: &str, values: &[f32]) -> io::Result<()> {
        let gguf = gguf_name(self.architecture, name)?;
        let shape = match self.writer.next() {
            Some(tensor) if tensor.name == gguf => tensor.shape.clone(),
            other => {
                let next = other.map_or("none", |t| t.name.as_str());
                return Err(invalid(format!("tensor {name} ({gguf}) was given, {next} is next")));
            }
        };
        // Cannot overflow: `Writer::new` has checked the shape.
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
                    invalid(format!("tensor {name}: {rows} rows cannot be {heads} heads of an even size"))
                })?;
                self.writer.values(&gguf, &rotary::sorted(values, expected / rows, &order))
            }
        }
    }

    /// Flushes and returns the stream.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing or writing fails.
    pub fn finish(self) -> io::Result<W> {
        self.writer.finish()
    }
}
