//! The speed of training steps on rows of a fixed length, and of generation: what `lora-drop bench` prints.

use std::time::Instant;

use lora_drop_compute::gemm::measure_peak;
use lora_drop_compute::random::Key;
use lora_drop_transformer::decoder::{TextPart, Texts};
use lora_drop_transformer::encoder::{
    Keep, Memory, PassSize, Sequences, Stopped, Targets, TrainPart, Trained,
};
use lora_drop_transformer::{Encoder, LoraTable, Model, ModelConfig, ModuleKind, Parameters, SequenceModel};

use crate::adapter::LoraBank;
use crate::assign::Assignment;
use crate::engine::thread_pool;
use crate::forecast::{InUse, PassMemory, Passes, Process};
use crate::generate::{self, GenerateOptions, generate};
use crate::model::ModelFiles;
use crate::settings::{Dtype, Method, Quantise, Schedule, Size, TrainSettings};
use crate::summary::MemoryForecast;
use crate::train::{Course, Optimiser};
use crate::{Cancel, Error, Result};

/// What is measured.
#[derive(Clone, Debug)]
pub struct BenchSettings {
    pub model: String,
    pub method: Method,
    pub rank: usize,
    pub dtype: Dtype,
    /// How a decoder's frozen matrices are stored; None is as their file has them.
    pub quantise: Option<Quantise>,
    /// Sequences of a step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub length: usize,
    /// Tokens of a micro-batch; None is as the model has it, or as the limit allows.
    pub micro_tokens: Option<usize>,
    /// Whether activations are formed again on the way back.
    pub recompute: bool,
    /// Foreseen peak of resident memory that training must not be above.
    pub memory_limit: Option<Size>,
    pub steps: usize,
    pub threads: usize,
}

/// What was measured.
#[derive(Clone, Debug, serde::Serialize)]
pub struct BenchReport {
    /// Median over the steps.
    pub tokens_per_second: f64,
    pub seconds_per_step: f64,
    /// Necessary operations (2 per multiply-add of the base's products, forward and for input gradients, of attention,
    /// and of a decoder's logits; in full fine-tuning the weights' gradients too) per second, in 10⁹.
    pub gflops: f64,
    /// What the matrix kernel of this dtype reaches from cached panels in this process, in 10⁹.
    pub peak_gflops: f64,
    pub share_of_peak: f64,
    pub peak_rss_bytes: u64,
    /// What had been foreseen of it.
    pub memory: MemoryForecast,
    pub threads: usize,
}

/// What was measured of generation.
#[derive(Clone, Debug, serde::Serialize)]
pub struct GenerationReport {
    /// New tokens; the time has the prompts in it. Median over the repetitions.
    pub tokens_per_second: f64,
    pub seconds: f64,
    /// Texts written together.
    pub batch: usize,
    pub prompt_tokens: usize,
    pub new_tokens: usize,
    pub peak_rss_bytes: u64,
    pub threads: usize,
}

/// Continues random prompts greedily, all at once, by exactly `new_tokens` each: the decoder alone, no token ends a text.
/// `steps` are the repetitions, behind one that is not measured.
///
/// # Errors
/// The model is no decoder, or its context is too short.
pub fn generation(settings: &BenchSettings, new_tokens: usize, cancel: &Cancel) -> Result<GenerationReport> {
    thread_pool(settings.threads)?.install(|| {
        let files = ModelFiles::open(&settings.model, &mut |_| {})?;
        let ModelConfig::Decoder(config) = &files.config else {
            return Err(Error::Usage("--generate is for decoders".to_string()));
        };
        let (asked, most) = (settings.length.saturating_add(new_tokens), config.max_positions);
        if asked > most {
            return Err(Error::Usage(format!(
                "--length {} and --generate {new_tokens} are more than the model's {most} tokens",
                settings.length
            )));
        }
        let decoder = files.decoder(config, settings.quantise)?;
        let (parameters, table) = (Parameters::new(), LoraTable::empty(config.layers));
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
        for _ in 0..=settings.steps {
            let began = Instant::now();
            generate(model, &prompts, &options, &mut memory, cancel, &mut |_, _| {})?;
            times.push(began.elapsed().as_secs_f64());
        }
        let seconds = median_behind_first(times);
        Ok(GenerationReport {
            tokens_per_second: (settings.batch * new_tokens) as f64 / seconds,
            seconds,
            batch: settings.batch,
            prompt_tokens: settings.length,
            new_tokens,
            peak_rss_bytes: crate::memory::peak_rss_bytes().unwrap_or(0),
            threads: rayon::current_num_threads(),
        })
    })
}

