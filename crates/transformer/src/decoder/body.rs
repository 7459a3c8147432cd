//! What every decoder has below its outputs: embeddings, blocks, the last norm, and the passes through them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use lora_drop_compute::gemm::Precision;
use lora_drop_compute::rotary::RotaryTable;
use lora_drop_compute::{Arena, embedding, profile, rms_norm};

use super::block::{Block, Pass, Saved, Sizes};
use super::config::DecoderConfig;
use crate::drops::Drops;
use crate::encoder::{Below, Stopped};
use crate::linear::{FrozenForm, Grads, LinearWeights, Values, Weight};
use crate::lora::LoraTable;
use crate::memory::{FrozenWeights, Keep, Memory, PassSize};
use crate::module::{ModuleId, ModuleKind};
use crate::moments::Moments;
use crate::weights::{Stored, Weights};

/// The frozen weights below the outputs.
#[derive(Clone, Debug)]
pub struct Body {
    /// (vocabulary, hidden)
    pub embeddings: Weight,
    pub blocks: Vec<Block>,
    /// (hidden)
    pub norm: Weight,
}

/// A training pass's activations.
pub struct KeptPass<'a> {
    /// Each block's input from the first on, and the last one's output: (tokens, hidden).
    inputs: Vec<&'a mut [f32]>,
    /// The lowest block that trains; as many as there are where none does.
    first: usize,
    /// One of each block from the first on, or none where they are formed again.
    saved: Vec<Saved<'a>>,
}

impl KeptPass<'_> {
    /// The last block's output, (tokens, hidden).
    pub fn output(&self) -> &[f32] {
        self.inputs[self.inputs.len() - 1]
    }
}

/// Where a pass's tokens stand, and how far queries and keys are turned there.
pub struct Places {
    /// Each token's place in its sequence: (tokens).
    positions: Vec<u32>,
    rotary: Arc<RotaryTable>,
}

impl Places {
    /// For these positions, with the memory's table where it is of these frequencies and long enough: a memory may have
    /// served another model.
    pub fn new(config: &DecoderConfig, positions: Vec<u32>, memory: &mut Memory) -> Self {
        let needed = positions.iter().max().map_or(1, |&p| p as usize + 1);
        let rotary = match &memory.rotary {
            Some(table) if table.holds(needed, &config.rope_frequencies) => table.clone(),
            _ => {
                let table = RotaryTable::new(needed.next_power_of_two(), &config.rope_frequencies);
                memory.rotary.insert(Arc::new(table)).clone()
            }
        };
        Places { positions, rotary }
    }

    /// For sequences that begin at these offsets.
    pub fn of_sequences(config: &DecoderConfig, offsets: &[usize], memory: &mut Memory) -> Self {
        let positions = offsets.windows(2).flat_map(|ends| 0..(ends[1] - ends[0]) as u32).collect();
        Places::new(config, positions, memory)
    }

    /// A pass over these places.
    pub fn pass<'a>(
        &'a self,
        body: &Body,
        config: &'a DecoderConfig,
        values: Values<'a>,
        table: &'a LoraTable,
        offsets: &'a [usize],
        drops: Option<Drops<'a>>,
    ) -> Pass<'a> {
        let (positions, rotary) = (&self.positions, &self.rotary);
        let precision = body.precision();
        Pass { values, table, config, offsets, positions, rotary, drops, infer: false, precision }
    }
}

impl Body {
    /// Takes the weights of `config`'s decoder. Matrices keep the storage of their file; with `quantise`, those that are
    /// f32 or half precision get this one. Call `source.finish` before the body is used.
    pub fn take(source: &mut Weights, config: &DecoderConfig, quantise: Option<BlockType>) -> Self {
        let arch = config.architecture;
        let mut taken: HashMap<String, Weight> = config
            .weights()
            .into_iter()
            .map(|(name, shape)| {
                let weight = match shape[..] {
                    [_, _] => stored(source.take_stored(&name, &shape, false), quantise),
                    _ => Weight::Frozen(source.take(&name, &shape)),
                };
                (name, weight)
            })
            .collect();
        let mut get = |name: String| taken.remove(&name).expect("weights() lists every weight once");
        let blocks = (0..config.layers)
            .map(|number| {
                let layer = arch.layer(number);
                Block {
                    number,
                    linears: ModuleKind::ALL.map(|kind| {
                        let (output, input) = config.linear_shape(kind);
                        let stem = arch.linear(ModuleId { layer: number, kind });
                        let weight = get(format!("{stem}.weight"));
                        let bias = config.has_bias(kind).then(|| get(format!("{stem}.bias")));
                        LinearWeights::new(weight, bias, input, output)
                    }),
                    input_norm: get(format!("{layer}.input_layernorm.weight")),
                    middle_norm: get(format!("{layer}.post_attention_layernorm.weight")),
                    head_norms: (config.qk_norm).then(|| {
                        ["q_norm", "k_norm"].map(|part| get(format!("{layer}.self_attn.{part}.weight")))
                    }),
                }
            })
            .collect();
        Body { embeddings: get("embed_tokens.weight".into()), blocks, norm: get("norm.weight".into()) }
    }

