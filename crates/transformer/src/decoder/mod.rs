//! Decoders of Llama's kind: loading, the pass over packed texts, next-token loss and the way back.
//!
//! The logits matrix (tokens, vocabulary) never exists whole: only rows that predict a learned token get logits, some
//! at a time, and their gradient takes the logits' place. Parameter gradients accumulate, as in the encoder.

pub mod block;
pub(crate) mod body;
pub mod cache;
pub mod classifier;
pub mod config;

use std::sync::atomic::AtomicBool;

use lora_drop_compute::blocks::BlockType;
use lora_drop_compute::gemm::{Precision, Start};
use lora_drop_compute::linear::Rows;
use lora_drop_compute::random::{Dropout, Key};
use lora_drop_compute::{loss, profile};

use crate::drops::Drops;
use crate::encoder::{Below, DropoutRates, Stopped};
use crate::error::Result;
use crate::linear::{FrozenForm, Grads, LinearWeights, Values};
use crate::lora::LoraTable;
use crate::memory::{Keep, Memory, PassSize, WeightBytes, embedding_bytes};
use crate::moments::Moments;
use crate::parameters::Parameters;
use crate::weights::{Source, Weights};
use block::{Pass, Saved};
use body::{Body, Places, go_on, stored};
pub use cache::Cache;
pub use classifier::Classifier;
pub use config::DecoderConfig;

/// Floats of logits that exist at once: 128 MiB.
const MOST_LOGITS: usize = 1 << 25;

/// The model: frozen weights.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub config: DecoderConfig,
    pub(crate) body: Body,
    /// hidden → vocabulary
    pub(crate) output: LinearWeights,
}

/// Packed texts.
#[derive(Clone, Copy)]
pub struct Texts<'a> {
    /// (tokens)
    pub ids: &'a [u32],
    /// Where texts start, and the end: (texts + 1).
    pub offsets: &'a [usize],
    /// Whether a token is to be predicted from those before it: (tokens). A text's first never is.
    pub learn: &'a [bool],
}

impl Texts<'_> {
    /// The rows that predict a learned token, and these tokens.
    fn targets(&self) -> (Vec<usize>, Vec<u32>) {
        let learned = |ends: &[usize]| (ends[0] + 1..ends[1]).filter(|&i| self.learn[i]).collect::<Vec<_>>();
        let tokens = self.offsets.windows(2).flat_map(learned);
        tokens.map(|i| (i - 1, self.ids[i])).unzip()
    }

    /// How many tokens are learned.
    pub fn learned(&self) -> usize {
        self.targets().0.len()
    }
}

/// A part of an optimiser step's batch.
#[derive(Clone, Copy)]
pub struct TextPart<'a> {
    pub texts: Texts<'a>,
    /// Learned tokens of the whole step, over which the loss is the mean.
    pub total: usize,
    pub dropout: DropoutRates,
    /// One per text: of this run, step and the text's place in the step.
    pub keys: &'a [Key],
    /// Keep only the blocks' inputs and form everything else again on the way back.
    pub recompute: bool,
    /// The lower blocks' output from an earlier pass over these texts; None computes them.
    pub below: Option<Below<'a>>,
}

impl Decoder {
    /// Reads the weights of `config`'s decoder. Names may come with the prefix `model.` or without. Matrices keep the
    /// storage of their file; with `quantise`, those that are f32 or half precision get this one.
    ///
    /// # Errors
    /// All weights that are missing, have another shape or hold values that are not finite.
    pub fn load(source: &dyn Source, config: &DecoderConfig, quantise: Option<BlockType>) -> Result<Self> {
        let mut source = Weights::new(source, config.architecture.prefix());
        let body = Body::take(&mut source, config, quantise);
        let (input, output) = (config.hidden_size, config.vocab_size);
        let weight = if config.tied {
            body.embeddings.clone()
        } else {
            stored(source.take_stored("lm_head.weight", &[output, input], true), quantise)
        };
        source.finish()?;
        let output = LinearWeights::new(weight, None, input, output);
        Ok(Decoder { config: config.clone(), body, output })
    }

    /// What training multiplies in from now on, the logits included.
    pub fn multiply_in(&mut self, precision: Precision) {
        self.body.multiply_in(precision);
        self.output.precision = precision;
    }

    /// Keeps frozen f32 matrices in this form from now on.
    pub fn keep_frozen(&mut self, form: FrozenForm) {
        self.body.keep_frozen(form);
        self.output.keep_frozen(self.output_form(form));
    }

