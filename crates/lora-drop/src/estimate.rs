//! The estimated memory of a process that trains, and the fastest passes that fit a memory limit.
//!
//! What is in memory before the weights are read (program, tokenizer, the data's rows) is measured;
//! everything else is computed from the model, the passes to come and the number of threads.

use std::collections::HashMap;

use lora_drop_compute::{attention, gemm};
use lora_drop_transformer::linear::FrozenForm;
use lora_drop_transformer::{AdapterTable, Model, ModelConfig, PassSize, SavePolicy};

use crate::data::TaskRows;
use crate::engine::{Cut, parts_have_own_gradients};
use crate::format::bytes;
use crate::rss::{peak_rss_bytes, rss_bytes};
use crate::settings::Size;
use crate::summary::MemoryEstimate;
use crate::{Error, Result};

/// Bytes of program, tokenizer and libraries, for systems that do not report the memory in use.
const PROGRAM_BYTES: u64 = 24 << 20;
/// Bytes of code, logs and tables that training touches only later, as observed in runs.
const LATE_BYTES: u64 = 3 << 20;
/// Fewest tokens of a micro-batch.
const MIN_TOKENS: usize = 32;
/// Fixed cost of a micro-batch for which each weight is widened and packed, in tokens. Measured
/// with SmolLM2, as is the cost of recomputing (docs/performance.md).
const PART_COST_TOKENS: f64 = 35.0;
/// Fixed cost of a micro-batch where weights are packed once for all, in tokens.
const PACKED_PART_COST_TOKENS: f64 = 8.0;
/// Time of a step that recomputes activations, relative to one that saves them.
const RECOMPUTE_COST: f64 = 1.45;
/// Relative cost of each further thread of a micro-batch, as threads wait for each other. Measured
/// with MiniLM on 8 and 16 threads. With many threads it outweighs recomputing, so candidates are
/// sorted by cost and not in a fixed order.
const EXTRA_THREAD_COST: f64 = 0.07;

/// How the passes of a step are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passes {
    /// How a step is cut into micro-batches.
    pub cut: Cut,
    /// How frozen matrices are kept; it does not affect results.
    pub form: FrozenForm,
    /// Whether the backward pass recomputes activations.
    pub recompute: bool,
}

impl Default for Passes {
    /// Passes that suit every newly loaded model.
    fn default() -> Self {
        Passes { cut: Cut::default(), form: FrozenForm::AsIs, recompute: false }
    }
}

impl Passes {
    /// Tokens of an evaluation pass, which runs alone. It does not affect results.
    pub(crate) fn evaluation_tokens(self) -> usize {
        self.cut.concurrent * self.cut.micro_tokens
    }

    /// Estimated relative time of a step on this number of threads; 1 without any overhead.
    fn cost(self, threads: usize) -> f64 {
        let recompute = if self.recompute { RECOMPUTE_COST } else { 1.0 };
        let part = if self.form == FrozenForm::Packed { PACKED_PART_COST_TOKENS } else { PART_COST_TOKENS };
        let further = threads as f64 / self.cut.concurrent as f64 - 1.0;
        recompute * (1.0 + part / self.cut.micro_tokens as f64) * (1.0 + EXTRA_THREAD_COST * further)
    }
}

/// Bytes of the process that were in main memory at one moment.
#[derive(Clone, Copy, Debug)]
pub struct BaselineRss(u64);

impl BaselineRss {
    /// Measures now.
    pub fn measure() -> Self {
        BaselineRss(rss_bytes().unwrap_or(PROGRAM_BYTES))
    }
}

/// What a run's memory depends on, apart from its passes.
pub struct Process<'a> {
    /// The model as loaded.
    pub model: &'a Model,
    pub table: &'a AdapterTable,
    pub config: &'a ModelConfig,
    /// Measured before the weights were read.
    pub before: BaselineRss,
    /// Bytes of the rows' tokens, which `before` includes.
    pub data: u64,
    /// Whether the rows have a token, for each token of the vocabulary; empty if that is not known.
    pub used: &'a [bool],
    /// The longest row in tokens.
    pub longest: usize,
    /// Number of trained values.
    pub parameters: usize,
    /// Bytes that training needs besides the trained values, their gradients and moments.
    pub method_state_bytes: u64,
}

