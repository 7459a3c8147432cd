//! The memory of a process that trains, foreseen; and the fastest way to cut its passes that fits a limit.
//!
//! What is there before the weights are read (program, tokenizer, the data's rows) is measured; the rest is computed from
//! the model, the passes to come and the number of threads.

use lora_drop_compute::{Arena, attention, gemm};
use lora_drop_transformer::encoder::PassSize;
use lora_drop_transformer::{LoraTable, Model, ModelConfig};

use crate::engine::{Cut, apart};
use crate::memory::{peak_rss_bytes, rss_bytes};
use crate::report::format::bytes;
use crate::settings::Size;
use crate::summary::MemoryForecast;
use crate::{Error, Result};

/// Program, tokenizer and libraries where the system does not say what is in use.
const PROGRAM: u64 = 24 << 20;
/// Code, logs and tables that training touches first: seen of runs, beside what is computed.
const LATER: u64 = 3 << 20;
/// A micro-batch is not cut below this many tokens.
const LEAST_TOKENS: usize = 32;
/// What a micro-batch costs beside its tokens, in tokens: each weight is widened and packed once for it. Of SmolLM2, as the
/// next (docs/performance.md has the measurements).
const COST_OF_PART: f64 = 35.0;
/// How many times as long a step takes that forms activations again.
const COST_OF_RECOMPUTING: f64 = 1.45;

/// How a step's passes are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passes {
    pub cut: Cut,
    /// Whether the way back forms activations again.
    pub recompute: bool,
}

impl Passes {
    /// Tokens of a pass that measures, which runs by itself. No bit depends on it.
    pub fn evaluation_tokens(self) -> usize {
        if self.cut.side_by_side { 2 * self.cut.micro_tokens } else { self.cut.micro_tokens }
    }

    /// What a step costs that is made so, relative to others.
    fn cost(self) -> f64 {
        let again = if self.recompute { COST_OF_RECOMPUTING } else { 1.0 };
        again * (1.0 + COST_OF_PART / self.cut.micro_tokens as f64)
    }
}

/// Bytes in use at a moment: now, and the most so far.
#[derive(Clone, Copy, Debug)]
pub struct InUse {
    now: u64,
    most: u64,
}

impl InUse {
    /// As the system says.
    pub fn measure() -> Self {
        let now = rss_bytes().unwrap_or(PROGRAM);
        InUse { now, most: peak_rss_bytes().unwrap_or(now) }
    }
}

/// What a run's memory follows from, but for its passes.
pub struct Process<'a> {
    pub model: &'a Model,
    pub config: &'a ModelConfig,
    /// Before the weights were read.
    pub before: InUse,
    /// Bytes of the rows' tokens, which are in use by then.
    pub data: u64,
    /// Whether each token of the vocabulary is read; empty where that is not known.
    pub used: &'a [bool],
    /// The longest row in tokens.
    pub longest: usize,
    /// Trained values.
    pub parameters: usize,
}

/// Memory of passes that are made in one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassMemory {
    /// Of the largest pass.
    pub tokens: usize,
    /// Floats of the arenas of passes side by side.
    pub floats: [usize; 2],
    /// Bytes beside it.
    pub beside: usize,
}

impl PassMemory {
    /// Makes room for a pass, the one at this place of those side by side.
    pub fn include(&mut self, place: usize, model: &Model, table: &LoraTable, size: &PassSize) {
        self.floats[place] = self.floats[place].max(model.floats(table, size));
        self.tokens = self.tokens.max(size.tokens);
    }
}

