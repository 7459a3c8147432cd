//! LoRA adapters as llama.cpp reads them: `.lora_a` and `.lora_b` after the name of the base's
//! tensor.

use std::io::{self, Write};

use super::architecture::{self, GgufArchitecture};
use super::tensor_type::TensorType;
use super::value::Value;
use super::write::{NewTensor, Writer, invalid};
use super::{rotary, to_gguf_rows};

/// A module's LoRA, as in PEFT's files.
#[derive(Clone, Copy, Debug)]
pub struct AdapterPair<'a> {
    /// transformers' name of the linear layer: `model.layers.0.self_attn.q_proj`.
    pub module: &'a str,
    pub rank: usize,
    /// A (rank, in).
    pub a: &'a [f32],
    /// B (out, rank).
    pub b: &'a [f32],
}

/// Writes an adapter file in F32. llama.cpp scales each pair by `alpha` / rank. `heads` and
/// `kv_heads` are the base's; for `llama`, they determine the order of the rows of q's and k's B.
///
/// # Errors
/// A module that the format has no name for, sizes that are not multiples of the rank, rows of q or
/// k that are not whole heads, no pair at all, or writing fails.
pub fn write_adapter<W: Write>(
    out: W,
    architecture: &GgufArchitecture,
    alpha: f32,
    (heads, kv_heads): (usize, usize),
    pairs: &[AdapterPair],
) -> io::Result<W> {
    if pairs.is_empty() {
        return Err(invalid("no LoRA pair to write".into()));
    }
    let metadata = [
        ("general.architecture".to_string(), architecture.name.into()),
        ("general.type".to_string(), "adapter".into()),
        ("general.file_type".to_string(), Value::U32(0)),
        ("general.quantization_version".to_string(), Value::U32(2)),
        ("adapter.type".to_string(), "lora".into()),
        ("adapter.lora.alpha".to_string(), Value::F32(alpha)),
    ];
    let mut tensors = Vec::with_capacity(2 * pairs.len());
    for pair in pairs {
        let base = base_name(architecture, pair)?;
        let AdapterPair { module, rank, a, b } = *pair;
        if rank == 0 || a.is_empty() || b.is_empty() || a.len() % rank != 0 || b.len() % rank != 0 {
            let (a, b) = (a.len(), b.len());
            return Err(invalid(format!("{module}: A of {a} and B of {b} values do not have rank {rank}")));
        }
        let kind = TensorType::F32;
        tensors.push(NewTensor { name: format!("{base}.lora_a"), shape: vec![rank, a.len() / rank], kind });
        tensors.push(NewTensor { name: format!("{base}.lora_b"), shape: vec![b.len() / rank, rank], kind });
    }
    let mut writer = Writer::new(out, &metadata, tensors)?;
    for pair in pairs {
        let base = base_name(architecture, pair)?;
        writer.values(&format!("{base}.lora_a"), pair.a)?;
        let name = format!("{base}.lora_b");
        match architecture::rotary_part(&base).filter(|_| architecture.sorts_rows) {
            Some(part) => {
                let (rows, heads) = (pair.b.len() / pair.rank, part.heads(heads, kv_heads));
                let order = to_gguf_rows(rows, heads).ok_or_else(|| {
                    let module = pair.module;
                    invalid(format!("{module}: {rows} rows cannot be {heads} heads of an even size"))
                })?;
                writer.values(&name, &rotary::sorted(pair.b, pair.rank, &order))?;
            }
            None => writer.values(&name, pair.b)?,
        }
    }
    writer.finish()
}

fn base_name(architecture: &GgufArchitecture, pair: &AdapterPair) -> io::Result<String> {
    architecture
        .gguf_name(&format!("{}.weight", pair.module))
        .ok_or_else(|| invalid(format!("{}: GGUF has no name for this module", pair.module)))
}
