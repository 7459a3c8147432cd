//! A model in training: its parameters, LoRA pairs and optimiser, and the step over one batch of rows.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use lora_drop_compute::profile;
use lora_drop_compute::random::Key;
use lora_drop_transformer::Values;
use lora_drop_transformer::{
    Below, Context, DropoutRates, Group, LoraTable, Memory, Model, Moments, Parameters, Sequences, Stopped,
    Targets, TextPart, TrainPart, Trained,
};

use super::optimiser::{Course, Optimiser};
use super::parts::Workplaces;
use super::prepare::Prepared;
use super::reuse::{self, Reuse};
use crate::adapter::LoraBank;
use crate::assignment::Assignment;
use crate::data::batch::{self, PackedBatch};
use crate::data::text::{PackedTexts, TextExample};
use crate::data::{Example, TaskData, TaskRows};
use crate::engine::{sequences, text_sequences, texts, unzip};
use crate::evaluate::{Evaluation, Measuring};
use crate::events::{Event, Stage, StepRecord};
use crate::forecast::{PassPlan, Passes};
use crate::score::Window;
use crate::settings::{Dtype, Method, Restart, TrainSettings};
use crate::{Cancel, Error, Result, finite};

/// Folded into the seed's key, so that purposes never share random numbers.
#[derive(Clone, Copy)]
enum Purpose {
    Head = 1,
    SampleDropout = 2,
    TrainDropout = 3,
}

/// A model in training.
pub struct Learner {
    pub model: Model,
    pub parameters: Parameters,
    pub bank: LoraBank,
    pub table: LoraTable,
    pub workplaces: Workplaces,
    /// How its steps are made: in one that suits every model, until it is settled.
    passes: Passes,
    /// What trains but for LoRA, as it was at first; None where the method has but one stage.
    start: Option<Parameters>,
    dropout: DropoutRates,
    seed: u64,
    smoothing: f64,
    reuse: Option<Reuse>,
    /// Whether a step has changed the parameters since they were made.
    updated: bool,
}

/// One stage of training: which rows, how long, and the random streams.
pub struct Schedule<'a> {
    pub settings: &'a TrainSettings,
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

    /// The rows and tokens of a range of the stage's steps, counted from 0; a row counts as often as it comes.
    pub fn extent(&self, seed: u64, range: Range<usize>, rows: TaskRows) -> Window {
        let per_epoch = self.steps_per_epoch();
        let mut window = Window { steps: range.len(), ..Window::default() };
        for epoch in range.start / per_epoch..range.end.div_ceil(per_epoch) {
            let order = batch::epoch_order(self.rows, seed, self.stage as u64, epoch as u64);
            for (number, step) in batch::steps(&order, self.batch).enumerate() {
                if range.contains(&(epoch * per_epoch + number)) {
                    window.rows += step.len();
                    window.tokens += step.iter().map(|&row| rows.length(row)).sum::<usize>();
                }
            }
        }
        window
    }
}

/// Called after each step with what the stage has done so far, the moments and the listener.
pub type AfterStep<'a> = &'a mut dyn FnMut(
    &mut Learner,
    StageResult,
    Option<&mut Moments>,
    &mut dyn FnMut(&Event),
) -> Result<Next>;

/// What a stage does between steps.
pub enum Next {
    GoOn,
    Enough,
}

impl Learner {
    /// Loads the model, with pairs as the assignment demands and the run's own initial values.
    pub fn new(prepared: &Prepared, settings: &TrainSettings, assignment: &Assignment) -> Result<Self> {
        let mut parameters = Parameters::new();
        let trained = match settings.method {
            Method::Full => Trained::Everything,
            _ => Trained::Head,
        };
        let key = Key::new(settings.seed).fold(Purpose::Head as u64);
        let outputs = prepared.data.labels().map(|labels| labels.outputs());
        let mut model = prepared.model.load(outputs, trained, settings.quantize, key, &mut parameters)?;
        model.net.multiply_in(settings.dtype.precision());
        let start = (settings.method == Method::LoraDrop).then(|| parameters.clone());
        let bank = bank(prepared, settings, assignment, &model, &mut parameters)?;
        let table = bank.table(prepared.model.config.layers);
        let own = model.dropout_rates();
        let dropout = DropoutRates {
            hidden: settings.hidden_dropout.unwrap_or(own.hidden),
            attention: settings.attention_dropout.unwrap_or(own.attention),
            head: settings.hidden_dropout.unwrap_or(own.head),
            lora: settings.lora_dropout,
        };
        Ok(Learner {
            model,
            parameters,
            bank,
            table,
            workplaces: Workplaces::default(),
            passes: Passes::default(),
            start,
            dropout,
            seed: settings.seed,
            smoothing: settings.label_smoothing,
            reuse: None,
            updated: false,
        })
    }

