//! What an encoder needs of memory: activations of a pass, and weights.

use std::ops::Range;

use lora_drop_compute::attention::Queries;

use super::{Encoder, Keep, PassSize};
use crate::block::Sizes;
use crate::linear::FrozenForm;
use crate::lora::LoraTable;
use crate::memory::{FrozenWeights, WeightBytes, embedding_bytes};

impl Encoder {
    /// Floats of activations that a pass takes.
    pub fn floats(&self, table: &LoraTable, size: &PassSize) -> usize {
        let c = &self.config;
        let row = size.tokens * c.hidden_size;
        let sizes = |layer: usize| {
            let last = layer + 1 == c.layers;
            let first = last && self.last(table, size.scored, size.lora_dropout) == Queries::First;
            Sizes {
                layer,
                table,
                tokens: size.tokens,
                rows: if first { size.sequences } else { size.tokens },
                first,
                hidden: c.hidden_size,
                intermediate: c.intermediate_size,
                heads: c.heads,
                lora_dropout: size.lora_dropout,
                scored: size.scored,
                precision: self.precision(),
                trains_base: self.trains_base,
            }
        };
        let most = |layers: Range<usize>, of: &dyn Fn(Sizes) -> usize| {
            layers.map(|layer| of(sizes(layer))).max().unwrap_or(0)
        };
        let forward = |s: Sizes| s.saved() + s.forward();
        let unkept = |blocks| 2 * row + row.max(most(0..blocks, &forward));
        let lowest = match (size.keep, self.lowest(table)) {
            (Keep::One, _) => return unkept(c.layers),
            (_, None) => return row + unkept(c.layers),
            (_, Some(lowest)) => lowest,
        };
        let kept = lowest..c.layers;
        let inputs = (kept.len() + 1 + usize::from(self.trains_base)) * row;
        let blocks = match size.keep {
            Keep::All => {
                let saved: usize = kept.clone().map(|layer| sizes(layer).saved()).sum();
                let back = most(kept.clone(), &|s| s.backward());
                saved + (2 * row + back).max(most(kept, &|s| s.forward()))
            }
            _ => 2 * row + most(kept, &|s| s.saved() + s.forward().max(s.backward())),
        };
        inputs + blocks.max(unkept(lowest))
    }

    /// Bytes of frozen weights without the table of word embeddings, once the blocks' are kept in this form.
    pub fn weight_bytes(&self, form: FrozenForm) -> WeightBytes {
        let mut weights = FrozenWeights::default();
        let linears = self.blocks.iter().flat_map(|block| &block.linears);
        let norms = self.blocks.iter().flat_map(|block| [&block.attention_norm, &block.output_norm]);
        linears.for_each(|linear| weights.add_linear(linear, form));
        for linear in [&self.head.dense, &self.head.output] {
            weights.add_linear(linear, FrozenForm::AsIs);
        }
        for norm in norms.chain([&self.embedding_norm]) {
            weights.add(&norm.gamma);
            weights.add(&norm.beta);
        }
        [Some(&self.positions), self.types.as_ref(), self.relative.as_ref()]
            .into_iter()
            .flatten()
            .for_each(|weight| weights.add(weight));
        weights.bytes()
    }

    /// Bytes of the table of word embeddings that are resident once the `used` of all tokens have been read.
    pub fn embedding_bytes(&self, used: &[bool]) -> usize {
        embedding_bytes(&self.words, used)
    }
}