impl Process<'_> {
    /// The memory with these passes. `limit` is only noted.
    pub fn forecast(&self, passes: Passes, memory: PassMemory, limit: Option<Size>) -> MemoryForecast {
        let weights = self.model.weight_bytes();
        let used = memory.floats.into_iter().filter(|&floats| floats > 0);
        let arenas: Vec<usize> = used.map(|floats| size_of::<f32>() * Arena::room(floats)).collect();
        let own_gradients = if apart(self.parameters) { arenas.len() } else { 0 };
        let parts = MemoryForecast {
            micro_tokens: passes.cut.micro_tokens,
            side_by_side: passes.cut.side_by_side,
            recompute: passes.recompute,
            limit: limit.map(|limit| limit.0),
            program: self.before.now.saturating_sub(self.data) + LATER,
            data: self.data,
            weights: (weights.mapped + self.model.embedding_bytes(self.used)) as u64,
            copies: weights.copied as u64,
            parameters: (16 * self.parameters + 4 * own_gradients * self.parameters) as u64,
            activations: (arenas.iter().sum::<usize>() + memory.beside) as u64,
            scratch: self.scratch(memory.tokens, passes.cut.side_by_side) as u64,
            total: 0,
        };
        MemoryForecast { total: parts.sum().max(self.before.most), ..parts }
    }

    /// Bytes that products and attention keep from call to call, for passes of so many tokens each.
    fn scratch(&self, tokens: usize, side_by_side: bool) -> usize {
        let (config, threads) = (self.config, rayon::current_num_threads());
        // Any thread may come to run a part.
        let callers = if side_by_side { threads } else { 1 };
        let mut layers: Vec<_> =
            config.architecture().kinds().iter().map(|&kind| config.linear_shape(kind)).collect();
        if let Model::Decoder(_) = self.model {
            layers.push((config.vocab_size(), config.hidden_size()));
        }
        // Forth, back, and for the weight's gradient.
        let products = layers.iter().flat_map(|&(output, input)| {
            let shapes = [(tokens, output, input), (tokens, input, output), (output, input, tokens)];
            shapes.map(|(m, n, k)| gemm::scratch_bytes(callers, threads, m, n, k))
        });
        let head = config.hidden_size() / config.heads();
        products.max().unwrap_or(0) + threads * attention::scratch_bytes(self.longest, head)
    }

    /// The passes that cost least of those that `limit` allows: `given` micro-batches, or those of `cut` and smaller ones; kept
    /// activations, or with `recompute` and where nothing else fits such that are formed again. `memory` tells what passes take.
    ///
    /// # Errors
    /// `Error::Usage` where no passes fit.
    pub fn choose(
        &self,
        limit: Option<Size>,
        cut: Cut,
        given: Option<usize>,
        recompute: bool,
        memory: impl Fn(Passes) -> PassMemory,
    ) -> Result<(Passes, MemoryForecast)> {
        let most = given.unwrap_or(cut.micro_tokens);
        // Smaller parts than the longest row would only cut the others.
        let least = if given.is_some() { most } else { self.longest.max(LEAST_TOKENS).min(most) };
        let sizes = std::iter::successors(Some(most), |&tokens| (tokens > least).then_some(tokens / 2));
        let ways: &[bool] = if recompute { &[true] } else { &[false, true] };
        let cut = Cut { side_by_side: cut.side_by_side && rayon::current_num_threads() > 1, ..cut };
        let mut candidates: Vec<Passes> = sizes
            .flat_map(|micro_tokens| ways.iter().map(move |&way| (micro_tokens, way)))
            .map(|(micro_tokens, recompute)| Passes { cut: Cut { micro_tokens, ..cut }, recompute })
            .collect();
        candidates.sort_by(|a, b| a.cost().total_cmp(&b.cost()));
        let mut least: Option<(Passes, MemoryForecast)> = None;
        for passes in candidates {
            let found = self.forecast(passes, memory(passes), limit);
            if limit.is_none_or(|limit| found.total <= limit.0) {
                return Ok((passes, found));
            }
            if least.as_ref().is_none_or(|(_, least)| found.total < least.total) {
                least = Some((passes, found));
            }
        }
        let (limit, (passes, least)) = (limit.expect("without one all fit"), least.expect("one at least"));
        Err(Error::Usage(self.too_little(limit, passes, &least)))
    }

    /// Why a limit cannot be kept, and what would help.
    fn too_little(&self, limit: Size, passes: Passes, least: &MemoryForecast) -> String {
        let megabytes = least.total.div_ceil(1_000_000);
        let recompute = if passes.recompute { " and --recompute" } else { "" };
        let (activations, weights) = (bytes(least.activations), bytes(least.weights + least.copies));
        let quantise = match self.config {
            ModelConfig::Decoder(_) => "--quantize q4_0 (where the weights are not quantised already), ",
            ModelConfig::Encoder(_) => "",
        };
        format!(
            "--memory-limit {limit} is too little: the least that would do is {megabytes}MB, with --micro-tokens {}{recompute}; \
             of it weights are {weights}, and activations of rows of up to {} tokens {activations}. What needs less: \
             {quantise}shorter rows (--max-length), fewer --threads, a method that trains less",
            passes.cut.micro_tokens, self.longest
        )
    }
}