    /// Makes its steps in this way from now on.
    pub fn settle(&mut self, plan: &PassPlan) {
        self.model.net.keep_frozen(plan.passes.form);
        self.workplaces.reserve(&plan.floats);
        self.passes = plan.passes;
    }

    /// How its steps are made.
    pub fn passes(&self) -> Passes {
        self.passes
    }

    /// Begins LoRA-drop's last stage: new pairs as the assignment demands, and the run's own initial values or, with
    /// `--restart continue`, what was trained so far (a shared pair starts as the best common pair of its layers'). The
    /// model and the memory of its passes stay.
    ///
    /// # Errors
    /// The pairs do not fit those before.
    pub fn begin_again(
        &mut self,
        prepared: &Prepared,
        settings: &TrainSettings,
        assignment: &Assignment,
    ) -> Result<()> {
        let mut parameters = self.start.take().expect("the method has two stages");
        let bank = bank(prepared, settings, assignment, &self.model, &mut parameters)?;
        if settings.restart == Restart::Continue {
            bank.continue_from(&mut parameters, &self.bank, &self.parameters)?;
            let head = parameters.list().iter().filter(|p| p.group == Group::Head);
            let names: Vec<String> = head.map(|p| p.name.clone()).collect();
            for name in names {
                if let (Some(id), Some(from)) = (parameters.find(&name), self.parameters.find(&name)) {
                    parameters.value_mut(id).copy_from_slice(self.parameters.value(from));
                }
            }
        }
        self.table = bank.table(prepared.model.config.layers);
        (self.parameters, self.bank) = (parameters, bank);
        self.updated = settings.restart == Restart::Continue;
        Ok(())
    }

    /// Whether the LoRAs' inputs are dropped.
    pub fn drops_lora(&self) -> bool {
        self.dropout.lora > 0.0
    }

    /// Whether blocks in which nothing trains give the same output in every step.
    pub fn steady(&self) -> bool {
        self.dropout.hidden == 0.0 && self.dropout.attention == 0.0
    }

    /// From now on the blocks below the lowest that trains are computed once for each of `rows` training rows, where
    /// nothing in them changes from step to step, and kept in a file in `folder`. Returns how many blocks that are.
    ///
    /// # Errors
    /// The file for their output cannot be made.
    pub fn reuse_below(&mut self, settings: &TrainSettings, rows: usize, folder: &Path) -> Result<usize> {
        let limit = (settings.activation_cache * 1e9) as u64;
        let blocks = reuse::blocks(&self.model, &self.table, self.dropout);
        if settings.epochs > 1 && blocks > 0 && limit > 0 {
            let hidden = self.model.net.hidden;
            self.reuse = Some(Reuse::new(blocks, hidden, rows, limit, folder)?);
        }
        Ok(self.reuse.as_ref().map_or(0, |reuse| reuse.blocks))
    }

