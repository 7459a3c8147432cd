//! Everything that trains, in one flat vector of values and one of gradients.
//!
//! The optimiser, the gradient norm, the best epoch's copy and the state all iterate over trained
//! values in one order, whatever they belong to. Constants of adapters come after them, without
//! gradients.

use std::ops::Range;

use lora_drop_compute::device::{Cpu, Device, Piece};

/// A tensor's number in its `Parameters`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(usize);

impl ParamId {
    /// Its index in `Values::list` and, if it trains, in `Parameters::list`.
    pub fn index(self) -> usize {
        self.0
    }
}

/// What a trained tensor belongs to; the head can have a separate learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Lora,
    Head,
    /// The pre-trained model.
    Base,
}

/// The name, shape and place of one tensor.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Unique name: the tensor's name in a checkpoint, or the LoRA pair's (`lora.query.3.A`).
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    pub group: Group,
    /// Whether weight decay applies: not to biases and norms, as in transformers' Trainer.
    pub decay: bool,
    /// Its place among all values; constants come after trained tensors.
    pub range: Range<usize>,
}

impl Parameter {
    /// Returns its range in the buffer of all values, which is also that of its gradient in the
    /// buffer of all gradients.
    pub(crate) fn piece(&self) -> Piece {
        Piece::new(self.range.start, self.range.len())
    }
}

/// The trained tensors: descriptions, values, gradients; and constants after them.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    /// Trained tensors, then constants.
    list: Vec<Parameter>,
    values: Vec<f32>,
    /// One for each trained value; empty until `zero_gradients` is called.
    gradients: Vec<f32>,
    /// Number of trained tensors.
    trained: usize,
}

impl Parameters {
    /// No tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor that trains, with its initial values.
    ///
    /// # Panics
    /// The number of values is wrong, the name is taken, or a constant was added before.
    pub fn add(&mut self, name: &str, shape: &[usize], group: Group, decay: bool, values: &[f32]) -> ParamId {
        assert_eq!(self.trained, self.list.len(), "{name} trains, so it stands before all constants");
        let id = self.push(name, shape, group, decay, values);
        self.trained = self.list.len();
        id
    }

    /// Adds a tensor that adapters read and that never changes.
    ///
    /// # Panics
    /// The number of values is wrong, or the name is taken.
    pub fn add_constant(&mut self, name: &str, shape: &[usize], values: &[f32]) -> ParamId {
        self.push(name, shape, Group::Lora, false, values)
    }

    fn push(&mut self, name: &str, shape: &[usize], group: Group, decay: bool, values: &[f32]) -> ParamId {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}: {shape:?}");
        assert!(self.list.iter().all(|p| p.name != name), "{name} occurs twice");
        let start = self.values.len();
        self.values.extend_from_slice(values);
        let range = start..self.values.len();
        self.list.push(Parameter { name: name.to_string(), shape: shape.to_vec(), group, decay, range });
        ParamId(self.list.len() - 1)
    }

    /// The trained tensors, in the order in which they were added.
    pub fn list(&self) -> &[Parameter] {
        &self.list[..self.trained]
    }

    /// The tensor with this name; None if there is none.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.list.iter().position(|p| p.name == name).map(ParamId)
    }

    /// The description of a tensor.
    pub fn info(&self, id: ParamId) -> &Parameter {
        &self.list[id.0]
    }

    /// The values of a tensor, row-major.
    pub fn value(&self, id: ParamId) -> &[f32] {
        &self.values[self.list[id.0].range.clone()]
    }

    /// The values of a tensor, to be changed.
    pub fn value_mut(&mut self, id: ParamId) -> &mut [f32] {
        &mut self.values[self.list[id.0].range.clone()]
    }

    /// All trained values, tensor after tensor in the order of `list`.
    pub fn values(&self) -> &[f32] {
        &self.values[..self.count()]
    }

    /// Sets all trained values, in the order of [`Self::values`].
    pub fn set_values(&mut self, values: &[f32]) {
        let count = self.count();
        self.values[..count].copy_from_slice(values);
    }

    /// Number of trained values.
    pub fn count(&self) -> usize {
        self.list().last().map_or(0, |parameter| parameter.range.end)
    }

    /// Number of values in constants.
    pub fn constants(&self) -> usize {
        self.values.len() - self.count()
    }

    /// Sets all gradients to zero, and allocates them at the first call.
    pub fn zero_gradients(&mut self) {
        self.gradients.clear();
        self.gradients.resize(self.count(), 0.0);
    }

    /// The gradients of all trained values, in the order of [`Self::values`]; empty before
    /// [`Self::zero_gradients`].
    pub fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    /// The gradient of a tensor, row-major.
    pub fn gradient(&self, id: ParamId) -> &[f32] {
        &self.gradients[self.list[id.0].range.clone()]
    }

    /// Values for passes without a backward pass.
    pub fn read(&self) -> Values<'_> {
        Values { list: &self.list, values: &self.values }
    }

    /// Values, and gradients to add to, for training passes.
    pub fn training(&mut self) -> (Values<'_>, &mut [f32]) {
        (Values { list: &self.list, values: &self.values }, &mut self.gradients)
    }

    /// Descriptions, values to change, and gradients, for the optimiser.
    pub fn split(&mut self) -> (&[Parameter], &mut [f32], &mut [f32]) {
        let count = self.count();
        (&self.list[..self.trained], &mut self.values[..count], &mut self.gradients)
    }
}

/// The values of trained tensors, and of constants after them.
pub struct Values<'a, D: Device = Cpu> {
    /// Descriptions of the tensors.
    pub list: &'a [Parameter],
    /// All values, in the order of `list`.
    pub values: &'a D::Buffer,
}

impl<D: Device> Clone for Values<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Values<'_, D> {}
