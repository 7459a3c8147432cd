//! The weights of linear layers, frozen or trained, and a layer's products.

use lora_drop_compute::device::{At, Cpu, Device, Matrix, Piece, Product, Result, Start, Storage, Store, To};
use lora_drop_compute::gemm::{PackedMatrix, Precision, round};

use crate::module::ModuleId;
use crate::parameters::{ParamId, Parameter};

/// A weight of the model: as the checkpoint has it, or one that trains.
#[derive(Clone, Debug)]
pub enum Weight<D: Device = Cpu> {
    Frozen(D::Weight),
    Trained(ParamId),
}

impl<D: Device> Weight<D> {
    /// Where it lies; `list` describes what trains.
    pub fn at<'a>(&'a self, list: &[Parameter]) -> At<'a, D> {
        match self {
            Weight::Frozen(weight) => At::Frozen(weight),
            Weight::Trained(id) => At::Trained(list[id.index()].piece()),
        }
    }

    /// Where its gradient lies, if it trains.
    pub fn gradient(&self, list: &[Parameter]) -> Option<Piece> {
        match self {
            Weight::Frozen(_) => None,
            Weight::Trained(id) => Some(list[id.index()].piece()),
        }
    }

    pub fn trains(&self) -> bool {
        matches!(self, Weight::Trained(_))
    }
}

/// How frozen f32 matrices of linear layers are kept for training. No product of training or
/// scoring depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrozenForm {
    /// As they are.
    AsIs,
    /// Rounded once where a layer multiplies in bf16: packing then rounds nothing and reads half as
    /// much. Not for generating text, which multiplies few rows in f32.
    Rounded,
    /// Packed once for both directions, instead of each time that they are multiplied; a decoder's
    /// output layer is rounded instead. Not for generating text, whose products of few rows want
    /// rows.
    Packed,
}

/// A linear layer: weight (out, in), bias (out) or none.
#[derive(Clone, Debug)]
pub struct LinearWeights<D: Device = Cpu> {
    pub weight: Weight<D>,
    pub bias: Option<Weight<D>>,
    pub input: usize,
    pub output: usize,
    /// What training multiplies in.
    pub precision: Precision,
    /// Which module of the blocks it is; heads and output layers are none.
    pub module: Option<ModuleId>,
}

impl<D: Device> LinearWeights<D> {
    /// In a pass over `rows` rows; `list` describes what trains.
    pub fn over<'a>(&'a self, list: &[Parameter], rows: usize, few: bool) -> Linear<'a, D> {
        Linear {
            weight: self.weight.at(list),
            bias: self.bias.as_ref().map(|bias| bias.at(list)),
            input: self.input,
            output: self.output,
            rows,
            precision: self.precision,
            few,
        }
    }
}

impl LinearWeights {
    /// Keeps a frozen f32 matrix in this form from now on.
    pub fn keep_frozen(&mut self, form: FrozenForm) {
        let Weight::Frozen(Storage::F32(tensor)) = &self.weight else { return };
        let storage = match (form, self.precision) {
            (FrozenForm::Rounded, Precision::Bf16) => Storage::Blocks(round(tensor)),
            (FrozenForm::Packed, precision) => Storage::Packed(PackedMatrix::new(precision, tensor)),
            _ => return,
        };
        self.weight = Weight::Frozen(storage);
    }

    /// Bytes of a frozen f32 matrix as it is multiplied; None of any other.
    pub fn frozen_bytes(&self) -> Option<usize> {
        let bytes = self.precision.bytes() * self.output * self.input;
        matches!(self.weight, Weight::Frozen(Storage::F32(_))).then_some(bytes)
    }
}

/// A layer in a pass over this number of rows.
pub struct Linear<'a, D: Device> {
    pub weight: At<'a, D>,
    pub bias: Option<At<'a, D>>,
    pub input: usize,
    pub output: usize,
    pub rows: usize,
    pub precision: Precision,
    /// See `Product::few`.
    pub few: bool,
}

/// A product that joins a layer's.
pub type Term<'a, D> = (Matrix<'a, D>, Matrix<'a, D>);

impl<D: Device> Linear<'_, D> {
    fn weight(&self) -> Matrix<'_, D> {
        Matrix::new(self.weight, self.output, self.input)
    }

    /// A product of the layer's rows in its precision.
    pub fn product<'p>(
        &self,
        name: &'static str,
        to: (To, usize, usize),
        start: Start<'p, D>,
        terms: &'p [Term<'p, D>],
    ) -> Product<'p, D> {
        let ((to, rows, cols), precision, few) = (to, self.precision, self.few);
        Product { name, precision, few, to, rows, cols, start, scale: 1.0, terms }
    }

    /// y = x Wᵀ + b, with a term that joins the product so that y is written once. x: (rows, in),
    /// y: (rows, out).
    pub fn forward(
        &self,
        device: &D,
        store: &mut Store<D>,
        x: Piece,
        y: Piece,
        joined: Option<Term<D>>,
    ) -> Result<()> {
        let wide = (Matrix::of(x, self.rows, self.input), self.weight().t());
        let start = self.bias.map_or(Start::Zero, Start::Bias);
        let to = (To::Memory(y), self.rows, self.output);
        match joined {
            None => device.product(store, self.product("linear", to, start, &[wide])),
            Some(joined) => device.product(store, self.product("linear", to, start, &[wide, joined])),
        }
    }

    /// dx, overwritten or with `add` added to, = dy W and the term. dy: (rows, out), dx: (rows,
    /// in).
    pub fn input_gradient(
        &self,
        device: &D,
        store: &mut Store<D>,
        dy: Piece,
        (dx, add): (Piece, bool),
        joined: Option<Term<D>>,
    ) -> Result<()> {
        const NAME: &str = "linear, input gradient";
        let wide = (Matrix::of(dy, self.rows, self.output), self.weight());
        let start = if add { Start::Keep } else { Start::Zero };
        let to = (To::Memory(dx), self.rows, self.input);
        match joined {
            None => device.product(store, self.product(NAME, to, start, &[wide])),
            Some(joined) => device.product(store, self.product(NAME, to, start, &[wide, joined])),
        }
    }

    /// Adds to the gradients of the weight and the bias that train.
    pub fn weight_gradients(
        &self,
        device: &D,
        store: &mut Store<D>,
        x: Piece,
        dy: Piece,
        [weight, bias]: [Option<Piece>; 2],
    ) -> Result<()> {
        if let Some(weight) = weight {
            let terms = [(Matrix::of(dy, self.rows, self.output).t(), Matrix::of(x, self.rows, self.input))];
            let to = (To::Gradient(weight), self.output, self.input);
            device.product(store, self.product("linear, weight gradient", to, Start::Keep, &terms))?;
        }
        match bias {
            Some(bias) => device.sum_rows(store, dy, bias),
            None => Ok(()),
        }
    }
}
