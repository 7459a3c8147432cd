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
        let producer = self.segment.producer[value].map(|op| &self.segment.ops[op]);
        let Some(Op::Linear { layers, .. }) = producer else { return false };
        D::ROUNDS && layers.iter().all(|(layer, _)| self.net.layers[*layer].precision == Precision::Bf16)
    }

    /// Returns what the backward pass needs; with `input_gradient`, it also computes the gradient
    /// of the segment's input.
    pub fn needs(&self, input_gradient: bool) -> Needs {
        let Segment { ops, values, input, .. } = self.segment;
        let mut needs = Needs {
            gradient: vec![false; values.len()],
            saved_as: vec![SavedAs::No; values.len()],
            aux: vec![false; ops.len()],
        };
        if let Some(input) = *input {
            needs.gradient[input] = input_gradient;
        }
        for op in ops {
            let any = op.reads().iter().any(|&x| needs.gradient[x]);
            let trains = |weight: &WeightId| self.net.weights[*weight].trains();
            match op {
                Op::Linear { layers, .. } => {
                    layers.iter().for_each(|(layer, y)| needs.gradient[*y] = any || self.trains(*layer));
                }
                Op::Embed { tables, y } => {
                    needs.gradient[*y] = tables.iter().any(|(table, _)| trains(table));
                }
                Op::LayerNorm { gamma, y, .. } | Op::RmsNorm { gamma, y, .. } => {
                    needs.gradient[*y] = any || trains(gamma);
                }
                other => other.writes().into_iter().for_each(|y| needs.gradient[y] = any),
            }
        }
        for (i, op) in ops.iter().enumerate() {
            if !op.writes().iter().any(|&y| needs.gradient[y]) {
                continue;
            }
            match op {
                Op::Linear { x, layers } if layers.iter().any(|(layer, _)| self.trains(*layer)) => {
                    needs.aux[i] = true;
                    self.mark_layer_input(&mut needs, *x);
                }
                _ => self.mark_backward_reads(&mut needs, i),
            }
        }
        if let Some(input) = *input {
            // The caller has the input anyway.
            needs.saved_as[input] = SavedAs::No;
        }
        needs
    }

    /// Marks what the backward pass of an operation itself reads: values, and auxiliary values.
    fn mark_backward_reads(&self, needs: &mut Needs, op: usize) {
        match &self.segment.ops[op] {
            Op::LayerNorm { .. } => needs.aux[op] = true,
            Op::RmsNorm { x, .. } => {
                needs.aux[op] = true;
                needs.save(*x, SavedAs::Exact);
            }
            Op::Attention { qkv, y, .. } => {
                needs.aux[op] = true;
                qkv.iter().chain([y]).for_each(|&value| needs.save(value, SavedAs::Exact));
            }
            Op::Activation { x, .. } => needs.save(*x, SavedAs::Input),
            Op::Gate { gate, up, .. } => [gate, up].into_iter().for_each(|&x| needs.save(x, SavedAs::Input)),
            _ => {}
        }
    }

    /// Marks a value that gradients of layers read. Values that are cheap to recompute are not
    /// saved; the inputs that their own backward pass saves are enough.
    fn mark_layer_input(&self, needs: &mut Needs, value: ValueId) {
        let Some(producer) = self.segment.producer[value] else { return };
        match &self.segment.ops[producer] {
            Op::RmsNorm { .. } | Op::Activation { .. } | Op::Gate { .. } => {
                self.mark_backward_reads(needs, producer)
            }
            Op::Gather { x, .. } => self.mark_layer_input(needs, *x),
            _ => needs.save(value, SavedAs::Exact),
        }
    }

    /// Allocates memory for what is saved.
    pub fn allocate_saved(&mut self, needs: &Needs) -> Saved {
        let values = (0..needs.saved_as.len()).map(|value| {
            let rounded = match needs.saved_as[value] {
                SavedAs::No => return None,
                SavedAs::Exact => false,
                SavedAs::Input => self.rounds(value),
            };
            let count = self.count(value);
            let piece = self.space.take(SavedPiece::floats(count, rounded));
            Some(SavedPiece { piece, count, rounded })
        });
        let values = values.collect();
        let aux = (needs.aux.iter().enumerate())
            .map(|(op, &saved)| if saved { self.allocate_aux(op) } else { Vec::new() })
            .collect();
        Saved { values, aux }
    }

    /// Allocates memory for an operation's auxiliary values: statistics of rows, and what adapters
    /// save.
    pub(super) fn allocate_aux(&mut self, op: usize) -> Vec<Piece> {
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
