//! LoRA on a linear layer: y = x Wᵀ + b + z Bᵀ with z = scale · x Aᵀ (LoRA, Hu et al. 2022, eq. 3).
//!
//! The low-rank product is a second term of the layer's product, so y and dx are written once.

use lora_drop_compute::device::{Device, Matrix, Piece, Result, Start, To};

use super::{AdapterMemory, Extent, Method, split};
use crate::linear::LayerPass;
use crate::parameters::ParamId;

/// A LoRA pair, y += scale · B A x (Hu et al. 2021).
///
/// `b` is stored transposed, (rank, out), so that in every product of a step the long dimension is
/// the contiguous one: y += (x Aᵀ) Bᵀ, and dBᵀ = zᵀ dy. Adapter files contain (out, rank).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraPair {
    /// A, (rank, in).
    pub a: ParamId,
    /// B transposed, (rank, out).
    pub b: ParamId,
    pub rank: usize,
    /// alpha / rank, or alpha / sqrt(rank) with rsLoRA.
    pub scale: f32,
}

/// Operands A (rank, in) and Bᵀ (rank, out) of a layer's products, and the destinations of their
/// gradients.
pub(super) struct Halves<'a, D: Device> {
    pub a: Matrix<'a, D>,
    pub b: Matrix<'a, D>,
    /// None for an A that does not train.
    pub gradient_a: Option<To>,
    /// Added to a parameter's gradient, or written to memory.
    pub gradient_b: To,
}

const LORA: &str = "LoRA";
const BACKWARD: &str = "LoRA backward";

