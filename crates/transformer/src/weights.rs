//! Takes a model's weights out of a checkpoint by name and shape, and collects everything that does not fit.

use lora_drop_compute::Tensor;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, WeightFault, WeightProblem};

/// Loads the weights of one architecture. Take all of them, then call `finish`, which reports all problems at once.
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    /// With its dot: `bert.`
    prefix: String,
    problems: Vec<WeightProblem>,
}

/// What a checkpoint has for a tensor of the head.
#[derive(Clone, Debug)]
pub enum HeadTensor {
    Found(Tensor),
    Missing,
    /// It is there for another task, such as another number of classes.
    Misshapen {
        seen: Vec<usize>,
    },
}

impl<'a> Weights<'a> {
    /// `prefix` is the architecture's, without a dot (`bert`). Names are found with it and, as a bare encoder has
    /// them, without it.
    pub fn new(checkpoint: &'a Checkpoint, prefix: &str) -> Self {
        Weights { checkpoint, prefix: format!("{prefix}."), problems: Vec::new() }
    }

    /// The name under which the checkpoint has the weight `name` (given without prefix).
    pub fn resolve(&self, name: &str) -> Option<String> {
        let mut spellings = vec![name.to_string()];
        // Checkpoints converted from TensorFlow have a norm's weight and bias under its symbols.
        if let Some(norm) = name.strip_suffix("LayerNorm.weight") {
            spellings.push(format!("{norm}LayerNorm.gamma"));
        } else if let Some(norm) = name.strip_suffix("LayerNorm.bias") {
            spellings.push(format!("{norm}LayerNorm.beta"));
        }
        let prefixed: Vec<_> = spellings.iter().map(|s| format!("{}{s}", self.prefix)).collect();
        prefixed.into_iter().chain(spellings).find(|s| self.checkpoint.contains(s))
    }

    /// Whether the checkpoint has the weight `name` (given without prefix), of whatever shape.
    pub fn has(&self, name: &str) -> bool {
        self.resolve(name).is_some()
    }

    /// The weight `name` (given without prefix) of exactly this shape, all values finite. When it cannot be had, that
    /// is noted for `finish`, and an empty tensor of shape (0) returned.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Tensor {
        let shown = format!("{}{name}", self.prefix);
        match self.resolve(name) {
            Some(found) => self.load(&found, shown, shape),
            None => self.fail(shown, WeightFault::Missing { expected: shape.to_vec() }),
        }
    }

    /// The weight of exactly this name, which never has the prefix; otherwise as `take`.
    pub fn take_whole(&mut self, name: &str, shape: &[usize]) -> Tensor {
        if self.checkpoint.contains(name) {
            return self.load(name, name.to_string(), shape);
        }
        self.fail(name.to_string(), WeightFault::Missing { expected: shape.to_vec() })
    }

    /// The head's tensor of this full name (`classifier.weight`: heads have no prefix). Values that are not finite are
    /// a problem for `finish`; absence and another shape are the caller's to judge.
    pub fn try_take_head(&mut self, name: &str, shape: &[usize]) -> HeadTensor {
        match self.checkpoint.shape(name) {
            None => HeadTensor::Missing,
            Some(seen) if seen != shape => HeadTensor::Misshapen { seen: seen.to_vec() },
            Some(_) => HeadTensor::Found(self.load(name, name.to_string(), shape)),
        }
    }

    /// # Errors
    /// `Error::Weights` with every weight that could not be taken.
    pub fn finish(self) -> Result<()> {
        if self.problems.is_empty() {
            return Ok(());
        }
        Err(Error::Weights { folder: self.checkpoint.folder().to_path_buf(), problems: self.problems })
    }

    /// `found` is in the checkpoint; `shown` is its name in messages.
    fn load(&mut self, found: &str, shown: String, shape: &[usize]) -> Tensor {
        let seen = self.checkpoint.shape(found).unwrap_or_default();
        if seen != shape {
            return self.fail(shown, WeightFault::Shape { seen: seen.to_vec(), expected: shape.to_vec() });
        }
        let tensor = match self.checkpoint.tensor(found) {
            Ok(tensor) => tensor,
            Err(Error::Tensor { problem, .. }) => {
                return self.fail(shown, WeightFault::Unreadable { problem });
            }
            Err(other) => return self.fail(shown, WeightFault::Unreadable { problem: other.to_string() }),
        };
        match self.checkpoint.first_non_finite(found, &tensor) {
            Some((index, value)) => self.fail(shown, WeightFault::NonFinite { index, value }),
            None => tensor,
        }
    }

    fn fail(&mut self, name: String, fault: WeightFault) -> Tensor {
        self.problems.push(WeightProblem { name, fault });
        // Empty and not of the wanted shape: a wrong config.json may want a terabyte.
        Tensor::new(vec![0], Vec::new())
    }
}
