//! What training and measuring have in common: the pool of threads, how a step is cut, the size of
//! a pass, a batch as the model takes it.

use lora_drop_transformer::linear::FrozenForm;
use lora_drop_transformer::{Keep, LoraTable, Model, PassSize, Sequences, Texts};

use crate::data::batch::micro_batches;
use crate::data::text::PackedTexts;
use crate::data::{Label, PackedBatch, TaskRows};
use crate::{Error, Result};

/// Tokens of a pass that runs by itself. Its activations stay in the caches, and products are as
/// fast as with more rows (docs/notebook.md has the measurements).
const MICRO_TOKENS: usize = 1024;
/// The same of decoders, whose many layers keep several times as much for each token.
const TEXT_MICRO_TOKENS: usize = 512;
/// Micro-batches in training where no product packs a weight, for then small ones are as fast.
const PACKED_PARTS: PartSize = PartSize { bytes: 1e8, least: 256, most: 512 };
/// The same of decoders whose matrices are packed for each part.
const TEXT_PARTS: PartSize = PartSize { bytes: 7e8, least: 512, most: 1000 };
/// Bytes of the blocks' matrices, as both directions multiply them, up to which they are packed
/// once for training.
const MOST_PACKED: usize = 384 << 20;
/// Trained values up to which each part has a gradient of its own, and may run beside another: 16
/// MB. Beyond, as in full fine-tuning, parts add to one gradient.
pub const MOST_APART: usize = 4 << 20;
/// Micro-batches that run concurrently at most, where no product packs a weight.
const MOST_TOGETHER: usize = 8;
/// The same where each packs the weights for itself, and keeps more.
const MOST_PACKING: usize = 2;
/// Threads that each of these is to have: with fewer they gain nothing.
const THREADS_PACKING: usize = 4;

/// How large micro-batches are: as many tokens as fit their activations into these bytes, within
/// bounds.
struct PartSize {
    bytes: f64,
    least: usize,
    most: usize,
}

impl PartSize {
    fn tokens(&self, model: &Model, table: &LoraTable) -> usize {
        let size = PassSize {
            tokens: self.most,
            sequences: 1,
            learned: 0,
            keep: Keep::All,
            lora_dropout: false,
            scored: false,
            every: false,
        };
        let each = (size_of::<f32>() * model.net.floats(table, &size)) as f64 / self.most as f64;
        ((self.bytes / each) as usize).clamp(self.least, self.most)
    }
}

/// How a step is cut into micro-batches, and how many of them run concurrently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cut {
    /// Tokens of a micro-batch.
    pub micro_tokens: usize,
    /// Whether there is an even number of them, where there are rows enough.
    pub even: bool,
    /// How many of them run concurrently where none is larger than `micro_tokens`; 1 where they run
    /// one by one. No bit depends on it.
    pub together: usize,
}

impl Default for Cut {
    /// One by one, which suits every model.
    fn default() -> Self {
        Cut { micro_tokens: TEXT_MICRO_TOKENS, even: false, together: 1 }
    }
}

impl Cut {
    /// How the steps of a model that is newly loaded are cut where nothing else is asked for, and
    /// how its frozen matrices are kept for that: the fastest way, and those that take less memory.
    /// `trained` is the number of trained values, and `threads` those that compute.
    pub fn ways(model: &Model, table: &LoraTable, trained: usize, threads: usize) -> Vec<(FrozenForm, Self)> {
        // By what is multiplied and not by this machine's panels, so that the cut is the same
        // everywhere. Of models that write text the output layer is no block's, and would be packed
        // for each part.
        let size = model.outputs.and(model.net.frozen_bytes()).map(|bytes| 2 * bytes);
        let small = size.is_some_and(|size| size <= MOST_PACKED);
        let way = |form: FrozenForm| {
            let packed = form == FrozenForm::Packed;
            let micro_tokens = if packed {
                PACKED_PARTS.tokens(model, table)
            } else if model.config.architecture.is_decoder() {
                TEXT_PARTS.tokens(model, table)
            } else {
                MICRO_TOKENS
            };
            let most =
                if packed { MOST_TOGETHER.min(threads) } else { MOST_PACKING.min(threads / THREADS_PACKING) };
            let together = if apart(trained) { most.max(1) } else { 1 };
            // The same `--micro-tokens` are the same cut, packed or not.
            (form, Cut { micro_tokens, even: small, together })
        };
        let forms: &[_] =
            if small { &[FrozenForm::Packed, FrozenForm::Rounded] } else { &[FrozenForm::Rounded] };
        forms.iter().map(|&form| way(form)).collect()
    }

