//! The weights of linear layers, frozen or trained, and a layer's products.

use lora_drop_compute::device::{
    At, Cpu, Device, Dropped, Matrix, Operation, Piece, Product, Result, Start, Storage, Store, To,
};
use lora_drop_compute::gemm::{PackedMatrix, Precision, round};

use crate::module::ModuleId;
use crate::parameters::{ParamId, Parameter};

/// A weight of the model.
#[derive(Clone, Debug)]
pub enum Weight<D: Device = Cpu> {
    Frozen(D::Weight),
    /// Index of a trained tensor in the parameters.
    Trained(ParamId),
}

impl<D: Device> Weight<D> {
    /// Returns the place of its values; `list` describes what trains.
    pub fn at<'a>(&'a self, list: &[Parameter]) -> At<'a, D> {
        match self {
            Weight::Frozen(weight) => At::Frozen(weight),
            Weight::Trained(id) => At::Trained(list[id.index()].piece()),
        }
    }

    /// Returns the place of its gradient, if it trains.
    pub fn gradient(&self, list: &[Parameter]) -> Option<Piece> {
        match self {
            Weight::Frozen(_) => None,
            Weight::Trained(id) => Some(list[id.index()].piece()),
        }
    }

    /// Whether it trains.
    pub fn trains(&self) -> bool {
        matches!(self, Weight::Trained(_))
    }
}

/// How frozen f32 matrices of linear layers are stored for training. It does not affect results of
/// training or scoring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrozenForm {
    /// As loaded.
    AsIs,
    /// Rounded once if the layer multiplies in bf16: packing then rounds nothing and reads half as
    /// much. Not for generating text, which multiplies few rows in f32.
    Rounded,
    /// Packed once for both directions instead of at each product; a decoder's output layer is
    /// rounded instead. Not for generating text, whose products of few rows read the matrix by
    /// rows.
    Packed,
}

/// A linear layer, y = x Wᵀ + b: `weight` W, (output, input), and `bias` b, (output).
#[derive(Clone, Debug)]
pub struct LinearWeights<D: Device = Cpu> {
    pub weight: Weight<D>,
    pub bias: Option<Weight<D>>,
    pub input: usize,
    pub output: usize,
    /// The precision of its products in training.
    pub precision: Precision,
    /// Its module; None for heads for labels.
    pub module: Option<ModuleId>,
}

impl<D: Device> LinearWeights<D> {
    /// Whether it is a layer of a block.
    pub fn in_block(&self) -> bool {
        self.module.is_some_and(|module| module != ModuleId::LM_HEAD)
    }
}

impl LinearWeights {
    /// Converts a frozen f32 matrix to this form.
    pub fn convert_frozen(&mut self, form: FrozenForm) {
        let Weight::Frozen(Storage::F32(tensor)) = &self.weight else { return };
        let storage = match (form, self.precision) {
            (FrozenForm::Rounded, Precision::Bf16) => Storage::Blocks(round(tensor)),
            (FrozenForm::Packed, precision) => Storage::Packed(PackedMatrix::new(precision, tensor)),
            _ => return,
        };
        self.weight = Weight::Frozen(storage);
    }

    /// Bytes of a frozen f32 matrix in its precision; None for other matrices.
    pub fn frozen_bytes(&self) -> Option<usize> {
        let bytes = self.precision.bytes() * self.output * self.input;
        matches!(self.weight, Weight::Frozen(Storage::F32(_))).then_some(bytes)
    }
}

/// A linear layer in a pass over `rows` rows, with the device that computes it.
pub struct LayerPass<'a, 's, D: Device> {
    pub device: &'a D,
    /// The device's buffers.
    pub store: &'a mut Store<'s, D>,
    /// Descriptions of trained tensors and constants.
    pub list: &'a [Parameter],
    pub weights: &'a LinearWeights<D>,
    pub rows: usize,
    /// See [`Product::few`](lora_drop_compute::device::Product::few).
    pub few: bool,
    /// Dropout on the adapter's input, with one key per row.
    pub dropout: Dropped<'a>,
}

