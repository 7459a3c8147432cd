//! The memory of a process that trains, estimated; and the fastest way to cut its passes that fits
//! a limit.
//!
//! What is there before the weights are read (program, tokenizer, the data's rows) is measured; the
//! rest is computed from the model, the passes to come and the number of threads.

use std::collections::HashMap;

use lora_drop_compute::{attention, gemm};
use lora_drop_transformer::linear::FrozenForm;
use lora_drop_transformer::{Keep, LoraTable, Model, ModelConfig, PassSize};

use crate::data::TaskRows;
use crate::engine::{Cut, apart};
use crate::format::bytes;
use crate::memory::{peak_rss_bytes, rss_bytes};
use crate::settings::Size;
use crate::summary::MemoryEstimate;
use crate::{Error, Result};

/// Program, tokenizer and libraries where the system does not say what is in use.
const PROGRAM: u64 = 24 << 20;
/// Code, logs and tables that training touches first: seen of runs, beside what is computed.
const LATER: u64 = 3 << 20;
/// A micro-batch is not cut below this many tokens.
const LEAST_TOKENS: usize = 32;
/// What a micro-batch costs beside its tokens, in tokens, where each weight is widened and packed
/// once for it. Of SmolLM2, as the next but one (docs/performance.md has the measurements).
const COST_OF_PART: f64 = 35.0;
/// The same where weights are packed once for all.
const COST_OF_PACKED_PART: f64 = 8.0;
/// How many times as long a step takes that recomputes activations.
const COST_OF_RECOMPUTING: f64 = 1.45;
/// What each further thread that a micro-batch has costs by waiting: of MiniLM on 8 and 16 threads.
const COST_OF_THREAD: f64 = 0.07;

/// How a step's passes are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passes {
    pub cut: Cut,
    /// How frozen matrices are kept. No bit depends on it.
    pub form: FrozenForm,
    /// Whether the backward pass recomputes activations.
    pub recompute: bool,
}

impl Default for Passes {
    /// Passes that suit every model, as it is loaded.
    fn default() -> Self {
        Passes { cut: Cut::default(), form: FrozenForm::AsIs, recompute: false }
    }
}

impl Passes {
    /// Tokens of a pass that measures, which runs by itself. No bit depends on it.
    pub fn evaluation_tokens(self) -> usize {
        self.cut.together * self.cut.micro_tokens
    }

    /// Relative cost of a step that is computed in this way on this many threads.
    fn cost(self, threads: usize) -> f64 {
        let again = if self.recompute { COST_OF_RECOMPUTING } else { 1.0 };
        let part = if self.form == FrozenForm::Packed { COST_OF_PACKED_PART } else { COST_OF_PART };
        let further = threads as f64 / self.cut.together as f64 - 1.0;
        again * (1.0 + part / self.cut.micro_tokens as f64) * (1.0 + COST_OF_THREAD * further)
    }
}

/// Bytes in use at a moment.
#[derive(Clone, Copy, Debug)]
pub struct BaselineRss(u64);

impl BaselineRss {
    /// As the system says.
    pub fn measure() -> Self {
        BaselineRss(rss_bytes().unwrap_or(PROGRAM))
    }
}

/// What a run's memory follows from, but for its passes.
pub struct Process<'a> {
    /// As it is loaded.
    pub model: &'a Model,
    pub table: &'a LoraTable,
    pub config: &'a ModelConfig,
    /// Before the weights were read.
    pub before: BaselineRss,
    /// Bytes of the rows' tokens, which are in use by then.
    pub data: u64,
    /// Whether each token of the vocabulary is read; empty where that is not known.
    pub used: &'a [bool],
    /// The longest row in tokens.
    pub longest: usize,
    /// Trained values.
    pub parameters: usize,
    /// Bytes beside them, their gradients and moments.
    pub beside: u64,
}

/// Memory of passes that are made in one way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassMemory {
    /// Of the largest pass that trains, and of the largest that measures.
    pub tokens: usize,
    pub measured: usize,
    /// Floats of memory of each pass that runs at once.
    pub floats: Vec<usize>,
    /// Bytes beside it.
    pub beside: usize,
}

impl PassMemory {
    /// Makes room for a pass that any of `together` workers may run.
    pub fn include(&mut self, places: usize, model: &Model, table: &LoraTable, size: &PassSize) {
        let floats = model.net.floats(table, size);
        self.floats.resize(self.floats.len().max(places), 0);
        self.floats[..places].iter_mut().for_each(|most| *most = floats.max(*most));
        let tokens = if size.keep == Keep::One { &mut self.measured } else { &mut self.tokens };
        *tokens = size.tokens.max(*tokens);
    }
}

