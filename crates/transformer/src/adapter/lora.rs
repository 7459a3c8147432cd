//! LoRA on a linear layer: y = x Wᵀ + b + z Bᵀ with z = scale · x Aᵀ (LoRA, Hu et al. 2022, eq. 3).
//!
//! Its product joins the layer's, so y and dx are written once.

use lora_drop_compute::device::{At, Device, Matrix, Piece, Product, Result, Start, Store, To};

use super::{AdapterMemory, Back, Extent, Layer, Method, parts};
use crate::parameters::ParamId;

/// One LoRA pair, y += scale · B A x.
///
/// `b` is stored transposed, (rank, out), because then every product of the step has its long side
/// last: y += (x Aᵀ) Bᵀ, and dBᵀ = zᵀ dy. Adapter files hold (out, rank); the bank turns it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraPair {
    /// (rank, in)
    pub a: ParamId,
    /// (rank, out): B transposed
    pub b: ParamId,
    pub rank: usize,
    /// alpha / rank, or alpha / sqrt(rank)
    pub scale: f32,
}

/// A pair's halves as a layer multiplies them, A (rank, in) and Bᵀ (rank, out), and where their
/// gradients go.
pub(super) struct Halves<'a, D: Device> {
    pub a: Matrix<'a, D>,
    pub b: Matrix<'a, D>,
    /// None for an A that does not train.
    pub gradient_a: Option<To>,
    /// Added to what is there, but in memory.
    pub gradient_b: To,
}

const LORA: &str = "LoRA";
const BACKWARD: &str = "LoRA backward";

