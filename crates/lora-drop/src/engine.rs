//! What training and evaluation share: the thread pool, the cut of a step into micro-batches, and
//! batches in the form that models take.

use lora_drop_transformer::linear::FrozenForm;
use lora_drop_transformer::{AdapterTable, Model, PassSize, SavePolicy, Sequences, Texts};

use crate::data::batch::micro_batches;
use crate::data::text::PackedTexts;
use crate::data::{PackedBatch, TaskRows};
use crate::{Error, Result};

/// Tokens of an encoder's pass that runs alone. Its activations stay in the caches, and products
/// are as fast as with more rows (measurements in docs/notebook.md).
const MICRO_TOKENS: usize = 1024;
/// Tokens of a decoder's pass that runs alone; its many layers save several times as much per
/// token.
const DECODER_MICRO_TOKENS: usize = 512;
/// Size of micro-batches in training with weights packed once, where small ones are as fast.
const PACKED_PART_SIZE: PartSize = PartSize { bytes: 1e8, min_tokens: 256, max_tokens: 512 };
/// Size of micro-batches of decoders whose matrices are packed for each of them.
const DECODER_PART_SIZE: PartSize = PartSize { bytes: 7e8, min_tokens: 512, max_tokens: 1000 };
/// Most bytes of the blocks' matrices, packed for both directions, with which they are packed once
/// for training.
const MAX_PACKED_BYTES: usize = 384 << 20;
/// Most trained values (16 MB) with which each part of a step has its own gradient, so that parts
/// may run concurrently. With more, as in full fine-tuning, all parts add to one gradient.
pub const MAX_OWN_GRADIENT_VALUES: usize = 4 << 20;
/// Most concurrent micro-batches with weights packed once.
const MAX_CONCURRENT_PREPACKED: usize = 8;
/// Most concurrent micro-batches if each packs the weights itself, which takes more memory.
const MAX_CONCURRENT_REPACKING: usize = 2;
/// Threads for each of the micro-batches that pack weights; with fewer, concurrency gains nothing.
const THREADS_PER_REPACKING_PART: usize = 4;

/// Size of micro-batches: the number of tokens whose activations take `bytes`, from
/// `min_tokens` to `max_tokens`.
struct PartSize {
    bytes: f64,
    min_tokens: usize,
    max_tokens: usize,
}

impl PartSize {
    fn tokens(&self, model: &Model, table: &AdapterTable) -> usize {
        let size = PassSize {
            tokens: self.max_tokens,
            sequences: 1,
            learned: 0,
            saves: SavePolicy::All,
            lora_dropout: false,
            scored: false,
            every_token: false,
        };
        let bytes_per_token =
            (size_of::<f32>() * model.net.floats(table, &size)) as f64 / self.max_tokens as f64;
        ((self.bytes / bytes_per_token) as usize).clamp(self.min_tokens, self.max_tokens)
    }
}

/// How a step is cut into micro-batches, and how many of them run concurrently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cut {
    /// Tokens of a micro-batch.
    pub micro_tokens: usize,
    /// Whether the number of micro-batches is even, given enough rows.
    pub even_count: bool,
    /// Number of micro-batches that run concurrently if none is larger than `micro_tokens`; 1: one
    /// by one. It does not affect results.
    pub concurrent: usize,
}

impl Default for Cut {
    /// Micro-batches that suit every model, one by one.
    fn default() -> Self {
        Cut { micro_tokens: DECODER_MICRO_TOKENS, even_count: false, concurrent: 1 }
    }
}

impl Cut {
    /// Returns the candidates for cutting the steps of a newly loaded model, each with the form in
    /// which its frozen matrices are kept: the fastest first, then those that take less memory.
    /// `trained` is the number of trained values, `threads` the number of computing threads.
    pub fn candidates(
        model: &Model,
        table: &AdapterTable,
        trained: usize,
        threads: usize,
    ) -> Vec<(FrozenForm, Self)> {
        // Counted in values and not in this machine's packed panels, so that the cut is the same
        // everywhere. Models that write text are never packed once: their output layer is outside
        // the blocks and would be packed for each part.
        let size = model.head.and(model.net.frozen_bytes()).map(|bytes| 2 * bytes);
        let can_pack = size.is_some_and(|size| size <= MAX_PACKED_BYTES);
        let candidate = |form: FrozenForm| {
            let packed = form == FrozenForm::Packed;
            let micro_tokens = if packed {
                PACKED_PART_SIZE.tokens(model, table)
            } else if model.config.architecture.is_decoder() {
                DECODER_PART_SIZE.tokens(model, table)
            } else {
                MICRO_TOKENS
            };
            let max_concurrent = if packed {
                MAX_CONCURRENT_PREPACKED.min(threads)
            } else {
                MAX_CONCURRENT_REPACKING.min(threads / THREADS_PER_REPACKING_PART)
            };
            let concurrent = if parts_have_own_gradients(trained) { max_concurrent.max(1) } else { 1 };
            // `even_count` is the same for both forms, so equal `micro_tokens` give equal cuts.
            (form, Cut { micro_tokens, even_count: can_pack, concurrent })
        };
        let forms: &[_] =
            if can_pack { &[FrozenForm::Packed, FrozenForm::Rounded] } else { &[FrozenForm::Rounded] };
        forms.iter().map(|&form| candidate(form)).collect()
    }

