//! BERT, RoBERTa and MPNet with a head for classification or regression: the pass and the way back.
//!
//! Sequences come packed, one behind the other without padding. Parameter gradients accumulate, so a batch
//! may be passed in parts.

mod load;
mod memory;

use std::sync::atomic::{AtomicBool, Ordering};

use lora_drop_compute::attention::{Queries, RelativeBias};
use lora_drop_compute::gemm::Precision;
use lora_drop_compute::random::{Dropout, Key};
use lora_drop_compute::{Arena, activation, embedding, loss, norm, profile};

use crate::block::{Block, Pass, Saved};
use crate::config::{Activation, Architecture, EncoderConfig};
use crate::drops::{Drops, Site};
use crate::head::Head;
use crate::linear::{FrozenForm, Grads, LinearWeights, NormWeights, Values, Weight};
use crate::lora::LoraTable;
pub use crate::memory::{Keep, Memory, PassSize};
use crate::model::SequenceModel;
use crate::module::{ModuleId, ModuleKind};
use crate::moments::Moments;
use crate::parameters::Parameters;
use crate::relative;

/// The model: frozen weights, and the places of those that train in `Parameters`.
#[derive(Clone, Debug)]
pub struct Encoder {
    pub config: EncoderConfig,
    words: Weight,
    positions: Weight,
    types: Option<Weight>,
    embedding_norm: NormWeights,
    pub(crate) blocks: Vec<Block>,
    relative: Option<Weight>,
    head: Head,
    /// Classes, or 1 for a regression.
    pub outputs: usize,
    /// What `load` found of the head.
    pub head_origin: HeadOrigin,
    trains_base: bool,
}

/// Where the head's first values come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadOrigin {
    Checkpoint,
    /// Initialised: normal, as transformers does.
    Initialised,
    /// Initialised because the checkpoint's was made for this many outputs.
    OtherOutputs(usize),
}

/// Which of the model's own weights train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// The head, and LoRA where the bank has pairs.
    Head,
    /// The same, and BERT's pooler with the head even where the checkpoint has one.
    HeadAndPooler,
    /// Every weight.
    Everything,
}

/// Packed sequences.
#[derive(Clone, Copy)]
pub struct Sequences<'a> {
    /// (tokens)
    pub ids: &'a [u32],
    /// (tokens); ignored where the model has no token types
    pub types: &'a [u32],
    /// Where sequences start, and the end: (sequences + 1).
    pub offsets: &'a [usize],
}

/// What a head's outputs should be.
#[derive(Clone, Copy)]
pub enum Targets<'a> {
    Classes(&'a [usize]),
    Values(&'a [f32]),
}

/// Probabilities of dropout in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutRates {
    pub hidden: f64,
    pub attention: f64,
    pub head: f64,
    pub lora: f64,
}

impl DropoutRates {
    pub const NONE: DropoutRates = DropoutRates { hidden: 0.0, attention: 0.0, head: 0.0, lora: 0.0 };
}

/// A part of an optimiser step's batch.
#[derive(Clone, Copy)]
pub struct TrainPart<'a> {
    pub sequences: Sequences<'a>,
    pub targets: Targets<'a>,
    pub label_smoothing: f64,
    /// Sequences of the whole step, over which the loss is the mean.
    pub total: usize,
    pub dropout: DropoutRates,
    /// One per sequence: of this run, step and the sequence's place in the step.
    pub keys: &'a [Key],
    /// Keep only the blocks' inputs and form everything else again on the way back.
    pub recompute: bool,
    /// The lower blocks' output from an earlier pass over these sequences; None computes them.
    pub below: Option<Below<'a>>,
}

/// What the lowest blocks make of a pass's sequences, where nothing in them trains or is dropped.
#[derive(Clone, Copy)]
pub struct Below<'a> {
    /// How many blocks it is the output of, at least 1.
    pub blocks: usize,
    /// (tokens, hidden)
    pub output: &'a [f32],
}

impl TrainPart<'_> {
    /// The sum of the sequences' losses. logits: (sequences, outputs); dlogits gets the gradient of the step's mean loss.
    pub(crate) fn loss(&self, logits: &[f32], dlogits: &mut [f32]) -> f64 {
        match self.targets {
            Targets::Classes(classes) => {
                loss::cross_entropy(logits, classes, self.label_smoothing, self.total, Some(dlogits))
            }
            Targets::Values(values) => loss::squared_error(logits, values, self.total, Some(dlogits)),
        }
    }
}

