//! DoRA on a linear layer (Liu et al. 2024, eq. 5): y = g ⊙ (x Wᵀ + z Bᵀ) + b with z = scale · x Aᵀ
//! and, for each row of the weight, g = m / ‖W + scale · B A‖.
//!
//! The backward pass treats the norm as a constant, as the paper does (section 4.3). With dropout,
//! as in PEFT, the factor g − 1 applies to the output u for the dropped input: y = x Wᵀ + b + z Bᵀ
//! + (g − 1) ⊙ u with u = x̃ Wᵀ + z Bᵀ and z computed from x̃ = dropout(x).

use lora_drop_compute::device::{
    At, Cpu, Device, LowRank, Magnitude, Matrix, Operation, Piece, Result, Start, Store,
};

use super::{AdapterMemory, Extent, LoraPair, Method, split};
use crate::linear::{LayerPass, LinearWeights};
use crate::parameters::{ParamId, Values};

/// A LoRA pair, which modules may share, and the module's own magnitude m, one value per row of W
/// (DoRA, Liu et al. 2024): row i of W + s B A is scaled to the length m_i. m starts as the norms
/// of W's rows, so the adapted model starts as the base model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dora {
    pub pair: LoraPair,
    /// m, (out).
    pub magnitude: ParamId,
    /// Norms of the rows of W + scale · B A, (out), if nothing trains; None if each pass computes
    /// them.
    pub norms: Option<ParamId>,
}

impl Dora {
    /// Lengths of what is saved: z (rows, rank), the norms (out), and u (rows, out) if a backward
    /// pass follows.
    fn saved_lengths(&self, of: Extent) -> [usize; 3] {
        [of.rows * self.pair.rank, of.output, if of.backward_follows { of.rows * of.output } else { 0 }]
    }

    /// Lengths of the forward pass's scratch: the dropped input (rows, in), and u (rows, out) if it
    /// is neither saved nor computed in y's memory.
    fn forward_scratch(&self, of: Extent) -> [usize; 2] {
        [of.dropped(), if of.backward_follows || !of.dropout { 0 } else { of.rows * of.output }]
    }

    /// Lengths of the backward pass's scratch: dz (rows, rank), du (rows, out) and the dropped
    /// input (rows, in).
    fn backward_scratch(&self, of: Extent) -> [usize; 3] {
        [of.rows * self.pair.rank, of.rows * of.output, of.dropped()]
    }

    /// Returns the factor g − less as operands: m is a parameter; the norms are one, or in memory
    /// at `norms`.
    fn factors<'a, D: Device>(
        &self,
        layer: &LayerPass<'a, '_, D>,
        norms: Piece,
        less: f32,
    ) -> Magnitude<'a, D> {
        let norms = self.norms.map_or(At::Memory(norms), |norms| layer.parameter(norms));
        Magnitude { magnitude: layer.parameter(self.magnitude), norms, less }
    }
}

/// Computes the norms of the rows of W, or of W + scale · B A with a `pair`, into `norms`, (out).
fn row_norms<D: Device>(layer: &mut LayerPass<D>, pair: Option<LoraPair>, norms: Piece) -> Result<()> {
    let plus = pair.map(|pair| {
        let [a, b] = pair.matrices(layer);
        LowRank { a: a.at, b_t: b.at, rank: pair.rank, scale: pair.scale }
    });
    let (weight, precision) = (layer.weight(), layer.weights.precision);
    layer.compute(Operation::RowNorms { weight, precision, plus, norms })
}

/// Returns the norms of the rows of a layer's weight W, or of W + scale · B A with a `pair`: (out).
///
/// # Errors
/// The device fails.
pub fn weight_norms(weights: &LinearWeights, pair: Option<LoraPair>, values: Values) -> Result<Vec<f32>> {
    let mut norms = vec![0.0; weights.output];
    let store = &mut Store { memory: &mut norms[..], parameters: values.values, gradients: None };
    let list = values.list;
    let mut layer = LayerPass { device: &Cpu, store, list, weights, rows: 0, few: false, dropout: None };
    row_norms(&mut layer, pair, Piece::new(0, weights.output))?;
    Ok(norms)
}

impl<D: Device> Method<D> for Dora {
    fn saved(&self, of: Extent) -> usize {
        self.saved_lengths(of).iter().sum()
    }

    fn scratch(&self, of: Extent, backward: bool) -> usize {
        if backward { self.backward_scratch(of).iter().sum() } else { self.forward_scratch(of).iter().sum() }
    }

    fn pair(&self) -> &LoraPair {
        &self.pair
    }

    fn forward(&self, layer: &mut LayerPass<D>, [x, y]: [Piece; 2], memory: AdapterMemory) -> Result<()> {
        let extent = layer.extent(memory.backward_follows);
        let [z, norms, saved] = split(memory.saved, self.saved_lengths(extent));
        let [dropped, scratch] = split(memory.scratch, self.forward_scratch(extent));
        if self.norms.is_none() {
            row_norms(layer, Some(self.pair), norms)?;
        }
        let input = layer.adapter_input(x, dropped)?;
        self.pair.project(layer, input, z)?;
        let [_, b] = self.pair.matrices(layer);
        let thin = Some((Matrix::of(z, layer.rows, self.pair.rank), b));
        let u = match (memory.backward_follows, extent.dropout) {
            (true, _) => saved,
            (false, true) => scratch,
            (false, false) => y,
        };
        layer.forward([input, u], Start::Zero, thin)?;
        let bias = layer.bias();
        let (by, start) = if extent.dropout {
            layer.forward([x, y], bias, thin)?;
            (self.factors(layer, norms, 1.0), Start::Keep)
        } else {
            (self.factors(layer, norms, 0.0), bias)
        };
        layer.compute(Operation::Magnitude { by, u, start, y })
    }

    fn backward(
        &self,
        layer: &mut LayerPass<D>,
        [x, dy]: [Piece; 2],
        dx: Option<(Piece, bool)>,
        memory: AdapterMemory,
    ) -> Result<()> {
        let extent = layer.extent(true);
        let [z, norms, u] = split(memory.saved, self.saved_lengths(extent));
        let [dz, du, dropped] = split(memory.scratch, self.backward_scratch(extent));
        let [a, _] = self.pair.matrices(layer);
        let thin = Some((Matrix::of(dz, layer.rows, self.pair.rank), a));
        let (by, gradient) = (self.factors(layer, norms, 0.0), layer.piece(self.magnitude));
        layer.compute(Operation::MagnitudeBackward { by, dy, u, du, gradient })?;
        let input = layer.adapter_input(x, dropped)?;
        let halves = self.pair.halves(layer);
        self.pair.z_gradient(layer, [du, dz], &halves)?;
        self.pair.gradients(layer, [input, z, du, dz], &halves)?;
        layer.bias_gradient(dy)?;
        if layer.dropout.is_none() {
            layer.weight_gradient(x, du)?;
            return dx.map_or(Ok(()), |dx| layer.input_gradient(du, dx, thin));
        }
        // (g − 1) ⊙ dy, the gradient of x̃ Wᵀ; the gradient of x Wᵀ is dy.
        let by = self.factors(layer, norms, 1.0);
        layer.compute(Operation::Magnitude { by, u: dy, start: Start::Zero, y: du })?;
        layer.weight_gradient(x, dy)?;
        layer.weight_gradient(input, du)?;
        let Some(dx) = dx else { return Ok(()) };
        layer.input_gradient(dy, dx, None)?;
        layer.input_gradient(du, (dropped, false), thin)?;
        layer.add_dropped(dropped, dx.0)
    }
}