    /// Runs a stage: steps over shuffled rows, `after` each of them, until it says enough or the epochs are over.
    pub fn run(
        &mut self,
        schedule: &Schedule,
        rows: TaskRows,
        mut moments: Option<&mut Moments>,
        cancel: &Cancel,
        listen: &mut dyn FnMut(&Event),
        after: AfterStep,
    ) -> Result<()> {
        let mut result = StageResult::default();
        let mut optimiser = Optimiser::new(schedule.settings, schedule.course, &self.parameters);
        let per_epoch = schedule.steps_per_epoch();
        for epoch in 0..schedule.epochs {
            let order = batch::epoch_order(schedule.rows, self.seed, schedule.stage as u64, epoch as u64);
            for (number, step) in batch::steps(&order, schedule.batch).enumerate() {
                let began = Instant::now();
                let root = profile::root(root_name(schedule.stage), result.steps + 1);
                let learning_rate = optimiser.learning_rate();
                let (loss, tokens) =
                    self.gradients(rows, step, schedule.stage, result.steps, moments.as_deref_mut(), cancel)?;
                let grad_norm = optimiser.gradient_norm(&self.parameters);
                let found = finite::Step {
                    number: result.steps + 1,
                    loss,
                    grad_norm,
                    learning_rate,
                    updated: self.updated,
                    bf16: schedule.settings.dtype == Dtype::Bf16,
                };
                found.check()?;
                optimiser.step(&mut self.parameters, grad_norm);
                self.updated = true;
                if let Some(failure) = self.reuse.as_ref().and_then(Reuse::failure) {
                    listen(&Event::Warning(&failure));
                }
                drop(root);
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
                if let Next::Enough = after(self, result, moments.as_deref_mut(), listen)? {
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
        let Learner { model, parameters, table, workplaces, passes, .. } = self;
        let (micro_tokens, memory) = (passes.evaluation_tokens(), workplaces.memory());
        let mut measuring = Measuring { model, parameters, table, micro_tokens, memory, cancel, listen };
        match &prepared.data {
            TaskData::Text(data) => measuring.texts(&data.dev.examples),
            TaskData::Labelled(data) => measuring.rows(&data.dev.examples, &data.labels),
        }
    }

    /// The gradients of one step's mean loss, in micro-batches; returns the loss and the tokens.
    fn gradients(
        &mut self,
        rows: TaskRows,
        step: &[usize],
        stage: Stage,
        number: usize,
        moments: Option<&mut Moments>,
        cancel: &Cancel,
    ) -> Result<(f64, usize)> {
        let purpose = match stage {
            Stage::Sample => Purpose::SampleDropout,
            _ => Purpose::TrainDropout,
        };
        let key = Key::new(self.seed).fold(purpose as u64).fold(number as u64);
        let lengths: Vec<usize> = step.iter().map(|&row| rows.length(row)).collect();
        let step = StepRows { rows: step, lengths: &lengths, key, cancel };
        self.parameters.zero_gradients();
        let (loss, total) = match rows {
            TaskRows::Labelled(examples) => self.labelled_gradients(examples, step, moments)?,
            TaskRows::Text(examples) => self.text_gradients(examples, step, moments)?,
        };
        Ok((loss / total as f64, lengths.iter().sum()))
    }

    /// Returns the sum of the losses, and what it is to be divided by, as in the next.
    fn labelled_gradients(
        &mut self,
        examples: &[Example],
        step: StepRows,
        moments: Option<&mut Moments>,
    ) -> Result<(f64, usize)> {
        let pack = |slots: &[usize]| PackedBatch::pack(examples, step.rows, slots);
        let (smoothing, total) = (self.smoothing, step.rows.len());
        let loss =
            self.in_parts(step, moments, pack, sequences, |model, batch, shared, context, gradients| {
                let (classes, targets) = unzip(&batch.labels);
                let part = TrainPart {
                    sequences: sequences(batch),
                    targets: match targets.is_empty() {
                        true => Targets::Classes(&classes),
                        false => Targets::Values(&targets),
                    },
                    label_smoothing: smoothing,
                    total,
                    dropout: shared.dropout,
                    keys: shared.keys,
                    recompute: shared.recompute,
                    below: shared.below,
                };
                model.net.train(context, gradients, part)
            })?;
        Ok((loss, total))
    }

    fn text_gradients(
        &mut self,
        examples: &[TextExample],
        step: StepRows,
        moments: Option<&mut Moments>,
    ) -> Result<(f64, usize)> {
        let total: usize = step.rows.iter().map(|&row| examples[row].learned()).sum();
        let pack = |slots: &[usize]| PackedTexts::pack(examples, slots.iter().map(|&slot| step.rows[slot]));
        let loss = self.in_parts(
            step,
            moments,
            pack,
            text_sequences,
            |model, batch, shared, context, gradients| {
                let Shared { dropout, keys, recompute, below } = shared;
                let part = TextPart { texts: texts(batch), total, dropout, keys, recompute, below };
                model.net.train_texts(context, gradients, part)
            },
        )?;
        Ok((loss, total))
    }

    /// Adds up the gradients of a step's parts: `pack` packs the rows at some of its places, and `train` runs the pass over them.
    /// Returns the sum of their losses.
    fn in_parts<B>(
        &mut self,
        step: StepRows,
        mut moments: Option<&mut Moments>,
        pack: impl Fn(&[usize]) -> B + Sync,
        sequences: fn(&B) -> Sequences<'_>,
        train: impl Fn(&Model, &B, Shared, Context, &mut [f32]) -> std::result::Result<f64, Stopped> + Sync,
    ) -> Result<f64> {
        let Learner { model, table, parameters, workplaces, passes, dropout, reuse, .. } = self;
        let part = |slots: &Vec<usize>,
                    values: Values,
                    gradients: &mut [f32],
                    moments: Option<&mut Moments>,
                    memory: &mut Memory| {
            let batch = pack(slots);
            let rows: Vec<usize> = slots.iter().map(|&slot| step.rows[slot]).collect();
            let keys: Vec<Key> = slots.iter().map(|&slot| step.key.fold(slot as u64)).collect();
            let below = reuse.as_ref().map(|reuse| {
                let compute = |sequences: Sequences, blocks: usize| {
                    let context = Context::new(values, table, &mut *memory, step.cancel.flag());
                    Ok(model.net.below(context, sequences, blocks)?)
                };
                Ok::<_, Error>((reuse.blocks, reuse.output(&rows, sequences(&batch), compute)?))
            });
            let below = below.transpose()?;
            let shared = Shared {
                dropout: *dropout,
                keys: &keys,
                recompute: passes.recompute,
                below: below.as_ref().map(|(blocks, output)| Below { blocks: *blocks, output }),
            };
            let context = Context { values, table, moments, memory, stop: step.cancel.flag() };
            Ok(train(model, &batch, shared, context, gradients)?)
        };
        let mut loss = 0.0;
        for parts in passes.cut.groups(step.lengths) {
            let together = passes.cut.together;
            workplaces.run(&parts, together, parameters, &mut loss, moments.as_deref_mut(), part)?;
        }
        Ok(loss)
    }
}

/// The rows of an optimiser step.
#[derive(Clone, Copy)]
struct StepRows<'a> {
    rows: &'a [usize],
    /// Of the rows, in tokens.
    lengths: &'a [usize],
    /// Of the step's random numbers.
    key: Key,
    cancel: &'a Cancel,
}

/// What passes over a part have in common, whatever its rows are.
struct Shared<'a> {
    dropout: DropoutRates,
    keys: &'a [Key],
    recompute: bool,
    below: Option<Below<'a>>,
}

/// What a profile calls the steps of a stage.
fn root_name(stage: Stage) -> &'static str {
    if stage == Stage::Sample { "sample step" } else { "step" }
}

/// The adapters that the assignment demands, added to `parameters` with the run's initial values.
fn bank(
    prepared: &Prepared,
    settings: &TrainSettings,
    assignment: &Assignment,
    model: &Model,
    parameters: &mut Parameters,
) -> Result<LoraBank> {
    let dims = |kind| {
        let (output, input) = prepared.model.config.linear_shape(kind);
        (input, output)
    };
    let mut bank =
        LoraBank::new(assignment, settings.rank, settings.alpha, false, dims, settings.seed, parameters);
    if let Some(method) = settings.method.adapter() {
        bank.start_own(method, model, parameters)?;
    }
    Ok(bank)
}

/// What a stage did.
#[derive(Clone, Copy, Debug, Default)]
pub struct StageResult {
    pub steps: usize,
    pub tokens: usize,
    /// In steps alone, without evaluation and scoring.
    pub seconds: f64,
}