impl LoraPair {
    /// Returns A (rank, in) and Bᵀ (rank, out) as operands.
    pub(super) fn matrices<'a, D: Device>(&self, layer: &LayerPass<'a, '_, D>) -> [Matrix<'a, D>; 2] {
        let [a, b] = [self.a, self.b].map(|id| layer.parameter(id));
        [Matrix::new(a, self.rank, layer.weights.input), Matrix::new(b, self.rank, layer.weights.output)]
    }

    /// Returns the operands for a pair whose A and B both train.
    pub(super) fn halves<'a, D: Device>(&self, layer: &LayerPass<'a, '_, D>) -> Halves<'a, D> {
        let [a, b] = self.matrices(layer);
        let [gradient_a, gradient_b] = [self.a, self.b].map(|id| To::Gradient(layer.piece(id)));
        Halves { a, b, gradient_a: Some(gradient_a), gradient_b }
    }

    /// Computes dz = scale · dy B, where `dy` is the gradient of the sum that includes z Bᵀ.
    pub(super) fn z_gradient<D: Device>(
        &self,
        layer: &mut LayerPass<D>,
        [dy, dz]: [Piece; 2],
        halves: &Halves<D>,
    ) -> Result<()> {
        let terms = [(layer.outputs(dy), halves.b.t())];
        let to = (To::Memory(dz), layer.rows, self.rank);
        layer.product(BACKWARD, to, Start::Zero, self.scale, &terms)
    }

    /// Adds to the gradients of A and B: dBᵀ = zᵀ dy and dA = dzᵀ x, where `x` is the pair's input.
    pub(super) fn gradients<D: Device>(
        &self,
        layer: &mut LayerPass<D>,
        [x, z, dy, dz]: [Piece; 4],
        halves: &Halves<D>,
    ) -> Result<()> {
        let thin = |piece: Piece| Matrix::of(piece, layer.rows, self.rank).t();
        let (terms_a, terms_b) = ([(thin(dz), layer.inputs(x))], [(thin(z), layer.outputs(dy))]);
        let start = if let To::Memory(_) = halves.gradient_b { Start::Zero } else { Start::Keep };
        let to = (halves.gradient_b, self.rank, layer.weights.output);
        layer.product(BACKWARD, to, start, 1.0, &terms_b)?;
        let Some(gradient) = halves.gradient_a else { return Ok(()) };
        let to = (gradient, self.rank, layer.weights.input);
        layer.product(BACKWARD, to, Start::Keep, 1.0, &terms_a)
    }

    /// Computes z = scale · x Aᵀ; x is used as it is, without dropout.
    pub fn project<D: Device>(&self, layer: &mut LayerPass<D>, x: Piece, z: Piece) -> Result<()> {
        let [a, _] = self.matrices(layer);
        let terms = [(layer.inputs(x), a.t())];
        layer.product(LORA, (To::Memory(z), layer.rows, self.rank), Start::Zero, self.scale, &terms)
    }

    /// Computes y of the layer with the pair, with `b` as Bᵀ, and z for the backward pass.
    /// `dropped` is memory for the dropped input.
    pub(super) fn forward_with<D: Device>(
        &self,
        layer: &mut LayerPass<D>,
        [x, y]: [Piece; 2],
        [z, dropped]: [Piece; 2],
        b: Matrix<D>,
    ) -> Result<()> {
        let input = layer.adapter_input(x, dropped)?;
        self.project(layer, input, z)?;
        let thin = (Matrix::of(z, layer.rows, self.rank), b);
        layer.forward([x, y], layer.bias(), Some(thin))
    }

    /// The backward pass of [`Self::forward_with`].
    pub(super) fn backward_with<D: Device>(
        &self,
        layer: &mut LayerPass<D>,
        [x, dy]: [Piece; 2],
        dx: Option<(Piece, bool)>,
        [z, dz, dropped]: [Piece; 3],
        halves: &Halves<D>,
    ) -> Result<()> {
        layer.weight_gradient(x, dy)?;
        layer.bias_gradient(dy)?;
        let trains_a = halves.gradient_a.is_some();
        if trains_a || dx.is_some() {
            self.z_gradient(layer, [dy, dz], halves)?;
        }
        // Only A's gradient reads the input.
        let input = if trains_a { layer.adapter_input(x, dropped)? } else { x };
        self.gradients(layer, [input, z, dy, dz], halves)?;

        let Some(dx) = dx else { return Ok(()) };
        let thin = (Matrix::of(dz, layer.rows, self.rank), halves.a);
        if layer.dropout.is_none() {
            return layer.input_gradient(dy, dx, Some(thin));
        }
        layer.input_gradient(dy, dx, None)?;
        let to = (To::Memory(dropped), layer.rows, layer.weights.input);
        layer.product(BACKWARD, to, Start::Zero, 1.0, &[thin])?;
        layer.add_dropped(dropped, dx.0)
    }
}

impl<D: Device> Method<D> for LoraPair {
    /// Number of values of z, (rows, rank), which the score reads too.
    fn saved(&self, of: Extent) -> usize {
        of.rows * self.rank
    }

    /// Number of values of dz, (rows, rank), in the backward pass and of the dropped input, (rows,
    /// in), with dropout.
    fn scratch(&self, of: Extent, backward: bool) -> usize {
        of.dropped() + if backward { of.rows * self.rank } else { 0 }
    }

    fn pair(&self) -> &LoraPair {
        self
    }

    fn forward(&self, layer: &mut LayerPass<D>, xy: [Piece; 2], memory: AdapterMemory) -> Result<()> {
        let [_, b] = self.matrices(layer);
        self.forward_with(layer, xy, [memory.saved, memory.scratch], b)
    }

    fn backward(
        &self,
        layer: &mut LayerPass<D>,
        xdy: [Piece; 2],
        dx: Option<(Piece, bool)>,
        memory: AdapterMemory,
    ) -> Result<()> {
        let of = layer.extent(true);
        let [dz, dropped] = split(memory.scratch, [of.rows * self.rank, of.dropped()]);
        let halves = self.halves(layer);
        self.backward_with(layer, xdy, dx, [memory.saved, dz, dropped], &halves)
    }
}