/// The memory of all passes under one [`Passes`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassMemory {
    /// Tokens of the largest training pass.
    pub tokens: usize,
    /// Tokens of the largest evaluation pass.
    pub measured: usize,
    /// Values (f32) of memory for each concurrent pass.
    pub floats: Vec<usize>,
    /// Further bytes.
    pub extra_bytes: usize,
}

impl PassMemory {
    /// Makes room for a pass of this size on each of the first `workers` workers.
    pub fn include(&mut self, workers: usize, model: &Model, table: &AdapterTable, size: &PassSize) {
        let floats = model.net.floats(table, size);
        self.floats.resize(self.floats.len().max(workers), 0);
        self.floats[..workers].iter_mut().for_each(|most| *most = floats.max(*most));
        let tokens = if size.saves == SavePolicy::Nothing { &mut self.measured } else { &mut self.tokens };
        *tokens = size.tokens.max(*tokens);
    }
}

/// Size of a pass over the rows with the numbers `part`, without LoRA dropout and scoring.
pub fn pass_size(rows: TaskRows, part: &[usize], saves: SavePolicy) -> PassSize {
    PassSize {
        tokens: part.iter().map(|&row| rows.length(row)).sum(),
        sequences: part.len(),
        learned: match rows {
            TaskRows::Labelled(rows) => part.iter().map(|&row| rows[row].labelled.len()).sum(),
            TaskRows::Text(rows) => part.iter().map(|&row| rows[row].learned()).sum(),
        },
        saves,
        lora_dropout: false,
        scored: false,
        every_token: false,
    }
}

/// How a run's passes are computed, and the memory that they take.
pub struct PassPlan {
    /// How they are computed.
    pub passes: Passes,
    /// Values (f32) of memory for each concurrent pass.
    pub floats: Vec<usize>,
    /// The memory of the whole process.
    pub estimate: MemoryEstimate,
}

