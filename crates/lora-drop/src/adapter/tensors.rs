//! Writes safetensors files, one tensor at a time, with the same bytes for the same content.
//!
//! The safetensors crate needs all tensors in memory, and writes the metadata in an order that
//! changes between runs.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use half::{bf16, f16};
use lora_drop_compute::blocks::BlockType;
use serde_json::{Map, Value, json};

use crate::files::write_atomically;
use crate::settings::definition::choices;
use crate::{Error, Result};

/// A tensor to write: its name and shape.
pub(super) type NamedShape = (String, Vec<usize>);

choices! {
    /// The type in which a tensor's numbers are written.
    #[derive(PartialOrd, Ord)]
    FloatType {
        F16 = "f16",
        Bf16 = "bf16",
        F32 = "f32",
    }
}

impl FloatType {
    /// Returns the type in which weights of a half-precision storage are written; `None` for other
    /// storage.
    pub(super) fn from_storage(storage: BlockType) -> Option<Self> {
        match storage {
            BlockType::F16 => Some(FloatType::F16),
            BlockType::Bf16 => Some(FloatType::Bf16),
            _ => None,
        }
    }

    /// The dtype's name in PyTorch and config.json.
    pub(super) fn torch_name(self) -> &'static str {
        match self {
            FloatType::F16 => "float16",
            FloatType::Bf16 => "bfloat16",
            FloatType::F32 => "float32",
        }
    }

    fn bytes(self) -> usize {
        if self == FloatType::F32 { 4 } else { 2 }
    }

    /// Whether a value stays finite when it is rounded to this type, or was not finite before.
    fn holds(self, value: f32) -> bool {
        let stays = match self {
            FloatType::F16 => f16::from_f32(value).is_finite(),
            FloatType::Bf16 => bf16::from_f32(value).is_finite(),
            FloatType::F32 => true,
        };
        stays || !value.is_finite()
    }

    /// Appends the values' bytes, little-endian, rounded to nearest, ties to even.
    fn put(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            FloatType::F16 => bytes.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
            FloatType::Bf16 => bytes.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
            FloatType::F32 => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        }
    }
}

/// Writes `tensors`, each in the type that `types` returns for its name. Wider types come first, so
/// that all tensors are aligned; otherwise the order is kept. `values` is called for one tensor
/// after the other and returns its row-major values.
///
/// # Errors
/// A name occurs twice, the values do not fill the shape, or one of them is too large for its type;
/// those of `values`, and of the disk. On an error, an existing file at `path` is unchanged.
pub(super) fn write<'a>(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[NamedShape],
    types: &dyn Fn(&str) -> FloatType,
    mut values: impl FnMut(&str, &[usize]) -> Result<Cow<'a, [f32]>>,
) -> Result<()> {
    let mut tensors: Vec<_> = tensors.iter().map(|(name, shape)| (name, shape, types(name))).collect();
    tensors.sort_by_key(|(_, _, kind)| Reverse(kind.bytes()));
    let header = header(metadata, &tensors).map_err(|problem| Error::file(path, problem))?;
    write_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for &(name, shape, kind) in &tensors {
            let refuse = |problem: String| {
                Err(io::Error::other(Error::file(path, format!("tensor {name} {problem}"))))
            };
            let values = values(name, shape).map_err(io::Error::other)?;
            let expected: usize = shape.iter().product();
            if values.len() != expected {
                return refuse(format!(
                    "of shape {shape:?} got {} values, expected {expected}",
                    values.len()
                ));
            }
            if let Some(value) = values.iter().find(|v| !kind.holds(**v)) {
                let kind = kind.name();
                return refuse(format!(
                    "has the value {value}, which is too large for {kind}; write it with `dtype = f32`"
                ));
            }
            write_values(out, kind, &values)?;
        }
        Ok(())
    })
}

/// A tensor in memory: name, shape and row-major values.
pub(super) type Tensor<'a> = (String, Vec<usize>, &'a [f32]);

/// Writes tensors that are in memory, in f32.
///
/// # Errors
/// Those of `write`.
pub(super) fn write_f32(path: &Path, metadata: &BTreeMap<String, String>, tensors: &[Tensor]) -> Result<()> {
    let shapes: Vec<NamedShape> =
        tensors.iter().map(|(name, shape, _)| (name.clone(), shape.clone())).collect();
    let mut values = tensors.iter().map(|(.., values)| Cow::Borrowed(*values));
    write(path, metadata, &shapes, &|_| FloatType::F32, |_, _| Ok(values.next().unwrap_or_default()))
}

fn header(
    metadata: &BTreeMap<String, String>,
    tensors: &[(&String, &Vec<usize>, FloatType)],
) -> std::result::Result<Vec<u8>, String> {
    let mut map = Map::new();
    map.insert("__metadata__".to_string(), json!(metadata));
    let mut start = 0usize;
    for &(name, shape, kind) in tensors {
        let bytes = shape.iter().try_fold(kind.bytes(), |n, &d| n.checked_mul(d));
        let end = bytes.and_then(|bytes| start.checked_add(bytes));
        let end = end.ok_or_else(|| format!("tensor {name}: the shape {shape:?} overflows"))?;
        let dtype = kind.name().to_ascii_uppercase();
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        if map.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor {name} occurs twice"));
        }
        start = end;
    }
    let mut header = Value::Object(map).to_string().into_bytes();
    // The data must begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

