//! GGUF files (llama.cpp's format, versions 2 and 3), as a source of models and as a form to write
//! them in.
//!
//! [`Gguf`] opens a file and finds tensors by transformers' names, in transformers' order of rows,
//! like [`crate::Checkpoint`]. [`Writer`] writes any file; [`write_adapter`] and [`ModelWriter`]
//! write what llama.cpp expects. In files of the architecture `llama`, rows of q and k are sorted
//! for llama.cpp's rotary embedding: reading and writing convert them. Other peculiarities of an
//! architecture's files are in its family's file.

mod adapter;
pub(crate) mod architecture;
mod config;
mod header;
pub(crate) mod metadata;
mod model;
mod parts;
mod rope;
mod rotary;
mod tensor_type;
pub(crate) mod value;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use lora_drop_compute::Tensor;
use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use lora_drop_compute::mapped::MappedFile;

use crate::error::{Error, Result};
use crate::weights::{Source, Stored};
use metadata::{Attention, GgufKeys, Metadata};

pub use adapter::{AdapterPair, write_adapter};
pub use architecture::GgufArchitecture;
pub use header::{Header, TensorInfo};
pub use model::{FileType, ModelWriter, copied_metadata, metadata_from_config};
pub use parts::{PartName, part_paths};
pub(crate) use rotary::{to_gguf_rows, to_hf_rows};
pub use tensor_type::TensorType;
pub use value::{Array, Value};
pub use write::{NewTensor, Writer};

/// An opened GGUF file, or the parts of one. Cloning is cheap (the files stay mapped once).
#[derive(Clone)]
pub struct Gguf {
    parts: Arc<Vec<parts::Part>>,
    metadata: Arc<Metadata>,
    /// None if the architecture is not supported.
    architecture: Option<&'static GgufArchitecture>,
    /// Index in the header's list of each tensor, by transformers' name; by its own name if
    /// transformers does not have it.
    names: Arc<BTreeMap<String, usize>>,
}

impl Source for Gguf {
    fn place(&self) -> &Path {
        self.path()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shape(name)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.tensor(name)
    }

    fn stored(&self, name: &str) -> Result<Stored> {
        self.stored(name)
    }

    fn storage(&self, name: &str) -> Option<BlockType> {
        match self.require(name).ok()?.kind {
            TensorType::Blocks(kind) => Some(kind),
            TensorType::F32 => None,
        }
    }
}

impl Gguf {
    /// Maps a file and checks its header: metadata, tensors, types, places. Of a model in parts,
    /// any part opens all.
    ///
    /// # Errors
    /// A file cannot be read, is not GGUF of version 2 or 3, is damaged, or has tensors of a type
    /// that is not supported; a part is missing.
    pub fn open(path: &Path) -> Result<Self> {
        let (parts, metadata) = parts::open(path)?;
        let architecture = metadata.value("general.architecture").and_then(Value::as_str);
        let architecture = architecture.and_then(GgufArchitecture::of_name);
        let mut names = BTreeMap::new();
        for (i, tensor) in metadata.header.tensors.iter().enumerate() {
            let known = architecture.and_then(|known| known.hf_name(&tensor.name));
            let name = known.unwrap_or_else(|| tensor.name.clone());
            if names.insert(name.clone(), i).is_some() {
                return Err(Error::checkpoint(path, format!("tensor {name} occurs under two names")));
            }
        }
        Ok(Gguf {
            parts: Arc::new(parts),
            metadata: Arc::new(metadata),
            architecture,
            names: Arc::new(names),
        })
    }

    /// The file, or the first part.
    pub fn path(&self) -> &Path {
        &self.metadata.path
    }

    /// The file's metadata and list of tensors.
    pub fn header(&self) -> &Header {
        &self.metadata.header
    }

