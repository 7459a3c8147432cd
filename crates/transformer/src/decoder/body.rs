//! What every decoder has below its outputs: embeddings, blocks, the last norm, and the passes through them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use lora_drop_compute::gemm::Precision;
use lora_drop_compute::rotary::RotaryTable;
use lora_drop_compute::{Arena, Tensor, embedding, profile, rms_norm};

use super::block::{Block, Pass, Saved};
use super::config::DecoderConfig;
use crate::drops::Drops;
use crate::encoder::{Below, Stopped};
use crate::linear::{Grads, LinearWeights, Values, Weight};
use crate::lora::LoraTable;
use crate::memory::Memory;
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

/// What of every block's activations a pass keeps.
#[derive(Clone, Copy)]
pub enum Keep {
    One,
    Inputs,
    All,
}

impl Keep {
    /// What a training pass keeps.
    pub fn of_training(recompute: bool) -> Self {
        if recompute { Keep::Inputs } else { Keep::All }
    }
}

/// A training pass's activations.
pub struct KeptPass<'a> {
    /// Each block's input, and the last one's output: (tokens, hidden). Empty below the first block.
    inputs: Vec<&'a mut [f32]>,
    /// The first block that was computed.
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
    /// For these positions, with a table from the memory where it is long enough.
    pub fn new(config: &DecoderConfig, positions: Vec<u32>, memory: &mut Memory) -> Self {
        let needed = positions.iter().max().map_or(1, |&p| p as usize + 1);
        let rotary = match &memory.rotary {
            Some(table) if table.positions() >= needed => table.clone(),
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
        config: &'a DecoderConfig,
        values: Values<'a>,
        table: &'a LoraTable,
        offsets: &'a [usize],
        drops: Option<Drops<'a>>,
    ) -> Pass<'a> {
        let (positions, rotary) = (&self.positions, &self.rotary);
        Pass { values, table, config, offsets, positions, rotary, drops, infer: false }
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
        for linear in self.blocks.iter_mut().flat_map(|block| &mut block.linears) {
            linear.precision = precision;
        }
    }

    /// The output of the first `blocks` blocks, (tokens, hidden), with one block's activations at a time; second moments
    /// of the modules' z are added to `moments`.
    pub fn forward<'a>(
        &self,
        pass: &Pass,
        ids: &[u32],
        blocks: usize,
        mut moments: Option<&mut Moments>,
        arena: &mut Arena<'a>,
        stop: &AtomicBool,
    ) -> Result<&'a mut [f32], Stopped> {
        let size = pass.tokens() * pass.config.hidden_size;
        let (mut x, mut y) = (arena.take(size), arena.take(size));
        self.embed(pass, ids, x);
        for block in &self.blocks[..blocks] {
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
        let pass = places.pass(config, values, table, offsets, None);
        let needed = floats(config, pass.tokens(), table, Keep::One, false);
        let mut arena = Arena::new(&mut memory.floats, needed);
        Ok(self.forward(&pass, ids, blocks, None, &mut arena, stop)?.to_vec())
    }

    /// As `forward` for training, all blocks or those from `below` on: keeps what the way back needs.
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
        let first = below.map_or(0, |below| below.blocks);
        let computed = |number| if number < first { 0 } else { size };
        let mut inputs: Vec<&mut [f32]> =
            (0..=self.blocks.len()).map(|number| arena.take(computed(number))).collect();
        match below {
            Some(below) => inputs[first].copy_from_slice(below.output),
            None => self.embed(pass, ids, inputs[0]),
        }
        let mut kept: Vec<Saved> = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks[first..] {
            go_on(stop)?;
            let (x, y) = inputs.split_at_mut(block.number + 1);
            let (x, y) = (&*x[block.number], &mut *y[0]);
            let mut moments = moments.as_deref_mut();
            let mut run = |saved: &mut Saved, arena: Arena| {
                block.forward(pass, x, y, saved, arena);
                if let Some(moments) = &mut moments {
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
        kept: &KeptPass,
        d: &mut [f32],
        arena: &mut Arena,
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let Some(lowest) = self.lowest(pass.table) else { return Ok(()) };
        let _phase = profile::phase("backward");
        assert!(
            lowest >= kept.first,
            "block {lowest} trains, but those below {} were not computed",
            kept.first
        );
        for block in self.blocks.iter().skip(lowest).rev() {
            go_on(stop)?;
            let below = block.number > lowest;
            let x = &*kept.inputs[block.number];
            let mut arena = arena.scope();
            match kept.saved.get(block.number - kept.first) {
                Some(saved) => block.backward(pass, grads, x, d, saved, below, arena),
                None => {
                    let mut saved = Saved::take(&mut arena, pass, block.number);
                    let y = arena.take(d.len());
                    block.forward(pass, x, y, &mut saved, arena.scope());
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

    /// Number of the lowest block in which something trains.
    pub fn lowest(&self, table: &LoraTable) -> Option<usize> {
        (0..self.blocks.len())
            .find(|&layer| ModuleKind::ALL.iter().any(|&kind| table.get(ModuleId { layer, kind }).is_some()))
    }
}

/// The arena's size for a pass of so many tokens, without what the outputs need.
pub fn floats(c: &DecoderConfig, tokens: usize, table: &LoraTable, keep: Keep, lora_dropout: bool) -> usize {
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

/// The caller's wish to stop, as an error.
pub fn go_on(stop: &AtomicBool) -> Result<(), Stopped> {
    if stop.load(Ordering::Relaxed) { Err(Stopped) } else { Ok(()) }
}

/// A matrix in its file's storage, or quantised where it is f32 or half precision.
pub fn stored(stored: Stored, quantise: Option<BlockType>) -> Weight {
    match (stored, quantise) {
        (Stored::F32(tensor), Some(kind)) => quantised(tensor, kind),
        (Stored::F32(tensor), None) => Weight::Frozen(tensor),
        (Stored::Blocks(matrix), Some(kind)) if matrix.kind().values() == 1 => {
            quantised(widened(&matrix), kind)
        }
        (Stored::Blocks(matrix), _) => Weight::Blocks(matrix),
    }
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
