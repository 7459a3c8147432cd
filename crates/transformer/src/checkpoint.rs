//! The weight files of a model's folder: `model.safetensors`, or shards and their index, mapped and
//! checked.
//!
//! Opening reads headers only. A tensor's values are read when they are used.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use lora_drop_compute::Tensor;
use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use lora_drop_compute::mapped::MappedFile;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::config::read_text;
use crate::error::{Error, Result};
use crate::json;
use crate::unsupported_quantization;

/// Limit of the safetensors format on the length of its header.
const MOST_HEADER_BYTES: u64 = 100_000_000;
const MOST_INDEX_BYTES: u64 = 100 << 20;
/// The header's length, a little-endian u64, at the start of the file.
const LENGTH_BYTES: usize = 8;

/// The tensors of a model's folder by name. Cloning is cheap (the files stay mapped once).
#[derive(Clone)]
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<WeightFile>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Clone)]
struct WeightFile {
    path: PathBuf,
    map: Arc<MappedFile>,
}

/// Type, shape and place of a tensor. Opening checks that the range is inside the file and has the
/// length that type and shape need.
#[derive(Clone)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Range of bytes in the file.
    start: usize,
    end: usize,
}

/// A file's tensors in the order of their bytes.
type Entries = Vec<(String, Entry)>;

impl Checkpoint {
    /// Opens `folder/model.safetensors`, or the shards of `folder/model.safetensors.index.json`.
    ///
    /// # Errors
    /// No weights in the folder (or only in another format: the message says how to convert them),
    /// a file that is truncated or whose header does not describe it, a missing shard, an index
    /// that does not fit its shards.
    pub fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
        if single.exists() {
            Self::open_file(&single)
                .map(|checkpoint| Checkpoint { folder: folder.to_path_buf(), ..checkpoint })
        } else if index.exists() {
            Self::open_shards(folder, &index)
        } else {
            Err(Error::Folder { folder: folder.to_path_buf(), problem: no_weights(folder) })
        }
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// The file cannot be read, is truncated, or its header does not describe it.
    pub fn open_file(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let mut checkpoint =
            Checkpoint { folder, files: Vec::new(), entries: BTreeMap::new(), metadata: BTreeMap::new() };
        checkpoint.add(path)?;
        Ok(checkpoint)
    }

    /// Refuses weights that another program has quantized, by the names of the tensors.
    ///
    /// # Errors
    /// `Error::Folder` with the method and a tensor.
    pub fn check_unquantized(&self) -> Result<()> {
        let Some((method, tensor)) = unsupported_quantization::by_tensors(self.names()) else {
            return Ok(());
        };
        let problem = format!(
            "the weights are quantized by {method} (tensor {tensor}), and such weights are not read; give the \
             unquantized model"
        );
        Err(Error::Folder { folder: self.folder.clone(), problem })
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self> {
        let problem = |problem: String| Error::checkpoint(index, problem);
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let Index { weight_map } = json::from_str(&read_text(index, MOST_INDEX_BYTES)?)
            .map_err(|e| problem(format!("not an index with a weight_map from tensors to files: {e}")))?;
        if weight_map.is_empty() {
            return Err(problem("its weight_map is empty".into()));
        }
        let mut checkpoint = Checkpoint {
            folder: folder.to_path_buf(),
            files: Vec::new(),
            entries: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        let mut shards: Vec<&str> = weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            // A name from a downloaded file must not lead out of the folder.
            let mut parts = Path::new(shard).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
                || shard.contains('\\')
            {
                return Err(problem(format!(
                    "shard {shard:?} is not a plain file name; nothing was read from it"
                )));
            }
            let path = folder.join(shard);
            if !path.exists() {
                return Err(problem(format!("shard {shard} is not in the folder; download it as well")));
            }
            checkpoint.add(&path)?;
        }
        for (name, shard) in &weight_map {
            match checkpoint.entries.get(name) {
                Some(entry) if checkpoint.files[entry.file].path.ends_with(shard) => {}
                Some(entry) => {
                    let seen = checkpoint.files[entry.file].path.display();
                    return Err(problem(format!("tensor {name} should be in {shard}, it is in {seen}")));
                }
                None => return Err(problem(format!("tensor {name} is not in its shard {shard}"))),
            }
        }
        Ok(checkpoint)
    }

    /// Maps a file and adds its tensors and metadata.
    fn add(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        if !metadata.is_file() {
            return Err(Error::checkpoint(path, "not a regular file"));
        }
        // Some systems cannot map an empty file, and a file this short (an aborted download)
        // deserves a message of its own.
        if metadata.len() < LENGTH_BYTES as u64 {
            let problem = format!(
                "{} bytes long, which is too short for a safetensors file; download it again",
                metadata.len()
            );
            return Err(Error::checkpoint(path, problem));
        }
        let map = MappedFile::new(&file, path).map_err(|e| Error::io(path, e))?;
        let number = self.files.len();
        let (entries, metadata) = read_header(&map).map_err(|problem| Error::checkpoint(path, problem))?;
        self.metadata.extend(metadata);
        for (name, entry) in entries {
            if let Some(other) = self.path_of(&name) {
                return Err(Error::checkpoint(path, format!("tensor {name} is in {} too", other.display())));
            }
            self.entries.insert(name, Entry { file: number, ..entry });
        }
        self.files.push(WeightFile { path: path.to_path_buf(), map: Arc::new(map) });
        Ok(())
    }

    /// The folder of the files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files' `__metadata__`; if shards contradict each other, the last one counts.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// A tensor's shape; None if there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|e| e.shape.as_slice())
    }