/// The caller asked to stop in the middle of a pass; gradients are then incomplete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl Encoder {
    /// What training multiplies in from now on; the head stays in f32.
    pub fn multiply_in(&mut self, precision: Precision) {
        self.linears_mut().for_each(|linear| linear.precision = precision);
    }

    /// What its layers multiply in.
    pub fn precision(&self) -> Precision {
        self.blocks.first().map_or(Precision::F32, |block| block.linears[0].precision)
    }

    /// Keeps frozen f32 matrices in this form from now on.
    pub fn keep_frozen(&mut self, form: FrozenForm) {
        self.linears_mut().for_each(|linear| linear.keep_frozen(form));
    }

    /// The blocks' linear layers.
    fn linears_mut(&mut self) -> impl Iterator<Item = &mut LinearWeights> {
        self.blocks.iter_mut().flat_map(|block| &mut block.linears)
    }
}

impl SequenceModel for Encoder {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn score(
        &self,
        parameters: &Parameters,
        table: &LoraTable,
        sequences: Sequences,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<Vec<f32>, Stopped> {
        let values = Values { list: parameters.list(), values: parameters.values() };
        let relative = self.relative_table(values, sequences.offsets);
        let last = self.last(table, moments.is_some(), false);
        let pass = self.pass(values, table, sequences.offsets, &relative, None, last);
        let size = PassSize::of_forward(sequences.offsets, moments.is_some());
        let mut arena = memory.arena(self.floats(table, &size));
        let x = self.forward(&pass, sequences, None, self.blocks.len(), moments, &mut arena, stop)?;
        Ok(self.head.forward(&pass, Dropout::new(0.0), x).0)
    }

    fn train(
        &self,
        values: Values,
        gradients: &mut [f32],
        table: &LoraTable,
        part: TrainPart,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<f64, Stopped> {
        let sequences = part.sequences;
        let relative = self.relative_table(values, sequences.offsets);
        let rates = part.dropout;
        let drops = Drops {
            hidden: Dropout::new(rates.hidden),
            attention: Dropout::new(rates.attention),
            lora: Dropout::new(rates.lora),
            keys: part.keys,
        };
        assert_eq!(part.keys.len() + 1, sequences.offsets.len());
        let last = self.last(table, moments.is_some(), drops.lora.is_active());
        let pass = self.pass(values, table, sequences.offsets, &relative, Some(drops), last);
        let lowest = self.lowest(table);
        let (t, h) = (pass.tokens(), pass.hidden);
        let (dropped, scored) = (drops.lora.is_active(), moments.is_some());
        let size = PassSize::of_training(sequences.offsets, part.recompute, dropped, scored);
        let mut arena = memory.arena(self.floats(table, &size));

        // Forward: the blocks below the lowest that trains keep nothing.
        let phase = profile::phase("forward");
        let kept = lowest.unwrap_or(self.blocks.len());
        let first = part.below.map_or(0, |below| below.blocks);
        assert!(kept >= first, "block {kept} trains, but those below {first} were not computed");
        let mut inputs: Vec<&mut [f32]> = (kept..=self.blocks.len()).map(|_| arena.take(t * h)).collect();
        let embedding_normed = arena.take(if self.trains_base { t * h } else { 0 });
        let mut embedding_rstd = vec![0.0; if self.trains_base { t } else { 0 }];
        let mut moments = moments;
        if self.trains_base {
            let sum = arena.scope().take(t * h);
            self.embed(&pass, sequences, sum, inputs[0], embedding_normed, &mut embedding_rstd);
        } else {
            let mut arena = arena.scope();
            let moments = moments.as_deref_mut();
            let x = self.forward(&pass, sequences, part.below, kept, moments, &mut arena, stop)?;
            inputs[0].copy_from_slice(x);
        }
        let mut saved: Vec<Saved> = Vec::with_capacity(self.blocks.len());
        for (number, block) in self.blocks[kept..].iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Err(Stopped);
            }
            let (x, y) = inputs.split_at_mut(number + 1);
            let mut run = |saved: &mut Saved, mut arena: Arena| {
                block.forward(&pass, x[number], y[0], saved, arena.scope());
                if let Some(moments) = moments.as_deref_mut() {
                    block.add_moments(&pass, x[number], saved, moments, arena);
                }
            };
            if part.recompute {
                let mut arena = arena.scope();
                run(&mut Saved::take(&mut arena, &pass, block.number), arena);
            } else {
                let mut own = Saved::take(&mut arena, &pass, block.number);
                run(&mut own, arena.scope());
                saved.push(own);
            }
        }
        drop(phase);
        let phase = profile::phase("head and loss");
        let head_dropout = Dropout::new(rates.head);
        let (logits, head_saved) = self.head.forward(&pass, head_dropout, inputs[inputs.len() - 1]);

        // Loss.
        let mut dlogits = vec![0.0; logits.len()];
        let sum = part.loss(&logits, &mut dlogits);

        // Backward, down to the lowest module that trains.
        let mut dtable = vec![0.0; if self.trains_base { relative.values.len() } else { 0 }];
        let relative_grad = (!dtable.is_empty()).then_some(&mut dtable[..]);
        let mut grads = Grads { list: values.list, gradients, relative: relative_grad };
        let Some(lowest) = lowest else {
            self.head.backward(&pass, &mut grads, head_dropout, &head_saved, &dlogits, None);
            return Ok(sum);
        };
        let (mut d, mut dx) = (arena.take(t * h), arena.take(t * h));
        self.head.backward(&pass, &mut grads, head_dropout, &head_saved, &dlogits, Some(&mut *d));
        drop(phase);
        let _phase = profile::phase("backward");
        for (number, block) in self.blocks[kept..].iter().enumerate().rev() {
            if stop.load(Ordering::Relaxed) {
                return Err(Stopped);
            }
            let below = self.trains_base || block.number > lowest;
            let x = &*inputs[number];
            let mut arena = arena.scope();
            match saved.get(number) {
                Some(saved) => block.backward(&pass, &mut grads, x, d, dx, saved, below, arena),
                None => {
                    // Formed again, with the same dropout: its output is the next block's input, and dx is free.
                    let mut saved = Saved::take(&mut arena, &pass, block.number);
                    block.forward(&pass, x, dx, &mut saved, arena.scope());
                    block.backward(&pass, &mut grads, x, d, dx, &saved, below, arena);
                }
            }
            std::mem::swap(&mut d, &mut dx);
        }
        if self.trains_base {
            let saved = (&*embedding_normed, &*embedding_rstd);
            self.embed_backward(&pass, &mut grads, sequences, d, saved, dx);
            let dtable = grads.relative.take();
            if let (Some(id), Some(dtable)) = (self.relative.as_ref().and_then(Weight::id), dtable) {
                let (buckets, heads) = (self.config.relative_buckets, self.config.heads);
                relative::backward(dtable, buckets, heads, relative.reach, grads.get(id));
            }
        }
        Ok(sum)
    }
}