    /// The micro-batches of a step whose rows are so long, as places in it: first those that may
    /// run concurrently, then each that is larger than `micro_tokens` by itself.
    pub fn groups(&self, lengths: &[usize]) -> Vec<Vec<Vec<usize>>> {
        let parts = micro_batches(lengths, self.micro_tokens, if self.even { 2 } else { 1 });
        let (fitting, over): (Vec<_>, Vec<_>) = parts
            .into_iter()
            .partition(|part| part.iter().map(|&slot| lengths[slot]).sum::<usize>() <= self.micro_tokens);
        let over = over.into_iter().map(|part| vec![part]);
        (!fitting.is_empty()).then_some(fitting).into_iter().chain(over).collect()
    }
}

/// Whether each part of a step has a gradient of its own, with this number of trained values.
pub fn apart(parameters: usize) -> bool {
    parameters <= MOST_APART
}

/// A pool of this many threads (0: one per processor) to run in; the results do not depend on the
/// number.
pub fn thread_pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::Input(format!("{threads} threads cannot be started: {e}")))
}

/// Tokens of a pass of this model that runs by itself.
pub fn micro_tokens(model: &Model) -> usize {
    if model.config.architecture.is_decoder() { TEXT_MICRO_TOKENS } else { MICRO_TOKENS }
}

/// A batch as a model with a head takes it.
pub fn sequences(batch: &PackedBatch) -> Sequences<'_> {
    Sequences { ids: &batch.ids, types: &batch.types, offsets: &batch.offsets }
}

/// The sequences of texts.
pub fn text_sequences(batch: &PackedTexts) -> Sequences<'_> {
    Sequences { ids: &batch.ids, types: &[], offsets: &batch.offsets }
}

/// Rows that pass through a model together.
pub enum Packed {
    Labelled(PackedBatch),
    Texts(PackedTexts),
}

impl Packed {
    /// Packs the rows `chosen`, by number.
    pub fn new(rows: TaskRows, chosen: &[usize]) -> Self {
        match rows {
            TaskRows::Labelled(examples) => Packed::Labelled(PackedBatch::pack(examples, chosen)),
            TaskRows::Text(examples) => Packed::Texts(PackedTexts::pack(examples, chosen.iter().copied())),
        }
    }

    pub fn sequences(&self) -> Sequences<'_> {
        match self {
            Packed::Labelled(batch) => sequences(batch),
            Packed::Texts(batch) => text_sequences(batch),
        }
    }
}

/// Texts as the decoder takes them.
pub fn texts(batch: &PackedTexts) -> Texts<'_> {
    Texts { ids: &batch.ids, offsets: &batch.offsets, learn: &batch.learn }
}

/// Classes or values, whichever the labels are; the other is empty.
pub fn unzip(labels: &[Label]) -> (Vec<usize>, Vec<f32>) {
    let (mut classes, mut values) = (Vec::new(), Vec::new());
    for label in labels {
        match label {
            Label::Class(class) => classes.push(*class),
            Label::Value(value) => values.push(*value),
        }
    }
    (classes, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_run_side_by_side_where_none_is_too_large() {
        let cut = Cut { micro_tokens: 10, even: true, together: 2 };
        assert_eq!(cut.groups(&[5, 5, 5, 5]), [[vec![0, 2], vec![1, 3]]]);
        assert_eq!(cut.groups(&[3]), [[vec![0]]]);
        assert!(cut.groups(&[]).is_empty());
        // A row longer than a part runs by itself, after the others.
        assert_eq!(cut.groups(&[30, 4, 4]), [vec![vec![1], vec![2]], vec![vec![0]]]);
        assert_eq!(cut.groups(&[5, 30, 5]), [vec![vec![0], vec![2]], vec![vec![1]]]);
        let odd = Cut { even: false, ..cut };
        assert_eq!(odd.groups(&[5, 5, 5, 5, 5]), [[vec![0, 3], vec![1, 4], vec![2]]]);
    }
}
