//! Decoders of Llama's kind: loading, the pass over packed texts, next-token loss and the way back.
//!
//! The logits matrix (tokens, vocabulary) never exists whole: only rows that predict a learned token get logits, some
//! at a time, and their gradient takes the logits' place. Parameter gradients accumulate, as in the encoder.

pub mod block;
pub mod cache;
pub mod config;

use std::sync::atomic::{AtomicBool, Ordering};

use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use lora_drop_compute::gemm::Start;
use lora_drop_compute::linear::Rows;
use lora_drop_compute::random::{Dropout, Key};
use lora_drop_compute::rotary::RotaryTable;
use lora_drop_compute::{Arena, Tensor, embedding, loss, rms_norm};

use crate::drops::Drops;
use crate::encoder::{DropoutRates, Stopped};
use crate::error::Result;
use crate::linear::{Grads, LinearWeights, Values, Weight};
use crate::lora::LoraTable;
use crate::memory::Memory;
use crate::module::{ModuleId, ModuleKind};
use crate::moments::Moments;
use crate::parameters::Parameters;
use crate::weights::{Source, Stored, Weights};
use block::{Block, Pass, Saved};
pub use cache::Cache;
pub use config::DecoderConfig;

/// Floats of logits that exist at once: 32 MiB.
const MOST_LOGITS: usize = 1 << 23;

/// The model: frozen weights.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub config: DecoderConfig,
    /// (vocabulary, hidden)
    embeddings: Weight,
    blocks: Vec<Block>,
    /// (hidden)
    norm: Weight,
    /// hidden → vocabulary
    output: LinearWeights,
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
}

impl Decoder {
    /// Reads the weights of `config`'s decoder. Names may come with the prefix `model.` or without. Matrices keep the
    /// storage of their file; with `quantise`, those that are f32 or half precision get this one.
    ///
    /// # Errors
    /// All weights that are missing, have another shape or hold values that are not finite.
    pub fn load(source: &dyn Source, config: &DecoderConfig, quantise: Option<BlockType>) -> Result<Self> {
        let arch = config.architecture;
        let mut source = Weights::new(source, arch.prefix());
        let stored = |stored: Stored| match (stored, quantise) {
            (Stored::F32(tensor), Some(kind)) => quantised(tensor, kind),
            (Stored::F32(tensor), None) => Weight::Frozen(tensor),
            (Stored::Blocks(matrix), Some(kind)) if matrix.kind().values() == 1 => {
                quantised(widened(&matrix), kind)
            }
            (Stored::Blocks(matrix), _) => Weight::Blocks(matrix),
        };
        let mut taken: std::collections::HashMap<String, Weight> = config
            .weights()
            .into_iter()
            .map(|(name, shape)| {
                let weight = match shape[..] {
                    [_, _] => stored(source.take_stored(&name, &shape, false)),
                    _ => Weight::Frozen(source.take(&name, &shape)),
                };
                (name, weight)
            })
            .collect();
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let output =
            (!config.tied).then(|| stored(source.take_stored("lm_head.weight", &[vocabulary, hidden], true)));
        source.finish()?;

        let mut get = |name: String| taken.remove(&name).expect("weights() lists every weight once");
        let embeddings = get("embed_tokens.weight".into());
        let output = output.unwrap_or_else(|| embeddings.clone());
        let blocks = (0..config.layers)
            .map(|number| {
                let layer = arch.layer(number);
                Block {
                    number,
                    linears: ModuleKind::ALL.map(|kind| {
                        let (output, input) = config.linear_shape(kind);
                        let stem = arch.linear(ModuleId { layer: number, kind });
                        LinearWeights {
                            weight: get(format!("{stem}.weight")),
                            bias: config.has_bias(kind).then(|| get(format!("{stem}.bias"))),
                            input,
                            output,
                        }
                    }),
                    input_norm: get(format!("{layer}.input_layernorm.weight")),
                    middle_norm: get(format!("{layer}.post_attention_layernorm.weight")),
                    head_norms: (config.qk_norm).then(|| {
                        ["q_norm", "k_norm"].map(|part| get(format!("{layer}.self_attn.{part}.weight")))
                    }),
                }
            })
            .collect();
        Ok(Decoder {
            norm: get("norm.weight".into()),
            output: LinearWeights { weight: output, bias: None, input: hidden, output: vocabulary },
            embeddings,
            blocks,
            config: config.clone(),
        })
    }