/// Ids of whole words: the first thousand are special tokens and the like in many vocabularies.
fn random_ids(vocabulary: usize, count: usize) -> Vec<u32> {
    let random = Key::new(1);
    let first = vocabulary.min(1000) / 2;
    let id = |i| (first + random.bits_64(i) as usize % (vocabulary - first)) as u32;
    (0..count as u64).map(id).collect()
}

/// The median of all but the first, which makes the memory.
fn median_behind_first(mut times: Vec<f64>) -> f64 {
    times.remove(0);
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Runs training steps (forward, backward, AdamW, the model's own dropout) on one batch of random rows.
pub fn run(settings: &BenchSettings, cancel: &Cancel) -> Result<BenchReport> {
    thread_pool(settings.threads)?.install(|| run_here(settings, cancel))
}

fn run_here(settings: &BenchSettings, cancel: &Cancel) -> Result<BenchReport> {
    let files = ModelFiles::open(&settings.model, &mut |_| {})?;
    let config = &files.config;
    if settings.length > config.max_tokens() {
        let most = config.max_tokens();
        return Err(Error::Usage(format!(
            "--length {} is more than the model's {most} tokens",
            settings.length
        )));
    }
    let before = InUse::measure();
    let mut parameters = Parameters::new();
    let mut model = match config {
        ModelConfig::Encoder(config) => {
            if settings.quantise.is_some() {
                return Err(Error::Usage("--quantize is for decoders".to_string()));
            }
            let trained = if settings.method == Method::Full { Trained::Everything } else { Trained::Head };
            let checkpoint = files.checkpoint()?;
            let encoder = Encoder::load(checkpoint, config, 2, trained, Key::new(0), &mut parameters)?;
            Model::Encoder(Box::new(encoder))
        }
        ModelConfig::Decoder(config) => {
            if settings.method != Method::Lora {
                return Err(Error::Usage("--method lora is what a decoder is measured with".to_string()));
            }
            if settings.length < 2 {
                return Err(Error::Usage(
                    "--length is at least 2 for a decoder: its first token is not learned".to_string(),
                ));
            }
            Model::Decoder(Box::new(files.decoder(config, settings.quantise)?))
        }
    };
    let precision = settings.dtype.precision();
    model.multiply_in(precision);
    let lora = settings.method == Method::Lora;
    let modules = config.modules(&[ModuleKind::Query, ModuleKind::Value]);
    let assignment = Assignment::all_own(modules.into_iter().filter(|_| lora));
    let dims = |kind| {
        let (output, input) = config.linear_shape(kind);
        (input, output)
    };
    let bank = LoraBank::new(
        &assignment,
        settings.rank,
        2.0 * settings.rank as f64,
        false,
        dims,
        0,
        &mut parameters,
    );
    let table = bank.table(config.layers());

    let train = TrainSettings::default();
    let course = Course { schedule: Schedule::Constant, warmup_steps: 0, steps: settings.steps };
    let mut optimiser = Optimiser::new(&train, course, &parameters);
    let ids = random_ids(config.vocab_size(), settings.batch * settings.length);
    let mut used = vec![false; config.vocab_size()];
    ids.iter().for_each(|&id| used[id as usize] = true);
    let process = Process {
        model: &model,
        config,
        before,
        data: 0,
        used: &used,
        longest: settings.length,
        parameters: parameters.count(),
    };
    let (limit, micro_tokens) = (settings.memory_limit, settings.micro_tokens);
    let (passes, forecast) = process.choose(limit, micro_tokens, settings.recompute, |passes| {
        let sequences = together(passes, settings.length, settings.batch);
        let size = PassSize {
            tokens: sequences * settings.length,
            sequences,
            learned: if model.with_head().is_some() { 0 } else { sequences * (settings.length - 1) },
            keep: Keep::of_training(passes.recompute),
            lora_dropout: false,
            scored: false,
        };
        PassMemory { tokens: size.tokens, floats: model.floats(&table, &size), beside: 0 }
    })?;
    let bench =
        Bench { model: &model, table: &table, ids, length: settings.length, batch: settings.batch, passes };
    let mut memory = Memory::default();
    let mut times = Vec::new();
    for step in 0..=settings.steps {
        let began = Instant::now();
        bench.step(&mut parameters, step as u64, &mut memory, cancel)?;
        optimiser.step(&mut parameters);
        times.push(began.elapsed().as_secs_f64());
    }
    let seconds_per_step = median_behind_first(times);
    let tokens = (settings.batch * settings.length) as f64;
    let gflops = tokens * operations(config, settings.method, settings.length) / seconds_per_step / 1e9;
    let peak_gflops = measure_peak(precision, 0.3) / 1e9;
    Ok(BenchReport {
        tokens_per_second: tokens / seconds_per_step,
        seconds_per_step,
        gflops,
        peak_gflops,
        share_of_peak: gflops / peak_gflops,
        peak_rss_bytes: crate::memory::peak_rss_bytes().unwrap_or(0),
        memory: forecast,
        threads: rayon::current_num_threads(),
    })
}

/// Sequences of a micro-batch.
fn together(passes: Passes, length: usize, batch: usize) -> usize {
    (passes.micro_tokens / length).clamp(1, batch)
}

struct Bench<'a> {
    model: &'a Model,
    table: &'a LoraTable,
    ids: Vec<u32>,
    length: usize,
    batch: usize,
    passes: Passes,
}

impl Bench<'_> {
    fn step(
        &self,
        parameters: &mut Parameters,
        step: u64,
        memory: &mut Memory,
        cancel: &Cancel,
    ) -> Result<()> {
        parameters.zero_gradients();
        let each = together(self.passes, self.length, self.batch);
        for from in (0..self.batch).step_by(each) {
            let n = each.min(self.batch - from);
            let ids = &self.ids[from * self.length..(from + n) * self.length];
            let offsets: Vec<usize> = (0..=n).map(|i| i * self.length).collect();
            let keys: Vec<Key> = (0..n).map(|i| Key::new(step).fold((from + i) as u64)).collect();
            self.part(parameters, ids, &offsets, &keys, memory, cancel).map_err(|_| Error::Interrupted)?;
        }
        Ok(())
    }

    fn part(
        &self,
        parameters: &mut Parameters,
        ids: &[u32],
        offsets: &[usize],
        keys: &[Key],
        memory: &mut Memory,
        cancel: &Cancel,
    ) -> std::result::Result<(), Stopped> {
        let (table, stop) = (self.table, cancel.flag());
        let (dropout, recompute) = (self.model.dropout_rates(), self.passes.recompute);
        match self.model {
            Model::Decoder(decoder) => {
                let texts = Texts { ids, offsets, learn: &vec![true; ids.len()] };
                let total = self.batch * (self.length - 1);
                let part = TextPart { texts, total, dropout, keys, recompute, below: None };
                decoder.train(parameters, table, part, None, memory, stop)?;
            }
            Model::Encoder(encoder) => {
                let part = TrainPart {
                    sequences: Sequences { ids, types: &vec![0; ids.len()], offsets },
                    targets: Targets::Classes(&(0..keys.len()).map(|i| i % 2).collect::<Vec<_>>()),
                    label_smoothing: 0.0,
                    total: self.batch,
                    dropout,
                    keys,
                    recompute,
                    below: None,
                };
                encoder.train(parameters, table, part, None, memory, stop)?;
            }
            Model::Classifier(_) => unreachable!("a decoder is measured as one that predicts tokens"),
        }
        Ok(())
    }
}

/// Necessary floating-point operations per token.
fn operations(config: &ModelConfig, method: Method, length: usize) -> f64 {
    let blocks = 2.0 * config.block_parameters() as f64;
    // Q Kᵀ and P V over the keys that are seen; their way back has the two gradients of each, and Q Kᵀ again.
    let (products, width, seen) = match config {
        ModelConfig::Encoder(config) => (blocks, config.hidden_size, length as f64),
        ModelConfig::Decoder(config) => {
            let logits = 2.0 * (config.hidden_size * config.vocab_size) as f64;
            (blocks + logits, config.heads * config.head_dim, (length + 1) as f64 / 2.0)
        }
    };
    let attention = 4.0 * (config.layers() * width) as f64 * seen;
    match method {
        Method::Head => products + attention,
        Method::Full => 3.0 * products + 3.0 * attention,
        Method::Lora | Method::LoraDrop => 2.0 * products + 3.0 * attention,
    }
}