    /// Cuts a step, whose rows have these lengths in tokens, into micro-batches of row positions.
    /// The micro-batches of the first group may run concurrently; each that is larger than
    /// `micro_tokens` follows as a group of its own.
    pub fn groups(&self, lengths: &[usize]) -> Vec<Vec<Vec<usize>>> {
        let parts = micro_batches(lengths, self.micro_tokens, if self.even_count { 2 } else { 1 });
        let (fitting, oversized): (Vec<_>, Vec<_>) = parts
            .into_iter()
            .partition(|part| part.iter().map(|&slot| lengths[slot]).sum::<usize>() <= self.micro_tokens);
        let oversized = oversized.into_iter().map(|part| vec![part]);
        (!fitting.is_empty()).then_some(fitting).into_iter().chain(oversized).collect()
    }
}

/// Whether each part of a step has its own gradient, with this number of trained values.
pub fn parts_have_own_gradients(parameters: usize) -> bool {
    parameters <= MAX_OWN_GRADIENT_VALUES
}

/// Starts a pool of this many threads (0: one per processor). The number does not affect results.
///
/// # Errors
/// The threads cannot be started.
pub fn thread_pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::Input(format!("{threads} threads cannot be started: {e}")))
}

/// Tokens of this model's pass if it runs alone.
pub fn micro_tokens(model: &Model) -> usize {
    if model.config.architecture.is_decoder() { DECODER_MICRO_TOKENS } else { MICRO_TOKENS }
}

/// Borrows a batch of labelled rows in the form that a model with a head takes.
pub fn sequences(batch: &PackedBatch) -> Sequences<'_> {
    let PackedBatch { ids, types, offsets, labelled, .. } = batch;
    Sequences { ids, types, offsets, labelled }
}

/// Borrows the sequences of a batch of texts.
pub fn text_sequences(batch: &PackedTexts) -> Sequences<'_> {
    Sequences { ids: &batch.ids, types: &[], offsets: &batch.offsets, labelled: &[] }
}

/// A batch of rows that pass through a model together.
pub enum Packed {
    Labelled(PackedBatch),
    Texts(PackedTexts),
}

impl Packed {
    /// Packs the rows with the numbers `chosen`.
    pub fn new(rows: TaskRows, chosen: &[usize]) -> Self {
        match rows {
            TaskRows::Labelled(examples) => Packed::Labelled(PackedBatch::pack(examples, chosen)),
            TaskRows::Text(examples) => Packed::Texts(PackedTexts::pack(examples, chosen.iter().copied())),
        }
    }

    /// The sequences of the batch.
    pub fn sequences(&self) -> Sequences<'_> {
        match self {
            Packed::Labelled(batch) => sequences(batch),
            Packed::Texts(batch) => text_sequences(batch),
        }
    }
}

/// Borrows a batch of texts in the form that a decoder trains on.
pub fn texts(batch: &PackedTexts) -> Texts<'_> {
    Texts { ids: &batch.ids, offsets: &batch.offsets, learn: &batch.learn }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_run_concurrently_if_none_is_too_large() {
        let cut = Cut { micro_tokens: 10, even_count: true, concurrent: 2 };
        assert_eq!(cut.groups(&[5, 5, 5, 5]), [[vec![0, 2], vec![1, 3]]]);
        assert_eq!(cut.groups(&[3]), [[vec![0]]]);
        assert!(cut.groups(&[]).is_empty());
        // A row longer than a part runs by itself, after the others.
        assert_eq!(cut.groups(&[30, 4, 4]), [vec![vec![1], vec![2]], vec![vec![0]]]);
        assert_eq!(cut.groups(&[5, 30, 5]), [vec![vec![0], vec![2]], vec![vec![1]]]);
        let odd = Cut { even_count: false, ..cut };
        assert_eq!(odd.groups(&[5, 5, 5, 5, 5]), [[vec![0, 3], vec![1, 4], vec![2]]]);
    }
}
