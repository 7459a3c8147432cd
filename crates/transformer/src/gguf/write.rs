//! Writes a GGUF file (version 3) as a stream: the header from a list of tensors, then their values
//! in that order.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Write};

use lora_drop_compute::blocks::{BlockMatrix, QuantizeError};

use super::header::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MOST_DIMENSIONS, MOST_KEY_BYTES, MOST_NAME_BYTES,
};
use super::tensor_type::TensorType;
use super::value::{Value, write_string};

const VERSION: u32 = 3;

/// The name, shape and type of a tensor to write.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTensor {
    /// llama.cpp's name: `blk.0.attn_q.weight`.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    pub kind: TensorType,
}

/// Writes a file. Pass every tensor's values in the order of the list, then call `finish`.
///
/// All errors are `io::Error`s, for use inside a function that writes a file; their kind is
/// `InvalidInput` if the arguments do not fit.
pub struct Writer<W: Write> {
    out: W,
    tensors: Vec<NewTensor>,
    sizes: Vec<usize>,
    /// Index of the tensor that is being written; `written` is the number of its bytes so far.
    current: usize,
    written: usize,
}

impl<W: Write> Writer<W> {
    /// Writes the header. The alignment is 32; `metadata` must not contain it.
    ///
    /// # Errors
    /// Returns an error if a key or a name is empty, too long, reserved or occurs twice, if a shape
    /// does not fit its type, and if writing fails.
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
                    "metadata key {key:?} is empty, too long, reserved or occurs twice"
                )));
            }
            write_string(key, &mut header);
            header.extend(value.type_number().to_le_bytes());
            value.write(&mut header);
        }
        let mut seen = HashSet::new();
        let mut sizes = Vec::with_capacity(tensors.len());
        let mut offset = 0usize;
        for tensor in &tensors {
            let name = &tensor.name;
            if name.is_empty() || name.len() > MOST_NAME_BYTES || !seen.insert(name) {
                return Err(invalid(format!("tensor name {name:?} is empty, too long or occurs twice")));
            }
            let size = tensor.kind.size(&tensor.shape).filter(|size| *size > 0);
            let (Some(size), true) = (size, tensor.shape.len() <= MOST_DIMENSIONS) else {
                let (kind, shape) = (tensor.kind.name(), &tensor.shape);
                return Err(invalid(format!("tensor {name}: {kind} cannot hold the shape {shape:?}")));
            };
            write_string(name, &mut header);
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
        Ok(Writer { out, tensors, sizes, current: 0, written: 0 })
    }

    /// The tensor whose values come next; `None` if all are written.
    pub fn next(&self) -> Option<&NewTensor> {
        self.tensors.get(self.current)
    }

    /// Appends values to the tensor that is being written: any number of whole blocks.
    ///
    /// # Errors
    /// Returns an error if it is not the next tensor, if the values are not whole blocks or more
    /// than its shape holds, for a type that is not written from f32 (F32, F16, BF16, Q8_0 and Q4_0
    /// are), for a value that is not finite or too large for the type, and if writing fails.
    pub fn values(&mut self, name: &str, values: &[f32]) -> io::Result<()> {
        let kind = self.expect(name)?.kind;
        // Each piece stays in the cache; its length is a multiple of every block's.
        for piece in values.chunks(1 << 16) {
            let refused = |problem: String| invalid(format!("tensor {name}: {problem}"));
            let cannot_hold = |value: f32| format!("{} cannot hold the value {value}", kind.name());
            match kind {
                TensorType::F32 => {
                    if let Some(value) = piece.iter().find(|value| !value.is_finite()) {
                        return Err(refused(cannot_hold(*value)));
                    }
                    let bytes: Vec<u8> = piece.iter().flat_map(|value| value.to_le_bytes()).collect();
                    self.append(&bytes)?;
                }
                TensorType::Blocks(kind) => {
                    let blocks = BlockMatrix::quantize(kind, 1, piece.len(), piece);
                    let blocks = blocks.map_err(|error| match error {
                        QuantizeError::Value { value, .. } => refused(cannot_hold(value)),
                        other => refused(other.to_string()),
                    })?;
                    self.append(blocks.bytes())?;
                }
            }
        }
        self.close_full()
    }

    /// Appends bytes that are already in the tensor's type.
    ///
    /// # Errors
    /// Returns an error if it is not the next tensor, if the bytes are more than its shape holds,
    /// and if writing fails.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.expect(name)?;
        self.append(bytes)?;
        self.close_full()
    }

    /// Flushes and returns the stream.
    ///
    /// # Errors
    /// Returns an error if a tensor's values are missing or writing fails.
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
