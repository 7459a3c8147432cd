//! BERT, RoBERTa and MPNet with a head for classification or regression: loading, the pass, the way back.
//!
//! Sequences come packed, one behind the other without padding. Parameter gradients accumulate, so a batch
//! may be passed in parts.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use lora_drop_compute::attention::{Queries, RelativeBias};
use lora_drop_compute::gemm::Precision;
use lora_drop_compute::random::{Dropout, Key};
use lora_drop_compute::{Arena, activation, embedding, loss, norm, profile};

use crate::block::{Block, Pass, Saved, Sizes};
use crate::checkpoint::Checkpoint;
use crate::config::{Activation, Architecture, EncoderConfig};
use crate::drops::{Drops, Site};
use crate::error::Result;
use crate::head::Head;
use crate::linear::{Grads, LinearWeights, NormWeights, Values, Weight};
use crate::lora::LoraTable;
pub use crate::memory::{Keep, Memory, PassSize};
use crate::memory::{WeightBytes, embedding_bytes};
use crate::model::SequenceModel;
use crate::module::{ModuleId, ModuleKind};
use crate::moments::Moments;
use crate::parameters::{Group, Parameters};
use crate::relative;
use crate::weights::{HeadTensor, Weights};

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
    /// Reads the weights of `config`'s encoder and a head of `outputs`, adding what trains to `parameters`.
    ///
    /// Names may come with the architecture's prefix or without. A missing head is initialised by `key`, so is
    /// BERT's pooler, which then trains with the head.
    ///
    /// # Errors
    /// All weights that are missing, have another shape or hold values that are not finite.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &EncoderConfig,
        outputs: usize,
        trained: Trained,
        key: Key,
        parameters: &mut Parameters,
    ) -> Result<Self> {
        let mut source = Weights::new(checkpoint, config.architecture.prefix());
        let has_pooler =
            config.architecture.pooler().is_none_or(|stem| source.has(&format!("{stem}.weight")));
        // First everything is taken and checked: sizes are not to be trusted before.
        let mut taken = Vec::new();
        for (name, shape) in config.encoder_weights() {
            let missing_pooler = !has_pooler && name.starts_with("pooler.");
            if !missing_pooler {
                let tensor = source.take(&name, &shape);
                taken.push((name, tensor));
            }
        }
        let mut head_tensors = Vec::new();
        let mut head_origin = HeadOrigin::Checkpoint;
        for (name, shape) in config.head_weights(outputs) {
            match source.try_take_head(name, &shape) {
                HeadTensor::Found(tensor) => head_tensors.push((name, shape, Some(tensor))),
                HeadTensor::Missing => {
                    if head_origin == HeadOrigin::Checkpoint {
                        head_origin = HeadOrigin::Initialised;
                    }
                    head_tensors.push((name, shape, None));
                }
                HeadTensor::Misshapen { seen } => {
                    head_origin = HeadOrigin::OtherOutputs(seen.first().copied().unwrap_or(0));
                    head_tensors.push((name, shape, None));
                }
            }
        }
        source.finish()?;

        let prefix = config.architecture.prefix();
        let everything = trained == Trained::Everything;
        let pooler_trains = trained == Trained::HeadAndPooler;
        let mut base = std::collections::HashMap::new();
        for (name, tensor) in taken {
            let of_head = pooler_trains && name.starts_with("pooler.");
            let weight = if everything || of_head {
                let decay = !name.contains("LayerNorm") && !name.contains("bias");
                let full = format!("{prefix}.{name}");
                let group = if of_head { Group::Head } else { Group::Base };
                let id = parameters.add(&full, tensor.shape(), group, decay, &tensor);
                tensor.release(0..tensor.len());
                Weight::Trained(id)
            } else {
                Weight::Frozen(tensor)
            };
            base.insert(name, weight);
        }
        let initialise = |name: &str, shape: &[usize]| -> Vec<f32> {
            let key = name.bytes().fold(key, |key, byte| key.fold(byte as u64));
            let spread = if name.ends_with("bias") { 0.0 } else { config.initializer_range() };
            (0..shape.iter().product::<usize>() as u64).map(|i| (spread * key.normal(i)) as f32).collect()
        };
        let h = config.hidden_size;
        if !has_pooler {
            for (name, shape) in [("pooler.dense.weight", vec![h, h]), ("pooler.dense.bias", vec![h])] {
                let full = format!("{prefix}.{name}");
                let decay = name.ends_with("weight");
                let id = parameters.add(&full, &shape, Group::Head, decay, &initialise(name, &shape));
                base.insert(name.to_string(), Weight::Trained(id));
            }
        }
        let fresh = head_origin != HeadOrigin::Checkpoint;
        let mut head = std::collections::HashMap::new();
        for (name, shape, tensor) in head_tensors {
            // Half of a head is no head: all of it is initialised then.
            let values = match tensor.filter(|_| !fresh) {
                Some(tensor) => tensor.to_vec(),
                None => initialise(name, &shape),
            };
            let decay = !name.ends_with("bias");
            head.insert(name, Weight::Trained(parameters.add(name, &shape, Group::Head, decay, &values)));
        }

        let mut get = |name: &str| base.remove(name).expect("encoder_weights lists every weight once");
        let arch = config.architecture;
        let epsilon = config.layer_norm_eps;
        let linear = |stem: &str, output: usize, input: usize, get: &mut dyn FnMut(&str) -> Weight| {
            let weight = get(&format!("{stem}.weight"));
            LinearWeights::new(weight, Some(get(&format!("{stem}.bias"))), input, output)
        };
        let layer_norm = |stem: &str, get: &mut dyn FnMut(&str) -> Weight| {
            let gamma = get(&format!("{stem}.weight"));
            NormWeights { gamma, beta: get(&format!("{stem}.bias")), epsilon }
        };
        let blocks = (0..config.layers)
            .map(|number| Block {
                number,
                linears: (arch.kinds().iter())
                    .map(|&kind| {
                        let (output, input) = config.linear_shape(kind);
                        linear(&arch.linear(ModuleId { layer: number, kind }), output, input, &mut get)
                    })
                    .collect(),
                attention_norm: layer_norm(&arch.attention_norm(number), &mut get),
                output_norm: layer_norm(&arch.output_norm(number), &mut get),
            })
            .collect();
        let mut from_head = |name: &str| head.remove(name).expect("head_weights lists every weight once");
        let head = match arch {
            Architecture::Bert => Head {
                dense: linear("pooler.dense", h, h, &mut get),
                output: linear("classifier", outputs, h, &mut from_head),
                drops_input: false,
            },
            _ => Head {
                dense: linear("classifier.dense", h, h, &mut from_head),
                output: linear("classifier.out_proj", outputs, h, &mut from_head),
                drops_input: true,
            },
        };
        Ok(Encoder {
            words: get(arch.word_embeddings()),
            positions: get(arch.position_embeddings()),
            types: arch.token_type_embeddings().map(&mut get),
            embedding_norm: layer_norm(arch.embedding_norm(), &mut get),
            relative: arch.relative_bias().map(&mut get),
            blocks,
            head,
            outputs,
            head_origin,
            trains_base: everything,
            config: config.clone(),
        })
    }

    /// What training multiplies in from now on; the head stays in f32.
    pub fn multiply_in(&mut self, precision: Precision) {
        for linear in self.blocks.iter_mut().flat_map(|block| &mut block.linears) {
            linear.precision = precision;
        }
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
        let mut arena = Arena::new(&mut memory.floats, self.floats(table, &size));
        let x = self.forward(&pass, sequences, None, self.blocks.len(), moments, &mut arena, stop)?;
        Ok(self.head.forward(&pass, Dropout::new(0.0), x).0)
    }

    fn train(
        &self,
        parameters: &mut Parameters,
        table: &LoraTable,
        part: TrainPart,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<f64, Stopped> {
        let (list, values, gradients) = parameters.split();
        let values = Values { list, values };
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
        let size = PassSize {
            tokens: t,
            sequences: part.keys.len(),
            learned: 0,
            keep: Keep::of_training(part.recompute),
            lora_dropout: drops.lora.is_active(),
            scored: moments.is_some(),
        };
        let mut arena = Arena::new(&mut memory.floats, self.floats(table, &size));

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
        let mut grads = Grads { list, gradients, relative: relative_grad };
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
        parameters: &Parameters,
        table: &LoraTable,
        sequences: Sequences,
        blocks: usize,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<Vec<f32>, Stopped> {
        assert!(blocks < self.blocks.len(), "the last block computes first tokens alone");
        let values = Values { list: parameters.list(), values: parameters.values() };
        let relative = self.relative_table(values, sequences.offsets);
        let pass = self.pass(values, table, sequences.offsets, &relative, None, Queries::First);
        let size = PassSize::of_forward(sequences.offsets, false);
        let mut arena = Arena::new(&mut memory.floats, self.floats(table, &size));
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

    /// Bytes of frozen weights without the table of word embeddings.
    pub fn weight_bytes(&self) -> WeightBytes {
        let mut bytes = WeightBytes::default();
        let head = [&self.head.dense, &self.head.output];
        let linears = self.blocks.iter().flat_map(|block| &block.linears).chain(head);
        let norms = self.blocks.iter().flat_map(|block| [&block.attention_norm, &block.output_norm]);
        for linear in linears {
            bytes.add(&linear.weight);
            linear.bias.iter().for_each(|bias| bytes.add(bias));
        }
        for norm in norms.chain([&self.embedding_norm]) {
            bytes.add(&norm.gamma);
            bytes.add(&norm.beta);
        }
        [Some(&self.positions), self.types.as_ref(), self.relative.as_ref()]
            .into_iter()
            .flatten()
            .for_each(|weight| bytes.add(weight));
        bytes
    }

    /// Bytes of the table of word embeddings that are resident once the `used` of all tokens have been read.
    pub fn embedding_bytes(&self, used: &[bool]) -> usize {
        embedding_bytes(&self.words, used)
    }
}

struct RelativeTable {
    /// (heads, 2 · reach − 1); empty where the model has none
    values: Vec<f32>,
    reach: usize,
}
