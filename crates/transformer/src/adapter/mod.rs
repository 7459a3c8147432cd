//! Adapters of linear layers: one file per method, with what it trains, saves and computes.
//!
//! A method is a variant of [`Adapter`] and a line in [`Adapter::on`]. Nothing else in this crate
//! knows which methods exist.

mod dora;
mod lora;
mod scaled;

use lora_drop_compute::device::{At, Device, Operation, Piece, Result};

pub use dora::{Dora, weight_norms};
pub use lora::LoraPair;
pub use scaled::Scaled;

use crate::linear::{LayerPass, LinearWeights};
use crate::module::{ModuleId, ModuleKind};
use crate::parameters::ParamId;

/// Adapter method of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterMethod {
    /// LoRA: W + s B A.
    #[default]
    Lora,
    /// DoRA: LoRA, and a trained magnitude for each row of the weight.
    Dora,
    /// Tied-LoRA: one pair for all layers, scaled by two vectors of each module.
    TiedLora,
    /// VeRA: like Tied-LoRA with a random pair that does not train.
    Vera,
    /// AdaLoRA: a pair with singular values between A and B, whose rank falls during training.
    AdaLora,
}

impl AdapterMethod {
    /// All methods.
    pub const ALL: [AdapterMethod; 5] = [
        AdapterMethod::Lora,
        AdapterMethod::Dora,
        AdapterMethod::TiedLora,
        AdapterMethod::Vera,
        AdapterMethod::AdaLora,
    ];

    /// Its name in options and files: `tied-lora`.
    pub fn name(self) -> &'static str {
        match self {
            AdapterMethod::Lora => "lora",
            AdapterMethod::Dora => "dora",
            AdapterMethod::TiedLora => "tied-lora",
            AdapterMethod::Vera => "vera",
            AdapterMethod::AdaLora => "adalora",
        }
    }

    /// Its name in running text: `Tied-LoRA`.
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
    /// The method's implementation for a kind of device.
    pub fn on<D: Device>(&self) -> &dyn Method<D> {
        match self {
            Adapter::Lora(pair) => pair,
            Adapter::Dora(dora) => dora,
            Adapter::Scaled(scaled) => scaled,
        }
    }
}

/// Passes of a method through a linear layer, and the memory that they need.
///
/// # Errors
/// Passes fail if the device does.
pub trait Method<D: Device> {
    /// Number of floats that the forward pass of a layer saves for the backward pass.
    fn saved(&self, of: Extent) -> usize;

    /// Number of floats that the forward pass, or with `backward` the backward pass, needs while it
    /// runs.
    fn scratch(&self, of: Extent, backward: bool) -> usize;

    /// Returns the pair. Its z = s·A x, (rows, rank), is at the start of what is saved; the module
    /// is scored from it.
    fn pair(&self) -> &LoraPair;

    /// Computes y, (rows, out), of the layer with its adapter from x, (rows, in).
    fn forward(&self, layer: &mut LayerPass<D>, xy: [Piece; 2], memory: AdapterMemory) -> Result<()>;

    /// Adds to the gradients of everything that trains, from x and dy. With `dx`, also computes the
    /// gradient of x into this piece, or adds it to its contents if the flag is set.
    fn backward(
        &self,
        layer: &mut LayerPass<D>,
        xdy: [Piece; 2],
        dx: Option<(Piece, bool)>,
        memory: AdapterMemory,
    ) -> Result<()>;
}

/// The sizes that decide how much memory an adapter needs in a pass: x is (rows, input), y is
/// (rows, output).
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub rows: usize,
    pub input: usize,
    pub output: usize,
    /// Whether the adapter's input has dropout.
    pub dropout: bool,
    /// Whether a backward pass follows, which reads what is saved.
    pub backward_follows: bool,
}

impl Extent {
    /// Returns the length of the dropped input, (rows, in); 0 without dropout.
    fn dropped(self) -> usize {
        if self.dropout { self.rows * self.input } else { 0 }
    }
}

/// Memory of an adapter in a pass: [`Method::saved`] and [`Method::scratch`] floats.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdapterMemory {
    pub saved: Piece,
    pub scratch: Piece,
    /// Whether a backward pass follows, which reads what is saved.
    pub backward_follows: bool,
}

impl<'a, D: Device> LayerPass<'a, '_, D> {
    fn extent(&self, backward_follows: bool) -> Extent {
        let LinearWeights { input, output, .. } = *self.weights;
        Extent { rows: self.rows, input, output, dropout: self.dropout.is_some(), backward_follows }
    }

    /// Returns the range of a parameter among the values, which is also that of its gradient.
    fn piece(&self, id: ParamId) -> Piece {
        self.list[id.index()].piece()
    }

    fn parameter(&self, id: ParamId) -> At<'a, D> {
        At::Trained(self.piece(id))
    }

    /// Returns the adapter's input: x, or dropout(x), which is computed into `dropped`.
    fn adapter_input(&mut self, x: Piece, dropped: Piece) -> Result<Piece> {
        let Some((dropout, keys)) = self.dropout else { return Ok(x) };
        self.compute(Operation::Copy { from: x, to: dropped })?;
        self.compute(Operation::Dropout { x: dropped, dropout, keys })?;
        Ok(dropped)
    }

    /// Adds to dx the gradient that passes through the dropout. `dropped` holds the gradient of the
    /// dropped input and is overwritten.
    fn add_dropped(&mut self, dropped: Piece, dx: Piece) -> Result<()> {
        if let Some((dropout, keys)) = self.dropout {
            self.compute(Operation::Dropout { x: dropped, dropout, keys })?;
        }
        self.compute(Operation::Add { to: dx, x: dropped })
    }
}

/// The adapter of each module, or none. Modules may share parameters, whose gradient is then the
/// sum over the modules.
#[derive(Clone, Debug, Default)]
pub struct AdapterTable {
    layers: Vec<[Option<Adapter>; ModuleKind::ALL.len()]>,
    lm_head: Option<Adapter>,
}

impl AdapterTable {
    /// A table without adapters, for a model of `layers` blocks.
    pub fn empty(layers: usize) -> Self {
        AdapterTable { layers: vec![[None; ModuleKind::ALL.len()]; layers], lm_head: None }
    }

    /// Sets a module's adapter.
    ///
    /// # Panics
    /// The module's layer is not in the table.
    pub fn set(&mut self, module: ModuleId, adapter: Option<Adapter>) {
        match module {
            ModuleId::LM_HEAD => self.lm_head = adapter,
            ModuleId { layer, kind } => self.layers[layer][kind as usize] = adapter,
        }
    }

    /// A module's adapter.
    ///
    /// # Panics
    /// The module's layer is not in the table.
    pub fn get(&self, module: ModuleId) -> Option<Adapter> {
        match module {
            ModuleId::LM_HEAD => self.lm_head,
            ModuleId { layer, kind } => self.layers[layer][kind as usize],
        }
    }

    /// The number of the lowest block with an adapter.
    pub fn lowest_block(&self) -> Option<usize> {
        self.layers.iter().position(|adapters| adapters.iter().any(Option::is_some))
    }
}

/// Splits a piece into pieces of these lengths, one after the other.
fn split<const N: usize>(piece: Piece, lengths: [usize; N]) -> [Piece; N] {
    let mut start = piece.start;
    let parts = lengths.map(|len| {
        start += len;
        Piece::new(start - len, len)
    });
    assert!(start <= piece.end(), "{lengths:?} values in {piece:?}");
    parts
}