/// The size of a pass over the rows `part`, by number, without LoRA dropout and unobserved.
pub fn pass_size(rows: TaskRows, part: &[usize], keep: Keep) -> PassSize {
    PassSize {
        tokens: part.iter().map(|&row| rows.length(row)).sum(),
        sequences: part.len(),
        learned: match rows {
            TaskRows::Labelled(_) => 0,
            TaskRows::Text(rows) => part.iter().map(|&row| rows[row].learned()).sum(),
        },
        keep,
        lora_dropout: false,
        scored: false,
        every: false,
    }
}

/// How a run's passes are made, and what memory they take.
pub struct PassPlan {
    pub passes: Passes,
    /// Floats of memory of each pass that runs at once.
    pub floats: Vec<usize>,
    pub estimate: MemoryEstimate,
}

impl Process<'_> {
    /// The memory with these passes. `limit` is only noted.
    pub fn estimate(&self, passes: Passes, memory: &PassMemory, limit: Option<Size>) -> MemoryEstimate {
        let weights = self.model.net.weight_bytes(passes.form);
        let together = memory.floats.len();
        let activations = memory.floats.iter().map(|&floats| size_of::<f32>() * floats);
        // One for each place, and those that wait for a part in front of them.
        let own_gradients = if apart(self.parameters) { (2 * together).saturating_sub(1) } else { 0 };
        let parts = MemoryEstimate {
            micro_tokens: passes.cut.micro_tokens,
            together,
            recompute: passes.recompute,
            limit: limit.map(|limit| limit.0),
            program: self.before.0.saturating_sub(self.data) + LATER,
            data: self.data,
            weights: (weights.mapped + self.model.net.embedding_bytes(self.used)) as u64,
            copies: weights.copied as u64,
            parameters: (16 * self.parameters + 4 * own_gradients * self.parameters) as u64 + self.beside,
            activations: (activations.sum::<usize>() + memory.beside) as u64,
            scratch: self.scratch(memory, passes.form) as u64,
            total: 0,
        };
        // What reading and loading took for a while may be more.
        MemoryEstimate { total: parts.sum().max(peak_rss_bytes().unwrap_or(0)), ..parts }
    }

    /// Bytes that products and attention keep from call to call.
    fn scratch(&self, memory: &PassMemory, form: FrozenForm) -> usize {
        let (config, threads) = (self.config, rayon::current_num_threads());
        let packed = form == FrozenForm::Packed;
        let mut layers: Vec<_> = config.architecture.kinds().map(|kind| config.linear_shape(kind)).collect();
        if self.model.outputs.is_none() {
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
        // Concurrent parts have threads of their own, and what runs by itself another one, if
        // there is one.
        let places = memory.floats.len();
        let callers = if places > 1 { (places + 1).min(threads) } else { 1 };
        let products = largest(callers, memory.tokens).max(largest(1, memory.measured));
        products + threads * attention::scratch_bytes(self.longest, config.head_dim)
    }

    /// The passes that cost least of those that `limit` allows: `given` micro-batches, or those
    /// that the model has by itself and smaller ones, as many concurrently as there are threads for
    /// and fewer; matrices that are packed once where the model is small, and others; kept
    /// activations, and recomputed or not. `memory` tells what
    /// passes take.
    ///
    /// # Errors
    /// `Error::Usage` where no passes fit.
    pub fn choose(
        &self,
        limit: Option<Size>,
        given: Option<usize>,
        recompute: bool,
        memory: impl Fn(Passes) -> PassMemory,
    ) -> Result<PassPlan> {
        let threads = rayon::current_num_threads();
        let ways = Cut::ways(self.model, self.table, self.parameters, threads);
        let mut least: Option<(Passes, MemoryEstimate)> = None;
        // What passes take does not depend on the matrices' form.
        let mut taken: HashMap<(Cut, bool), PassMemory> = HashMap::new();
        for passes in candidates(&ways, given, self.longest, recompute, threads) {
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
        Err(Error::Usage(self.too_little(limit, passes, &least)))
    }

    /// Why a limit cannot be kept, and what would help.
    fn too_little(&self, limit: Size, passes: Passes, least: &MemoryEstimate) -> String {
        let megabytes = least.total.div_ceil(1_000_000);
        let recompute = if passes.recompute { " and `recompute`" } else { "" };
        let (activations, weights) = (bytes(least.activations), bytes(least.weights + least.copies));
        let quantize = if self.config.architecture.is_decoder() {
            "`quantize = q4_0` (where the weights are not quantized already), "
        } else {
            ""
        };
        format!(
            "`memory_limit = {limit}` is too little: the least that would do is {megabytes}MB, with `micro_tokens = {}`{recompute}; \
             of it weights are {weights}, and activations of rows of up to {} tokens {activations}. What needs less: \
             {quantize}shorter rows (`max_length`), fewer `threads`, a method that trains less",
            passes.cut.micro_tokens, self.longest
        )
    }
}

/// Ways to make passes, those that cost least first: see `Process::choose`.
fn candidates(
    ways: &[(FrozenForm, Cut)],
    given: Option<usize>,
    longest: usize,
    recompute: bool,
    threads: usize,
) -> Vec<Passes> {
    let halves = |most: usize, least: usize| {
        std::iter::successors(Some(most), move |&count| (count > least).then(|| count.div_ceil(2).max(least)))
    };
    let mut found = Vec::new();
    for &(form, cut) in ways {
        let most = given.unwrap_or(cut.micro_tokens);
        // Smaller parts than the longest row would only cut the others.
        let least = if given.is_some() { most } else { longest.max(LEAST_TOKENS).min(most) };
        for micro_tokens in halves(most, least) {
            for together in halves(cut.together, 1) {
                let again = Passes { cut: Cut { micro_tokens, together, ..cut }, form, recompute: true };
                found.push(again);
                found.extend((!recompute).then_some(Passes { recompute, ..again }));
            }
        }
    }
    found.sort_by(|a, b| a.cost(threads).total_cmp(&b.cost(threads)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKED: Cut = Cut { micro_tokens: 512, even: true, together: 8 };
    const ROUNDED: Cut = Cut { micro_tokens: 1024, even: true, together: 2 };
    const WAYS: [(FrozenForm, Cut); 2] = [(FrozenForm::Packed, PACKED), (FrozenForm::Rounded, ROUNDED)];

    #[test]
    fn the_first_candidate_is_the_models_own_way() {
        for threads in [1, 2, 3, 4, 8, 16, 64] {
            for micro_tokens in [256, 512] {
                for together in [1, 8.min(threads)] {
                    let packed = Cut { micro_tokens, together, ..PACKED };
                    let rounded = Cut { together: together.min(2), ..ROUNDED };
                    let ways = [(FrozenForm::Packed, packed), (FrozenForm::Rounded, rounded)];
                    let first = candidates(&ways, None, 128, false, threads)[0];
                    let own = Passes { cut: packed, form: FrozenForm::Packed, recompute: false };
                    assert_eq!(first, own, "{threads} threads");
                    assert_eq!(candidates(&ways[1..], None, 128, false, threads)[0].cut, rounded);
                }
            }
        }
    }

    #[test]
    fn candidates_hold_every_way_once() {
        // 512, 256, 128 and 100 tokens of packed matrices and 1024 too of others, 4 and 2 ways to
        // run them concurrently.
        let all = candidates(&WAYS, None, 100, false, 8);
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
        // Whoever asks for a size, or for activations that are recomputed, gets that.
        let asked = candidates(&WAYS, Some(300), 100, true, 8);
        assert_eq!(asked.len(), 4 + 2);
        assert!(asked.iter().all(|p| p.cut.micro_tokens == 300 && p.recompute));
    }

    #[test]
    fn what_costs_least_is_given_up_first() {
        let order = |threads: usize, together: usize| -> Vec<(FrozenForm, usize, bool)> {
            let ways = WAYS.map(|(form, cut)| (form, Cut { together: together.min(cut.together), ..cut }));
            let all = candidates(&ways, Some(512), 100, false, threads);
            all.into_iter().map(|p| (p.form, p.cut.together, p.recompute)).collect()
        };
        let (packed, rounded) = (FrozenForm::Packed, FrozenForm::Rounded);
        // A part beside the other, then packing, at last activations; but many threads wait so long
        // for each other in one part that its activations are cheaper to form again in several.
        let few = order(2, 2);
        assert_eq!(
            few[..4],
            [(packed, 2, false), (rounded, 2, false), (packed, 1, false), (rounded, 1, false)]
        );
        assert!(few[4..].iter().all(|&(.., recompute)| recompute));
        let many = order(8, 8);
        let place = |way: (FrozenForm, usize, bool)| many.iter().position(|&other| other == way);
        assert!(place((packed, 4, false)) < place((packed, 2, false)));
        assert!(place((packed, 8, true)) < place((packed, 1, false)));
    }
}
