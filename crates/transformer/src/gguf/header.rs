//! The header of a GGUF file: metadata and the list of tensors, with every number checked.
//!
//! The one rule that is not obvious: no count is trusted until the bytes that it needs are known to
//! be in the file, so a damaged file cannot make the reader allocate more than a few times its
//! size.

use std::collections::HashSet;

use super::tensor_type::TensorType;
use super::value::{Array, Value};

pub(super) const MAGIC: [u8; 4] = *b"GGUF";
pub(super) const DEFAULT_ALIGNMENT: usize = 32;
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// Limits of the format.
pub(super) const MOST_KEY_BYTES: usize = 65535;
pub(super) const MOST_NAME_BYTES: usize = 64;
pub(super) const MOST_DIMENSIONS: usize = 4;
/// Maximum depth of nested arrays. The format allows them although no writer makes them; the limit
/// bounds the reader's stack.
const MOST_DEPTH: usize = 4;
/// Minimum bytes of an entry (a key's length, its type and a value) and of a tensor (a name's
/// length, the number of dimensions, one dimension, type and offset).
const LEAST_ENTRY: usize = 8 + 4 + 1;
const LEAST_TENSOR: usize = 8 + 4 + 8 + 4 + 8;

/// A file's header, checked against the file's length.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Keys and values in the order of the file; keys are unique.
    pub metadata: Vec<(String, Value)>,
    /// Tensors in the order of the file, or of the parts; names are unique, and no two tensors
    /// overlap.
    pub tensors: Vec<TensorInfo>,
    /// Alignment in bytes: every tensor starts at a multiple of it.
    pub alignment: usize,
}

/// The type and place of a tensor in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// llama.cpp's name: `blk.0.attn_q.weight`.
    pub name: String,
    /// Row-major; files store it in reverse.
    pub shape: Vec<usize>,
    pub kind: TensorType,
    /// Offset of its first byte in its file.
    pub start: usize,
    /// Offset after its last byte; the length matches type and shape.
    pub end: usize,
    /// Index of the model's part that contains it, from 0.
    pub part: usize,
}

impl Header {
    /// Reads the header of `file`, the whole file's bytes.
    ///
    /// # Errors
    /// Returns an error if anything does not fit. The message names the key or tensor, what was
    /// seen and what was expected.
    pub fn parse(file: &[u8]) -> Result<Self, String> {
        let mut reader = Reader { bytes: file, at: 0 };
        let magic = reader.take(4, "the magic number")?;
        if magic != MAGIC {
            let shown = magic.escape_ascii();
            return Err(format!("starts with \"{shown}\", expected \"GGUF\"; this is not a GGUF file"));
        }
        let version = reader.u32("the version")?;
        match version {
            2 | 3 => {}
            1 => return Err("GGUF version 1, expected 2 or 3; convert the model again".into()),
            swapped if swapped.swap_bytes() <= 0xffff && swapped > 0xffff => {
                return Err(format!(
                    "a big-endian file (version {}); expected a little-endian one, convert the model again",
                    swapped.swap_bytes()
                ));
            }
            other => return Err(format!("GGUF version {other}, expected 2 or 3")),
        }
        let tensors = reader.u64("the number of tensors")?;
        let entries = reader.u64("the number of metadata entries")?;
        let metadata = read_metadata(&mut reader, entries)?;
        let alignment = alignment(&metadata)?;
        let tensors = read_tensors(&mut reader, tensors, alignment)?;
        Ok(Header { version, metadata, tensors, alignment })
    }
}

fn read_metadata(reader: &mut Reader, count: u64) -> Result<Vec<(String, Value)>, String> {
    let count = reader.count(count, LEAST_ENTRY, "metadata entries")?;
    let mut metadata = Vec::with_capacity(count);
    let mut seen = HashSet::with_capacity(count);
    for number in 0..count {
        let key = reader.string(&format!("the key of metadata entry {number}"))?;
        if key.is_empty() || key.len() > MOST_KEY_BYTES {
            return Err(format!(
                "metadata entry {number}: its key has {} bytes, expected 1 to {MOST_KEY_BYTES}",
                key.len()
            ));
        }
        let what = format!("metadata key {key:?}");
        let kind = reader.u32(&what)?;
        let value = read_value(reader, kind, &what)?;
        if !seen.insert(key.clone()) {
            return Err(format!("{what} occurs twice"));
        }
        metadata.push((key, value));
    }
    Ok(metadata)
}

