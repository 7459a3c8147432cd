//! The weights of linear layers and norms, frozen or trained, and their place in the pass.

use lora_drop_compute::blocks::BlockMatrix;
use lora_drop_compute::gemm::{PackedMatrix, Precision, Start, round};
use lora_drop_compute::linear::{Gradients, Linear, Lora, Matrix, Rows};
use lora_drop_compute::random::{Dropout, Key};
use lora_drop_compute::{Tensor, norm};

use crate::lora::LoraPair;
use crate::parameters::{ParamId, Parameter};

/// A weight of the model: as the checkpoint has it, or one that trains.
#[derive(Clone, Debug)]
pub enum Weight {
    Frozen(Tensor),
    /// A frozen matrix in its file's storage, quantised, or rounded, for linear layers only.
    Blocks(BlockMatrix),
    /// A frozen matrix packed once for training's products.
    Packed(PackedMatrix),
    Trained(ParamId),
}

impl Weight {
    /// The f32 values. Panics for blocks, which are never widened whole, and panels: a fault of the program, not of its input.
    pub fn get<'a>(&'a self, values: Values<'a>) -> &'a [f32] {
        match self {
            Weight::Frozen(tensor) => tensor,
            Weight::Blocks(matrix) => panic!("{matrix:?} is not in f32"),
            Weight::Packed(matrix) => panic!("{matrix:?} does not lie by rows"),
            Weight::Trained(id) => values.get(*id),
        }
    }

    /// As a linear layer multiplies with it.
    fn matrix<'a>(&'a self, values: Values<'a>) -> Matrix<'a> {
        match self {
            Weight::Blocks(matrix) => Matrix::Blocks(matrix),
            Weight::Packed(matrix) => Matrix::Packed(matrix),
            _ => Matrix::F32(self.get(values)),
        }
    }

    pub fn id(&self) -> Option<ParamId> {
        match self {
            Weight::Frozen(_) | Weight::Blocks(_) | Weight::Packed(_) => None,
            Weight::Trained(id) => Some(*id),
        }
    }
}

/// The trained values, by parameter.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    pub list: &'a [Parameter],
    pub values: &'a [f32],
}

impl<'a> Values<'a> {
    pub fn get(self, id: ParamId) -> &'a [f32] {
        &self.values[self.list[id.index()].range.clone()]
    }
}

/// The gradients to add to, by parameter.
pub struct Grads<'a> {
    pub list: &'a [Parameter],
    pub gradients: &'a mut [f32],
    /// The gradient of the relative bias by distance, where the bias trains.
    pub relative: Option<&'a mut [f32]>,
}

impl Grads<'_> {
    pub fn get(&mut self, id: ParamId) -> &mut [f32] {
        &mut self.gradients[self.list[id.index()].range.clone()]
    }

    /// The gradients of several different parameters at once.
    pub fn get_many<const N: usize>(&mut self, ids: [ParamId; N]) -> [&mut [f32]; N] {
        let ranges = ids.map(|id| self.list[id.index()].range.clone());
        self.gradients.get_disjoint_mut(ranges).expect("parameters do not overlap")
    }
}

/// How frozen f32 matrices of linear layers are kept for training. No product of training or scoring depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrozenForm {
    /// As they are.
    AsIs,
    /// Rounded once where a layer multiplies in bf16: packing then rounds nothing and reads half as much. Not for generating
    /// text, which multiplies few rows in f32.
    Rounded,
    /// Packed once for both directions, instead of each time that they are multiplied; a decoder's output layer is rounded
    /// instead. Not for generating text, whose products of few rows want rows.
    Packed,
}

/// A linear layer: weight (out, in), bias (out) or none.
#[derive(Clone, Debug)]
pub struct LinearWeights {
    pub weight: Weight,
    pub bias: Option<Weight>,
    pub input: usize,
    pub output: usize,
    /// What training multiplies in.
    pub precision: Precision,
}

/// A module's LoRA in a pass: its pair and the dropout on its input.
#[derive(Clone, Copy)]
pub struct ActiveLora<'a> {
    pub pair: LoraPair,
    pub dropout: Option<(Dropout, &'a [Key])>,
}

impl LinearWeights {
    /// A layer of f32 products.
    pub fn new(weight: Weight, bias: Option<Weight>, input: usize, output: usize) -> Self {
        LinearWeights { weight, bias, input, output, precision: Precision::F32 }
    }

    /// Keeps a frozen f32 matrix in this form from now on.
    pub fn keep_frozen(&mut self, form: FrozenForm) {
        match (form, self.precision, &self.weight) {
            (FrozenForm::Rounded, Precision::Bf16, Weight::Frozen(tensor)) => {
                self.weight = Weight::Blocks(round(tensor));
            }
            (FrozenForm::Packed, precision, Weight::Frozen(tensor)) => {
                self.weight = Weight::Packed(PackedMatrix::new(precision, tensor));
            }
            _ => {}
        }
    }

