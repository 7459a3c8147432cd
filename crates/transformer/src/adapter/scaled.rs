//! A low-rank pair with vectors of the module's own: y = x Wᵀ + b + v ⊙ (B (u ⊙ z)) with z = scale
//! · x Aᵀ.
//!
//! | method | u, (rank) | v, (out) | A and B |
//! |---|---|---|---|
//! | Tied-LoRA (Renduchintala et al. 2023) | trains | trains | train, one pair for all layers |
//! | VeRA (Kopiczko et al. 2024, eq. 2) | d | b | random constants, one pair for all layers |
//! | AdaLoRA (Zhang et al. 2023, eq. 3) | E | none | train, each module's own |
//!
//! The vectors are worked into B, B' = diag(v) B diag(u), which joins the layer's product as LoRA's
//! B does. So they cost passes over (rank, out) and none over the rows: with dB' = dyᵀ z, the
//! gradients are dB = diag(v) dB' diag(u), du = Σ over out of v · B ⊙ dB', and dv = Σ over the rank
//! of u · B ⊙ dB'.

use lora_drop_compute::device::{self, At, Device, Matrix, Piece, Result, Store, To};

use super::lora::Halves;
use super::{AdapterMemory, Back, Extent, Layer, LoraPair, Method, parts};
use crate::parameters::ParamId;

/// A low-rank pair, whose A and B modules may share, and the vectors that each module has of its
/// own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaled {
    pub pair: LoraPair,
    /// (rank): u
    pub inner: ParamId,
    /// (out): v; None for ones.
    pub outer: Option<ParamId>,
    /// Whether A and B are constants.
    pub frozen: bool,
}

impl Scaled {
    /// B'; the dropped input.
    fn of_forward(&self, of: Extent) -> [usize; 2] {
        [self.pair.rank * of.output, of.dropped()]
    }

    /// B' and its gradient; dz; the dropped input.
    fn of_backward(&self, of: Extent) -> [usize; 4] {
        let [folded, dropped] = self.of_forward(of);
        [folded, folded, of.rows * self.pair.rank, dropped]
    }

    fn of_b<'a, D: Device>(&self, layer: &Layer<D>) -> device::Scaled<'a, D> {
        let at = |id: ParamId| At::Trained(layer.list[id.index()].piece());
        device::Scaled {
            matrix: at(self.pair.b),
            rows: at(self.inner),
            columns: self.outer.map(at),
            width: layer.linear.output,
        }
    }

    /// B'ᵀ, (rank, out), computed into its piece.
    fn folded<'a, D: Device>(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        piece: Piece,
    ) -> Result<Matrix<'a, D>> {
        layer.device.scaled(store, self.of_b(layer), piece)?;
        Ok(Matrix::of(piece, self.pair.rank, layer.linear.output))
    }
}

impl<D: Device> Method<D> for Scaled {
    /// z, (rows, rank).
    fn saved(&self, of: Extent) -> usize {
        of.rows * self.pair.rank
    }

    fn scratch(&self, of: Extent, back: bool) -> usize {
        if back { self.of_backward(of).iter().sum() } else { self.of_forward(of).iter().sum() }
    }

    fn pair(&self) -> &LoraPair {
        &self.pair
    }

    fn forward(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        xy: [Piece; 2],
        memory: AdapterMemory,
    ) -> Result<()> {
        let [folded, dropped] = parts(memory.scratch, self.of_forward(layer.extent(memory.kept)));
        let b = self.folded(layer, store, folded)?;
        self.pair.forward_with(layer, store, xy, [memory.saved, dropped], b)
    }

    fn backward(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        xdy: [Piece; 2],
        back: Back,
        memory: AdapterMemory,
    ) -> Result<()> {
        let lengths = self.of_backward(layer.extent(true));
        let [folded, gradient, dz, dropped] = parts(memory.scratch, lengths);
        let b = self.folded(layer, store, folded)?;
        let [a, _] = self.pair.matrices(layer);
        let piece = |id: ParamId| layer.list[id.index()].piece();
        let trained = |id: ParamId| (!self.frozen).then(|| piece(id));
        let halves = Halves {
            a,
            b,
            gradient_a: trained(self.pair.a).map(To::Gradient),
            gradient_b: To::Memory(gradient),
        };
        self.pair.backward_with(layer, store, xdy, back, [memory.saved, dz, dropped], &halves)?;
        let gradients = [trained(self.pair.b), Some(piece(self.inner)), self.outer.map(piece)];
        layer.device.scaled_backward(store, self.of_b(layer), gradient, gradients)
    }
}
