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

const LORA: &str = "LoRA";
const BACKWARD: &str = "LoRA backward";

impl LoraPair {
    /// A (rank, in) and Bᵀ (rank, out).
    pub(super) fn matrices<'a, D: Device>(&self, layer: &Layer<D>) -> [Matrix<'a, D>; 2] {
        let at = |id: ParamId| At::Trained(layer.list[id.index()].piece());
        let (input, output) = (layer.linear.input, layer.linear.output);
        [Matrix::new(at(self.a), self.rank, input), Matrix::new(at(self.b), self.rank, output)]
    }

    /// dz = scale · dy B; adds to the gradients of A and B.
    ///
    /// `x` is the pair's input and `dy` the gradient of what z Bᵀ was added to.
    pub(super) fn gradients<D: Device>(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        [x, z, dy, dz]: [Piece; 4],
    ) -> Result<()> {
        let Layer { device, linear, list, .. } = layer;
        let (rows, rank) = (linear.rows, self.rank);
        let [_, b] = self.matrices(layer);
        let dy = Matrix::of(dy, rows, linear.output);
        let terms = [(dy, b.t())];
        let to = (To::Memory(dz), rows, rank);
        let product = linear.product(BACKWARD, to, Start::Zero, &terms);
        device.product(store, Product { scale: self.scale, ..product })?;

        let gradient = |id: ParamId| To::Gradient(list[id.index()].piece());
        let terms = [(Matrix::of(z, rows, rank).t(), dy)];
        let to = (gradient(self.b), rank, linear.output);
        device.product(store, linear.product(BACKWARD, to, Start::Keep, &terms))?;
        let terms = [(Matrix::of(dz, rows, rank).t(), Matrix::of(x, rows, linear.input))];
        let to = (gradient(self.a), rank, linear.input);
        device.product(store, linear.product(BACKWARD, to, Start::Keep, &terms))
    }
}

impl<D: Device> Method<D> for LoraPair {
    /// z, (rows, rank), which the score reads too.
    fn saved(&self, of: Extent) -> usize {
        of.rows * self.rank
    }

    /// dz, (rows, rank), in the backward pass; the dropped input, (rows, in), where there is dropout.
    fn scratch(&self, of: Extent, back: bool) -> usize {
        (if back { of.rows * self.rank } else { 0 }) + if of.dropout { of.rows * of.input } else { 0 }
    }

    fn z_width(&self) -> usize {
        self.rank
    }

    /// z = scale · x Aᵀ
    fn project(&self, layer: &Layer<D>, store: &mut Store<D>, x: Piece, z: Piece) -> Result<()> {
        let Layer { device, linear, .. } = layer;
        let [a, _] = self.matrices(layer);
        let terms = [(Matrix::of(x, linear.rows, linear.input), a.t())];
        let to = (To::Memory(z), linear.rows, self.rank);
        let product = linear.product(LORA, to, Start::Zero, &terms);
        device.product(store, Product { scale: self.scale, ..product })
    }

    fn forward(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        [x, y]: [Piece; 2],
        memory: AdapterMemory,
    ) -> Result<()> {
        let Layer { device, linear, .. } = layer;
        let input = layer.input(store, x, memory.scratch)?;
        self.project(layer, store, input, memory.saved)?;
        let [_, b] = self.matrices(layer);
        let thin = (Matrix::of(memory.saved, linear.rows, self.rank), b);
        linear.forward(*device, store, x, y, Some(thin))
    }

    fn backward(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        [x, dy]: [Piece; 2],
        Back { dx, gradients }: Back,
        memory: AdapterMemory,
    ) -> Result<()> {
        let Layer { device, linear, .. } = layer;
        let device = *device;
        let (rows, rank) = (linear.rows, self.rank);
        let [a, _] = self.matrices(layer);
        let dropped = if layer.dropout.is_some() { rows * linear.input } else { 0 };
        let [dz, dropped] = parts(memory.scratch, [rows * rank, dropped]);
        linear.weight_gradients(device, store, x, dy, gradients)?;
        let input = layer.input(store, x, dropped)?;
        self.gradients(layer, store, [input, memory.saved, dy, dz])?;

        let Some(dx) = dx else { return Ok(()) };
        let dz = Matrix::of(dz, rows, rank);
        let Some((dropout, keys)) = layer.dropout else {
            return linear.input_gradient(device, store, dy, dx, Some((dz, a)));
        };
        linear.input_gradient(device, store, dy, dx, None)?;
        let terms = [(dz, a)];
        let to = (To::Memory(dropped), rows, linear.input);
        device.product(store, linear.product(BACKWARD, to, Start::Zero, &terms))?;
        device.dropout(store.memory, dropped, dropout, keys)?;
        device.add(store.memory, dx.0, dropped)
    }
}