    /// The type of a tensor's values; None if there is no such tensor.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.entries.get(name).map(|e| e.dtype)
    }

    /// The tensor's bytes as in the file, little-endian and row-major; None if there is no such
    /// tensor.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.entries.get(name).map(|e| &self.files[e.file].map[e.start..e.end])
    }

    /// The file of a tensor; None if there is no such tensor.
    pub fn path_of(&self, name: &str) -> Option<&Path> {
        self.entries.get(name).map(|e| self.files[e.file].path.as_path())
    }

    /// The tensor as f32: a view of the mapped file if it contains aligned f32, otherwise a widened
    /// copy.
    ///
    /// # Errors
    /// There is no such tensor, or its type is not f32, f16, bf16 or f64.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let fault = |path: &Path, problem: String| Error::Tensor {
            path: path.to_path_buf(),
            tensor: name.to_string(),
            problem,
        };
        let Some(entry) = self.entries.get(name) else {
            return Err(fault(&self.folder, "not in the checkpoint".into()));
        };
        let WeightFile { path, map } = &self.files[entry.file];
        if entry.dtype == Dtype::F32
            && let Some(view) = Tensor::mapped(entry.shape.clone(), map.clone(), entry.start)
        {
            return Ok(view);
        }
        let bytes = &map[entry.start..entry.end];
        let values = match (entry.dtype, self.half_type(name)) {
            (_, Some(kind)) => {
                let row = BlockMatrix::mapped(kind, 1, bytes.len() / kind.bytes(), map.clone(), entry.start);
                row.expect("the header's check compared type and size").values()
            }
            (Dtype::F32, _) => widen(bytes, f32::from_le_bytes),
            (Dtype::F64, _) => widen(bytes, |b| f64::from_le_bytes(b) as f32),
            (other, _) => {
                return Err(fault(path, format!("its type is {other}, expected F32, F16, BF16 or F64")));
            }
        };
        map.release(entry.start..entry.end);
        Ok(Tensor::new(entry.shape.clone(), values))
    }

    /// Block type of a tensor of f16 or bf16; None for any other type.
    pub(crate) fn half_type(&self, name: &str) -> Option<BlockType> {
        match self.entries.get(name)?.dtype {
            Dtype::F16 => Some(BlockType::F16),
            Dtype::BF16 => Some(BlockType::Bf16),
            _ => None,
        }
    }

    /// Names of the types of all tensors, such as `BF16`.
    pub fn types(&self) -> impl Iterator<Item = String> {
        self.entries.values().map(|entry| entry.dtype.to_string())
    }

    /// Returns a matrix of f16 or bf16 as in the file; None for anything else.
    pub fn half_matrix(&self, name: &str) -> Option<BlockMatrix> {
        let (kind, entry) = (self.half_type(name)?, self.entries.get(name)?);
        let &[rows, cols] = &entry.shape[..] else { return None };
        BlockMatrix::mapped(kind, rows, cols, self.files[entry.file].map.clone(), entry.start)
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({}, {} tensors)", self.folder.display(), self.entries.len())
    }
}

/// Converts little-endian elements to f32. `bytes` has a whole number of elements because the
/// header's check compared its length with the shape.
fn widen<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    let (elements, _) = bytes.as_chunks::<N>();
    elements.par_iter().map(|b| read(*b)).collect()
}

