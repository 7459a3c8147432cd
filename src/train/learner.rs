//! A model in training: its parameters, LoRA pairs and optimiser, and the step over one batch of rows.

use std::time::Instant;

use lora_drop_compute::random::Key;
use lora_drop_transformer::encoder::{DropoutRates, Memory, Targets, TrainPart, Trained};
use lora_drop_transformer::{Encoder, LoraTable, Moments, Parameters};

use super::optimiser::{Course, Optimiser};
use super::prepare::Prepared;
use crate::adapter::LoraBank;
use crate::assign::Assignment;
use crate::data::Example;
use crate::data::batch::{self, PackedBatch};
use crate::engine::{MICRO_TOKENS, sequences, unzip};
use crate::evaluate::{Evaluation, measure};
use crate::events::{Event, Stage, StepRecord};
use crate::settings::{Method, TrainSettings};
use crate::{Cancel, Error, Result};

/// Folded into the seed's key, so that purposes never share random numbers.
#[derive(Clone, Copy)]
enum Purpose {
    Head = 1,
    SampleDropout = 2,
    TrainDropout = 3,
}

/// A model in training.
pub struct Learner {
    pub encoder: Encoder,
    pub parameters: Parameters,
    pub bank: LoraBank,
    pub table: LoraTable,
    pub memory: Memory,
    dropout: DropoutRates,
    seed: u64,
    smoothing: f64,
}

/// One stage of training: which rows, how long, and the random streams.
pub struct Schedule<'a> {
    pub stage: Stage,
    /// Indices of the rows to train on.
    pub rows: &'a [usize],
    /// Rows of an optimiser step.
    pub batch: usize,
    pub epochs: usize,
    pub course: Course,
}

impl Schedule<'_> {
    pub fn steps_per_epoch(&self) -> usize {
        self.rows.len().div_ceil(self.batch)
    }
}

/// Called after each step with the step's number, the moments and the listener.
pub type AfterStep<'a> =
    &'a mut dyn FnMut(&mut Learner, usize, Option<&mut Moments>, &mut dyn FnMut(&Event)) -> Result<Next>;

/// What a stage does between steps.
pub enum Next {
    GoOn,
    Enough,
}

impl Learner {
    /// Loads the model afresh, with pairs as the assignment demands and the run's own initial values.
    pub fn new(prepared: &Prepared, settings: &TrainSettings, assignment: &Assignment) -> Result<Self> {
        let mut parameters = Parameters::new();
        let trained = match settings.method {
            Method::Full => Trained::Everything,
            _ => Trained::Head,
        };
        let key = Key::new(settings.seed).fold(Purpose::Head as u64);
        let outputs = prepared.data.labels.outputs();
        let encoder =
            Encoder::load(&prepared.checkpoint, &prepared.config, outputs, trained, key, &mut parameters)?;
        let dims = |kind| {
            let (output, input) = prepared.config.linear_shape(kind);
            (input, output)
        };
        let bank = LoraBank::new(
            assignment,
            settings.rank,
            settings.alpha,
            false,
            dims,
            settings.seed,
            &mut parameters,
        );
        let table = bank.table(prepared.config.layers);
        let own = encoder.dropout_rates();
        let dropout = DropoutRates {
            hidden: settings.hidden_dropout.unwrap_or(own.hidden),
            attention: settings.attention_dropout.unwrap_or(own.attention),
            head: settings.hidden_dropout.unwrap_or(own.head),
            lora: settings.lora_dropout,
        };
        Ok(Learner {
            encoder,
            parameters,
            bank,
            table,
            memory: Memory::default(),
            dropout,
            seed: settings.seed,
            smoothing: settings.label_smoothing,
        })
    }

