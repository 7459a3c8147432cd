//! LoRA on a linear layer: y = x Wᵀ + b + z Bᵀ with z = scale · x Aᵀ (LoRA, Hu et al. 2022, eq. 3).
//!
//! Its product joins the layer's, so y and dx are written once.

use lora_drop_compute::device::{At, Device, Dropped, Matrix, Piece, Product, Result, Start, Store, To};

use crate::linear::Linear;
use crate::module::{ModuleId, ModuleKind};
use crate::parameters::{ParamId, Parameter};

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

/// The pair of each module, or none. Several modules may name the same pair: its gradient is then the sum over them.
#[derive(Clone, Debug, Default)]
pub struct LoraTable {
    layers: Vec<[Option<LoraPair>; ModuleKind::ALL.len()]>,
}

impl LoraTable {
    pub fn empty(layers: usize) -> Self {
        LoraTable { layers: vec![[None; ModuleKind::ALL.len()]; layers] }
    }

    pub fn set(&mut self, module: ModuleId, pair: Option<LoraPair>) {
        self.layers[module.layer][module.kind as usize] = pair;
    }

    pub fn get(&self, module: ModuleId) -> Option<LoraPair> {
        self.layers[module.layer][module.kind as usize]
    }

    /// The rank of the module's pair; 0 where it has none.
    pub fn rank(&self, module: ModuleId) -> usize {
        self.get(module).map_or(0, |pair| pair.rank)
    }

    /// The lowest block of which a module has a pair.
    pub fn lowest(&self) -> Option<usize> {
        self.layers.iter().position(|pairs| pairs.iter().any(Option::is_some))
    }
}

const LORA: &str = "LoRA";
const BACKWARD: &str = "LoRA backward";

/// A pair in a pass.
pub struct Lora<'a> {
    pub pair: LoraPair,
    /// Describes what trains.
    pub list: &'a [Parameter],
    /// On its input, with a key a row.
    pub dropout: Dropped<'a>,
}

/// Memory of a pair in a pass over a layer's rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoraMemory {
    /// (rows, rank): z, which the backward pass and the score read.
    pub z: Piece,
    /// (rows, rank): its gradient, in the backward pass.
    pub dz: Piece,
    /// (rows, in): the dropped input, where there is dropout.
    pub dropped: Piece,
}

impl Lora<'_> {
    /// A (rank, in) and Bᵀ (rank, out).
    fn pair<'a, D: Device>(&self, linear: &Linear<D>) -> [Matrix<'a, D>; 2] {
        let at = |id: ParamId| At::Trained(self.list[id.index()].piece());
        let rank = self.pair.rank;
        [Matrix::new(at(self.pair.a), rank, linear.input), Matrix::new(at(self.pair.b), rank, linear.output)]
    }

    /// The pair's input: x, or dropout(x) in its memory.
    fn input<D: Device>(&self, device: &D, store: &mut Store<D>, x: Piece, dropped: Piece) -> Result<Piece> {
        let Some((dropout, keys)) = self.dropout else { return Ok(x) };
        device.copy(store.memory, x, dropped)?;
        device.dropout(store.memory, dropped, dropout, keys)?;
        Ok(dropped)
    }

    /// z = scale · x Aᵀ, without dropout.
    pub fn project<D: Device>(
        &self,
        device: &D,
        store: &mut Store<D>,
        linear: &Linear<D>,
        x: Piece,
        z: Piece,
    ) -> Result<()> {
        let [a, _] = self.pair(linear);
        let terms = [(Matrix::of(x, linear.rows, linear.input), a.t())];
        let to = (To::Memory(z), linear.rows, self.pair.rank);
        let product = linear.product(LORA, to, Start::Zero, &terms);
        device.product(store, Product { scale: self.pair.scale, ..product })
    }

    /// y of the layer and the pair together.
    pub fn forward<D: Device>(
        &self,
        device: &D,
        store: &mut Store<D>,
        linear: &Linear<D>,
        [x, y]: [Piece; 2],
        memory: LoraMemory,
    ) -> Result<()> {
        let input = self.input(device, store, x, memory.dropped)?;
        self.project(device, store, linear, input, memory.z)?;
        let [_, b] = self.pair(linear);
        let thin = (Matrix::of(memory.z, linear.rows, self.pair.rank), b);
        linear.forward(device, store, x, y, Some(thin))
    }

    /// Adds to the pair's gradients, and gives the layer's and the pair's part of dx where that is wanted.
    pub fn backward<D: Device>(
        &self,
        device: &D,
        store: &mut Store<D>,
        linear: &Linear<D>,
        [x, dy]: [Piece; 2],
        dx: Option<(Piece, bool)>,
        memory: LoraMemory,
    ) -> Result<()> {
        let (rows, rank) = (linear.rows, self.pair.rank);
        let [a, b] = self.pair(linear);
        let dy_rows = Matrix::of(dy, rows, linear.output);
        let dz = Matrix::of(memory.dz, rows, rank);
        let terms = [(dy_rows, b.t())];
        let to = (To::Memory(memory.dz), rows, rank);
        let product = linear.product(BACKWARD, to, Start::Zero, &terms);
        device.product(store, Product { scale: self.pair.scale, ..product })?;

        let gradient = |id: ParamId| To::Gradient(self.list[id.index()].piece());
        let terms = [(Matrix::of(memory.z, rows, rank).t(), dy_rows)];
        let to = (gradient(self.pair.b), rank, linear.output);
        device.product(store, linear.product(BACKWARD, to, Start::Keep, &terms))?;
        let input = self.input(device, store, x, memory.dropped)?;
        let terms = [(dz.t(), Matrix::of(input, rows, linear.input))];
        let to = (gradient(self.pair.a), rank, linear.input);
        device.product(store, linear.product(BACKWARD, to, Start::Keep, &terms))?;

        let Some(dx) = dx else { return Ok(()) };
        let Some((dropout, keys)) = self.dropout else {
            return linear.input_gradient(device, store, dy, dx, Some((dz, a)));
        };
        linear.input_gradient(device, store, dy, dx, None)?;
        let terms = [(dz, a)];
        let to = (To::Memory(memory.dropped), rows, linear.input);
        device.product(store, linear.product(BACKWARD, to, Start::Zero, &terms))?;
        device.dropout(store.memory, memory.dropped, dropout, keys)?;
        device.add(store.memory, dx.0, memory.dropped)
    }
}
