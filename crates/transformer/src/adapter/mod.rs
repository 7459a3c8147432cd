//! What sits on a linear layer: one file a method, which says what it trains, saves and computes.
//!
//! A method is a variant of `Adapter` and a line in `Adapter::on`. Nothing else knows which methods
//! there are.

mod dora;
mod lora;
mod scaled;

use lora_drop_compute::device::{Device, Dropped, Piece, Result, Store};

pub use dora::{Dora, weight_norms};
pub use lora::LoraPair;
pub use scaled::Scaled;

use crate::linear::Linear;
use crate::module::{ModuleId, ModuleKind};
use crate::parameters::Parameter;

/// A method by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterMethod {
    #[default]
    Lora,
    Dora,
    TiedLora,
    Vera,
    AdaLora,
}

impl AdapterMethod {
    pub const ALL: [AdapterMethod; 5] = [
        AdapterMethod::Lora,
        AdapterMethod::Dora,
        AdapterMethod::TiedLora,
        AdapterMethod::Vera,
        AdapterMethod::AdaLora,
    ];

    /// As options and files name it.
    pub fn name(self) -> &'static str {
        match self {
            AdapterMethod::Lora => "lora",
            AdapterMethod::Dora => "dora",
            AdapterMethod::TiedLora => "tied-lora",
            AdapterMethod::Vera => "vera",
            AdapterMethod::AdaLora => "adalora",
        }
    }

    /// The name in running text.
    pub fn title(self) -> &'static str {
        match self {
            AdapterMethod::Lora => "LoRA",
            AdapterMethod::Dora => "DoRA",
            AdapterMethod::TiedLora => "Tied-LoRA",
            AdapterMethod::Vera => "VeRA",
            AdapterMethod::AdaLora => "AdaLoRA",
        }
    }
}

/// The adapter of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Adapter {
    Lora(LoraPair),
    Dora(Dora),
    Scaled(Scaled),
}

impl Adapter {
    /// The method on a device of this kind.
    pub fn on<D: Device>(&self) -> &dyn Method<D> {
        match self {
            Adapter::Lora(pair) => pair,
            Adapter::Dora(dora) => dora,
            Adapter::Scaled(scaled) => scaled,
        }
    }
}

/// What a method answers for.
pub trait Method<D: Device> {
    /// Floats that a pass over a layer keeps from its forward pass on.
    fn saved(&self, of: Extent) -> usize;

    /// Floats that the forward pass, or with `back` the backward pass, needs while it computes.
    fn scratch(&self, of: Extent, back: bool) -> usize;

    /// The pair that makes z, from which the module is scored: (rows, rank), at the beginning of
    /// what is saved.
    fn pair(&self) -> &LoraPair;

    /// y of the layer and its adapter together.
    fn forward(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        xy: [Piece; 2],
        memory: AdapterMemory,
    ) -> Result<()>;

    /// Adds to the gradients of all that trains, and gives the layer's and the adapter's part of dx
    /// where that is wanted.
    fn backward(
        &self,
        layer: &Layer<D>,
        store: &mut Store<D>,
        xdy: [Piece; 2],
        back: Back,
        memory: AdapterMemory,
    ) -> Result<()>;
}

/// What decides how much memory an adapter takes in a pass.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub rows: usize,
    pub input: usize,
    pub output: usize,
    /// Whether its input is dropped.
    pub dropout: bool,
    /// Whether a backward pass follows on what is saved.
    pub kept: bool,
}

impl Extent {
    /// Floats of the dropped input, (rows, in), where there is dropout.
    fn dropped(self) -> usize {
        if self.dropout { self.rows * self.input } else { 0 }
    }
}

/// Memory of an adapter in a pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdapterMemory {
    pub saved: Piece,
    pub scratch: Piece,
    /// Whether a backward pass follows on what is saved.
    pub kept: bool,
}

/// A linear layer in a pass, for its adapter.
pub struct Layer<'a, D: Device> {
    pub device: &'a D,
    pub linear: Linear<'a, D>,
    /// Describes what trains, and constants.
    pub list: &'a [Parameter],
    /// On the adapter's input, with a key a row.
    pub dropout: Dropped<'a>,
}

/// What the backward pass is to give.
#[derive(Clone, Copy)]
pub struct Back {
    /// Where dx goes, and whether it is added to what is there.
    pub dx: Option<(Piece, bool)>,
    /// Where the gradients of the layer's own weight and bias are added up, if they train.
    pub gradients: [Option<Piece>; 2],
}

impl<D: Device> Layer<'_, D> {
    fn extent(&self, kept: bool) -> Extent {
        let Linear { rows, input, output, .. } = self.linear;
        Extent { rows, input, output, dropout: self.dropout.is_some(), kept }
    }

    /// The adapter's input: x, or dropout(x) in its memory.
    fn input(&self, store: &mut Store<D>, x: Piece, dropped: Piece) -> Result<Piece> {
        let Some((dropout, keys)) = self.dropout else { return Ok(x) };
        self.device.copy(store.memory, x, dropped)?;
        self.device.dropout(store.memory, dropped, dropout, keys)?;
        Ok(dropped)
    }
}

/// The adapter of each module, or none. Several modules may share parameters: their gradient is
/// then the sum over them.
#[derive(Clone, Debug, Default)]
pub struct LoraTable {
    layers: Vec<[Option<Adapter>; ModuleKind::ALL.len()]>,
}

impl LoraTable {
    pub fn empty(layers: usize) -> Self {
        LoraTable { layers: vec![[None; ModuleKind::ALL.len()]; layers] }
    }

    pub fn set(&mut self, module: ModuleId, adapter: Option<Adapter>) {
        self.layers[module.layer][module.kind as usize] = adapter;
    }

    pub fn get(&self, module: ModuleId) -> Option<Adapter> {
        self.layers[module.layer][module.kind as usize]
    }

    /// The lowest block with an adapted module.
    pub fn lowest(&self) -> Option<usize> {
        self.layers.iter().position(|adapters| adapters.iter().any(Option::is_some))
    }
}

/// Pieces of these lengths, one after the other, in a piece that is as long.
fn parts<const N: usize>(piece: Piece, lengths: [usize; N]) -> [Piece; N] {
    let mut start = piece.start;
    let parts = lengths.map(|len| {
        start += len;
        Piece::new(start - len, len)
    });
    assert!(start <= piece.end(), "{lengths:?} values in {piece:?}");
    parts
}
