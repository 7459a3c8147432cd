//! What training and measuring have in common: the pool of threads, the size of a pass, a batch as the model takes it.

use lora_drop_compute::gemm::Precision;
use lora_drop_transformer::Model;
use lora_drop_transformer::decoder::Texts;
use lora_drop_transformer::encoder::Sequences;

use crate::data::text::PackedTexts;
use crate::data::{Label, PackedBatch};
use crate::{Error, Result};

/// Tokens of an encoder's micro-batch, where nothing else is asked for. A step's batch is cut into parts of about this
/// size: their activations stay in the caches, the memory of a step does not grow with its batch, and products are as fast
/// as with more rows (docs/performance.md has the measurements).
const MICRO_TOKENS: usize = 1024;
/// The same for wide encoders (`WIDE` values a token and more) that multiply in bf16: packing their rounded weights costs half
/// as much, so fewer rows are as fast, and need a quarter less memory.
const WIDE_MICRO_TOKENS: usize = 768;
const WIDE: usize = 768;
/// The same for decoders, whose many layers keep several times as much for each token.
const TEXT_MICRO_TOKENS: usize = 512;

/// Bytes of a model's matrices up to which they are packed once for training.
pub const MOST_PACKED: usize = 384 << 20;

/// A pool of so many threads (0: one per processor) to run in; the results do not depend on the number.
pub fn thread_pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::Input(format!("{threads} threads cannot be started: {e}")))
}

/// Tokens of a micro-batch of this model, where nothing else is asked for.
pub fn micro_tokens(model: &Model) -> usize {
    match model {
        Model::Encoder(encoder)
            if encoder.config.hidden_size >= WIDE && encoder.precision() == Precision::Bf16 =>
        {
            WIDE_MICRO_TOKENS
        }
        Model::Encoder(_) => MICRO_TOKENS,
        Model::Decoder(_) | Model::Classifier(_) => TEXT_MICRO_TOKENS,
    }
}

/// A batch as a model with a head takes it.
pub fn sequences(batch: &PackedBatch) -> Sequences<'_> {
    Sequences { ids: &batch.ids, types: &batch.types, offsets: &batch.offsets }
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