    /// Bytes of a frozen f32 matrix as it is multiplied; None of any other.
    pub fn frozen_bytes(&self) -> Option<usize> {
        let bytes = self.precision.bytes() * self.output * self.input;
        matches!(self.weight, Weight::Frozen(_)).then_some(bytes)
    }

    fn linear<'a>(&'a self, values: Values<'a>) -> Linear<'a> {
        Linear {
            weight: self.weight.matrix(values),
            bias: self.bias.as_ref().map(|bias| bias.get(values)),
            input: self.input,
            output: self.output,
            precision: self.precision,
        }
    }

    fn lora<'a>(values: Values<'a>, lora: Option<ActiveLora<'a>>) -> Option<Lora<'a>> {
        lora.map(|l| Lora {
            a: values.get(l.pair.a),
            b: values.get(l.pair.b),
            rank: l.pair.rank,
            scale: l.pair.scale,
            dropout: l.dropout,
        })
    }

    /// See `Linear::forward`.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        values: Values,
        rows: usize,
        x: &[f32],
        lora: Option<ActiveLora>,
        y: &mut [f32],
        stride: usize,
        z: &mut [f32],
        dropped: &mut [f32],
    ) {
        let lora = Self::lora(values, lora);
        self.linear(values).forward(rows, x, lora, y, stride, z, dropped);
    }

    /// See `Linear::infer`.
    #[allow(clippy::too_many_arguments)]
    pub fn infer(
        &self,
        values: Values,
        rows: usize,
        x: &[f32],
        lora: Option<ActiveLora>,
        y: &mut [f32],
        stride: usize,
        z: &mut [f32],
    ) {
        let lora = Self::lora(values, lora);
        self.linear(values).infer(rows, x, lora, y, stride, z);
    }

    /// See `Linear::backward`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        values: Values,
        grads: &mut Grads,
        rows: usize,
        x: &[f32],
        lora: Option<ActiveLora>,
        z: &[f32],
        dy: Rows,
        dx: Option<(&mut [f32], Start)>,
        dz: &mut [f32],
        dropped: &mut [f32],
    ) {
        let gradients = match (lora, self.weight.id(), self.bias.as_ref().and_then(Weight::id)) {
            (Some(l), None, None) => {
                let [a, b] = grads.get_many([l.pair.a, l.pair.b]);
                Gradients { lora: Some((a, b)), ..Gradients::default() }
            }
            (None, Some(weight), Some(bias)) => {
                let [weight, bias] = grads.get_many([weight, bias]);
                Gradients { weight: Some(weight), bias: Some(bias), lora: None }
            }
            (None, Some(weight), None) => {
                Gradients { weight: Some(grads.get(weight)), ..Gradients::default() }
            }
            (None, None, None) => Gradients::default(),
            _ => unreachable!("a layer is frozen with or without a LoRA, or trains whole"),
        };
        let lora = Self::lora(values, lora);
        self.linear(values).backward(rows, x, lora, z, dy, gradients, dx, dz, dropped);
    }
}

/// A layer norm: gamma and beta (hidden).
#[derive(Clone, Debug)]
pub struct NormWeights {
    pub gamma: Weight,
    pub beta: Weight,
    pub epsilon: f32,
}

impl NormWeights {
    pub fn forward<'a>(
        &'a self,
        values: Values<'a>,
        x: &'a [f32],
        residual: Option<&'a [f32]>,
        dropout: Option<(Dropout, &'a [Key])>,
    ) -> norm::Forward<'a> {
        norm::Forward {
            x,
            residual,
            dropout,
            gamma: self.gamma.get(values),
            beta: self.beta.get(values),
            epsilon: self.epsilon,
        }
    }

    /// Runs the norm's way back: see `norm::Backward::run`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        values: Values,
        grads: &mut Grads,
        dy: &[f32],
        saved: (&[f32], &[f32]),
        dropout: Option<(Dropout, &[Key])>,
        du: &mut [f32],
        dx: Option<&mut [f32]>,
    ) {
        let (normed, rstd) = saved;
        let affine = match (self.gamma.id(), self.beta.id()) {
            (Some(gamma), Some(beta)) => {
                let [gamma, beta] = grads.get_many([gamma, beta]);
                Some((gamma, beta))
            }
            _ => None,
        };
        let gamma = self.gamma.get(values);
        norm::Backward { dy, normed, rstd, gamma, dropout }.run(du, dx, affine);
    }
}