    /// How the output layer is kept beside blocks in this form: as it is where it is the table of embeddings, for these are f32.
    fn output_form(&self, form: FrozenForm) -> FrozenForm {
        match form {
            _ if self.config.tied => FrozenForm::AsIs,
            FrozenForm::Packed => FrozenForm::Rounded,
            FrozenForm::AsIs | FrozenForm::Rounded => form,
        }
    }

    /// −log p of every learned token, in order, without dropout; second moments of the modules' z are added to
    /// `moments`.
    pub fn losses(
        &self,
        parameters: &Parameters,
        table: &LoraTable,
        texts: Texts,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<Vec<f32>, Stopped> {
        let values = Values { list: parameters.list(), values: parameters.values() };
        let places = Places::of_sequences(&self.config, texts.offsets, memory);
        let pass = places.pass(&self.body, &self.config, values, table, texts.offsets, None);
        let (rows, targets) = texts.targets();
        let h = self.config.hidden_size;
        let scored = moments.is_some();
        let size = PassSize { learned: rows.len(), ..PassSize::of_forward(texts.offsets, scored) };
        let mut arena = memory.arena(self.floats(table, &size));
        let blocks = self.body.blocks.len();
        let x = self.body.forward(&pass, texts.ids, None, blocks, moments, &mut arena, stop)?;
        let mut found = Vec::with_capacity(rows.len());
        for (rows, targets) in rows.chunks(self.chunk()).zip(targets.chunks(self.chunk())) {
            let mut arena = arena.scope();
            let (gathered, n) = (arena.take(rows.len() * h), arena.take(rows.len() * h));
            let (mut rstd, logits) = (vec![0.0; rows.len()], arena.take(rows.len() * self.config.vocab_size));
            self.body.norm_rows(&pass, x, rows, gathered, n, &mut rstd);
            self.output_forward(values, rows.len(), n, logits);
            found.extend(loss::token_losses(logits, targets, None));
        }
        Ok(found)
    }

    /// One part of a training step: adds to the parameters' `gradients` (and to `moments`) and returns the sum of the
    /// learned tokens' losses.
    #[allow(clippy::too_many_arguments)]
    pub fn train(
        &self,
        values: Values,
        gradients: &mut [f32],
        table: &LoraTable,
        part: TextPart,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<f64, Stopped> {
        let texts = part.texts;
        let drops = training_drops(part.dropout, part.keys, texts.offsets);
        let places = Places::of_sequences(&self.config, texts.offsets, memory);
        let pass = places.pass(&self.body, &self.config, values, table, texts.offsets, Some(drops));
        let (t, h) = (pass.tokens(), self.config.hidden_size);
        let (rows, targets) = texts.targets();
        let (dropped, scored) = (drops.lora.is_active(), moments.is_some());
        let size = PassSize::of_training(texts.offsets, part.recompute, dropped, scored);
        let size = PassSize { learned: rows.len(), ..size };
        let mut arena = memory.arena(self.floats(table, &size));
        let mut kept = self.body.forward_kept(
            &pass,
            texts.ids,
            part.below,
            part.recompute,
            moments,
            &mut arena,
            stop,
        )?;

        // Loss, and the gradient of the last block's output: zero in rows that predict nothing.
        let phase = profile::phase("logits and loss");
        let d = arena.take(t * h);
        d.fill(0.0);
        let mut sum = 0.0;
        let mut grads = Grads { list: values.list, gradients, relative: None };
        let scale = 1.0 / part.total as f32;
        for (rows, targets) in rows.chunks(self.chunk()).zip(targets.chunks(self.chunk())) {
            go_on(stop)?;
            let m = rows.len();
            let mut arena = arena.scope();
            let (x, n, dn) = (arena.take(m * h), arena.take(m * h), arena.take(m * h));
            let (mut rstd, logits) = (vec![0.0; m], arena.take(m * self.config.vocab_size));
            self.body.norm_rows(&pass, kept.output(), rows, x, n, &mut rstd);
            self.output_forward(values, m, n, logits);
            sum += loss::token_cross_entropy(logits, targets, scale);
            let dy = Rows { data: logits, stride: self.config.vocab_size };
            let to_n = Some((&mut *dn, Start::Zero));
            self.output.backward(values, &mut grads, m, n, None, &[], dy, to_n, &mut [], &mut []);
            self.body.norm_rows_backward(&pass, rows, x, &rstd, dn, n, d);
        }
        drop(phase);
        self.body.backward(&pass, &mut grads, &mut kept, d, &mut arena, stop)?;
        Ok(sum)
    }

    /// An empty cache for this model.
    pub fn new_cache(&self) -> Cache {
        Cache::new(self.config.layers, self.config.kv_heads * self.config.head_dim)
    }

    /// The logits behind the last of each text's new tokens, (texts, vocabulary); `texts` stand behind what their
    /// caches hold, and the caches grow by them.
    pub fn extend(
        &self,
        parameters: &Parameters,
        table: &LoraTable,
        ids: &[u32],
        offsets: &[usize],
        caches: &mut [&mut Cache],
        memory: &mut Memory,
    ) -> Vec<f32> {
        assert_eq!(caches.len() + 1, offsets.len());
        let forward = profile::phase("forward");
        let values = Values { list: parameters.list(), values: parameters.values() };
        let from = |text: usize| caches[text].tokens() as u32;
        let place = |text: usize| (0..(offsets[text + 1] - offsets[text]) as u32).map(move |i| (text, i));
        let positions: Vec<u32> = (0..caches.len()).flat_map(place).map(|(text, i)| from(text) + i).collect();
        let places = Places::new(&self.config, positions, memory);
        let pass =
            Pass { infer: true, ..places.pass(&self.body, &self.config, values, table, offsets, None) };
        let (t, h) = (pass.tokens(), self.config.hidden_size);
        let size = PassSize::of_forward(offsets, false);
        let mut arena = memory.arena(self.floats(table, &size));
        let (mut x, mut y) = (arena.take(t * h), arena.take(t * h));
        self.body.embed(&pass, ids, x);
        for block in &self.body.blocks {
            let mut arena = arena.scope();
            let mut saved = Saved::take(&mut arena, &pass, block.number);
            let mut layers: Vec<_> = caches.iter_mut().map(|cache| cache.layer(block.number)).collect();
            block.forward_cached(&pass, x, y, &mut saved, &mut layers, arena);
            std::mem::swap(&mut x, &mut y);
        }
        drop(forward);
        let _phase = profile::phase("logits");
        let rows = last_rows(offsets);
        let (mut last, mut n) = (vec![0.0; rows.len() * h], vec![0.0; rows.len() * h]);
        let mut rstd = vec![0.0; rows.len()];
        self.body.norm_rows(&pass, x, &rows, &mut last, &mut n, &mut rstd);
        let mut logits = vec![0.0; rows.len() * self.config.vocab_size];
        let output = &self.output;
        output.infer(values, rows.len(), &n, None, &mut logits, output.output, &mut []);
        logits
    }

    /// Floats of activations that a pass takes, its logits counted.
    pub fn floats(&self, table: &LoraTable, size: &PassSize) -> usize {
        let rows = size.learned.min(self.chunk());
        // A row, its norm and, on the way back, that one's gradient.
        let wide = if size.keep == Keep::One { 2 } else { 3 };
        let logits = rows * (self.config.vocab_size + wide * self.config.hidden_size);
        self.body.floats(&self.config, table, size, logits)
    }

    /// Bytes of frozen weights without a table of embeddings that is no output layer, once they are kept in this form.
    pub fn weight_bytes(&self, form: FrozenForm) -> WeightBytes {
        let mut weights = self.body.frozen(form);
        weights.add_linear(&self.output, self.output_form(form));
        weights.bytes()
    }

    /// Bytes of such a table of embeddings that are resident once the `used` of all tokens have been read.
    pub fn embedding_bytes(&self, used: &[bool]) -> usize {
        if self.config.tied { 0 } else { embedding_bytes(&self.body.embeddings, used) }
    }

    /// The model's own dropout, none on LoRA.
    pub fn dropout_rates(&self) -> DropoutRates {
        self.config.dropout_rates()
    }

    fn output_forward(&self, values: Values, rows: usize, n: &[f32], logits: &mut [f32]) {
        self.output.forward(values, rows, n, None, logits, self.config.vocab_size, &mut [], &mut []);
    }

    /// Rows whose logits exist at once.
    fn chunk(&self) -> usize {
        (MOST_LOGITS / self.config.vocab_size).max(8)
    }
}

/// Dropout in a training pass over sequences that begin at these offsets.
fn training_drops<'a>(rates: DropoutRates, keys: &'a [Key], offsets: &[usize]) -> Drops<'a> {
    assert_eq!(keys.len() + 1, offsets.len());
    Drops {
        hidden: Dropout::new(0.0),
        attention: Dropout::new(rates.attention),
        lora: Dropout::new(rates.lora),
        keys,
    }
}

/// Each sequence's last token.
fn last_rows(offsets: &[usize]) -> Vec<usize> {
    offsets[1..].iter().map(|end| end - 1).collect()
}
