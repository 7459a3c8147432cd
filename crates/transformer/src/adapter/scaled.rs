//! A low-rank pair with the module's own vectors: y = x Wᵀ + b + v ⊙ (B (u ⊙ z)) with z = scale
//! · x Aᵀ.
//!
//! | method | u, (rank) | v, (out) | A and B |
//! |---|---|---|---|
//! | Tied-LoRA (Renduchintala et al. 2023) | trains | trains | train, one pair for all layers |
//! | VeRA (Kopiczko et al. 2024, eq. 2) | d | b | random constants, one pair for all layers |
//! | AdaLoRA (Zhang et al. 2023, eq. 3) | E | none | train, each module's own |
//!
//! The vectors are folded into B: B' = diag(v) B diag(u) takes the place of LoRA's B in the layer's
//! product, so the vectors cost passes over (rank, out) values, but none over the rows of x. With
//! dB' = dyᵀ z, the gradients are dB = diag(v) dB' diag(u), du = Σ over out of v · B ⊙ dB', and dv
//! = Σ over the rank of u · B ⊙ dB'.

use lora_drop_compute::device::{self, Device, Matrix, Operation, Piece, Result, To};

use super::lora::Halves;
use super::{AdapterMemory, Extent, LoraPair, Method, split};
use crate::linear::LayerPass;
use crate::parameters::ParamId;

/// A LoRA pair, which modules may share, and the module's own vectors: y += scale · v (B (u (A
/// x))), where u and v multiply element by element (Tied-LoRA, VeRA, AdaLoRA).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaled {
    pub pair: LoraPair,
    /// u, (rank).
    pub inner: ParamId,
    /// v, (out); None for ones.
    pub outer: Option<ParamId>,
    /// Whether A and B are constants.
    pub frozen: bool,
}

impl Scaled {
    /// Lengths of the forward pass's scratch: B' (rank, out) and the dropped input (rows, in).
    fn forward_scratch(&self, of: Extent) -> [usize; 2] {
        [self.pair.rank * of.output, of.dropped()]
    }

    /// Lengths of the backward pass's scratch: B' and dB' (rank, out), dz (rows, rank), the dropped
    /// input (rows, in).
    fn backward_scratch(&self, of: Extent) -> [usize; 4] {
        let [folded, dropped] = self.forward_scratch(of);
        [folded, folded, of.rows * self.pair.rank, dropped]
    }

    /// Returns Bᵀ with the vectors that scale its rows (u) and columns (v).
    fn scaled_b<'a, D: Device>(&self, layer: &LayerPass<'a, '_, D>) -> device::Scaled<'a, D> {
        let [matrix, rows] = [self.pair.b, self.inner].map(|id| layer.parameter(id));
        let columns = self.outer.map(|id| layer.parameter(id));
        device::Scaled { matrix, rows, columns, width: layer.weights.output }
    }

    /// Computes B'ᵀ, (rank, out), into its piece.
    fn folded<'a, D: Device>(&self, layer: &mut LayerPass<'a, '_, D>, to: Piece) -> Result<Matrix<'a, D>> {
        let scaled = self.scaled_b(layer);
        layer.compute(Operation::Scaled { scaled, to })?;
        Ok(Matrix::of(to, self.pair.rank, layer.weights.output))
    }
}

impl<D: Device> Method<D> for Scaled {
    /// Number of values of z, (rows, rank).
    fn saved(&self, of: Extent) -> usize {
        of.rows * self.pair.rank
    }

    fn scratch(&self, of: Extent, backward: bool) -> usize {
        if backward { self.backward_scratch(of).iter().sum() } else { self.forward_scratch(of).iter().sum() }
    }

    fn pair(&self) -> &LoraPair {
        &self.pair
    }

    fn forward(&self, layer: &mut LayerPass<D>, xy: [Piece; 2], memory: AdapterMemory) -> Result<()> {
        let [folded, dropped] =
            split(memory.scratch, self.forward_scratch(layer.extent(memory.backward_follows)));
        let b = self.folded(layer, folded)?;
        self.pair.forward_with(layer, xy, [memory.saved, dropped], b)
    }

    fn backward(
        &self,
        layer: &mut LayerPass<D>,
        xdy: [Piece; 2],
        dx: Option<(Piece, bool)>,
        memory: AdapterMemory,
    ) -> Result<()> {
        let lengths = self.backward_scratch(layer.extent(true));
        let [folded, d, dz, dropped] = split(memory.scratch, lengths);
        let b = self.folded(layer, folded)?;
        let [a, _] = self.pair.matrices(layer);
        let [gradient_a, gradient_b] =
            [self.pair.a, self.pair.b].map(|id| (!self.frozen).then(|| layer.piece(id)));
        let halves = Halves { a, b, gradient_a: gradient_a.map(To::Gradient), gradient_b: To::Memory(d) };
        self.pair.backward_with(layer, xdy, dx, [memory.saved, dz, dropped], &halves)?;
        let gradients =
            [gradient_b, Some(layer.piece(self.inner)), self.outer.map(|outer| layer.piece(outer))];
        let scaled = self.scaled_b(layer);
        layer.compute(Operation::ScaledBackward { scaled, d, gradients })
    }
}
