//! Two low-rank pairs on one layer, of which modules may share the first: y = x Wᵀ + b + z Bᵀ + z' B'ᵀ. Without dropout.

use lora_drop_compute::device::{Device, Matrix, Piece, Product, Result, Start, Store, To};

use super::{AdapterMemory, Back, Extent, Layer, LoraPair, Method, parts};

/// A pair that modules share, and the module's own beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Added {
    pub shared: LoraPair,
    pub own: LoraPair,
}

const LORA: &str = "LoRA";

impl<D: Device> Method<D> for Added {
    fn saved(&self, of: Extent) -> usize {
        of.rows * (self.shared.rank + self.own.rank)
    }

    fn scratch(&self, of: Extent, back: bool) -> usize {
        of.dropped() + if back { of.rows * (self.shared.rank + self.own.rank) } else { 0 }
    }

    fn pair(&self) -> &LoraPair {
        &self.shared
    }

    fn forward(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        [x, y]: [Piece; 2],
        memory: AdapterMemory,
    ) -> Result<()> {
        let (rows, output) = (layer.linear.rows, layer.linear.output);
        let lengths = [rows * self.shared.rank, rows * self.own.rank];
        let [z, own_z] = parts(memory.saved, lengths);
        let [_, b] = self.shared.matrices(layer);
        self.shared.forward_with(layer, store, [x, y], [z, memory.scratch], b)?;
        self.own.project(layer, store, x, own_z)?;
        let [_, b] = self.own.matrices(layer);
        let terms = [(Matrix::of(own_z, rows, self.own.rank), b)];
        let product = layer.linear.product(LORA, (To::Memory(y), rows, output), Start::Keep, &terms);
        layer.device.product(store, product)
    }

    fn backward(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        [x, dy]: [Piece; 2],
        back: Back,
        memory: AdapterMemory,
    ) -> Result<()> {
        let (rows, of) = (layer.linear.rows, layer.extent(true));
        let lengths = [rows * self.shared.rank, rows * self.own.rank];
        let [z, own_z] = parts(memory.saved, lengths);
        let [dz, own_dz, dropped] = parts(memory.scratch, [lengths[0], lengths[1], of.dropped()]);
        let halves = self.own.halves(layer);
        self.own.z_gradient(layer, store, [dy, own_dz], &halves)?;
        self.own.gradients(layer, store, [x, own_z, dy, own_dz], &halves)?;
        let shared = self.shared.halves(layer);
        self.shared.backward_with(layer, store, [x, dy], back, [z, dz, dropped], &shared)?;
        let Some((dx, _)) = back.dx else { return Ok(()) };
        let terms = [(Matrix::of(own_dz, rows, self.own.rank), halves.a)];
        let to = (To::Memory(dx), rows, layer.linear.input);
        let product: Product<D> = layer.linear.product(LORA, to, Start::Keep, &terms);
        layer.device.product(store, product)
    }
}