fn read_value(reader: &mut Reader, kind: u32, what: &str) -> Result<Value, String> {
    Ok(match kind {
        7 => Value::Bool(boolean(reader.array(what)?, what)?),
        8 => Value::String(reader.string(what)?),
        9 => Value::Array(read_array(reader, what, 1)?),
        number => Value::read_number(reader, number, what)?
            .ok_or_else(|| format!("{what}: its type is number {number}, expected 0 to 12"))?,
    })
}

fn read_array(reader: &mut Reader, what: &str, depth: usize) -> Result<Array, String> {
    let kind = reader.u32(what)?;
    let count = reader.u64(what)?;
    Ok(match kind {
        7 => {
            let bytes = reader.elements(count, what, |b: [u8; 1]| b)?;
            Array::Bool(bytes.into_iter().map(|b| boolean(b, what)).collect::<Result<_, _>>()?)
        }
        8 => {
            let count = reader.count(count, 8, what)?;
            Array::String((0..count).map(|_| reader.string(what)).collect::<Result<_, _>>()?)
        }
        9 if depth == MOST_DEPTH => {
            return Err(format!("{what}: more than {MOST_DEPTH} nested arrays"));
        }
        9 => {
            let count = reader.count(count, 4 + 8, what)?;
            let inner = (0..count).map(|_| read_array(reader, what, depth + 1));
            Array::Array(inner.collect::<Result<_, _>>()?)
        }
        number => Array::read_numbers(reader, number, count, what)?
            .ok_or_else(|| format!("{what}: its elements' type is number {number}, expected 0 to 12"))?,
    })
}

fn boolean(byte: [u8; 1], what: &str) -> Result<bool, String> {
    match byte[0] {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(format!("{what}: a bool has the byte {other}, expected 0 or 1")),
    }
}

fn alignment(metadata: &[(String, Value)]) -> Result<usize, String> {
    let Some((_, value)) = metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match value {
        Value::U32(v) if v.is_power_of_two() && v.is_multiple_of(8) => Ok(*v as usize),
        other => Err(format!(
            "metadata key {ALIGNMENT_KEY:?} is {other} ({}), expected a power of two from 8 on (u32)",
            other.type_name()
        )),
    }
}

/// A tensor whose offset is not yet known to be inside the file.
struct Claim {
    name: String,
    shape: Vec<usize>,
    kind: TensorType,
    size: usize,
    offset: u64,
}

fn read_tensors(reader: &mut Reader, count: u64, alignment: usize) -> Result<Vec<TensorInfo>, String> {
    let count = reader.count(count, LEAST_TENSOR, "tensors")?;
    let mut claims = Vec::with_capacity(count);
    let mut seen = HashSet::with_capacity(count);
    for number in 0..count {
        let claim = read_tensor(reader, number)?;
        if !seen.insert(claim.name.clone()) {
            return Err(format!("tensor {} occurs twice", claim.name));
        }
        claims.push(claim);
    }
    if claims.is_empty() {
        return Ok(Vec::new());
    }
    let data_start = reader.at.checked_next_multiple_of(alignment);
    let data_start = data_start.ok_or_else(|| format!("alignment {alignment} overflows"))?;
    let length = reader.bytes.len();
    let mut tensors = Vec::with_capacity(count);
    for Claim { name, shape, kind, size, offset } in claims {
        if !offset.is_multiple_of(alignment as u64) {
            return Err(format!(
                "tensor {name}: its offset {offset} is not a multiple of the alignment {alignment}"
            ));
        }
        let start = usize::try_from(offset).ok().and_then(|offset| data_start.checked_add(offset));
        let Some((start, end)) = start.and_then(|start| Some((start, start.checked_add(size)?))) else {
            return Err(format!("tensor {name}: offset {offset} and its {size} bytes overflow"));
        };
        if end > length {
            return Err(format!(
                "truncated: tensor {name} ends at byte {end}, the file has {length}; download it again"
            ));
        }
        tensors.push(TensorInfo { name, shape, kind, start, end, part: 0 });
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|t| t.start);
    if let Some(&[a, b]) = order.windows(2).find(|pair| pair[0].end > pair[1].start) {
        return Err(format!(
            "tensors {} (bytes {}..{}) and {} (bytes {}..{}) overlap",
            a.name, a.start, a.end, b.name, b.start, b.end
        ));
    }
    Ok(tensors)
}

