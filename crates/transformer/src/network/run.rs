//! The inputs of a pass, and the device that computes it.

use std::borrow::Cow;
use std::sync::Arc;

use lora_drop_compute::device::{Device, DeviceError, Dropped, Operation, Piece, Store};
use lora_drop_compute::random::Key;
use lora_drop_compute::rotary::{RotaryTable, Rotation};

use super::Network;
use super::cache::Cache;
use super::graph::{DropoutSpec, Index, Rate, Rows, WeightId};
use crate::adapter::AdapterTable;
use crate::dropout::{DropoutPlan, Site, SiteKeys};
use crate::linear::{LayerPass, LinearWeights};
use crate::observer::{Observing, Seen};
use crate::parameters::Parameter;

/// Why a pass ended early; gradients are then incomplete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The caller set the flag.
    Asked,
    Device(DeviceError),
}

impl From<DeviceError> for Stopped {
    fn from(error: DeviceError) -> Self {
        Stopped::Device(error)
    }
}

pub type Result<T> = std::result::Result<T, Stopped>;

/// Inputs and buffers of a pass.
pub struct Run<'a, D: Device> {
    pub device: &'a D,
    pub store: Store<'a, D>,
    /// Descriptions of trained tensors and constants.
    pub list: &'a [Parameter],
    pub table: &'a AdapterTable,
    /// Token numbers, (tokens), and token types, (tokens), if the model has them.
    pub ids: &'a [u32],
    pub types: &'a [u32],
    /// Each token's position in its sequence: (tokens).
    pub positions: &'a [u32],
    /// The starts of sequences, and the end of the last: (sequences + 1).
    pub offsets: &'a [usize],
    /// The tokens that the head reads.
    pub chosen: &'a [usize],
    pub dropout: Option<DropoutPlan<'a>>,
    /// Rotary tables, by index in the graph's frequencies.
    pub rotary: &'a [Arc<RotaryTable>],
    /// The relative position bias with its reach, and the bias's gradient, if it trains.
    pub bias: Option<(Piece, usize)>,
    pub dbias: Option<Piece>,
    pub observing: Option<Observing<'a, D>>,
    /// Keys and values of the sequences' earlier tokens. With caches, products of few rows are in
    /// f32 and use each weight as it is read.
    pub caches: Option<Vec<&'a mut Cache<D>>>,
}

impl<'a, D: Device> Run<'a, D> {
    /// Returns the dropout of a site and its keys; none if nothing is dropped there.
    pub fn keys(&self, dropout: DropoutSpec, rows: Rows) -> SiteKeys {
        let Some(plan) = self.dropout.filter(|plan| dropout.rate.of(plan).is_active()) else {
            return SiteKeys::default();
        };
        let keys = plan.keys.iter().map(|key| key.fold(dropout.site.number()));
        let keys = match rows {
            _ if !dropout.by_row => keys.collect(),
            Rows::Tokens => {
                let of_rows = |(key, ends): (Key, &[usize])| {
                    (0..(ends[1] - ends[0]) as u64).map(move |row| key.fold(row))
                };
                keys.zip(self.offsets.windows(2)).flat_map(of_rows).collect()
            }
            Rows::Chosen => {
                let keys: Vec<Key> = keys.collect();
                let key = |&token: &usize| {
                    let sequence = self.offsets.partition_point(|&start| start <= token) - 1;
                    keys[sequence].fold((token - self.offsets[sequence]) as u64)
                };
                self.chosen.iter().map(key).collect()
            }
        };
        SiteKeys(Some((dropout.rate.of(&plan), keys)))
    }

    /// Returns the dropout of the input of a layer's adapter.
    pub fn lora_keys(&self, layer: &LinearWeights<D>, rows: Rows) -> SiteKeys {
        let module = layer.module.filter(|&module| self.table.get(module).is_some());
        let dropout =
            module.map(|module| DropoutSpec { site: Site::Lora(module), rate: Rate::Lora, by_row: true });
        dropout.map_or(SiteKeys::default(), |dropout| self.keys(dropout, rows))
    }

    /// Returns a layer's pass over this number of rows, with dropout on its adapter's input.
    pub fn layer<'k>(
        &'k mut self,
        weights: &'k LinearWeights<D>,
        rows: usize,
        dropout: Dropped<'k>,
    ) -> LayerPass<'k, 'a, D> {
        let few = self.caches.is_some();
        LayerPass {
            device: self.device,
            store: &mut self.store,
            list: self.list,
            weights,
            rows,
            few,
            dropout,
        }
    }

    pub fn compute(&mut self, operation: Operation<D>) -> Result<()> {
        Ok(self.device.compute(&mut self.store, operation)?)
    }

    /// Shows the observer a module: x, (tokens, in), and z, (tokens, rank).
    pub fn observe(&mut self, layer: &LinearWeights<D>, [x, z]: [Piece; 2], rank: usize) -> Result<()> {
        let (Some(observing), Some(module)) = (&mut self.observing, layer.module) else {
            return Ok(());
        };
        let seen = Seen { device: self.device, memory: self.store.memory, module, x, z, rank };
        Ok(observing.observer.forward(seen, observing.observations)?)
    }

    pub fn rotary(&mut self, rope: usize, rotation: Rotation, x: Piece) -> Result<()> {
        let (table, positions) = (&*self.rotary[rope], self.positions);
        self.compute(Operation::Rotary { table, rotation, x, positions })
    }

    /// Returns the row indices into each table.
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
        self.compute(Operation::Embed { tables: &tables, width, y })
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
                self.compute(Operation::EmbedBackward { dy, index, width, gradient })?;
            }
        }
        Ok(())
    }
}
