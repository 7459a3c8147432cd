//! What the backward pass needs of a segment, derived from its operations and from what trains.

use lora_drop_compute::device::{Device, Piece, SavedPiece};
use lora_drop_compute::gemm::Precision;

use super::graph::{LayerId, Op, Segment, Value, ValueId, WeightId};
use super::saved::{Needs, Saved, SavedAs};
use super::walk::Walk;

impl<D: Device> Walk<'_, '_, D> {
    /// Whether an activation's input is saved rounded to bf16: if the layers that compute it
    /// multiply in bf16.
    fn rounds(&self, value: ValueId) -> bool {
        let made = self.segment.maker[value].map(|op| &self.segment.ops[op]);
        let Some(Op::Linear { layers, .. }) = made else { return false };
        D::ROUNDS && layers.iter().all(|(layer, _)| self.net.layers[*layer].precision == Precision::Bf16)
    }

    /// Returns what the backward pass needs; with `below`, it also computes the gradient of the
    /// segment's input.
    pub fn needs(&self, below: bool) -> Needs {
        let Segment { ops, values, input, .. } = self.segment;
        let mut needs = Needs {
            wanted: vec![false; values.len()],
            kept: vec![SavedAs::No; values.len()],
            beside: vec![false; ops.len()],
        };
        if let Some(input) = *input {
            needs.wanted[input] = below;
        }
        for op in ops {
            let any = op.reads().iter().any(|&x| needs.wanted[x]);
            let trains = |weight: &WeightId| self.net.weights[*weight].trains();
            match op {
                Op::Linear { layers, .. } => {
                    layers.iter().for_each(|(layer, y)| needs.wanted[*y] = any || self.trains(*layer));
                }
                Op::Embed { tables, y } => {
                    needs.wanted[*y] = tables.iter().any(|(table, _)| trains(table));
                }
                Op::LayerNorm { gamma, y, .. } | Op::RmsNorm { gamma, y, .. } => {
                    needs.wanted[*y] = any || trains(gamma);
                }
                other => other.writes().into_iter().for_each(|y| needs.wanted[y] = any),
            }
        }
        for (i, op) in ops.iter().enumerate() {
            if !op.writes().iter().any(|&y| needs.wanted[y]) {
                continue;
            }
            match op {
                Op::Linear { x, layers } if layers.iter().any(|(layer, _)| self.trains(*layer)) => {
                    needs.beside[i] = true;
                    self.need(&mut needs, *x);
                }
                _ => self.reads(&mut needs, i),
            }
        }
        if let Some(input) = *input {
            // The caller has the input anyway.
            needs.kept[input] = SavedAs::No;
        }
        needs
    }

    /// Marks what the backward pass of an operation itself reads: values, and statistics of its
    /// rows.
    fn reads(&self, needs: &mut Needs, op: usize) {
        match &self.segment.ops[op] {
            Op::LayerNorm { .. } => needs.beside[op] = true,
            Op::RmsNorm { x, .. } => {
                needs.beside[op] = true;
                needs.keep(*x, SavedAs::Exact);
            }
            Op::Attention { qkv, y, .. } => {
                needs.beside[op] = true;
                qkv.iter().chain([y]).for_each(|&value| needs.keep(value, SavedAs::Exact));
            }
            Op::Activation { x, .. } => needs.keep(*x, SavedAs::Input),
            Op::Gate { gate, up, .. } => [gate, up].into_iter().for_each(|&x| needs.keep(x, SavedAs::Input)),
            _ => {}
        }
    }

    /// Marks a value that gradients of layers read. Values that are cheap to recompute are not
    /// saved; the inputs that their own backward pass saves are enough.
    fn need(&self, needs: &mut Needs, value: ValueId) {
        let Some(maker) = self.segment.maker[value] else { return };
        match &self.segment.ops[maker] {
            Op::RmsNorm { .. } | Op::Activation { .. } | Op::Gate { .. } => self.reads(needs, maker),
            Op::Gather { x, .. } => self.need(needs, *x),
            _ => needs.keep(value, SavedAs::Exact),
        }
    }

    /// Allocates memory for what is saved.
    pub fn save(&mut self, needs: &Needs) -> Saved {
        let values = (0..needs.kept.len()).map(|value| {
            let rounded = match needs.kept[value] {
                SavedAs::No => return None,
                SavedAs::Exact => false,
                SavedAs::Input => self.rounds(value),
            };
            let count = self.count(value);
            let piece = self.space.take(SavedPiece::floats(count, rounded));
            Some(SavedPiece { piece, count, rounded })
        });
        let values = values.collect();
        let beside = (needs.beside.iter().enumerate())
            .map(|(op, &kept)| if kept { self.beside(op) } else { Vec::new() })
            .collect();
        Saved { values, beside }
    }

    /// Allocates memory for what an operation saves beside values: statistics of rows, and what
    /// adapters save.
    pub(super) fn beside(&mut self, op: usize) -> Vec<Piece> {
        let sizes = match &self.segment.ops[op] {
            Op::LayerNorm { y, .. } => {
                let Value { rows, .. } = self.value(*y);
                vec![self.count(*y), self.rows(rows)]
            }
            Op::RmsNorm { y, gamma, .. } => vec![self.count(*y) / self.net.graph.weights[*gamma].1],
            Op::Attention { qkv, heads, .. } => vec![self.rows(self.value(qkv[0]).rows) * heads.heads],
            Op::Linear { layers, .. } => {
                let saved = |&(layer, y): &(LayerId, ValueId)| {
                    let extent = self.extent(layer, self.rows(self.value(y).rows), true);
                    self.adapter(layer).map_or(0, |adapter| adapter.on::<D>().saved(extent))
                };
                layers.iter().map(saved).collect()
            }
            _ => Vec::new(),
        };
        sizes.into_iter().map(|size| self.space.take(size)).collect()
    }
}
