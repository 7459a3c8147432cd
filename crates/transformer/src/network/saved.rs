//! What the backward pass needs of a segment, and the memory that forward saves it in.

use lora_drop_compute::device::{Device, Kept, Piece};
use lora_drop_compute::gemm::Precision;

use super::graph::{LayerId, Op, Segment, Value, ValueId, WeightId};
use super::space::Space;
use super::walk::Walk;

/// What the backward pass needs of a segment.
pub struct Needs {
    /// By value: whether its gradient is wanted.
    pub(super) wanted: Vec<bool>,
    /// By value: whether it is saved as it is, or as an activation's input.
    kept: Vec<Keep>,
    /// By operation: whether its rows' statistics are saved.
    beside: Vec<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    No,
    /// Rounded to bf16 beside products in bf16.
    Input,
    Exact,
}

impl Needs {
    fn keep(&mut self, value: ValueId, how: Keep) {
        if self.kept[value] != Keep::Exact {
            self.kept[value] = how;
        }
    }
}

/// What is saved of a segment.
pub struct Saved {
    pub(super) values: Vec<Option<Kept>>,
    /// By operation: of a norm x̂ and the rows' deviations, of attention the rows' sums, of layers what each one's
    /// adapter saves.
    pub(super) beside: Vec<Vec<Piece>>,
}

impl Saved {
    /// Gives its memory back.
    pub fn release(self, space: &mut Space) {
        self.values.into_iter().flatten().for_each(|kept| space.give(kept.piece));
        self.beside.into_iter().flatten().for_each(|piece| space.give(piece));
    }

    /// A value that is saved as it is.
    pub(super) fn exact(&self, value: ValueId) -> Option<Piece> {
        self.values[value].filter(|kept| !kept.rounded).map(|kept| kept.piece)
    }

    /// One that is saved rounded.
    pub(super) fn rounded(&self, value: ValueId) -> Option<Kept> {
        self.values[value].filter(|kept| kept.rounded)
    }
}

impl<D: Device> Walk<'_, '_, D> {
    /// Whether inputs of activations are saved rounded: where their layer multiplies in bf16.
    fn rounds(&self, value: ValueId) -> bool {
        let made = self.segment.maker[value].map(|op| &self.segment.ops[op]);
        let Some(Op::Linear { layers, .. }) = made else { return false };
        D::ROUNDS && layers.iter().all(|(layer, _)| self.net.layers[*layer].precision == Precision::Bf16)
    }

    /// What the backward pass needs, with `below` down to the segment's input.
    pub fn needs(&self, below: bool) -> Needs {
        let Segment { ops, values, input, .. } = self.segment;
        let mut needs = Needs {
            wanted: vec![false; values.len()],
            kept: vec![Keep::No; values.len()],
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
            // It is there anyway.
            needs.kept[input] = Keep::No;
        }
        needs
    }

    /// Notes what the backward pass of an operation reads of its own rows.
    fn reads(&self, needs: &mut Needs, op: usize) {
        match &self.segment.ops[op] {
            Op::LayerNorm { .. } => needs.beside[op] = true,
            Op::RmsNorm { x, .. } => {
                needs.beside[op] = true;
                needs.keep(*x, Keep::Exact);
            }
            Op::Attention { qkv, y, .. } => {
                needs.beside[op] = true;
                qkv.iter().chain([y]).for_each(|&value| needs.keep(value, Keep::Exact));
            }
            Op::Activation { x, .. } => needs.keep(*x, Keep::Input),
            Op::Gate { gate, up, .. } => [gate, up].into_iter().for_each(|&x| needs.keep(x, Keep::Input)),
            _ => {}
        }
    }

    /// Notes that a layer's gradients read a value. What is cheap is recomputed, of what its own backward pass reads.
    fn need(&self, needs: &mut Needs, value: ValueId) {
        let Some(maker) = self.segment.maker[value] else { return };
        match &self.segment.ops[maker] {
            Op::RmsNorm { .. } | Op::Activation { .. } | Op::Gate { .. } => self.reads(needs, maker),
            Op::Gather { x, .. } => self.need(needs, *x),
            _ => needs.keep(value, Keep::Exact),
        }
    }

    /// Memory for what is saved, from the walk's.
    pub fn save(&mut self, needs: &Needs) -> Saved {
        let values = (0..needs.kept.len()).map(|value| {
            let rounded = match needs.kept[value] {
                Keep::No => return None,
                Keep::Exact => false,
                Keep::Input => self.rounds(value),
            };
            let count = self.count(value);
            let piece = self.space.take(Kept::floats(count, rounded));
            Some(Kept { piece, count, rounded })
        });
        let values = values.collect();
        let beside = (needs.beside.iter().enumerate())
            .map(|(op, &kept)| if kept { self.beside(op) } else { Vec::new() })
            .collect();
        Saved { values, beside }
    }

    /// Memory for an operation's statistics of its rows.
    pub(super) fn beside(&mut self, op: usize) -> Vec<Piece> {
        let sizes = match &self.segment.ops[op] {
            Op::LayerNorm { y, .. } => {
                let Value { rows, .. } = self.value(*y);
                vec![self.count(*y), self.rows(rows)]
            }
            Op::RmsNorm { y, gamma, .. } => vec![self.count(*y) / self.net.widths[*gamma]],
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
