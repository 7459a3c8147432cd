//! Measures the speed of training steps on random rows of one length, of scoring, of generation and
//! of single matrix products, for `lora-drop bench`.

mod kernels;

use std::time::Instant;

use lora_drop_compute::gemm::measure_peak;
use lora_drop_compute::profile::{self, Recorder};
use lora_drop_compute::random::Key;
use lora_drop_transformer::{
    AdapterTable, Head, Memory, ModelConfig, ModuleKind, Observer, Parameters, SavePolicy, Trained,
};

use crate::assignment::Assignment;
use crate::data::text::TextExample;
use crate::data::{Example, Label, TaskRows};
use crate::engine::thread_pool;
use crate::estimate::{BaselineRss, PassMemory, Process, pass_size};
use crate::events::Event;
use crate::generate::{self, GenerateOptions, generate};
use crate::model::ModelFiles;
use crate::score::{Criterion, Evidence, HiddenStates, LoraOutput};
use crate::settings::{AdapterSettings, Compute, Method, Optimisation, ScheduleShape, TrainSettings};
use crate::summary::MemoryEstimate;
use crate::train::{self, Learner};
use crate::{Cancel, Error, Result};

pub use kernels::{Kernel, Kernels, kernels};

/// Settings of a measurement.
#[derive(Clone, Debug)]
pub struct BenchSettings {
    /// The model's folder, GGUF file or hub name.
    pub model: String,
    /// What trains; alpha is twice the rank.
    pub method: Method,
    /// The rank of every pair.
    pub rank: usize,
    /// Sequences of a step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub length: usize,
    /// Number of measured steps, pairs of steps, repetitions or samples, after one warm-up.
    pub steps: usize,
    /// Types, micro-batches, memory limit and threads.
    pub compute: Compute,
}

/// Measurements of training steps.
#[derive(Clone, Debug, serde::Serialize)]
pub struct BenchReport {
    /// Median over the steps.
    pub tokens_per_second: f64,
    /// Median over the steps.
    pub seconds_per_step: f64,
    /// Necessary operations per second, in 10⁹: 2 per multiply-add of the base's products, forward
    /// and for input gradients, of attention, and of a decoder's logits; in full fine-tuning also
    /// of the weights' gradients.
    pub gflops: f64,
    /// Operations per second that the matrix kernel of this dtype reaches with cached panels in
    /// this process, in 10⁹.
    pub peak_gflops: f64,
    /// `gflops` / `peak_gflops`.
    pub share_of_peak: f64,
    /// Share of attention (Q Kᵀ, P V and their backward pass) in the necessary operations. It alone
    /// grows with the length.
    pub attention_share: f64,
    /// Bytes of operands and results of all operations of a step, each counted as it is stored and
    /// at every use, even if it is still cached.
    pub bytes_per_step: u64,
    /// `bytes_per_step` per second, in 10⁹.
    pub gb_per_second: f64,
    /// Peak of resident memory in bytes; 0 if the system does not say.
    pub peak_rss_bytes: u64,
    /// Estimate of the memory.
    pub memory: MemoryEstimate,
    /// Number of computing threads.
    pub threads: usize,
}

/// Measurements of scoring.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ScoringReport {
    /// Share of a step's time that observing the modules and scoring them after the step adds: the
    /// median over pairs of steps, one of them without. Training scores every twelfth step or more
    /// rarely.
    pub added_share: f64,
    /// Median of the steps without scoring.
    pub seconds_per_step: f64,
    /// Median of the steps with scoring.
    pub seconds_per_scored_step: f64,
    /// Number of pairs.
    pub pairs: usize,
    /// Number of computing threads.
    pub threads: usize,
}

/// Measurements of generation.
#[derive(Clone, Debug, serde::Serialize)]
pub struct GenerationReport {
    /// New tokens per second, prompts included in the time. Median over the repetitions.
    pub tokens_per_second: f64,
    /// Median over the repetitions.
    pub seconds: f64,
    /// Number of texts that are generated concurrently.
    pub batch: usize,
    /// Number of tokens of each prompt.
    pub prompt_tokens: usize,
    /// Number of new tokens of each text.
    pub new_tokens: usize,
    /// Peak of resident memory in bytes; 0 if the system does not say.
    pub peak_rss_bytes: u64,
    /// Number of computing threads.
    pub threads: usize,
}