    /// Runs a stage: steps over shuffled rows, `after` each of them, until it says enough or the epochs are over.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &mut self,
        schedule: &Schedule,
        settings: &TrainSettings,
        examples: &[Example],
        moments: Option<&mut Moments>,
        cancel: &Cancel,
        listen: &mut dyn FnMut(&Event),
        after: AfterStep,
    ) -> (StageResult, Result<()>) {
        let mut result = StageResult::default();
        let outcome =
            self.run_steps(schedule, settings, examples, &mut result, moments, cancel, listen, after);
        (result, outcome)
    }

    #[allow(clippy::too_many_arguments)]
    fn run_steps(
        &mut self,
        schedule: &Schedule,
        settings: &TrainSettings,
        examples: &[Example],
        result: &mut StageResult,
        mut moments: Option<&mut Moments>,
        cancel: &Cancel,
        listen: &mut dyn FnMut(&Event),
        after: AfterStep,
    ) -> Result<()> {
        let mut optimiser = Optimiser::new(settings, schedule.course, &self.parameters);
        let per_epoch = schedule.steps_per_epoch();
        for epoch in 0..schedule.epochs {
            let order = batch::epoch_order(schedule.rows, self.seed, schedule.stage as u64, epoch as u64);
            for (number, step) in batch::steps(&order, schedule.batch).enumerate() {
                let began = Instant::now();
                let learning_rate = optimiser.learning_rate();
                let (loss, tokens) = self.gradients(
                    examples,
                    step,
                    schedule.stage,
                    result.steps,
                    moments.as_deref_mut(),
                    cancel,
                )?;
                if !loss.is_finite() {
                    return Err(Error::Input(format!(
                        "the loss is {loss} at step {} with learning rate {learning_rate:.2e}: the training diverged; \
                         try a lower --learning-rate or more --warmup-ratio",
                        result.steps + 1
                    )));
                }
                let grad_norm = optimiser.step(&mut self.parameters);
                result.steps += 1;
                result.tokens += tokens;
                result.seconds += began.elapsed().as_secs_f64();
                listen(&Event::Step(&StepRecord {
                    stage: schedule.stage,
                    step: result.steps,
                    steps: schedule.epochs * per_epoch,
                    epoch: epoch as f64 + (number + 1) as f64 / per_epoch as f64,
                    loss,
                    learning_rate,
                    grad_norm,
                    tokens,
                    tokens_per_second: result.tokens as f64 / result.seconds,
                }));
                if let Next::Enough = after(self, result.steps, moments.as_deref_mut(), listen)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Measures the model as it is on dev.
    pub fn measure(
        &mut self,
        prepared: &Prepared,
        cancel: &Cancel,
        listen: &mut dyn FnMut(&Event),
    ) -> Result<Evaluation> {
        let Learner { encoder, parameters, table, memory, .. } = self;
        let data = &prepared.data;
        measure(encoder, parameters, table, &data.dev.examples, &data.labels, memory, cancel, listen)
    }

    /// Goes on from what another learner has: its LoRA (a shared pair starts as the mean of its layers') and its head.
    pub fn continue_from(&mut self, other: &Learner) -> Result<()> {
        self.bank.continue_from(&mut self.parameters, &other.bank, &other.parameters)?;
        for id in self.encoder.head_parameters(&self.parameters) {
            let name = self.parameters.info(id).name.clone();
            if let Some(from) = other.parameters.find(&name) {
                self.parameters.value_mut(id).copy_from_slice(other.parameters.value(from));
            }
        }
        Ok(())
    }

    /// The gradients of one step's mean loss, in micro-batches; returns the loss and the tokens.
    fn gradients(
        &mut self,
        examples: &[Example],
        step: &[usize],
        stage: Stage,
        number: usize,
        mut moments: Option<&mut Moments>,
        cancel: &Cancel,
    ) -> Result<(f64, usize)> {
        let purpose = match stage {
            Stage::Sample => Purpose::SampleDropout,
            _ => Purpose::TrainDropout,
        };
        let key = Key::new(self.seed).fold(purpose as u64).fold(number as u64);
        let lengths: Vec<usize> = step.iter().map(|&row| examples[row].ids.len()).collect();
        self.parameters.zero_gradients();
        let (mut loss, mut tokens) = (0.0, 0);
        for slots in batch::micro_batches(&lengths, MICRO_TOKENS) {
            let batch = PackedBatch::pack(examples, step, &slots);
            let keys: Vec<Key> = batch.slots.iter().map(|&slot| key.fold(slot as u64)).collect();
            let (classes, values) = unzip(&batch.labels);
            let part = TrainPart {
                sequences: sequences(&batch),
                targets: if values.is_empty() {
                    Targets::Classes(&classes)
                } else {
                    Targets::Values(&values)
                },
                label_smoothing: self.smoothing,
                total: step.len(),
                dropout: self.dropout,
                keys: &keys,
            };
            loss += self
                .encoder
                .train(
                    &mut self.parameters,
                    &self.table,
                    part,
                    moments.as_deref_mut(),
                    &mut self.memory,
                    cancel.flag(),
                )
                .map_err(|_| Error::Interrupted)?;
            tokens += batch.tokens();
        }
        Ok((loss / step.len() as f64, tokens))
    }
}

/// What a stage did.
#[derive(Clone, Copy, Debug, Default)]
pub struct StageResult {
    pub steps: usize,
    pub tokens: usize,
    /// In steps alone, without evaluation and scoring.
    pub seconds: f64,
}