fn read_tensor(reader: &mut Reader, number: usize) -> Result<Claim, String> {
    let what = format!("the name of tensor {number}");
    let name = reader.string(&what)?;
    if name.is_empty() || name.len() > MOST_NAME_BYTES {
        return Err(format!("{what} has {} bytes, expected 1 to {MOST_NAME_BYTES}", name.len()));
    }
    let what = format!("tensor {name}");
    let dimensions = reader.u32(&what)? as usize;
    if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
        return Err(format!("{what} has {dimensions} dimensions, expected 1 to {MOST_DIMENSIONS}"));
    }
    let mut shape = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        let size = reader.u64(&what)?;
        match usize::try_from(size) {
            Ok(size) if size > 0 => shape.push(size),
            _ => {
                return Err(format!(
                    "{what}: a dimension is {size}, expected at least 1 and no more than fits into memory"
                ));
            }
        }
    }
    shape.reverse();
    let kind = TensorType::from_number(reader.u32(&what)?).map_err(|problem| format!("{what}: {problem}"))?;
    let Some(size) = kind.size(&shape) else {
        let (cols, block) = (shape[dimensions - 1], kind.block_values());
        return Err(if cols.is_multiple_of(block) {
            format!("{what}: the size of its shape {shape:?} overflows")
        } else {
            format!("{what}: its rows have {cols} values, expected a multiple of {block} for {}", kind.name())
        });
    };
    let offset = reader.u64(&what)?;
    Ok(Claim { name, shape, kind, size, offset })
}

/// Reads a file's bytes in order, and only bytes that are there.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], String> {
        let Some(taken) = self.bytes[self.at..].get(..count) else {
            return Err(format!(
                "truncated: {what} needs {count} bytes from byte {} on, the file has {}; download it again",
                self.at,
                self.bytes.len()
            ));
        };
        self.at += count;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Checks that the rest of the file can hold `count` elements of at least `least` bytes each.
    fn count(&self, count: u64, least: usize, what: &str) -> Result<usize, String> {
        let fits = (self.left() / least) as u64;
        if count > fits {
            return Err(format!(
                "{what}: {count} of them are claimed, but the {} bytes left hold at most {fits}; the file is damaged",
                self.left()
            ));
        }
        Ok(count as usize)
    }

    pub fn elements<const N: usize, T>(
        &mut self,
        count: u64,
        what: &str,
        read: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, String> {
        let count = self.count(count, N, what)?;
        // Cannot overflow: `count` has checked that the file has as many bytes.
        let (elements, _) = self.take(count * N, what)?.as_chunks::<N>();
        Ok(elements.iter().map(|b| read(*b)).collect())
    }

    fn string(&mut self, what: &str) -> Result<String, String> {
        let length = self.u64(what)?;
        if length > self.left() as u64 {
            return Err(format!(
                "{what}: a string of {length} bytes runs past the end of the file ({} bytes left)",
                self.left()
            ));
        }
        let bytes = self.take(length as usize, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_string()),
            Err(e) => Err(format!("{what}: a string is not UTF-8 (byte {} of it)", e.valid_up_to())),
        }
    }
}