impl Process<'_> {
    /// The estimated memory with these passes; `limit` is only recorded in it.
    pub fn estimate(&self, passes: Passes, memory: &PassMemory, limit: Option<Size>) -> MemoryEstimate {
        let weights = self.model.net.weight_bytes(passes.form);
        let concurrent = memory.floats.len();
        let activations = memory.floats.iter().map(|&floats| size_of::<f32>() * floats);
        // One gradient for each worker, and those that wait until the gradients of earlier parts
        // were added.
        let own_gradients =
            if parts_have_own_gradients(self.parameters) { (2 * concurrent).saturating_sub(1) } else { 0 };
        let parts = MemoryEstimate {
            micro_tokens: passes.cut.micro_tokens,
            concurrent,
            recompute: passes.recompute,
            limit: limit.map(|limit| limit.0),
            program: self.before.0.saturating_sub(self.data) + LATE_BYTES,
            data: self.data,
            weights: (weights.mapped + self.model.net.embedding_bytes(self.used)) as u64,
            copies: weights.copied as u64,
            parameters: (16 * self.parameters + 4 * own_gradients * self.parameters) as u64
                + self.method_state_bytes,
            activations: (activations.sum::<usize>() + memory.extra_bytes) as u64,
            scratch: self.scratch(memory, passes.form) as u64,
            total: 0,
        };
        // Reading and loading may have had a higher peak.
        MemoryEstimate { total: parts.sum().max(peak_rss_bytes().unwrap_or(0)), ..parts }
    }

    /// Bytes of scratch memory that products and attention keep between calls.
    fn scratch(&self, memory: &PassMemory, form: FrozenForm) -> usize {
        let (config, threads) = (self.config, rayon::current_num_threads());
        let packed = form == FrozenForm::Packed;
        let mut layers: Vec<_> = config.architecture.kinds().map(|kind| config.linear_shape(kind)).collect();
        if self.model.head.is_none() {
            layers.push((config.vocab_size, config.hidden_size));
        }
        let trains_base = self.model.net.trains_embeddings();
        let largest = |callers: usize, tokens: usize| {
            let bytes = |&(output, input): &(usize, usize)| {
                let both = [(tokens, output, input), (tokens, input, output)];
                let both = both.map(|shape| gemm::scratch_bytes(callers, threads, shape, packed));
                let weight = gemm::scratch_bytes(callers, threads, (output, input, tokens), false);
                both.into_iter().chain(trains_base.then_some(weight)).max().unwrap_or(0)
            };
            layers.iter().map(bytes).max().unwrap_or(0)
        };
        // Scratch is per calling thread: one for each concurrent part, and one more for a pass that
        // runs alone, if there is another thread.
        let concurrent = memory.floats.len();
        let callers = if concurrent > 1 { (concurrent + 1).min(threads) } else { 1 };
        let products = largest(callers, memory.tokens).max(largest(1, memory.measured));
        products + threads * attention::scratch_bytes(self.longest, config.head_dim)
    }

    /// Returns the fastest passes whose memory stays below `limit`. Candidates vary in the tokens
    /// of a micro-batch (unless `given`), how many run concurrently, whether matrices are packed
    /// once, and whether activations are recomputed (always with `recompute`). `memory` computes
    /// the memory of candidates.
    ///
    /// # Errors
    /// `Error::Usage` if no passes fit, with the smallest limit that would do.
    pub fn choose(
        &self,
        limit: Option<Size>,
        given: Option<usize>,
        recompute: bool,
        memory: impl Fn(Passes) -> PassMemory,
    ) -> Result<PassPlan> {
        let threads = rayon::current_num_threads();
        let cuts = Cut::candidates(self.model, self.table, self.parameters, threads);
        let mut least: Option<(Passes, MemoryEstimate)> = None;
        // The memory of passes does not depend on the matrices' form, so it is computed once for
        // all forms.
        let mut taken: HashMap<(Cut, bool), PassMemory> = HashMap::new();
        for passes in pass_candidates(&cuts, given, self.longest, recompute, threads) {
            let memory = taken.entry((passes.cut, passes.recompute)).or_insert_with(|| memory(passes));
            let estimate = self.estimate(passes, memory, limit);
            if limit.is_none_or(|limit| estimate.total <= limit.0) {
                return Ok(PassPlan { passes, floats: memory.floats.clone(), estimate });
            }
            if least.as_ref().is_none_or(|(_, least)| estimate.total < least.total) {
                least = Some((passes, estimate));
            }
        }
        let (limit, (passes, least)) = (limit.expect("without one all fit"), least.expect("one at least"));
        Err(Error::Usage(self.limit_error(limit, passes, &least)))
    }

    /// Why the limit cannot be kept, and what would help.
    fn limit_error(&self, limit: Size, passes: Passes, least: &MemoryEstimate) -> String {
        let megabytes = least.total.div_ceil(1_000_000);
        let recompute = if passes.recompute { " and `recompute`" } else { "" };
        let (activations, weights) = (bytes(least.activations), bytes(least.weights + least.copies));
        let quantize = if self.config.architecture.is_decoder() {
            "`quantize = q4_0` (where the weights are not quantized already), "
        } else {
            ""
        };
        format!(
            "`memory_limit = {limit}` is too little: the least that would do is {megabytes}MB, with `micro_tokens = {}`{recompute}. \
             Of that, weights take {weights}, and activations of rows of up to {} tokens {activations}. To need less: \
             {quantize}shorter rows (`max_length`), fewer `threads`, or a method that trains less",
            passes.cut.micro_tokens, self.longest
        )
    }
}

