//! A pass's inputs, and the device that computes it.

use std::borrow::Cow;
use std::sync::Arc;

use lora_drop_compute::device::{Device, DeviceError, Dropped, Piece, Store};
use lora_drop_compute::rotary::{RotaryTable, Turn};

use super::Network;
use super::cache::Cache;
use super::graph::{Drop, Index, Rate, Rows, WeightId};
use crate::adapter::{Layer, LoraTable};
use crate::drops::{DropoutPlan, Site, SiteKeys};
use crate::linear::LinearWeights;
use crate::observer::{Observing, Seen};
use crate::parameters::Parameter;

/// Why a pass has ended before its end; gradients are then incomplete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The caller asked for it.
    Asked,
    Device(DeviceError),
}

impl From<DeviceError> for Stopped {
    fn from(error: DeviceError) -> Self {
        Stopped::Device(error)
    }
}

pub type Result<T> = std::result::Result<T, Stopped>;

/// What a pass reads, and what it writes to.
pub struct Run<'a, D: Device> {
    pub device: &'a D,
    pub store: Store<'a, D>,
    /// Describes what trains.
    pub list: &'a [Parameter],
    pub table: &'a LoraTable,
    /// (tokens); of types only where the model has them.
    pub ids: &'a [u32],
    pub types: &'a [u32],
    /// Each token's place in its sequence: (tokens).
    pub positions: &'a [u32],
    /// Where sequences start, and the end: (sequences + 1).
    pub offsets: &'a [usize],
    /// The tokens that the head reads.
    pub chosen: &'a [usize],
    pub drops: Option<DropoutPlan<'a>>,
    /// By the graph's frequencies.
    pub rotary: &'a [Arc<RotaryTable>],
    /// The bias by distance, its reach, and where its gradient is added up.
    pub bias: Option<(Piece, usize)>,
    pub dbias: Option<Piece>,
    pub observing: Option<Observing<'a, D>>,
    /// Of the sequences' tokens before these; with them, few rows are multiplied in f32 as weights
    /// are read.
    pub caches: Option<Vec<&'a mut Cache<D>>>,
}

impl<'a, D: Device> Run<'a, D> {
    /// The keys of a place that drops, if it does. Chosen rows that drop are first tokens.
    pub fn keys(&self, drop: Drop, rows: Rows) -> SiteKeys {
        let rate = |drops: &DropoutPlan| drop.rate.of(drops);
        if !drop.by_row {
            return SiteKeys::of_sequences(self.drops, drop.site, rate);
        }
        let count = |length| if rows == Rows::Chosen { 1 } else { length };
        SiteKeys::of_rows(self.drops, self.offsets, count, drop.site, rate)
    }

    /// Those of the input of a layer's adapter.
    pub fn lora_keys(&self, layer: &LinearWeights<D>, rows: Rows) -> SiteKeys {
        match layer.module.filter(|&module| self.table.get(module).is_some()) {
            Some(module) => {
                self.keys(Drop { site: Site::Lora(module), rate: Rate::Lora, by_row: true }, rows)
            }
            None => SiteKeys::NONE,
        }
    }

    /// A layer over this number of rows, with the dropout of its adapter's input.
    pub fn layer<'k>(&self, layer: &'k LinearWeights<D>, rows: usize, dropout: Dropped<'k>) -> Layer<'k, D>
    where
        'a: 'k,
    {
        let linear = layer.over(self.list, rows, self.caches.is_some());
        Layer { device: self.device, linear, list: self.list, dropout }
    }

    /// Shows the observer a module: x, (tokens, in), and z, (tokens, rank).
    pub fn observe(&mut self, layer: &LinearWeights<D>, [x, z]: [Piece; 2], rank: usize) -> Result<()> {
        let (Some(observing), Some(module)) = (&mut self.observing, layer.module) else {
            return Ok(());
        };
        let seen = Seen { device: self.device, memory: self.store.memory, module, x, z, rank };
        Ok(observing.observer.forward(seen, observing.observations)?)
    }

    pub fn rotary(&mut self, rope: usize, turn: Turn, x: Piece) -> Result<()> {
        Ok(self.device.rotary(self.store.memory, &self.rotary[rope], turn, x, self.positions)?)
    }

    /// What chooses rows of each table.
    fn indices(&self, tables: &[(WeightId, Index)]) -> Vec<Cow<'a, [u32]>> {
        let of = |index: &Index| match *index {
            Index::Tokens => Cow::Borrowed(self.ids),
            Index::Types => Cow::Borrowed(self.types),
            Index::Positions(first) => self.positions.iter().map(|place| first + place).collect(),
        };
        tables.iter().map(|(_, index)| of(index)).collect()
    }

    pub fn embed(
        &mut self,
        net: &Network<D>,
        tables: &[(WeightId, Index)],
        width: usize,
        y: Piece,
    ) -> Result<()> {
        let indices = self.indices(tables);
        let tables: Vec<_> = (tables.iter().zip(&indices))
            .map(|((table, _), index)| (net.weights[*table].at(self.list), &index[..]))
            .collect();
        Ok(self.device.embed(&mut self.store, &tables, width, y)?)
    }

    pub fn embed_backward(
        &mut self,
        net: &Network<D>,
        tables: &[(WeightId, Index)],
        width: usize,
        dy: Piece,
    ) -> Result<()> {
        let indices = self.indices(tables);
        for ((table, _), index) in tables.iter().zip(&indices) {
            if let Some(gradient) = net.weights[*table].gradient(self.list) {
                self.device.embed_backward(&mut self.store, dy, index, width, gradient)?;
            }
        }
        Ok(())
    }
}