    /// What the blocks' training multiplies in from now on.
    pub fn multiply_in(&mut self, precision: Precision) {
        self.linears_mut().for_each(|linear| linear.precision = precision);
    }

    /// What the blocks' training multiplies in.
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

    /// The output of the first `blocks` blocks, (tokens, hidden), with one block's activations at a time, from that of those
    /// `below` or from the start; second moments of the modules' z are added to `moments`.
    #[allow(clippy::too_many_arguments)]
    pub fn forward<'a>(
        &self,
        pass: &Pass,
        ids: &[u32],
        below: Option<Below>,
        blocks: usize,
        mut moments: Option<&mut Moments>,
        arena: &mut Arena<'a>,
        stop: &AtomicBool,
    ) -> Result<&'a mut [f32], Stopped> {
        let size = pass.tokens() * pass.config.hidden_size;
        let (mut x, mut y) = (arena.take(size), arena.take(size));
        match below {
            Some(below) => x.copy_from_slice(below.output),
            None => self.embed(pass, ids, x),
        }
        for block in &self.blocks[below.map_or(0, |below| below.blocks)..blocks] {
            go_on(stop)?;
            let mut arena = arena.scope();
            let mut saved = Saved::take(&mut arena, pass, block.number);
            block.forward(pass, x, y, &mut saved, arena);
            if let Some(moments) = moments.as_deref_mut() {
                moments.add(block.number, pass.table, |kind| saved.z(kind));
            }
            std::mem::swap(&mut x, &mut y);
        }
        Ok(x)
    }

    /// What the `blocks` lowest blocks make of packed sequences, (tokens, hidden).
    #[allow(clippy::too_many_arguments)]
    pub fn below(
        &self,
        config: &DecoderConfig,
        values: Values,
        table: &LoraTable,
        ids: &[u32],
        offsets: &[usize],
        blocks: usize,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> Result<Vec<f32>, Stopped> {
        let places = Places::of_sequences(config, offsets, memory);
        let pass = places.pass(self, config, values, table, offsets, None);
        let size = PassSize::of_forward(offsets, false);
        let mut arena = memory.arena(self.floats(config, table, &size, 0));
        Ok(self.forward(&pass, ids, None, blocks, None, &mut arena, stop)?.to_vec())
    }

    /// As `forward` for training: of the blocks from the lowest that trains on, keeps what the way back needs.
    #[allow(clippy::too_many_arguments)]
    pub fn forward_kept<'a>(
        &self,
        pass: &Pass,
        ids: &[u32],
        below: Option<Below>,
        recompute: bool,
        mut moments: Option<&mut Moments>,
        arena: &mut Arena<'a>,
        stop: &AtomicBool,
    ) -> Result<KeptPass<'a>, Stopped> {
        let _phase = profile::phase("forward");
        let size = pass.tokens() * pass.config.hidden_size;
        let first = self.lowest(pass.table).unwrap_or(self.blocks.len());
        let computed = below.map_or(0, |below| below.blocks);
        assert!(first >= computed, "block {first} trains, but those below {computed} were not computed");
        let mut inputs: Vec<&mut [f32]> = (first..=self.blocks.len()).map(|_| arena.take(size)).collect();
        {
            let mut arena = arena.scope();
            let x = self.forward(pass, ids, below, first, moments.as_deref_mut(), &mut arena, stop)?;
            inputs[0].copy_from_slice(x);
        }
        let mut kept: Vec<Saved> = Vec::with_capacity(self.blocks.len() - first);
        for (number, block) in self.blocks[first..].iter().enumerate() {
            go_on(stop)?;
            let (x, y) = inputs.split_at_mut(number + 1);
            let mut run = |saved: &mut Saved, arena: Arena| {
                block.forward(pass, x[number], y[0], saved, arena);
                if let Some(moments) = moments.as_deref_mut() {
                    moments.add(block.number, pass.table, |kind| saved.z(kind));
                }
            };
            if recompute {
                let mut arena = arena.scope();
                run(&mut Saved::take(&mut arena, pass, block.number), arena);
            } else {
                let mut saved = Saved::take(arena, pass, block.number);
                run(&mut saved, arena.scope());
                kept.push(saved);
            }
        }
        Ok(KeptPass { inputs, first, saved: kept })
    }

    /// The way back down to the lowest module that trains. d: (tokens, hidden), the gradient of the last block's output;
    /// undefined on return.
    pub fn backward(
        &self,
        pass: &Pass,
        grads: &mut Grads,
        kept: &mut KeptPass,
        d: &mut [f32],
        arena: &mut Arena,
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let _phase = profile::phase("backward");
        for (number, block) in self.blocks[kept.first..].iter().enumerate().rev() {
            go_on(stop)?;
            let below = number > 0;
            let (x, y) = kept.inputs.split_at_mut(number + 1);
            let x = &*x[number];
            let mut arena = arena.scope();
            match kept.saved.get(number) {
                Some(saved) => block.backward(pass, grads, x, d, saved, below, arena),
                None => {
                    // The output is formed again as well, where it lies already.
                    let mut saved = Saved::take(&mut arena, pass, block.number);
                    block.forward(pass, x, y[0], &mut saved, arena.scope());
                    block.backward(pass, grads, x, d, &saved, below, arena);
                }
            }
        }
        Ok(())
    }

    /// x: (tokens, hidden)
    pub fn embed(&self, pass: &Pass, ids: &[u32], x: &mut [f32]) {
        let hidden = pass.config.hidden_size;
        match &self.embeddings {
            Weight::Blocks(matrix) => {
                let _span = profile::operation("embedding", || profile::Work::floats(2 * x.len()));
                for (row, &id) in x.chunks_exact_mut(hidden).zip(ids) {
                    matrix.widen_row_range(id as usize, 0..hidden, row);
                }
            }
            weight => embedding::forward(&[(weight.get(pass.values), ids)], hidden, x),
        }
    }

    /// The last norm of these rows of x: `gathered` are the rows, n their norm, (rows, hidden); rstd: (rows).
    pub fn norm_rows(
        &self,
        pass: &Pass,
        x: &[f32],
        rows: &[usize],
        gathered: &mut [f32],
        n: &mut [f32],
        rstd: &mut [f32],
    ) {
        let hidden = pass.config.hidden_size;
        for (out, row) in gathered.chunks_exact_mut(hidden).zip(rows) {
            out.copy_from_slice(&x[row * hidden..(row + 1) * hidden]);
        }
        rms_norm::forward(gathered, self.norm.get(pass.values), pass.config.rms_norm_eps, n, rstd);
    }

    /// Writes the gradient of these rows of x into d, (tokens, hidden), from that of their norm; `dx` is scratch.
    #[allow(clippy::too_many_arguments)]
    pub fn norm_rows_backward(
        &self,
        pass: &Pass,
        rows: &[usize],
        gathered: &[f32],
        rstd: &[f32],
        dn: &[f32],
        dx: &mut [f32],
        d: &mut [f32],
    ) {
        let hidden = pass.config.hidden_size;
        dx.fill(0.0);
        rms_norm::backward(dn, gathered, self.norm.get(pass.values), rstd, dx, None);
        for (row, dx) in rows.iter().zip(dx.chunks_exact(hidden)) {
            d[row * hidden..(row + 1) * hidden].copy_from_slice(dx);
        }
    }

    /// Floats of activations that a pass takes whose outputs need `outputs` beside the blocks' inputs and what is kept.
    pub fn floats(
        &self,
        config: &DecoderConfig,
        table: &LoraTable,
        size: &PassSize,
        outputs: usize,
    ) -> usize {
        let (PassSize { tokens, lora_dropout, .. }, precision) = (*size, self.precision());
        let row = tokens * config.hidden_size;
        let sizes = |layer: usize| Sizes { layer, table, config, tokens, lora_dropout, precision };
        let most = |layers: Range<usize>, of: &dyn Fn(Sizes) -> usize| {
            layers.map(|layer| of(sizes(layer))).max().unwrap_or(0)
        };
        let unkept = |blocks| 2 * row + most(0..blocks, &|s| s.saved() + s.forward());
        let lowest = match size.keep {
            Keep::One => return unkept(config.layers).max(2 * row + outputs),
            _ => self.lowest(table).unwrap_or(config.layers),
        };
        let kept = lowest..config.layers;
        let inputs = (kept.len() + 1) * row;
        let blocks = match size.keep {
            Keep::All => {
                let saved: usize = kept.clone().map(|layer| sizes(layer).saved()).sum();
                let back = row + most(kept.clone(), &|s| s.backward()).max(outputs);
                saved + back.max(most(kept, &|s| s.forward()))
            }
            _ => row + most(kept, &|s| s.saved() + s.forward().max(s.backward())).max(outputs),
        };
        inputs + blocks.max(unkept(lowest))
    }

    /// The frozen weights without the table of embeddings.
    pub(crate) fn frozen(&self, form: FrozenForm) -> FrozenWeights {
        let mut weights = FrozenWeights::default();
        for block in &self.blocks {
            block.linears.iter().for_each(|linear| weights.add_linear(linear, form));
            let norms = [&block.input_norm, &block.middle_norm].into_iter();
            norms.chain(block.head_norms.iter().flatten()).for_each(|norm| weights.add(norm));
        }
        weights.add(&self.norm);
        weights
    }

    /// Number of the lowest block in which something trains.
    pub fn lowest(&self, table: &LoraTable) -> Option<usize> {
        (0..self.blocks.len())
            .find(|&layer| ModuleKind::ALL.iter().any(|&kind| table.get(ModuleId { layer, kind }).is_some()))
    }
}