/// Lists all ways to compute passes, the fastest first: see `Process::choose`.
fn pass_candidates(
    cuts: &[(FrozenForm, Cut)],
    given: Option<usize>,
    longest: usize,
    recompute: bool,
    threads: usize,
) -> Vec<Passes> {
    let halves = |max: usize, min: usize| {
        std::iter::successors(Some(max), move |&count| (count > min).then(|| count.div_ceil(2).max(min)))
    };
    let mut found = Vec::new();
    for &(form, cut) in cuts {
        let max_tokens = given.unwrap_or(cut.micro_tokens);
        // A row is never cut, so parts smaller than the longest row would not need less memory.
        let min_tokens = if given.is_some() { max_tokens } else { longest.max(MIN_TOKENS).min(max_tokens) };
        for micro_tokens in halves(max_tokens, min_tokens) {
            for concurrent in halves(cut.concurrent, 1) {
                let recomputing =
                    Passes { cut: Cut { micro_tokens, concurrent, ..cut }, form, recompute: true };
                found.push(recomputing);
                found.extend((!recompute).then_some(Passes { recompute, ..recomputing }));
            }
        }
    }
    found.sort_by(|a, b| a.cost(threads).total_cmp(&b.cost(threads)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKED: Cut = Cut { micro_tokens: 512, even_count: true, concurrent: 8 };
    const ROUNDED: Cut = Cut { micro_tokens: 1024, even_count: true, concurrent: 2 };
    const CUTS: [(FrozenForm, Cut); 2] = [(FrozenForm::Packed, PACKED), (FrozenForm::Rounded, ROUNDED)];

    #[test]
    fn the_first_candidate_is_the_models_default() {
        for threads in [1, 2, 3, 4, 8, 16, 64] {
            for micro_tokens in [256, 512] {
                for concurrent in [1, 8.min(threads)] {
                    let packed = Cut { micro_tokens, concurrent, ..PACKED };
                    let rounded = Cut { concurrent: concurrent.min(2), ..ROUNDED };
                    let cuts = [(FrozenForm::Packed, packed), (FrozenForm::Rounded, rounded)];
                    let first = pass_candidates(&cuts, None, 128, false, threads)[0];
                    let own = Passes { cut: packed, form: FrozenForm::Packed, recompute: false };
                    assert_eq!(first, own, "{threads} threads");
                    assert_eq!(pass_candidates(&cuts[1..], None, 128, false, threads)[0].cut, rounded);
                }
            }
        }
    }

    #[test]
    fn candidates_are_distinct_and_complete() {
        // 512, 256, 128 and 100 tokens, and also 1024 where matrices are not packed once; 4 and 2
        // numbers of concurrent micro-batches.
        let all = pass_candidates(&CUTS, None, 100, false, 8);
        let with = |form: FrozenForm, recompute: bool| {
            all.iter().filter(|p| p.form == form && p.recompute == recompute).count()
        };
        for recompute in [false, true] {
            assert_eq!(with(FrozenForm::Packed, recompute), 4 * 4);
            assert_eq!(with(FrozenForm::Rounded, recompute), 5 * 2);
        }
        for (at, one) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(one), "{one:?}");
        }
        // A given size is kept, and so is recomputing.
        let asked = pass_candidates(&CUTS, Some(300), 100, true, 8);
        assert_eq!(asked.len(), 4 + 2);
        assert!(asked.iter().all(|p| p.cut.micro_tokens == 300 && p.recompute));
    }

    #[test]
    fn candidates_are_in_the_order_of_their_cost() {
        let order = |threads: usize, concurrent: usize| -> Vec<(FrozenForm, usize, bool)> {
            let cuts =
                CUTS.map(|(form, cut)| (form, Cut { concurrent: concurrent.min(cut.concurrent), ..cut }));
            let all = pass_candidates(&cuts, Some(512), 100, false, threads);
            all.into_iter().map(|p| (p.form, p.cut.concurrent, p.recompute)).collect()
        };
        let (packed, rounded) = (FrozenForm::Packed, FrozenForm::Rounded);
        // Packing is given up first, then concurrency, and saved activations last. But many threads
        // wait so long for each other in a single part that several parts that recompute are
        // faster.
        let few = order(2, 2);
        assert_eq!(
            few[..4],
            [(packed, 2, false), (rounded, 2, false), (packed, 1, false), (rounded, 1, false)]
        );
        assert!(few[4..].iter().all(|&(.., recompute)| recompute));
        let many = order(8, 8);
        let place = |passes: (FrozenForm, usize, bool)| many.iter().position(|&other| other == passes);
        assert!(place((packed, 4, false)) < place((packed, 2, false)));
        assert!(place((packed, 8, true)) < place((packed, 1, false)));
    }
}
