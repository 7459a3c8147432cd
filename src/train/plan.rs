//! What a run would be, found out without training: parameters, steps, memory and time foreseen.

use lora_drop_compute::gemm::measure_peak;
use lora_drop_transformer::ModuleKind;

use super::prepare::Prepared;
use super::{Learner, MICRO_TOKENS, thread_pool};
use crate::Result;
use crate::assign::Assignment;
use crate::events::Event;
use crate::settings::{Method, TrainSettings};
use crate::summary::{DataFacts, ModelFacts};

/// What a run would be.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Plan {
    pub model: ModelFacts,
    pub data: DataFacts,
    /// All values that train, with a LoRA of its own for every target module: what LoRA-drop keeps, only its
    /// sample stage tells.
    pub trainable_parameters: usize,
    pub lora_parameters_full: usize,
    /// Optimiser steps of stage 3.
    pub steps: usize,
    /// Foreseen peak of resident memory.
    pub memory_bytes: u64,
    /// Foreseen time of the whole run.
    pub seconds: f64,
}

/// The program itself, its threads' stacks and the tokenizer.
const PROGRAM_BYTES: usize = 40 << 20;
/// Share of the kernel's peak that whole steps reach here (docs/performance.md).
const SHARE_OF_PEAK: f64 = 0.6;

/// Reads and checks everything that a run needs, and foresees the rest.
pub fn plan(settings: &TrainSettings, listen: &mut (dyn FnMut(&Event) + Send)) -> Result<Plan> {
    settings.validate()?;
    settings.check_output()?;
    thread_pool(settings.threads)?.install(|| {
        let prepared = Prepared::read(settings, listen)?;
        let assignment = Assignment::all_own(prepared.modules());
        let learner = Learner::new(&prepared, settings, &assignment)?;
        let config = &prepared.config;

        let examples = &prepared.data.train.examples;
        let batch = settings.batch_size * settings.grad_accumulation;
        let steps = settings.epochs * examples.len().div_ceil(batch);
        let longest = examples.iter().map(|e| e.ids.len()).max().unwrap_or(0);
        let of_batch = longest * batch;
        let activations = learner.encoder.activation_bytes(
            MICRO_TOKENS.min(of_batch).max(longest),
            &learner.table,
            settings.lora_dropout > 0.0,
        );
        // Values, gradients and two moments of all that trains.
        let trained = 16 * learner.parameters.count();
        // Of the tables of embeddings only the rows in use become resident; the blocks do so whole.
        let blocks: usize = ModuleKind::ALL
            .iter()
            .map(|&kind| {
                let (output, input) = config.linear_shape(kind);
                4 * config.layers * output * input
            })
            .sum();
        let packed = 4 * 2 * config.hidden_size * config.intermediate_size;
        let text: usize = prepared.data.train.examples.iter().map(|e| 8 * e.ids.len() + 96).sum();

        let train_tokens: usize = examples.iter().map(|e| e.ids.len()).sum();
        let dev_tokens: usize = prepared.data.dev.examples.iter().map(|e| e.ids.len()).sum();
        let forward = 2.0 * blocks as f64 / 4.0;
        let backward = match settings.method {
            Method::Full => 2.0 * forward,
            Method::Head => 0.0,
            Method::LoraDrop | Method::Lora => forward,
        };
        let sample = match settings.method {
            Method::LoraDrop => super::sample::most_steps(settings, examples.len()) * batch,
            _ => 0,
        };
        let sample_tokens = sample as f64 * train_tokens as f64 / examples.len() as f64;
        let epochs = settings.epochs as f64;
        let work = (epochs * train_tokens as f64 + sample_tokens) * (forward + backward)
            + epochs * dev_tokens as f64 * forward;
        Ok(Plan {
            trainable_parameters: learner.parameters.count(),
            lora_parameters_full: learner.bank.unique_parameters(),
            steps,
            memory_bytes: (PROGRAM_BYTES + activations + trained + blocks + packed + text) as u64,
            seconds: work / (SHARE_OF_PEAK * measure_peak(0.1)),
            model: prepared.facts,
            data: prepared.data.facts,
        })
    })
}