/// Continues random prompts greedily and concurrently, by exactly `new_tokens` tokens each: no
/// token ends a text. `steps` is the number of repetitions, after a warm-up. A `Recorder` that
/// records on the calling thread gets the measured ones.
///
/// # Errors
/// The model is not a decoder, or its context is too short; those of its files; interrupted.
pub fn generation(settings: &BenchSettings, new_tokens: usize, cancel: &Cancel) -> Result<GenerationReport> {
    profile::install(&thread_pool(settings.compute.threads)?, || {
        let files = ModelFiles::open(&settings.model, cancel, &mut |_| {})?;
        let config = &files.config;
        if !config.architecture.is_decoder() {
            return Err(Error::Usage("generation is for decoders".to_string()));
        }
        let (asked, most) = (settings.length.saturating_add(new_tokens), config.max_positions);
        if asked > most {
            return Err(Error::Usage(format!(
                "a length of {} and {new_tokens} new tokens are more than the model's {most} tokens",
                settings.length
            )));
        }
        let mut parameters = Parameters::new();
        let key = Key::new(0);
        let mut decoder = files.load(None, Trained::Head, settings.compute.quantize, key, &mut parameters)?;
        decoder.net.multiply_in(settings.compute.dtype.precision());
        let table = AdapterTable::empty(config.layers);
        let model =
            generate::Model { decoder: &decoder, parameters: &parameters, table: &table, tokens: None };
        let ids = random_ids(config.vocab_size, settings.batch * settings.length);
        let prompts: Vec<Vec<u32>> = ids.chunks(settings.length).map(<[u32]>::to_vec).collect();
        let options = GenerateOptions {
            max_new_tokens: new_tokens,
            batch_size: settings.batch,
            ..GenerateOptions::default()
        };
        let mut memory = Memory::default();
        let mut times = Vec::new();
        for repetition in 0..=settings.steps {
            let began = Instant::now();
            let _root = (repetition > 0).then(|| profile::root("generation", repetition));
            generate(model, &prompts, &options, &mut memory, cancel, &mut |_, _| {})?;
            times.push(began.elapsed().as_secs_f64());
        }
        let seconds = median_after_warmup(times);
        Ok(GenerationReport {
            tokens_per_second: (settings.batch * new_tokens) as f64 / seconds,
            seconds,
            batch: settings.batch,
            prompt_tokens: settings.length,
            new_tokens,
            peak_rss_bytes: crate::rss::peak_rss_bytes().unwrap_or(0),
            threads: rayon::current_num_threads(),
        })
    })
}

/// Returns random ids from 500 up (or half the vocabulary, if less), because the first are special
/// tokens or single bytes in many vocabularies.
fn random_ids(vocabulary: usize, count: usize) -> Vec<u32> {
    let random = Key::new(1);
    let first = vocabulary.min(1000) / 2;
    let id = |i| (first + random.bits_64(i) as usize % (vocabulary - first)) as u32;
    (0..count as u64).map(id).collect()
}