/// The caller's wish to stop, as an error.
pub fn go_on(stop: &AtomicBool) -> Result<(), Stopped> {
    if stop.load(Ordering::Relaxed) { Err(Stopped) } else { Ok(()) }
}

/// A matrix in its file's storage, or quantised where it is f32 or half precision and its rows are whole blocks.
pub fn stored(stored: Stored, quantise: Option<BlockType>) -> Weight {
    let quantised = quantise.and_then(|kind| match &stored {
        Stored::F32(tensor) => {
            let &[rows, cols] = tensor.shape() else { return None };
            quantised(kind, rows, cols, |rows| {
                let values = rows.start * cols..rows.end * cols;
                let part = BlockMatrix::quantise(kind, rows.len(), cols, &tensor[values.clone()]);
                tensor.release(values);
                part.ok()
            })
        }
        Stored::Blocks(matrix) if matrix.kind().values() == 1 => {
            let (all, cols) = (matrix.rows(), matrix.cols());
            quantised(kind, all, cols, |rows| {
                let mut values = vec![0.0; rows.len() * cols];
                for (row, out) in rows.clone().zip(values.chunks_exact_mut(cols)) {
                    matrix.widen_row_range(row, 0..cols, out);
                }
                matrix.release(rows.clone());
                BlockMatrix::quantise(kind, rows.len(), cols, &values).ok()
            })
        }
        Stored::Blocks(_) => None,
    });
    match (quantised, stored) {
        (Some(matrix), _) | (None, Stored::Blocks(matrix)) => Weight::Blocks(matrix),
        (None, Stored::F32(tensor)) => Weight::Frozen(tensor),
    }
}

/// The matrix of the parts that `part` makes of its rows, some at a time: never is all of it there in f32.
fn quantised(
    kind: BlockType,
    rows: usize,
    cols: usize,
    mut part: impl FnMut(Range<usize>) -> Option<BlockMatrix>,
) -> Option<BlockMatrix> {
    /// Values that are quantised at a time: 4 MiB of f32.
    const PIECE: usize = 1 << 20;
    let each = (PIECE / cols.max(1)).max(1);
    let mut bytes = Vec::with_capacity(BlockMatrix::size(kind, rows, cols)?);
    for from in (0..rows).step_by(each) {
        bytes.extend_from_slice(part(from..(from + each).min(rows))?.bytes());
    }
    BlockMatrix::new(kind, rows, cols, bytes)
}