impl Encoder {
    /// Which tokens the last block takes past its keys and values. A score counts all tokens, also those of which nothing
    /// reads the output. Where it needs no more of them than the block's input, first tokens are enough all the same.
    fn last(&self, table: &LoraTable, scored: bool, lora_dropout: bool) -> Queries {
        let layer = self.blocks.len() - 1;
        let inside = ModuleKind::ALL.into_iter().any(|kind| {
            !matches!(kind, ModuleKind::Query | ModuleKind::Key | ModuleKind::Value)
                && table.get(ModuleId { layer, kind }).is_some()
        });
        if scored && (inside || lora_dropout) { Queries::All } else { Queries::First }
    }

    /// The output of the first `blocks` blocks, (tokens, hidden), with one block's activations at a time, from that of those
    /// `below` or from the start; second moments of the modules' z are added to `moments`.
    #[allow(clippy::too_many_arguments)]
    fn forward<'a>(
        &self,
        pass: &Pass,
        sequences: Sequences,
        below: Option<Below>,
        blocks: usize,
        mut moments: Option<&mut Moments>,
        arena: &mut Arena<'a>,
        stop: &AtomicBool,
    ) -> std::result::Result<&'a mut [f32], Stopped> {
        let (t, h) = (pass.tokens(), pass.hidden);
        let (mut x, mut y) = (arena.take(t * h), arena.take(t * h));
        match below {
            Some(below) => x.copy_from_slice(below.output),
            None => {
                let (normed, mut rstd) = (arena.scope().take(t * h), vec![0.0; t]);
                self.embed(pass, sequences, y, x, normed, &mut rstd);
            }
        }
        for block in &self.blocks[below.map_or(0, |below| below.blocks)..blocks] {
            if stop.load(Ordering::Relaxed) {
                return Err(Stopped);
            }
            let mut arena = arena.scope();
            let mut saved = Saved::take(&mut arena, pass, block.number);
            block.forward(pass, x, y, &mut saved, arena.scope());
            if let Some(moments) = moments.as_deref_mut() {
                block.add_moments(pass, x, &saved, moments, arena);
            }
            std::mem::swap(&mut x, &mut y);
        }
        Ok(x)
    }

    /// What `blocks` lowest blocks (not all) make of packed sequences without dropout, (tokens, hidden).
    pub fn below(
        &self,
        values: Values,
        table: &LoraTable,
        sequences: Sequences,
        blocks: usize,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<Vec<f32>, Stopped> {
        assert!(blocks < self.blocks.len(), "the last block computes first tokens alone");
        let relative = self.relative_table(values, sequences.offsets);
        let pass = self.pass(values, table, sequences.offsets, &relative, None, Queries::First);
        let size = PassSize::of_forward(sequences.offsets, false);
        let mut arena = memory.arena(self.floats(table, &size));
        Ok(self.forward(&pass, sequences, None, blocks, None, &mut arena, stop)?.to_vec())
    }

    /// The modules of `kinds` in all layers.
    pub fn modules(&self, kinds: &[ModuleKind]) -> Vec<ModuleId> {
        (0..self.config.layers)
            .flat_map(|layer| kinds.iter().map(move |&kind| ModuleId { layer, kind }))
            .collect()
    }

    /// The model's own dropout, none on LoRA.
    pub fn dropout_rates(&self) -> DropoutRates {
        DropoutRates {
            hidden: self.config.hidden_dropout,
            attention: self.config.attention_dropout,
            head: self.config.head_dropout(),
            lora: 0.0,
        }
    }

    fn pass<'a>(
        &self,
        values: Values<'a>,
        table: &'a LoraTable,
        offsets: &'a [usize],
        relative: &'a RelativeTable,
        drops: Option<Drops<'a>>,
        last: Queries,
    ) -> Pass<'a> {
        let bias = (!relative.values.is_empty())
            .then_some(RelativeBias { table: &relative.values, reach: relative.reach });
        Pass {
            values,
            table,
            hidden: self.config.hidden_size,
            intermediate: self.config.intermediate_size,
            heads: self.config.heads,
            activation: match self.config.activation {
                Activation::Gelu => activation::Activation::Gelu,
                Activation::GeluTanh => activation::Activation::GeluTanh,
                Activation::Relu => activation::Activation::Relu,
            },
            offsets,
            bias,
            drops,
            last,
            blocks: self.blocks.len(),
            precision: self.precision(),
            trains_base: self.trains_base,
        }
    }

    /// The relative bias by distance, up to the longest sequence of the pass.
    fn relative_table(&self, values: Values, offsets: &[usize]) -> RelativeTable {
        let reach = offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0).max(1);
        let values = match &self.relative {
            Some(weight) => {
                let (buckets, heads) = (self.config.relative_buckets, self.config.heads);
                relative::table(weight.get(values), buckets, heads, reach)
            }
            None => Vec::new(),
        };
        RelativeTable { values, reach }
    }

    /// Number of the lowest block in which something trains; None when only the head does.
    pub fn lowest(&self, table: &LoraTable) -> Option<usize> {
        if self.trains_base {
            return Some(0);
        }
        (0..self.blocks.len())
            .find(|&layer| ModuleKind::ALL.iter().any(|&kind| table.get(ModuleId { layer, kind }).is_some()))
    }

    /// Position of each token in its table: from 0, or behind the padding's position.
    fn position_ids(&self, offsets: &[usize]) -> Vec<u32> {
        let first = match self.config.architecture {
            Architecture::Bert => 0,
            _ => self.config.pad_token_id as u32 + 1,
        };
        offsets.windows(2).flat_map(|w| (0..(w[1] - w[0]) as u32).map(move |i| first + i)).collect()
    }

    /// sum, x, normed: (tokens, hidden); x is the first block's input.
    fn embed(
        &self,
        pass: &Pass,
        sequences: Sequences,
        sum: &mut [f32],
        x: &mut [f32],
        normed: &mut [f32],
        rstd: &mut [f32],
    ) {
        let positions = self.position_ids(sequences.offsets);
        let mut tables = vec![
            (self.words.get(pass.values), sequences.ids),
            (self.positions.get(pass.values), &positions[..]),
        ];
        if let Some(types) = &self.types {
            tables.push((types.get(pass.values), sequences.types));
        }
        embedding::forward(&tables, pass.hidden, sum);
        self.embedding_norm.forward(pass.values, sum, None, None).run(x, normed, rstd);
        if let Some((dropout, keys)) = pass.row_keys(Queries::All, Site::Embedding, |d| d.hidden).get() {
            norm::dropout_rows(x, dropout, keys);
        }
    }

    fn embed_backward(
        &self,
        pass: &Pass,
        grads: &mut Grads,
        sequences: Sequences,
        d: &mut [f32],
        saved: (&[f32], &[f32]),
        du: &mut [f32],
    ) {
        if let Some((dropout, keys)) = pass.row_keys(Queries::All, Site::Embedding, |d| d.hidden).get() {
            norm::dropout_rows(d, dropout, keys);
        }
        self.embedding_norm.backward(pass.values, grads, d, saved, None, du, None);
        let positions = self.position_ids(sequences.offsets);
        let mut add = |weight: &Weight, index: &[u32]| {
            let id = weight.id().expect("every weight trains");
            embedding::backward(du, index, pass.hidden, grads.get(id));
        };
        add(&self.words, sequences.ids);
        add(&self.positions, &positions);
        if let Some(types) = &self.types {
            add(types, sequences.types);
        }
    }
}

struct RelativeTable {
    /// (heads, 2 · reach − 1); empty where the model has none
    values: Vec<f32>,
    reach: usize,
}