    /// The metadata's value under `key`.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.value(key)
    }

    /// The architecture for `general.architecture`.
    ///
    /// # Errors
    /// The key is missing, or names an architecture that is not supported; the message lists those
    /// that are.
    pub fn architecture(&self) -> Result<&'static GgufArchitecture> {
        const KEY: &str = "general.architecture";
        let name = self.metadata.text(KEY)?;
        self.architecture.ok_or_else(|| {
            let mut known: Vec<_> = GgufArchitecture::all().map(|known| known.name).collect();
            known.dedup();
            let problem = format!("is {name:?}, expected one of {}", known.join(", "));
            self.metadata.key_fault(KEY, &problem)
        })
    }

    /// All tensor names, sorted: transformers' names, and the file's for tensors that transformers
    /// does not have.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// A tensor's row-major shape, as in transformers; None if there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.info(name).map(|t| t.shape.as_slice())
    }

    /// How a tensor's values are stored; None if there is no such tensor.
    pub fn kind(&self, name: &str) -> Option<TensorType> {
        self.info(name).map(|t| t.kind)
    }

    /// The tensor as it is stored, with rows in transformers' order: a view of the mapped file if
    /// possible, otherwise (q and k of `llama`, f32 that is not aligned) a copy.
    ///
    /// # Errors
    /// There is no such tensor; it has more than two dimensions in blocks; or its rows must be
    /// sorted and the file does not say for how many heads.
    pub fn stored(&self, name: &str) -> Result<Stored> {
        let info = self.require(name)?;
        if self.offset(info) != 0.0 {
            return self.tensor(name).map(Stored::F32);
        }
        self.stored_as_is(name, info)
    }

    /// Returns the offset that the file has added to a tensor's values.
    fn offset(&self, info: &TensorInfo) -> f32 {
        self.architecture.map_or(0.0, |known| known.offset(&info.name))
    }

    fn stored_as_is(&self, name: &str, info: &TensorInfo) -> Result<Stored> {
        let order = self.row_order(info)?;
        let (rows, cols) = match info.shape[..] {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ if info.kind == TensorType::F32 => (0, 0),
            _ => {
                let problem = format!("{} of shape {:?}, expected a matrix", info.kind.name(), info.shape);
                return Err(self.tensor_fault(name, problem));
            }
        };
        match (info.kind, order) {
            (TensorType::F32, None) => {
                let view = Tensor::mapped(info.shape.clone(), self.map(info).clone(), info.start);
                let copy = || Tensor::new(info.shape.clone(), floats(self.bytes_of(info)));
                Ok(Stored::F32(view.unwrap_or_else(copy)))
            }
            (TensorType::F32, Some(order)) => {
                let sorted = self.sorted_rows(info, &order);
                Ok(Stored::F32(Tensor::new(info.shape.clone(), floats(&sorted))))
            }
            (TensorType::Blocks(kind), order) => {
                let matrix = match order {
                    None => BlockMatrix::mapped(kind, rows, cols, self.map(info).clone(), info.start),
                    // The rows to reorder are a vector's single values, so a block must be one
                    // value.
                    Some(_) if info.shape.len() == 1 && kind.values() != 1 => {
                        let problem = format!("a vector of {}, whose values cannot be sorted", kind.name());
                        return Err(self.tensor_fault(name, problem));
                    }
                    Some(order) => BlockMatrix::new(kind, rows, cols, self.sorted_rows(info, &order)),
                };
                let matrix = matrix.expect("the header's check compared size and place");
                Ok(Stored::Blocks(matrix))
            }
        }
    }

    /// A matrix in blocks, like [`Gguf::stored`].
    ///
    /// # Errors
    /// Those of [`Gguf::stored`]; or the tensor is F32.
    pub fn matrix(&self, name: &str) -> Result<BlockMatrix> {
        match self.stored(name)? {
            Stored::Blocks(matrix) => Ok(matrix),
            Stored::F32(_) => Err(self.tensor_fault(name, "its type is F32, expected blocks".into())),
        }
    }

    /// The tensor as f32, with rows in transformers' order: a view if [`Gguf::stored`] is one, a
    /// widened copy of F16 and BF16.
    ///
    /// # Errors
    /// Those of [`Gguf::stored`]; or the tensor is in blocks of more than one value.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.require(name)?;
        let offset = self.offset(info);
        let mut values = match self.stored_as_is(name, info)? {
            Stored::F32(tensor) if offset == 0.0 => return Ok(tensor),
            Stored::F32(tensor) => tensor.to_vec(),
            Stored::Blocks(matrix) if matrix.kind().values() == 1 => matrix.values(),
            Stored::Blocks(matrix) => {
                let problem = format!("its type is {}, expected F32, F16 or BF16", matrix.kind().name());
                return Err(self.tensor_fault(name, problem));
            }
        };
        if offset != 0.0 {
            values.iter_mut().for_each(|value| *value -= offset);
        }
        Ok(Tensor::new(info.shape.clone(), values))
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.names.get(name).map(|&i| &self.metadata.header.tensors[i])
    }

    fn require(&self, name: &str) -> Result<&TensorInfo> {
        self.info(name).ok_or_else(|| self.tensor_fault(name, "not in the file".into()))
    }

    fn bytes_of(&self, info: &TensorInfo) -> &[u8] {
        &self.map(info)[info.start..info.end]
    }

    /// Returns the mapped file that contains a tensor.
    fn map(&self, info: &TensorInfo) -> &Arc<MappedFile> {
        &self.parts[info.part].map
    }

    /// Returns the file's row for each row of transformers; `None` if the orders are the same.
    fn row_order(&self, info: &TensorInfo) -> Result<Option<Vec<usize>>> {
        let Some(heads) = self.rotary_heads(&info.name)? else { return Ok(None) };
        let rows = info.shape[0];
        let order = to_hf_rows(rows, heads).ok_or_else(|| {
            let problem = format!("{rows} rows cannot be {heads} heads of an even size");
            self.tensor_fault(&info.name, problem)
        })?;
        Ok(Some(order))
    }

    /// Returns the number of heads by which a tensor's rows are sorted for llama.cpp's rotary
    /// embedding; `None` if they are not sorted.
    fn rotary_heads(&self, gguf_name: &str) -> Result<Option<usize>> {
        match (architecture::rotary_part(gguf_name), self.architecture) {
            (Some(part), Some(known)) if known.sorts_rows => {
                let shape = Attention::read(&GgufKeys { file: &self.metadata, architecture: known.name })?;
                Ok(Some(part.heads(shape.heads, shape.kv_heads)))
            }
            _ => Ok(None),
        }
    }

    fn sorted_rows(&self, info: &TensorInfo, order: &[usize]) -> Vec<u8> {
        let bytes = self.bytes_of(info);
        let sorted = rotary::sorted(bytes, bytes.len() / order.len(), order);
        // The rows were copied, so the file's pages are not needed again.
        self.map(info).release(info.start..info.end);
        sorted
    }

    fn tensor_fault(&self, name: &str, problem: String) -> Error {
        let path = self.info(name).map_or(self.path(), |info| &self.parts[info.part].path);
        Error::Tensor { path: path.to_path_buf(), tensor: name.to_string(), problem }
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gguf({}, {} tensors)", self.path().display(), self.header().tensors.len())
    }
}

/// Reads little-endian f32. `bytes` has a whole number of them because the header's check compared
/// its length with the shape.
fn floats(bytes: &[u8]) -> Vec<f32> {
    let (values, _) = bytes.as_chunks::<4>();
    values.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