    /// −log p of every learned token, in order, without dropout; second moments of the modules' z are added to
    /// `moments`.
    pub fn losses(
        &self,
        parameters: &Parameters,
        table: &LoraTable,
        texts: Texts,
        mut moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<Vec<f32>, Stopped> {
        let values = Values { list: parameters.list(), values: parameters.values() };
        let positions = positions(texts.offsets);
        let rotary = self.rotary(memory, &positions);
        let pass = Pass {
            values,
            table,
            config: &self.config,
            offsets: texts.offsets,
            positions: &positions,
            rotary: &rotary,
            drops: None,
            infer: false,
        };
        let (rows, targets) = texts.targets();
        let (t, h) = (pass.tokens(), self.config.hidden_size);
        let needed = self.floats(t, table, Keep::One, false) + self.logits_floats(rows.len());
        let mut arena = Arena::new(&mut memory.floats, needed);
        let (mut x, mut y) = (arena.take(t * h), arena.take(t * h));
        self.embed(values, texts.ids, x);
        for block in &self.blocks {
            if stop.load(Ordering::Relaxed) {
                return Err(Stopped);
            }
            let mut arena = arena.scope();
            let mut saved = Saved::take(&mut arena, &pass, block.number);
            block.forward(&pass, x, y, &mut saved, arena);
            if let Some(moments) = moments.as_deref_mut() {
                moments.add(block.number, table, |kind| saved.z(kind));
            }
            std::mem::swap(&mut x, &mut y);
        }
        let mut found = Vec::with_capacity(rows.len());
        for (rows, targets) in rows.chunks(self.chunk()).zip(targets.chunks(self.chunk())) {
            let mut arena = arena.scope();
            let n = arena.take(rows.len() * h);
            let (mut rstd, logits) = (vec![0.0; rows.len()], arena.take(rows.len() * self.config.vocab_size));
            let gathered = arena.take(rows.len() * h);
            gather(x, rows, h, gathered);
            rms_norm::forward(gathered, self.norm.get(values), self.config.rms_norm_eps, n, &mut rstd);
            self.output_forward(values, rows.len(), n, logits);
            found.extend(loss::token_losses(logits, targets, None));
        }
        Ok(found)
    }

    /// One part of a training step: adds to the parameters' gradients (and to `moments`) and returns the sum of the
    /// learned tokens' losses.
    pub fn train(
        &self,
        parameters: &mut Parameters,
        table: &LoraTable,
        part: TextPart,
        mut moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<f64, Stopped> {
        let (list, values, gradients) = parameters.split();
        let values = Values { list, values };
        let texts = part.texts;
        assert_eq!(part.keys.len() + 1, texts.offsets.len());
        let drops = Drops {
            hidden: Dropout::new(0.0),
            attention: Dropout::new(part.dropout.attention),
            lora: Dropout::new(part.dropout.lora),
            keys: part.keys,
        };
        let positions = positions(texts.offsets);
        let rotary = self.rotary(memory, &positions);
        let pass = Pass {
            values,
            table,
            config: &self.config,
            offsets: texts.offsets,
            positions: &positions,
            rotary: &rotary,
            drops: Some(drops),
            infer: false,
        };
        let (t, h) = (pass.tokens(), self.config.hidden_size);
        let (rows, targets) = texts.targets();
        let keep = if part.recompute { Keep::Inputs } else { Keep::All };
        let needed = self.floats(t, table, keep, drops.lora.is_active()) + self.logits_floats(rows.len());
        let mut arena = Arena::new(&mut memory.floats, needed);

        // Forward.
        let mut inputs: Vec<&mut [f32]> = (0..=self.blocks.len()).map(|_| arena.take(t * h)).collect();
        self.embed(values, texts.ids, inputs[0]);
        let mut kept: Vec<Saved> = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            if stop.load(Ordering::Relaxed) {
                return Err(Stopped);
            }
            let (x, y) = inputs.split_at_mut(block.number + 1);
            let (x, y) = (&*x[block.number], &mut *y[0]);
            let mut moments = moments.as_deref_mut();
            if part.recompute {
                let mut arena = arena.scope();
                let mut saved = Saved::take(&mut arena, &pass, block.number);
                block.forward(&pass, x, y, &mut saved, arena);
                if let Some(moments) = &mut moments {
                    moments.add(block.number, table, |kind| saved.z(kind));
                }
            } else {
                let mut saved = Saved::take(&mut arena, &pass, block.number);
                block.forward(&pass, x, y, &mut saved, arena.scope());
                if let Some(moments) = &mut moments {
                    moments.add(block.number, table, |kind| saved.z(kind));
                }
                kept.push(saved);
            }
        }

        // Loss, and the gradient of the last block's output: zero in rows that predict nothing.
        let d = arena.take(t * h);
        d.fill(0.0);
        let last = &*inputs[self.blocks.len()];
        let mut sum = 0.0;
        let mut grads = Grads { list, gradients, relative: None };
        let scale = 1.0 / part.total as f32;
        for (rows, targets) in rows.chunks(self.chunk()).zip(targets.chunks(self.chunk())) {
            if stop.load(Ordering::Relaxed) {
                return Err(Stopped);
            }
            let m = rows.len();
            let mut arena = arena.scope();
            let (x, n, dn) = (arena.take(m * h), arena.take(m * h), arena.take(m * h));
            let (mut rstd, logits) = (vec![0.0; m], arena.take(m * self.config.vocab_size));
            let gamma = self.norm.get(values);
            gather(last, rows, h, x);
            rms_norm::forward(x, gamma, self.config.rms_norm_eps, n, &mut rstd);
            self.output_forward(values, m, n, logits);
            sum += loss::token_cross_entropy(logits, targets, scale);
            let dy = Rows { data: logits, stride: self.config.vocab_size };
            let to_n = Some((&mut *dn, Start::Zero));
            self.output.backward(values, &mut grads, m, n, None, &[], dy, to_n, &mut [], &mut []);
            let dx = n;
            dx.fill(0.0);
            rms_norm::backward(dn, x, gamma, &rstd, dx, None);
            for (row, dx) in rows.iter().zip(dx.chunks_exact(h)) {
                d[row * h..(row + 1) * h].copy_from_slice(dx);
            }
        }

        // Backward, down to the lowest module that trains.
        let Some(lowest) = self.lowest(table) else { return Ok(sum) };
        for block in self.blocks.iter().skip(lowest).rev() {
            if stop.load(Ordering::Relaxed) {
                return Err(Stopped);
            }
            let below = block.number > lowest;
            let x = &*inputs[block.number];
            if part.recompute {
                let mut arena = arena.scope();
                let mut saved = Saved::take(&mut arena, &pass, block.number);
                let y = arena.take(t * h);
                block.forward(&pass, x, y, &mut saved, arena.scope());
                block.backward(&pass, &mut grads, x, d, &saved, below, arena);
            } else {
                block.backward(&pass, &mut grads, x, d, &kept[block.number], below, arena.scope());
            }
        }
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
        let values = Values { list: parameters.list(), values: parameters.values() };
        let from = |text: usize| caches[text].tokens() as u32;
        let place = |text: usize| (0..(offsets[text + 1] - offsets[text]) as u32).map(move |i| (text, i));
        let positions: Vec<u32> = (0..caches.len()).flat_map(place).map(|(text, i)| from(text) + i).collect();
        let rotary = self.rotary(memory, &positions);
        let pass = Pass {
            values,
            table,
            config: &self.config,
            offsets,
            positions: &positions,
            rotary: &rotary,
            drops: None,
            infer: true,
        };
        let (t, h) = (pass.tokens(), self.config.hidden_size);
        let mut arena = Arena::new(&mut memory.floats, self.floats(t, table, Keep::One, false));
        let (mut x, mut y) = (arena.take(t * h), arena.take(t * h));
        self.embed(values, ids, x);
        for block in &self.blocks {
            let mut arena = arena.scope();
            let mut saved = Saved::take(&mut arena, &pass, block.number);
            let mut layers: Vec<_> = caches.iter_mut().map(|cache| cache.layer(block.number)).collect();
            block.forward_cached(&pass, x, y, &mut saved, &mut layers, arena);
            std::mem::swap(&mut x, &mut y);
        }
        let rows: Vec<usize> = offsets[1..].iter().map(|end| end - 1).collect();
        let (mut last, mut n) = (vec![0.0; rows.len() * h], vec![0.0; rows.len() * h]);
        gather(x, &rows, h, &mut last);
        let mut rstd = vec![0.0; rows.len()];
        rms_norm::forward(&last, self.norm.get(values), self.config.rms_norm_eps, &mut n, &mut rstd);
        let mut logits = vec![0.0; rows.len() * self.config.vocab_size];
        let output = &self.output;
        output.infer(values, rows.len(), &n, None, &mut logits, output.output, &mut []);
        logits
    }

    /// Bytes of activations that a training part of so many tokens, all learned, needs.
    pub fn activation_bytes(
        &self,
        tokens: usize,
        table: &LoraTable,
        lora_dropout: bool,
        recompute: bool,
    ) -> usize {
        let keep = if recompute { Keep::Inputs } else { Keep::All };
        4 * (self.floats(tokens, table, keep, lora_dropout) + self.logits_floats(tokens))
    }

    /// The model's own dropout, none on LoRA.
    pub fn dropout_rates(&self) -> DropoutRates {
        DropoutRates { attention: self.config.attention_dropout, ..DropoutRates::NONE }
    }

    fn embed(&self, values: Values, ids: &[u32], x: &mut [f32]) {
        let hidden = self.config.hidden_size;
        match &self.embeddings {
            Weight::Blocks(matrix) => {
                for (row, &id) in x.chunks_exact_mut(hidden).zip(ids) {
                    matrix.widen_row_range(id as usize, 0..hidden, row);
                }
            }
            weight => embedding::forward(&[(weight.get(values), ids)], hidden, x),
        }
    }

    fn output_forward(&self, values: Values, rows: usize, n: &[f32], logits: &mut [f32]) {
        self.output.forward(values, rows, n, None, logits, self.config.vocab_size, &mut [], &mut []);
    }

    /// A table for these positions, from the memory where it is long enough.
    fn rotary(&self, memory: &mut Memory, positions: &[u32]) -> std::sync::Arc<RotaryTable> {
        let needed = positions.iter().max().map_or(1, |&p| p as usize + 1);
        match &memory.rotary {
            Some(table) if table.positions() >= needed => table.clone(),
            _ => {
                let table = RotaryTable::new(needed.next_power_of_two(), &self.config.rope_frequencies);
                memory.rotary.insert(std::sync::Arc::new(table)).clone()
            }
        }
    }

    /// Rows whose logits exist at once.
    fn chunk(&self) -> usize {
        (MOST_LOGITS / self.config.vocab_size).max(8)
    }

    fn logits_floats(&self, rows: usize) -> usize {
        rows.min(self.chunk()) * (self.config.vocab_size + 3 * self.config.hidden_size)
    }

    /// Number of the lowest block in which something trains.
    fn lowest(&self, table: &LoraTable) -> Option<usize> {
        (0..self.blocks.len())
            .find(|&layer| ModuleKind::ALL.iter().any(|&kind| table.get(ModuleId { layer, kind }).is_some()))
    }

    /// The arena's size for a pass of so many tokens, without logits.
    fn floats(&self, tokens: usize, table: &LoraTable, keep: Keep, lora_dropout: bool) -> usize {
        let c = &self.config;
        let rank = |layer: usize, kind: ModuleKind| table.get(ModuleId { layer, kind }).map_or(0, |p| p.rank);
        let ranks = |layer: usize| ModuleKind::ALL.iter().map(|&kind| rank(layer, kind)).sum();
        let saved = |layer: usize| Saved::floats(c, tokens, ranks(layer));
        let widest = (0..c.layers).flat_map(|l| ModuleKind::ALL.map(|k| rank(l, k))).max().unwrap_or(0);
        let scratch = Saved::scratch(c, tokens, widest, lora_dropout);
        let most = (0..c.layers).map(saved).max().unwrap_or(0);
        let row = tokens * c.hidden_size;
        scratch
            + match keep {
                Keep::One => 2 * row + most,
                Keep::Inputs => (c.layers + 3) * row + most,
                Keep::All => (c.layers + 2) * row + (0..c.layers).map(saved).sum::<usize>(),
            }
    }
}

/// What of every block's activations a pass keeps.
#[derive(Clone, Copy)]
enum Keep {
    One,
    Inputs,
    All,
}

/// A matrix in another storage, or as it is where its rows are not whole blocks.
fn quantised(tensor: Tensor, kind: BlockType) -> Weight {
    match tensor.shape()[..] {
        [rows, cols] if cols.is_multiple_of(kind.values()) => {
            let matrix = BlockMatrix::quantise(kind, rows, cols, &tensor);
            matrix.map_or_else(|_| Weight::Frozen(tensor), Weight::Blocks)
        }
        _ => Weight::Frozen(tensor),
    }
}

fn widened(matrix: &BlockMatrix) -> Tensor {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut values = vec![0.0; rows * cols];
    for (row, out) in values.chunks_exact_mut(cols).enumerate() {
        matrix.widen_row_range(row, 0..cols, out);
    }
    Tensor::new(vec![rows, cols], values)
}

/// Each token's place in its text.
fn positions(offsets: &[usize]) -> Vec<u32> {
    offsets.windows(2).flat_map(|ends| 0..(ends[1] - ends[0]) as u32).collect()
}

/// out = these rows of x, (rows, width).
fn gather(x: &[f32], rows: &[usize], width: usize, out: &mut [f32]) {
    for (out, row) in out.chunks_exact_mut(width).zip(rows) {
        out.copy_from_slice(&x[row * width..(row + 1) * width]);
    }
}