/// A product of two matrices.
pub type Term<'a, D> = (Matrix<'a, D>, Matrix<'a, D>);

impl<'a, D: Device> LayerPass<'a, '_, D> {
    /// Returns the weight as a matrix, (out, in).
    pub fn weight(&self) -> Matrix<'a, D> {
        let weights = self.weights;
        Matrix::new(weights.weight.at(self.list), weights.output, weights.input)
    }

    /// Returns the bias as the start of a product; zeros if there is none.
    pub fn bias(&self) -> Start<'a, D> {
        self.weights.bias.as_ref().map_or(Start::Zero, |bias| Start::Bias(bias.at(self.list)))
    }

    /// Returns the layer's input as a matrix, (rows, in).
    pub fn inputs(&self, x: Piece) -> Matrix<'a, D> {
        Matrix::of(x, self.rows, self.weights.input)
    }

    /// Returns the layer's output as a matrix, (rows, out).
    pub fn outputs(&self, y: Piece) -> Matrix<'a, D> {
        Matrix::of(y, self.rows, self.weights.output)
    }

    /// Runs an operation on the device.
    ///
    /// # Errors
    /// The device fails.
    pub fn compute(&mut self, operation: Operation<D>) -> Result<()> {
        self.device.compute(self.store, operation)
    }

    /// Computes start + scale · Σ AᵢBᵢ into `to`, (rows, cols), in the layer's precision.
    pub fn product(
        &mut self,
        name: &'static str,
        (to, rows, cols): (To, usize, usize),
        start: Start<D>,
        scale: f32,
        terms: &[Term<D>],
    ) -> Result<()> {
        let (precision, few) = (self.weights.precision, self.few);
        self.compute(Operation::Product(Product {
            name,
            precision,
            few,
            to,
            rows,
            cols,
            start,
            scale,
            terms,
        }))
    }

    /// Computes y = start + x Wᵀ + `joined`, another product; joining them writes y once. x: (rows,
    /// in), y: (rows, out).
    pub fn forward(&mut self, [x, y]: [Piece; 2], start: Start<D>, joined: Option<Term<D>>) -> Result<()> {
        let wide = (self.inputs(x), self.weight().t());
        let terms = [wide, joined.unwrap_or(wide)];
        let to = (To::Memory(y), self.rows, self.weights.output);
        self.product("linear", to, start, 1.0, &terms[..1 + usize::from(joined.is_some())])
    }

    /// Computes dx = dy W + `joined`, or adds this to dx if `add`. dy: (rows, out), dx: (rows, in).
    pub fn input_gradient(
        &mut self,
        dy: Piece,
        (dx, add): (Piece, bool),
        joined: Option<Term<D>>,
    ) -> Result<()> {
        let wide = (self.outputs(dy), self.weight());
        let terms = [wide, joined.unwrap_or(wide)];
        let start = if add { Start::Keep } else { Start::Zero };
        let to = (To::Memory(dx), self.rows, self.weights.input);
        self.product("linear, input gradient", to, start, 1.0, &terms[..1 + usize::from(joined.is_some())])
    }

    /// Adds dyᵀ x to the gradient of the weight, if it trains.
    pub(crate) fn weight_gradient(&mut self, x: Piece, dy: Piece) -> Result<()> {
        let weights = self.weights;
        let Some(gradient) = weights.weight.gradient(self.list) else { return Ok(()) };
        let terms = [(self.outputs(dy).t(), self.inputs(x))];
        let to = (To::Gradient(gradient), weights.output, weights.input);
        self.product("linear, weight gradient", to, Start::Keep, 1.0, &terms)
    }

    /// Adds the sum of dy's rows to the gradient of the bias, if it trains.
    pub(crate) fn bias_gradient(&mut self, dy: Piece) -> Result<()> {
        let gradient = self.weights.bias.as_ref().and_then(|bias| bias.gradient(self.list));
        match gradient {
            Some(gradient) => self.compute(Operation::SumRows { dy, gradient }),
            None => Ok(()),
        }
    }
}
