//! Loads a model's weights from a checkpoint by name and shape, and collects all problems.

use std::path::Path;

use lora_drop_compute::Tensor;
use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use rayon::prelude::*;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, WeightFault, WeightProblem};

/// A tensor as its file stores it.
#[derive(Clone, Debug)]
pub enum Stored {
    F32(Tensor),
    /// A matrix (or a vector, as one row) in half precision or quantized blocks.
    Blocks(BlockMatrix),
}

/// Files with a model's tensors, found by transformers' names.
pub trait Source {
    /// The folder or file, for messages.
    fn place(&self) -> &Path;
    /// The tensor's row-major shape; None if there is no such tensor.
    fn shape(&self, name: &str) -> Option<&[usize]>;
    /// The tensor in f32.
    ///
    /// # Errors
    /// There is no such tensor, or its type cannot be widened.
    fn tensor(&self, name: &str) -> Result<Tensor>;
    /// The tensor as the file stores it, without a copy if possible.
    ///
    /// # Errors
    /// Those of [`Self::tensor`].
    fn stored(&self, name: &str) -> Result<Stored>;
    /// How a tensor's values are stored; None for f32, and if there is no such tensor.
    fn storage(&self, name: &str) -> Option<BlockType>;

    /// Whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }
}

impl Source for Checkpoint {
    fn place(&self) -> &Path {
        self.folder()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shape(name)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.tensor(name)
    }

    fn stored(&self, name: &str) -> Result<Stored> {
        match self.half_matrix(name) {
            Some(matrix) => Ok(Stored::Blocks(matrix)),
            None => self.tensor(name).map(Stored::F32),
        }
    }

    fn storage(&self, name: &str) -> Option<BlockType> {
        self.half_type(name)
    }
}

/// Loads the weights of one architecture. Take all of them, then call `finish`, which reports all
/// problems at once.
pub struct Weights<'a> {
    source: &'a dyn Source,
    /// Prefix with its dot: `bert.`
    prefix: String,
    problems: Vec<WeightProblem>,
}

/// A tensor of the head in a checkpoint.
#[derive(Clone, Debug)]
pub enum HeadTensor {
    Found(Tensor),
    Missing,
    /// It has another shape, because the head was made for another number of classes, for example.
    Misshapen {
        seen: Vec<usize>,
    },
}

impl<'a> Weights<'a> {
    /// `prefix` is the architecture's, without a dot (`bert`). Names are found with it and, as a
    /// bare encoder has them, without it.
    pub fn new(source: &'a dyn Source, prefix: &str) -> Self {
        Weights { source, prefix: format!("{prefix}."), problems: Vec::new() }
    }

    /// Returns the name under which the checkpoint has the weight `name` (given without prefix).
    pub fn resolve(&self, name: &str) -> Option<String> {
        let mut spellings = vec![name.to_string()];
        // Checkpoints converted from TensorFlow have a norm's weight and bias under its symbols.
        if let Some(norm) = name.strip_suffix("LayerNorm.weight") {
            spellings.push(format!("{norm}LayerNorm.gamma"));
        } else if let Some(norm) = name.strip_suffix("LayerNorm.bias") {
            spellings.push(format!("{norm}LayerNorm.beta"));
        }
        let prefixed: Vec<_> = spellings.iter().map(|s| format!("{}{s}", self.prefix)).collect();
        prefixed.into_iter().chain(spellings).find(|s| self.source.contains(s))
    }

    /// Whether the checkpoint has the weight `name` (given without prefix), of any shape.
    pub fn has(&self, name: &str) -> bool {
        self.resolve(name).is_some()
    }