impl LoraPair {
    /// A (rank, in) and Bᵀ (rank, out).
    pub(super) fn matrices<'a, D: Device>(&self, layer: &Layer<D>) -> [Matrix<'a, D>; 2] {
        let at = |id: ParamId| At::Trained(layer.list[id.index()].piece());
        let (input, output) = (layer.linear.input, layer.linear.output);
        [Matrix::new(at(self.a), self.rank, input), Matrix::new(at(self.b), self.rank, output)]
    }

    /// Both halves, which train.
    pub(super) fn halves<'a, D: Device>(&self, layer: &Layer<D>) -> Halves<'a, D> {
        let [a, b] = self.matrices(layer);
        let gradient = |id: ParamId| To::Gradient(layer.list[id.index()].piece());
        Halves { a, b, gradient_a: Some(gradient(self.a)), gradient_b: gradient(self.b) }
    }

    /// dz = scale · dy B; `dy` is the gradient of what z Bᵀ was added to.
    pub(super) fn z_gradient<D: Device>(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        [dy, dz]: [Piece; 2],
        halves: &Halves<D>,
    ) -> Result<()> {
        let Layer { device, linear, .. } = layer;
        let terms = [(Matrix::of(dy, linear.rows, linear.output), halves.b.t())];
        let to = (To::Memory(dz), linear.rows, self.rank);
        let product = linear.product(BACKWARD, to, Start::Zero, &terms);
        device.product(store, Product { scale: self.scale, ..product })
    }

    /// Adds to the gradients of A and B: dBᵀ = zᵀ dy and dA = dzᵀ x, where `x` is the pair's input.
    pub(super) fn gradients<D: Device>(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        [x, z, dy, dz]: [Piece; 4],
        halves: &Halves<D>,
    ) -> Result<()> {
        let Layer { device, linear, .. } = layer;
        let (rows, rank) = (linear.rows, self.rank);
        let terms = [(Matrix::of(z, rows, rank).t(), Matrix::of(dy, rows, linear.output))];
        let start = if let To::Memory(_) = halves.gradient_b { Start::Zero } else { Start::Keep };
        let to = (halves.gradient_b, rank, linear.output);
        device.product(store, linear.product(BACKWARD, to, start, &terms))?;
        let Some(gradient) = halves.gradient_a else { return Ok(()) };
        let terms = [(Matrix::of(dz, rows, rank).t(), Matrix::of(x, rows, linear.input))];
        let to = (gradient, rank, linear.input);
        device.product(store, linear.product(BACKWARD, to, Start::Keep, &terms))
    }

    /// z = scale · x Aᵀ, without dropout.
    pub fn project<D: Device>(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        x: Piece,
        z: Piece,
    ) -> Result<()> {
        let Layer { device, linear, .. } = layer;
        let [a, _] = self.matrices(layer);
        let terms = [(Matrix::of(x, linear.rows, linear.input), a.t())];
        let to = (To::Memory(z), linear.rows, self.rank);
        let product = linear.product(LORA, to, Start::Zero, &terms);
        device.product(store, Product { scale: self.scale, ..product })
    }

    /// y of the layer and the pair, and z for the backward pass. `dropped` has room for the dropped
    /// input.
    pub(super) fn forward_with<D: Device>(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        [x, y]: [Piece; 2],
        [z, dropped]: [Piece; 2],
        b: Matrix<D>,
    ) -> Result<()> {
        let Layer { device, linear, .. } = layer;
        let input = layer.input(store, x, dropped)?;
        self.project(layer, store, input, z)?;
        let thin = (Matrix::of(z, linear.rows, self.rank), b);
        linear.forward(*device, store, x, y, Some(thin))
    }

    /// The backward pass of [`Self::forward_with`].
    pub(super) fn backward_with<D: Device>(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        [x, dy]: [Piece; 2],
        Back { dx, gradients }: Back,
        [z, dz, dropped]: [Piece; 3],
        halves: &Halves<D>,
    ) -> Result<()> {
        let Layer { device, linear, .. } = layer;
        let (device, rows) = (*device, linear.rows);
        linear.weight_gradients(device, store, x, dy, gradients)?;
        let trains_a = halves.gradient_a.is_some();
        if trains_a || dx.is_some() {
            self.z_gradient(layer, store, [dy, dz], halves)?;
        }
        // Only A's gradient reads the input.
        let input = if trains_a { layer.input(store, x, dropped)? } else { x };
        self.gradients(layer, store, [input, z, dy, dz], halves)?;

        let Some(dx) = dx else { return Ok(()) };
        let dz = Matrix::of(dz, rows, self.rank);
        let Some((dropout, keys)) = layer.dropout else {
            return linear.input_gradient(device, store, dy, dx, Some((dz, halves.a)));
        };
        linear.input_gradient(device, store, dy, dx, None)?;
        let terms = [(dz, halves.a)];
        let to = (To::Memory(dropped), rows, linear.input);
        device.product(store, linear.product(BACKWARD, to, Start::Zero, &terms))?;
        device.dropout(store.memory, dropped, dropout, keys)?;
        device.add(store.memory, dx.0, dropped)
    }
}

impl<D: Device> Method<D> for LoraPair {
    /// z, (rows, rank), which the score reads too.
    fn saved(&self, of: Extent) -> usize {
        of.rows * self.rank
    }

    /// dz, (rows, rank), in the backward pass; the dropped input, (rows, in), where there is
    /// dropout.
    fn scratch(&self, of: Extent, back: bool) -> usize {
        of.dropped() + if back { of.rows * self.rank } else { 0 }
    }

    fn pair(&self) -> &LoraPair {
        self
    }

    fn forward(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        xy: [Piece; 2],
        memory: AdapterMemory,
    ) -> Result<()> {
        let [_, b] = self.matrices(layer);
        self.forward_with(layer, store, xy, [memory.saved, memory.scratch], b)
    }

    fn backward(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        xdy: [Piece; 2],
        back: Back,
        memory: AdapterMemory,
    ) -> Result<()> {
        let of = layer.extent(true);
        let [dz, dropped] = parts(memory.scratch, [of.rows * self.rank, of.dropped()]);
        self.backward_with(layer, store, xdy, back, [memory.saved, dz, dropped], &self.halves(layer))
    }
}