/// Returns the median of all but the first, the warm-up, which allocates memory.
fn median_after_warmup(mut times: Vec<f64>) -> f64 {
    times.remove(0);
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Runs training steps (forward, backward, AdamW, the model's own dropout) on one batch of random
/// rows. A `Recorder` that records on the calling thread gets the steps that are measured.
///
/// # Errors
/// The model cannot be trained in this way; those of its files; interrupted.
pub fn run(settings: &BenchSettings, cancel: &Cancel) -> Result<BenchReport> {
    profile::install(&thread_pool(settings.compute.threads)?, || {
        let files = ModelFiles::open(&settings.model, cancel, &mut |_| {})?;
        let mut bench = Bench::new(settings, &files)?;
        let memory = bench.estimate.clone();
        let mut step = || {
            let began = Instant::now();
            bench.step(None, cancel)?;
            Ok::<_, Error>(began.elapsed().as_secs_f64())
        };
        // The warm-up step is the one whose bytes are counted.
        let mut first = Recorder::new();
        let mut times = vec![first.record(&mut step)?];
        for _ in 0..settings.steps {
            times.push(step()?);
        }
        let bytes_per_step = first.work().bytes;
        let seconds_per_step = median_after_warmup(times);
        let tokens = (settings.batch * settings.length) as f64;
        let (products, attention) = operations(&files.config, settings.method, settings.length);
        let gflops = tokens * (products + attention) / seconds_per_step / 1e9;
        let peak_gflops = measure_peak(settings.compute.dtype.precision(), 0.3) / 1e9;
        Ok(BenchReport {
            tokens_per_second: tokens / seconds_per_step,
            seconds_per_step,
            gflops,
            peak_gflops,
            share_of_peak: gflops / peak_gflops,
            attention_share: attention / (products + attention),
            bytes_per_step,
            gb_per_second: bytes_per_step as f64 / seconds_per_step / 1e9,
            peak_rss_bytes: crate::rss::peak_rss_bytes().unwrap_or(0),
            memory,
            threads: rayon::current_num_threads(),
        })
    })
}

/// Runs pairs of training steps, one with the modules observed and scored and one without, in
/// alternating order. `steps` is the number of pairs, after one warm-up pair.
///
/// # Errors
/// The method has no LoRA to score; those of the model's files; interrupted.
pub fn scoring(settings: &BenchSettings, cancel: &Cancel) -> Result<ScoringReport> {
    if settings.method != Method::Lora {
        return Err(Error::Usage(
            "scoring is measured with `method = lora`: without a LoRA there is no score".into(),
        ));
    }
    thread_pool(settings.compute.threads)?.install(|| {
        let files = ModelFiles::open(&settings.model, cancel, &mut |_| {})?;
        let mut bench = Bench::new(settings, &files)?;
        let (mut plain, mut scored) = (Vec::new(), Vec::new());
        let hidden_states = HiddenStates::default();
        for pair in 0..=settings.steps {
            for turn in 0..2 {
                let began = Instant::now();
                if (pair + turn) % 2 == 0 {
                    bench.step(None, cancel)?;
                    plain.push(began.elapsed().as_secs_f64());
                } else {
                    bench.step(LoraOutput.observer(), cancel)?;
                    let Learner { bank, state, .. } = &mut bench.learner;
                    let observations = std::mem::take(&mut state.observations);
                    let (parameters, hidden_states) = (&state.parameters, &hidden_states);
                    let evidence =
                        Evidence { bank, parameters, observations: &observations, hidden_states, seed: 0 };
                    std::hint::black_box(LoraOutput.scores(&evidence));
                    scored.push(began.elapsed().as_secs_f64());
                }
            }
        }
        let added = plain.iter().zip(&scored).map(|(plain, scored)| scored / plain - 1.0).collect();
        Ok(ScoringReport {
            added_share: median_after_warmup(added),
            seconds_per_step: median_after_warmup(plain),
            seconds_per_scored_step: median_after_warmup(scored),
            pairs: settings.steps,
            threads: rayon::current_num_threads(),
        })
    })
}

/// A learner with adapters on query and value (or whatever the method trains), and one batch of
/// random rows.
struct Bench {
    learner: Learner,
    settings: TrainSettings,
    rows: Rows,
    estimate: MemoryEstimate,
}

/// The batch: labelled rows for a model with a head, or texts.
enum Rows {
    Labelled(Vec<Example>),
    Texts(Vec<TextExample>),
}

impl Rows {
    fn task(&self) -> TaskRows<'_> {
        match self {
            Rows::Labelled(rows) => TaskRows::Labelled(rows),
            Rows::Texts(rows) => TaskRows::Text(rows),
        }
    }
}

impl Bench {
    fn new(bench: &BenchSettings, files: &ModelFiles) -> Result<Self> {
        let (config, length) = (&files.config, bench.length);
        if length > config.max_tokens() {
            let most = config.max_tokens();
            return Err(Error::Usage(format!("a length of {length} is more than the model's {most} tokens")));
        }
        let before = BaselineRss::measure();
        let decoder = config.architecture.is_decoder();
        let refused = if !decoder {
            bench.compute.quantize.map(|_| "`quantize` is for decoders")
        } else if bench.method == Method::Head {
            Some("`method = head` is not for decoders, which predict tokens")
        } else {
            (length < 2).then_some("the length is at least 2 for a decoder: its first token is not learned")
        };
        if let Some(problem) = refused {
            return Err(Error::Usage(problem.to_string()));
        }
        let head = if decoder { None } else { Some(Head::of_sequences(2)) };
        let (method, rank) = (bench.method, bench.rank);
        let settings = TrainSettings {
            adapter: AdapterSettings { method, rank, alpha: 2.0 * rank as f64, ..AdapterSettings::default() },
            optimisation: Optimisation {
                batch_size: bench.batch,
                // `step` asks for one more before each step.
                epochs: 0,
                schedule: ScheduleShape::Constant,
                warmup_ratio: 0.0,
                ..Optimisation::default()
            },
            compute: bench.compute.clone(),
            ..TrainSettings::default()
        };
        let modules = config.modules(&[ModuleKind::Query, ModuleKind::Value]);
        let assignment = match bench.method {
            method if method.adapter().is_some() => Assignment::all_own(modules),
            _ => Assignment::default(),
        };
        let mut learner = Learner::load(files, head, &settings, &assignment)?;
        let ids = random_ids(config.vocab_size, bench.batch * length);
        let rows = ids.chunks(length).map(<[u32]>::to_vec).enumerate();
        let rows = match head {
            Some(_) => Rows::Labelled(
                rows.map(|(row, ids)| Example {
                    types: vec![0; length],
                    labelled: Vec::new(),
                    ids,
                    label: Some(Label::Class(row % 2)),
                    file: 0,
                    line: row + 1,
                })
                .collect(),
            ),
            None => Rows::Texts(
                rows.map(|(row, ids)| TextExample {
                    learn: (0..length).map(|place| place > 0).collect(),
                    ids,
                    file: 0,
                    line: row + 1,
                })
                .collect(),
            ),
        };
        let mut used = vec![false; config.vocab_size];
        ids.iter().for_each(|&id| used[id as usize] = true);
        let (model, table) = (&learner.model, &learner.table);
        let process = Process {
            model,
            table,
            config,
            before,
            data: 0,
            used: &used,
            longest: length,
            parameters: learner.state.parameters.count(),
            method_state_bytes: 0,
        };
        let lengths = vec![length; bench.batch];
        let Compute { memory_limit, micro_tokens, recompute, .. } = bench.compute;
        let plan = process.choose(memory_limit, micro_tokens, recompute, |passes| {
            let mut memory = PassMemory::default();
            for group in passes.cut.groups(&lengths) {
                let workers = group.len().min(passes.cut.concurrent);
                for part in group {
                    let size = pass_size(rows.task(), &part, SavePolicy::of_training(passes.recompute));
                    memory.include(workers, model, table, &size);
                }
            }
            memory
        })?;
        learner.use_plan(&plan);
        Ok(Bench { learner, settings, rows, estimate: plan.estimate })
    }

    /// Runs one more step over the batch.
    fn step(&mut self, observer: Option<&dyn Observer>, cancel: &Cancel) -> Result<()> {
        self.settings.optimisation.epochs += 1;
        let rows = self.rows.task();
        let schedule = train::StageSchedule::of_training(&self.settings, rows.len());
        let schedule = train::StageSchedule { observer, ..schedule };
        self.learner.run(&schedule, rows, &mut |_: &Event| {}, cancel)
    }
}

/// Returns necessary floating-point operations per token: of products with weights, and of
/// attention.
fn operations(config: &ModelConfig, method: Method, length: usize) -> (f64, f64) {
    let blocks = 2.0 * config.block_parameters() as f64;
    // Q Kᵀ and P V over the keys that a query sees. The backward pass has two gradients of each,
    // hence the factor 3; that it computes Q Kᵀ again does not count as necessary.
    let (products, seen) = if config.architecture.is_decoder() {
        let logits = 2.0 * (config.hidden_size * config.vocab_size) as f64;
        // The mean number of keys that a query sees in a layer with this window.
        let of = |window: &Option<usize>| {
            let (window, length) = (window.unwrap_or(length).min(length) as f64, length as f64);
            window * (length - (window - 1.0) / 2.0) / length
        };
        (blocks + logits, config.windows.iter().map(of).sum::<f64>())
    } else {
        (blocks, (config.layers * length) as f64)
    };
    let attention = 4.0 * (config.heads * config.head_dim) as f64 * seen;
    match method {
        Method::Head => (products, attention),
        Method::Full => (3.0 * products, 3.0 * attention),
        _ => (2.0 * products, 3.0 * attention),
    }
}