fn write_values(out: &mut dyn Write, kind: FloatType, values: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(4 << 14);
    for piece in values.chunks(1 << 14) {
        bytes.clear();
        kind.put(piece, &mut bytes);
        out.write_all(&bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const F32: fn(&str) -> FloatType = |_| FloatType::F32;

    fn metadata() -> BTreeMap<String, String> {
        BTreeMap::from([
            ("format".to_string(), "pt".to_string()),
            ("note".to_string(), "ü \"x\"".to_string()),
        ])
    }

    #[test]
    fn the_reference_reader_reads_what_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        let tensors = [("b".to_string(), vec![2, 3]), ("a".to_string(), vec![0]), ("s".to_string(), vec![])];
        let numbers: Vec<f32> = (0..6).map(|v| v as f32 / 3.0).collect();
        write(&path, &metadata(), &tensors, &F32, |_, shape| {
            Ok(Cow::Borrowed(&numbers[..shape.iter().product()]))
        })
        .expect("written");

        let bytes = std::fs::read(&path).expect("readable");
        let read = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
        let b = read.tensor("b").expect("there");
        assert_eq!(b.shape(), [2, 3]);
        let expected: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(b.data(), expected);
        assert_eq!(read.tensor("s").expect("there").data(), 0f32.to_le_bytes());
        let (length, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("valid");
        assert!(length.is_multiple_of(8));
        let expected = metadata().into_iter().collect();
        assert_eq!(header.metadata().as_ref(), Some(&expected));
    }

    #[test]
    fn a_failure_is_passed_on_and_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        let tensor = |name: &str| (name.to_string(), vec![2]);
        let message = write(&path, &metadata(), &[tensor("x")], &F32, |_, _| Ok(Cow::Owned(vec![1.0])))
            .expect_err("too few values")
            .to_string();
        assert!(message.ends_with("tensor x of shape [2] got 1 values, expected 2"), "{message}");
        let message =
            write(&path, &metadata(), &[tensor("x")], &F32, |_, _| Err(Error::Input("no".to_string())))
                .expect_err("the source's error")
                .to_string();
        assert_eq!(message, "no");
        let twice =
            write(&path, &metadata(), &[tensor("x"), tensor("x")], &F32, |_, _| Ok(Cow::Owned(vec![1.0; 2])));
        assert!(twice.expect_err("twice").to_string().ends_with("tensor x occurs twice"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0);
    }
    #[test]
    fn values_are_rounded_to_the_nearest_ties_to_even() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        let tensors = ["half", "brain", "full"].map(|name| (name.to_string(), vec![5]));
        let kind = |name: &str| match name {
            "half" => FloatType::F16,
            "brain" => FloatType::Bf16,
            _ => FloatType::F32,
        };
        // For f16 (11 significant bits) and bf16 (8): a tie that rounds down, a tie that rounds up,
        // and a value just above a tie.
        let step = |bits: i32| 2f32.powi(1 - bits);
        let numbers = |bits: i32| {
            let beyond = 1.0 + step(bits) / 2.0 + f32::EPSILON;
            vec![1.0 + step(bits) / 2.0, 1.0 + 1.5 * step(bits), beyond, -0.0, 0.1]
        };
        let of = |name: &str| numbers(if name == "half" { 11 } else { 8 });
        write(&path, &metadata(), &tensors, &kind, |name, _| Ok(Cow::Owned(of(name)))).expect("written");
        let bytes = std::fs::read(&path).expect("readable");
        let read = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
        let words = |name: &str| -> Vec<u16> {
            let data = read.tensor(name).expect("there").data().to_vec();
            data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
        };
        assert_eq!(words("half"), [0x3c00, 0x3c02, 0x3c01, 0x8000, 0x2e66]);
        assert_eq!(words("brain"), [0x3f80, 0x3f82, 0x3f81, 0x8000, 0x3dcd]);
        let full: Vec<u8> = of("full").iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(read.tensor("full").expect("there").data(), full);
        // The wider type comes first, at a multiple of 8.
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("valid");
        assert_eq!(header.info("full").expect("there").data_offsets, (0, 20));

        let too_large = [("half", 65_520.0), ("brain", f32::MAX)];
        for (name, value) in too_large {
            let tensor = [(name.to_string(), vec![1])];
            let message = write(&path, &metadata(), &tensor, &kind, |_, _| Ok(Cow::Owned(vec![value])))
                .expect_err("too large")
                .to_string();
            let expected = format!("tensor {name} has the value {value}, which is too large for ");
            assert!(message.contains(&expected) && message.contains("`dtype = f32`"), "{message}");
        }
        let largest = [("half".to_string(), vec![1])];
        write(&path, &metadata(), &largest, &kind, |_, _| Ok(Cow::Owned(vec![65_519.0])))
            .expect("rounds down");
    }
}