/// Parses a safetensors header and checks it against its file. The entries' ranges are from the
/// start of the file, and their `file` is 0.
fn read_header(file: &[u8]) -> std::result::Result<(Entries, BTreeMap<String, String>), String> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err("shorter than the 8 bytes of a header's length".into());
    };
    let length = u64::from_le_bytes(*length);
    if length > MOST_HEADER_BYTES {
        return Err(format!(
            "its header claims {length} bytes, more than the format's {MOST_HEADER_BYTES}; this is not a safetensors file"
        ));
    }
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(format!(
            "truncated: the header has {length} bytes, but only {} follow its length; download it again",
            rest.len()
        ));
    };
    let header = std::str::from_utf8(header).map_err(|e| {
        format!("its header is not UTF-8 (byte {} of it); this is not a safetensors file", e.valid_up_to())
    })?;
    let Header { mut tensors, metadata } =
        serde_json::from_str(header).map_err(|e| format!("its header is not valid: {e}"))?;

    // The format requires ranges without overlaps and gaps, so that every byte belongs to one
    // tensor.
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let data_start = file.len() - data.len();
    let mut end_before = 0;
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &d| n.checked_mul(d));
        let Some(bits) = bits else {
            return Err(format!("tensor {name}: the shape {:?} overflows", info.shape));
        };
        if end < start || start != end_before {
            return Err(format!(
                "tensor {name}: its bytes are {start}..{end}, expected to start at {end_before}, where the tensor before ends"
            ));
        }
        if !bits.is_multiple_of(8) || end - start != bits / 8 {
            return Err(format!(
                "tensor {name}: {} of shape {:?} needs {} bytes, the header gives it {}",
                info.dtype,
                info.shape,
                bits.div_ceil(8),
                end - start
            ));
        }
        if end > data.len() {
            return Err(format!(
                "truncated: tensor {name} ends at byte {end} of the data, the file has {}; download it again",
                data.len()
            ));
        }
        end_before = end;
        let range = (data_start + start, data_start + end);
        entries.push((
            name,
            Entry { file: 0, dtype: info.dtype, shape: info.shape, start: range.0, end: range.1 },
        ));
    }
    match data.len() - end_before {
        0 => Ok((entries, metadata)),
        more => Err(format!("{more} bytes after the last tensor belong to none; the file is damaged")),
    }
}

/// The header's JSON object. It has its own `Deserialize` because a derived map hides a name that
/// occurs twice.
struct Header {
    tensors: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut tensors: BTreeMap<String, TensorInfo> = BTreeMap::new();
                let mut metadata = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        metadata = map.next_value()?;
                        continue;
                    }
                    let wrong = |problem| serde::de::Error::custom(format!("tensor {name}{problem}"));
                    let info = map.next_value().map_err(|e: A::Error| wrong(format!(": {e}")))?;
                    if tensors.insert(name.clone(), info).is_some() {
                        return Err(wrong(" occurs twice".into()));
                    }
                }
                Ok(Header { tensors: tensors.into_iter().collect(), metadata })
            }
        }
        input.deserialize_map(Entries)
    }
}

/// Explains why a folder has no safetensors weights and what to do.
fn no_weights(folder: &Path) -> String {
    let has = |name: &str| folder.join(name).exists();
    if !folder.exists() {
        "the folder does not exist".into()
    } else if !folder.is_dir() {
        "not a folder; a model is a folder with config.json and model.safetensors".into()
    } else if has("pytorch_model.bin") {
        // clone() because safetensors refuses tensors that share memory (tied embeddings).
        "only pytorch_model.bin is here, a pickle, which can run code; convert it once, in this folder: python -c \
         \"import torch, safetensors.torch as s; s.save_file({k: v.clone().contiguous() for k, v in \
         torch.load('pytorch_model.bin', weights_only=True).items()}, 'model.safetensors', {'format': 'pt'})\""
            .into()
    } else if has("pytorch_model.bin.index.json") {
        "only pytorch_model.bin shards are here, pickles, which can run code; convert them once, in this folder: \
         python -c \"from transformers import AutoModelForSequenceClassification as M; \
         M.from_pretrained('.').save_pretrained('.')\""
            .into()
    } else if has("tf_model.h5") || has("flax_model.msgpack") {
        "only TensorFlow or Flax weights are here; convert them with transformers: from_pretrained('.', from_tf=True \
         or from_flax=True), then save_pretrained('.')"
            .into()
    } else if has("adapter_config.json") {
        "this is an adapter (adapter_config.json, no model.safetensors); give the folder of its base model"
            .into()
    } else {
        "no model.safetensors and no model.safetensors.index.json in this folder".into()
    }
}