    /// Loads the weight `name` (given without prefix) of exactly this shape, all values finite.
    /// Otherwise `finish` reports the problem, and an empty tensor of shape (0) is returned.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Tensor {
        self.take_named(name, shape, false)
    }

    /// Returns a weight's name in messages and, if the checkpoint has it, its name there. A `whole`
    /// name never has the prefix.
    fn names(&self, name: &str, whole: bool) -> (String, Option<String>) {
        match whole {
            true => (name.to_string(), self.source.contains(name).then(|| name.to_string())),
            false => (format!("{}{name}", self.prefix), self.resolve(name)),
        }
    }

    fn take_named(&mut self, name: &str, shape: &[usize], whole: bool) -> Tensor {
        match self.names(name, whole) {
            (shown, Some(found)) => self.load(&found, shown, shape),
            (shown, None) => self.fail(shown, WeightFault::Missing { expected: shape.to_vec() }),
        }
    }

    /// Loads the head's tensor of this full name (`classifier.weight`: heads have no prefix).
    /// `finish` reports values that are not finite; the caller handles absence and other shapes.
    pub fn try_take_head(&mut self, name: &str, shape: &[usize]) -> HeadTensor {
        match self.source.shape(name) {
            None => HeadTensor::Missing,
            Some(seen) if seen != shape => HeadTensor::Misshapen { seen: seen.to_vec() },
            Some(_) => HeadTensor::Found(self.load(name, name.to_string(), shape)),
        }
    }

    /// Ends loading.
    ///
    /// # Errors
    /// `Error::Weights` with every weight that could not be loaded.
    pub fn finish(self) -> Result<()> {
        if self.problems.is_empty() {
            return Ok(());
        }
        Err(Error::Weights { folder: self.source.place().to_path_buf(), problems: self.problems })
    }

    /// Loads the tensor `found`, which is in the checkpoint; `shown` is its name in messages.
    fn load(&mut self, found: &str, shown: String, shape: &[usize]) -> Tensor {
        let seen = self.source.shape(found).unwrap_or_default();
        if seen != shape {
            return self.fail(shown, WeightFault::Shape { seen: seen.to_vec(), expected: shape.to_vec() });
        }
        let tensor = match self.source.tensor(found) {
            Ok(tensor) => tensor,
            Err(error) => {
                let problem = match error {
                    Error::Tensor { problem, .. } => problem,
                    other => other.to_string(),
                };
                return self.fail(shown, WeightFault::Unreadable { problem });
            }
        };
        match first_non_finite(&tensor) {
            Some((index, value)) => self.fail(shown, WeightFault::NonFinite { index, value }),
            None => tensor,
        }
    }

    /// Loads a weight like `take`, but a matrix keeps the storage of its file. A `whole` name has
    /// no prefix.
    pub(crate) fn take_stored(&mut self, name: &str, shape: &[usize], whole: bool) -> Stored {
        let (shown, found) = self.names(name, whole);
        if let Some(found) = found
            && self.source.shape(&found) == Some(shape)
            && let Ok(Stored::Blocks(matrix)) = self.source.stored(&found)
            && shape.len() == 2
        {
            let wrong = first_non_finite_in_blocks(&matrix);
            // The pages are not needed now: a run may read few rows of a table of embeddings, and a
            // matrix that is to be quantized is read again.
            matrix.release(0..matrix.rows());
            return match wrong {
                None => Stored::Blocks(matrix),
                Some((index, value)) => {
                    Stored::F32(self.fail(shown, WeightFault::NonFinite { index, value }))
                }
            };
        }
        Stored::F32(self.take_named(name, shape, whole))
    }

    fn fail(&mut self, name: String, fault: WeightFault) -> Tensor {
        self.problems.push(WeightProblem { name, fault });
        // Empty, because the expected shape of a wrong config.json may need a terabyte.
        Tensor::new(vec![0], Vec::new())
    }
}

/// Returns row-major index and value of the first element that is NaN or infinite. Releases the
/// pages of a mapped tensor as it goes, because a run reads few rows of a table of embeddings.
fn first_non_finite(tensor: &Tensor) -> Option<(usize, f32)> {
    // Large enough that a piece is worth a task, small enough that few pages are resident at a
    // time.
    const PIECE: usize = 1 << 20;
    let index = tensor.par_chunks(PIECE).enumerate().find_map_first(|(number, piece)| {
        // Without an early exit, the compiler vectorises the loop.
        let wrong = piece.iter().fold(false, |wrong, v| wrong | !v.is_finite());
        let place = if wrong { piece.iter().position(|v| !v.is_finite()) } else { None };
        let start = number * PIECE;
        tensor.release(start..start + piece.len());
        place.map(|place| start + place)
    })?;
    Some((index, tensor[index]))
}

/// Does the same for a matrix in blocks.
fn first_non_finite_in_blocks(matrix: &BlockMatrix) -> Option<(usize, f32)> {
    let cols = matrix.cols();
    let wrong_in = |row: usize, values: &mut Vec<f32>| {
        values.resize(cols, 0.0);
        matrix.widen_row_range(row, 0..cols, values);
        let place = values.iter().position(|v| !v.is_finite())?;
        Some((row * cols + place, values[place]))
    };
    (0..matrix.rows())
        .into_par_iter()
        .map_init(Vec::new, |values, row| wrong_in(row, values))
        .find_first(Option::is_some)
        .flatten()
}
