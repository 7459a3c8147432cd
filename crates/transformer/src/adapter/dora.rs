//! DoRA on a linear layer (Liu et al. 2024, eq. 5): y = g ⊙ (x Wᵀ + z Bᵀ) + b with z = scale · x Aᵀ
//! and, for each row of the weight, g = m / ‖W + scale · B A‖.
//!
//! The norm counts as a constant in the backward pass, as in the paper's section 4.3. Dropout is
//! PEFT's, on all that m scales: y = x Wᵀ + b + z Bᵀ + (g − 1) ⊙ u with u = x̃ Wᵀ + z Bᵀ and z of
//! x̃ = dropout(x).

use lora_drop_compute::device::{At, Cpu, Device, LowRank, Magnitude, Matrix, Piece, Result, Start, Store};

use super::{AdapterMemory, Back, Extent, Layer, LoraPair, Method, parts};
use crate::linear::{Linear, LinearWeights};
use crate::parameters::{ParamId, Values};

/// A low-rank pair, whose A and B modules may share, and the magnitude that each module has of its
/// own: it begins as the norms of the module's W, so that the adapted model begins as the base.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dora {
    pub pair: LoraPair,
    /// (out): m
    pub magnitude: ParamId,
    /// (out): ‖W + scale · B A‖, where nothing trains and it was computed once; else each pass
    /// computes it.
    pub norms: Option<ParamId>,
}

impl Dora {
    /// z, the norms, and for the backward pass u.
    fn of_saved(&self, of: Extent) -> [usize; 3] {
        [of.rows * self.pair.rank, of.output, if of.kept { of.rows * of.output } else { 0 }]
    }

    /// The dropped input; u where it is neither saved nor in the memory of y.
    fn of_forward(&self, of: Extent) -> [usize; 2] {
        [of.dropped(), if of.kept || !of.dropout { 0 } else { of.rows * of.output }]
    }

    /// dz, the gradient after m, and the dropped input.
    fn of_backward(&self, of: Extent) -> [usize; 3] {
        [of.rows * self.pair.rank, of.rows * of.output, of.dropped()]
    }

    /// m and the norms, which lie in the parameters or in memory.
    fn factors<'a, D: Device>(&self, layer: &Layer<D>, norms: Piece, less: f32) -> Magnitude<'a, D> {
        let at = |id: ParamId| At::Trained(layer.list[id.index()].piece());
        Magnitude { magnitude: at(self.magnitude), norms: self.norms.map_or(At::Memory(norms), at), less }
    }
}

/// ‖row of W‖, or with a pair ‖row of W + scale · B A‖.
fn row_norms<D: Device>(
    layer: &Layer<D>,
    pair: Option<LoraPair>,
    store: &mut Store<D>,
    norms: Piece,
) -> Result<()> {
    let Linear { weight, input, output, precision, .. } = layer.linear;
    let plus = pair.map(|pair| {
        let [a, b] = pair.matrices(layer);
        LowRank { a: a.at, b_t: b.at, rank: pair.rank, scale: pair.scale }
    });
    layer.device.row_norms(store, Matrix::new(weight, output, input), precision, plus, norms)
}

/// The norms of the rows of a layer's weight, with `pair` of W + scale · B A: (out).
///
/// # Errors
/// The device fails.
pub fn weight_norms(weights: &LinearWeights, pair: Option<LoraPair>, values: Values) -> Result<Vec<f32>> {
    let mut norms = vec![0.0; weights.output];
    let store = &mut Store { memory: &mut norms[..], parameters: values.values, gradients: None };
    let linear = weights.over(values.list, 0, false);
    let layer = Layer { device: &Cpu, linear, list: values.list, dropout: None };
    row_norms(&layer, pair, store, Piece::new(0, weights.output))?;
    Ok(norms)
}

impl<D: Device> Method<D> for Dora {
    fn saved(&self, of: Extent) -> usize {
        self.of_saved(of).iter().sum()
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
        [x, y]: [Piece; 2],
        memory: AdapterMemory,
    ) -> Result<()> {
        let Layer { device, linear, .. } = layer;
        let device = *device;
        let extent = layer.extent(memory.kept);
        let [z, norms, saved] = parts(memory.saved, self.of_saved(extent));
        let [dropped, scratch] = parts(memory.scratch, self.of_forward(extent));
        if self.norms.is_none() {
            row_norms(layer, Some(self.pair), store, norms)?;
        }
        let input = layer.input(store, x, dropped)?;
        self.pair.project(layer, store, input, z)?;
        let [_, b] = self.pair.matrices(layer);
        let thin = Some((Matrix::of(z, linear.rows, self.pair.rank), b));
        let bare = Linear { bias: None, ..*linear };
        let u = match (memory.kept, extent.dropout) {
            (true, _) => saved,
            (false, true) => scratch,
            (false, false) => y,
        };
        bare.forward(device, store, input, u, thin)?;
        if extent.dropout {
            linear.forward(device, store, x, y, thin)?;
            return device.magnitude(store, self.factors(layer, norms, 1.0), u, Start::Keep, y);
        }
        let bias = linear.bias.map_or(Start::Zero, Start::Bias);
        device.magnitude(store, self.factors(layer, norms, 0.0), u, bias, y)
    }

    fn backward(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        [x, dy]: [Piece; 2],
        Back { dx, gradients: [weight, bias] }: Back,
        memory: AdapterMemory,
    ) -> Result<()> {
        let Layer { device, linear, .. } = layer;
        let device = *device;
        let extent = layer.extent(true);
        let [z, norms, u] = parts(memory.saved, self.of_saved(extent));
        let [dz, du, dropped] = parts(memory.scratch, self.of_backward(extent));
        let [a, _] = self.pair.matrices(layer);
        let thin = Some((Matrix::of(dz, linear.rows, self.pair.rank), a));
        let gradient = layer.list[self.magnitude.index()].piece();
        device.magnitude_backward(store, self.factors(layer, norms, 0.0), dy, u, du, gradient)?;
        let input = layer.input(store, x, dropped)?;
        let halves = self.pair.halves(layer);
        self.pair.z_gradient(layer, store, [du, dz], &halves)?;
        self.pair.gradients(layer, store, [input, z, du, dz], &halves)?;
        let Some((dropout, keys)) = layer.dropout else {
            linear.weight_gradients(device, store, x, du, [weight, None])?;
            linear.weight_gradients(device, store, x, dy, [None, bias])?;
            return match dx {
                Some(dx) => linear.input_gradient(device, store, du, dx, thin),
                None => Ok(()),
            };
        };
        // u's own part, which m scales beside what LoRA gives.
        device.magnitude(store, self.factors(layer, norms, 1.0), dy, Start::Zero, du)?;
        linear.weight_gradients(device, store, x, dy, [weight, bias])?;
        linear.weight_gradients(device, store, input, du, [weight, None])?;
        let Some(dx) = dx else { return Ok(()) };
        linear.input_gradient(device, store, dy, dx, None)?;
        linear.input_gradient(device, store, du, (dropped, false), thin)?;
        device.dropout(store.memory, dropped, dropout, keys)?;
        device.add(store.memory, dx.0, dropped)
    }
}
