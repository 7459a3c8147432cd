//! Writes a GGUF file (version 3) as a stream: the header from a list of tensors, then their values
//! in that order.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Write};

use super::encode::{encode, holds, is_written};
use super::header::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MOST_DIMENSIONS, MOST_KEY_BYTES, MOST_NAME_BYTES,
};
use super::tensor_type::TensorType;
use super::value::{Array, Value};

const VERSION: u32 = 3;

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTensor {
    /// As llama.cpp has it: `blk.0.attn_q.weight`.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    pub kind: TensorType,
}

/// A file that is being written. Give every tensor's values, in the order of the list, then call
/// `finish`.
///
/// All errors are `io::Error`s, so that it works inside a function that writes a file aside: of
/// kind `InvalidInput` when what was given does not fit.
pub struct Writer<W: Write> {
    out: W,
    tensors: Vec<NewTensor>,
    sizes: Vec<usize>,
    /// The tensor that is being written, and its bytes so far.
    current: usize,
    written: usize,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Writes the header. The alignment is 32; `metadata` must not name it.
    ///
    /// # Errors
    /// A key or a name occurs twice or too long, a shape does not fit its type, or writing fails.
    pub fn new(mut out: W, metadata: &[(String, Value)], tensors: Vec<NewTensor>) -> io::Result<Self> {
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        let mut seen = HashSet::new();
        for (key, value) in metadata {
            if key.is_empty() || key.len() > MOST_KEY_BYTES || key == ALIGNMENT_KEY || !seen.insert(key) {
                return Err(invalid(format!(
                    "metadata key {key:?} is empty, too long, reserved or there twice"
                )));
            }
            put_string(&mut header, key);
            header.extend(value.type_number().to_le_bytes());
            put_value(&mut header, value);
        }
        let mut seen = HashSet::new();
        let mut sizes = Vec::with_capacity(tensors.len());
        let mut offset = 0usize;
        for tensor in &tensors {
            let name = &tensor.name;
            if name.is_empty() || name.len() > MOST_NAME_BYTES || !seen.insert(name) {
                return Err(invalid(format!("tensor name {name:?} is empty, too long or there twice")));
            }
            let size = tensor.kind.size(&tensor.shape).filter(|size| *size > 0);
            let (Some(size), true) = (size, tensor.shape.len() <= MOST_DIMENSIONS) else {
                let (kind, shape) = (tensor.kind.name(), &tensor.shape);
                return Err(invalid(format!("tensor {name}: {kind} cannot hold the shape {shape:?}")));
            };
            put_string(&mut header, name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for size in tensor.shape.iter().rev() {
                header.extend((*size as u64).to_le_bytes());
            }
            header.extend(tensor.kind.number().to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            sizes.push(size);
            let end =
                offset.checked_add(size).and_then(|end| end.checked_next_multiple_of(DEFAULT_ALIGNMENT));
            offset = end.ok_or_else(|| invalid(format!("tensor {name}: the file's size overflows")))?;
        }
        header.resize(header.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
        out.write_all(&header)?;
        Ok(Writer { out, tensors, sizes, current: 0, written: 0, buffer: Vec::new() })
    }

    /// The tensor whose values come next; `None` when all are written.
    pub fn next(&self) -> Option<&NewTensor> {
        self.tensors.get(self.current)
    }

    /// Appends values to the tensor that is being written: whole blocks of it, as many as the
    /// caller has.
    ///
    /// # Errors
    /// Not the next tensor, not whole blocks, more than its shape holds, a type that is not written
    /// from f32 (F32, F16, BF16 and Q8_0 are), a value that is not finite or too large for the
    /// type, or writing fails.
    pub fn values(&mut self, name: &str, values: &[f32]) -> io::Result<()> {
        let kind = self.expect(name)?.kind;
        if !is_written(kind) {
            return Err(invalid(format!("tensor {name}: {} is not written from f32", kind.name())));
        }
        let block = kind.block_values();
        if !values.len().is_multiple_of(block) {
            return Err(invalid(format!(
                "tensor {name}: {} values, no whole blocks of {block}",
                values.len()
            )));
        }
        // So many at a time that the buffer stays in the cache; a multiple of every block's size.
        for piece in values.chunks(1 << 16) {
            if let Some(value) = piece.iter().find(|value| !holds(kind, **value)) {
                let problem = format!("tensor {name}: {} cannot hold the value {value}", kind.name());
                return Err(invalid(problem));
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.clear();
            encode(kind, piece, &mut buffer).ok_or_else(|| invalid("checked above".into()))?;
            let done = self.append(&buffer);
            self.buffer = buffer;
            done?;
        }
        self.close_full()
    }

    /// Appends bytes that are already in the tensor's type.
    ///
    /// # Errors
    /// Not the next tensor, more than its shape holds, or writing fails.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.expect(name)?;
        self.append(bytes)?;
        self.close_full()
    }

    /// Flushes and gives the stream back.
    ///
    /// # Errors
    /// A tensor's values are missing, or writing fails.
    pub fn finish(mut self) -> io::Result<W> {
        if let Some(tensor) = self.next() {
            let (name, size) = (&tensor.name, self.sizes[self.current]);
            return Err(invalid(format!("tensor {name}: {} of {size} bytes were given", self.written)));
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn expect(&self, name: &str) -> io::Result<&NewTensor> {
        match self.next() {
            Some(tensor) if tensor.name == name => Ok(tensor),
            Some(tensor) => Err(invalid(format!("tensor {name} was given, {} is next", tensor.name))),
            None => Err(invalid(format!("tensor {name} was given, all are written"))),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (size, name) = (self.sizes[self.current], &self.tensors[self.current].name);
        if bytes.len() > size - self.written {
            return Err(invalid(format!("tensor {name}: more values than its {size} bytes hold")));
        }
        self.out.write_all(bytes)?;
        self.written += bytes.len();
        Ok(())
    }

    fn close_full(&mut self) -> io::Result<()> {
        let size = self.sizes[self.current];
        if self.written == size {
            let padding = size.next_multiple_of(DEFAULT_ALIGNMENT) - size;
            self.out.write_all(&[0; DEFAULT_ALIGNMENT][..padding])?;
            (self.current, self.written) = (self.current + 1, 0);
        }
        Ok(())
    }
}

pub(super) fn invalid(problem: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, problem)
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_string(out, v),
        Value::Array(v) => put_array(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.type_number().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|v| u8::from(*v))),
        Array::String(v) => v.iter().for_each(|v| put_string(out, v)),
        Array::Array(v) => v.iter().for_each(|v| put_array(out, v)),
        Array::U64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
    }
}
