//! A model in training: its state, LoRA pairs and what it takes to compute the gradients of a step.

use std::collections::BTreeMap;
use std::path::Path;

use lora_drop_compute::random::Key;
use lora_drop_transformer::Values;
use lora_drop_transformer::{
    AdapterMethod, AdapterTable, Context, DropoutRates, Group, Head, HeadOrigin, Memory, Model, ModuleId,
    Observations, Observing, Parameters, PrefixOutput, TextPart, TrainPart, Trained,
};

use super::activation_cache::{ActivationCache, cacheable_blocks};
use super::optimiser::Optimiser;
use super::parts::WorkerArenas;
use super::prepare::Prepared;
use super::schedule::StageSchedule;
use super::shared_parts::{Shares, StepSums};
use super::state::TrainState;
use crate::adapter::{AdapterFile, LoraBank, NewPairs};
use crate::assignment::{Assignment, Owner};
use crate::data::{Labels, TaskData, TaskRows};
use crate::engine::{Packed, sequences, texts};
use crate::estimate::{PassPlan, Passes};
use crate::evaluate::{Evaluation, Measuring};
use crate::events::{Event, Stage};
use crate::heads::{self, BatchTargets};
use crate::model::ModelFiles;
use crate::ranks::{Ranks, share_out};
use crate::settings::{Method, Restart, TrainSettings, Unselected};
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
    pub model: Model,
    /// All that changes from step to step.
    pub state: TrainState,
    pub bank: LoraBank,
    pub table: AdapterTable,
    /// Memory of concurrent micro-batches, which is reused.
    pub(crate) arenas: WorkerArenas,
    /// The processes that train it together.
    pub(crate) ranks: Ranks,
    /// How the steps are computed; a default until memory is planned.
    passes: Passes,
    /// Initial values of what trains, without LoRA, for the stage after the sample stage; None if
    /// the run has no sample stage or it is over.
    initial: Option<Parameters>,
    dropout: DropoutRates,
    pub(super) activation_cache: Option<ActivationCache>,
    /// Weights of the classes in the loss; empty for 1.
    class_weights: Vec<f64>,
    /// Whether the stage continues from what another one has trained.
    pub(super) continued: bool,
}

impl Learner {
    /// Loads the model with initial values, and the pairs of the assignment, ready for the first
    /// step of the run's first stage.
    ///
    /// # Errors
    /// Those of the model's files.
    pub fn new(prepared: &Prepared, settings: &TrainSettings, assignment: &Assignment) -> Result<Self> {
        if let Some(adapter) = &prepared.init_adapter {
            return Self::from_adapter(prepared, settings, adapter, assignment);
        }
        let head = prepared.data.labels().map(Labels::head);
        let mut learner = Self::load(&prepared.model, head, settings, assignment)?;
        learner.ranks = prepared.ranks.clone();
        learner.class_weights = class_weights(prepared);
        if let TaskData::Labelled(data) = &prepared.data
            && let Some(mean) = data.train.mean_value()
        {
            learner.set_regression_bias(mean as f32);
        }
        Ok(learner)
    }

    /// Sets the bias of a new regression head to the mean of train's labels. From 0, the first
    /// epochs move the whole model towards that constant by a learning rate per step, and some
    /// seeds never recover. A decoder's head has no bias.
    fn set_regression_bias(&mut self, mean: f32) {
        if self.model.head_origin == Some(HeadOrigin::Checkpoint) {
            return;
        }
        for parameters in std::iter::once(&mut self.state.parameters).chain(&mut self.initial) {
            let biases = parameters.list().iter().filter(|p| p.group == Group::Head && p.shape == [1]);
            let names: Vec<String> = biases.map(|p| p.name.clone()).collect();
            for id in names.iter().filter_map(|name| parameters.find(name)).collect::<Vec<_>>() {
                parameters.value_mut(id).fill(mean);
            }
        }
    }

    /// Loads the model with an existing adapter, pairs and head, for further training. Under an
    /// assignment other than the adapter's own, modules continue from its pairs.
    ///
    /// # Errors
    /// Those of the model's files; the adapter does not fit the model or the data's labels; a
    /// module that the assignment gives a pair has none in the adapter.
    pub(super) fn from_adapter(
        prepared: &Prepared,
        settings: &TrainSettings,
        adapter: &AdapterFile,
        assignment: &Assignment,
    ) -> Result<Self> {
        let head = prepared.data.labels().map(Labels::head);
        let config = &prepared.model.config;
        let own = adapter.assignment();
        let with_pair = |assignment: &Assignment| -> BTreeMap<ModuleId, Owner> {
            assignment.owners.iter().map(|(&id, &o)| (id, o)).filter(|(_, o)| *o != Owner::None).collect()
        };
        let stays = with_pair(assignment) == with_pair(&own);
        let bank = |model: &Model, parameters: &mut Parameters| {
            adapter.load_head(parameters)?;
            if stays {
                return adapter.to_bank(config, parameters);
            }
            let mut before = Parameters::new();
            let old = adapter.to_bank(config, &mut before)?;
            let mut settings = settings.clone();
            let first = &adapter.pairs[0];
            settings.adapter.rank = first.rank;
            // rsLoRA's scale is alpha / sqrt(rank).
            let factor = if adapter.rslora { (first.rank as f64).sqrt() } else { 1.0 };
            settings.adapter.alpha = factor * first.alpha;
            let bank = self::bank(model, &settings, assignment, parameters)?;
            bank.continue_from(parameters, &old, &before)?;
            Ok(bank)
        };
        let trained = adapter.trained(config);
        let learner = Self::assemble(&prepared.model, head, settings, trained, bank, assignment)?;
        Ok(Learner { class_weights: class_weights(prepared), ..learner })
    }

    /// Like `new` for a model with this head, without class weights.
    pub(crate) fn load(
        files: &ModelFiles,
        head: Option<Head>,
        settings: &TrainSettings,
        assignment: &Assignment,
    ) -> Result<Self> {
        let trained = match settings.adapter.method {
            Method::Full => Trained::Everything,
            _ => Trained::Head,
        };
        let new = |model: &Model, parameters: &mut Parameters| bank(model, settings, assignment, parameters);
        Self::assemble(files, head, settings, trained, new, assignment)
    }

    fn assemble(
        files: &ModelFiles,
        head: Option<Head>,
        settings: &TrainSettings,
        trained: Trained,
        bank: impl FnOnce(&Model, &mut Parameters) -> Result<LoraBank>,
        assignment: &Assignment,
    ) -> Result<Self> {
        let mut parameters = Parameters::new();
        let key = Key::new(settings.optimisation.seed).fold(Purpose::Head as u64);
        let mut model = files.load(head, trained, settings.compute.quantize, key, &mut parameters)?;
        model.net.multiply_in(settings.compute.dtype.precision());
        let initial = settings.samples().then(|| parameters.clone());
        let bank = bank(&model, &mut parameters)?;
        let table = bank.table(model.layers());
        let own = model.dropout_rates();
        let dropout = DropoutRates {
            hidden: settings.optimisation.hidden_dropout.unwrap_or(own.hidden),
            attention: settings.optimisation.attention_dropout.unwrap_or(own.attention),
            head: settings.optimisation.hidden_dropout.unwrap_or(own.head),
            lora: settings.adapter.lora_dropout,
        };
        Ok(Learner {
            model,
            state: TrainState::new(settings, parameters, assignment),
            bank,
            table,
            arenas: WorkerArenas::default(),
            ranks: Ranks::default(),
            passes: Passes::default(),
            initial,
            dropout,
            activation_cache: None,
            class_weights: Vec::new(),
            continued: false,
        })
    }

    /// Computes steps as planned from now on, and reserves memory for all passes.
    pub(crate) fn use_plan(&mut self, plan: &PassPlan) {
        self.arenas.reserve(&plan.floats);
        self.use_passes(plan.passes);
    }

    /// Sets how steps are computed from now on.
    pub fn use_passes(&mut self, passes: Passes) {
        self.model.net.convert_frozen(passes.form);
        self.passes = passes;
    }

    /// How steps are computed.
    pub fn passes(&self) -> Passes {
        self.passes
    }

    /// Begins LoRA-drop's last stage with the pairs of the assignment. Values are the run's initial
    /// ones or, with `restart = continue`, what was trained so far, with AdamW's moments and the
    /// steps that count for the learning rate; a shared pair then starts as the best common pair of
    /// its layers, without moments. The model and the memory of its passes stay.
    ///
    /// # Errors
    /// The run has no sample stage, or its training has begun; the pairs do not fit the earlier
    /// ones.
    pub fn begin_training(&mut self, settings: &TrainSettings, assignment: &Assignment) -> Result<()> {
        let (bank, parameters, optimiser) = self.replace_pairs(settings, assignment)?;
        if self.continued {
            let trained = &mut self.state.parameters;
            copy_trained(&self.bank, trained, &bank, &parameters)?;
            self.state.optimiser.continue_from(trained.list(), &optimiser, parameters.list());
        }
        let TrainState { progress, optimiser: now, .. } = &mut self.state;
        (progress.sample_steps, progress.evaluated) = (optimiser.steps, now.steps);
        Ok(())
    }

    /// The pairs and values that the last stage would continue with under this assignment.
    ///
    /// # Errors
    /// The run has no sample stage, or is past it; the pairs do not fit.
    pub(super) fn continuation(
        &self,
        settings: &TrainSettings,
        assignment: &Assignment,
    ) -> Result<(LoraBank, Parameters)> {
        let mut parameters = self.initial.clone().ok_or_else(no_sample_stage)?;
        let bank = bank(&self.model, settings, assignment, &mut parameters)?;
        copy_trained(&bank, &mut parameters, &self.bank, &self.state.parameters)?;
        Ok((bank, parameters))
    }

    /// Begins the last stage with newly initialised pairs; returns the previous pairs, values and
    /// optimiser.
    pub(super) fn replace_pairs(
        &mut self,
        settings: &TrainSettings,
        assignment: &Assignment,
    ) -> Result<(LoraBank, Parameters, Optimiser)> {
        let mut parameters = self.initial.take().ok_or_else(no_sample_stage)?;
        let bank = bank(&self.model, settings, assignment, &mut parameters)?;
        self.table = bank.table(self.model.layers());
        self.continued = settings.optimisation.restart == Restart::Continue;
        let (values, optimiser) = self.state.begin_training(parameters, assignment);
        Ok((std::mem::replace(&mut self.bank, bank), values, optimiser))
    }

    /// Optimiser steps of the run so far, in both stages.
    pub fn steps_of_run(&self) -> usize {
        let TrainState { stage, optimiser, progress, .. } = &self.state;
        // A run that continues from its sample stage keeps counting.
        let before = match stage {
            Stage::Train if !self.continued => progress.sample_steps,
            _ => 0,
        };
        before + optimiser.steps
    }

    /// Whether the LoRAs' inputs have dropout.
    pub(crate) fn has_lora_dropout(&self) -> bool {
        self.dropout.lora > 0.0
    }

    /// Whether blocks in which nothing trains give the same output in every step.
    pub(crate) fn has_constant_blocks(&self) -> bool {
        self.dropout.hidden == 0.0 && self.dropout.attention == 0.0
    }

    /// From now on, saves the output of the blocks below the lowest that trains in a file in
    /// `folder`, for each of `rows` training rows, if nothing in these blocks changes from step to
    /// step. Returns the number of these blocks, 0 if nothing is saved.
    ///
    /// # Errors
    /// The file for their output cannot be created.
    pub(crate) fn cache_lower_blocks(
        &mut self,
        settings: &TrainSettings,
        rows: usize,
        folder: &Path,
    ) -> Result<usize> {
        let limit = (settings.compute.activation_cache * 1e9) as u64;
        let blocks = if self.has_constant_blocks() { cacheable_blocks(&self.model, &self.table) } else { 0 };
        if settings.epochs_over(rows) > 1 && blocks > 0 && limit > 0 {
            let hidden = self.model.config.hidden_size;
            self.activation_cache = Some(ActivationCache::new(blocks, hidden, rows, limit, folder)?);
        }
        Ok(self.activation_cache.as_ref().map_or(0, |cache| cache.blocks))
    }

    /// Measures the model as it is on dev.
    ///
    /// # Errors
    /// Dev cannot be measured; logits or losses that are not finite; interrupted.
    pub fn measure(
        &mut self,
        prepared: &Prepared,
        cancel: &Cancel,
        listen: &mut dyn FnMut(&Event),
    ) -> Result<Evaluation> {
        let Learner { model, state, table, arenas, ranks, passes, .. } = self;
        let (micro_tokens, memory) = (passes.evaluation_tokens(), arenas.memory());
        let parameters = &state.parameters;
        let mut measuring =
            Measuring { model, parameters, table, micro_tokens, memory, ranks, cancel, listen };
        measuring.measure(prepared.data.dev(), prepared.data.labels())
    }

    /// The adapter in training, pairs and head, with what the head's outputs mean.
    pub(super) fn adapter_file(&self, prepared: &Prepared, settings: &TrainSettings) -> AdapterFile {
        let (architecture, dropout) = (prepared.model.config.architecture, settings.adapter.lora_dropout);
        let head_kind = prepared.data.labels().map(|labels| labels.head().kind).unwrap_or_default();
        let labels = prepared.data.labels().and_then(|labels| serde_json::to_value(labels).ok());
        let file = AdapterFile::from_bank(&self.bank, &self.state.parameters, architecture, dropout);
        let end_tokens = prepared.data.ends().to_vec();
        AdapterFile { labels, head_kind, end_tokens, base: prepared.model.name.clone(), ..file }
    }

    /// Computes the gradients of the mean loss over the rows of one step into the parameters, and
    /// adds what the schedule's observer sees to the state's observations. Returns the loss and the
    /// number of tokens. The rows' lengths decide how the step is cut into micro-batches, which
    /// ranks divide among themselves.
    pub(super) fn gradients(
        &mut self,
        schedule: &StageSchedule,
        rows: TaskRows,
        step: &[usize],
        cancel: &Cancel,
    ) -> Result<(f64, usize)> {
        let Learner {
            model,
            table,
            state,
            arenas,
            ranks,
            passes,
            dropout,
            activation_cache,
            class_weights,
            ..
        } = self;
        let outputs = model.head.map_or(0, |head| head.outputs);
        let (dropout, recompute) = (*dropout, passes.recompute);
        let purpose = match schedule.stage {
            Stage::Sample => Purpose::SampleDropout,
            _ => Purpose::TrainDropout,
        };
        let number = state.optimiser.steps as u64;
        let key = Key::new(schedule.settings.optimisation.seed).fold(purpose as u64).fold(number);
        let lengths: Vec<usize> = step.iter().map(|&row| rows.length(row)).collect();
        let total = match rows {
            TaskRows::Labelled(examples) => {
                let labels = step.iter().flat_map(|&row| &examples[row].label);
                labels.map(|label| heads::loss_weight(label, class_weights, outputs)).sum()
            }
            TaskRows::Text(examples) => step.iter().map(|&row| examples[row].learned()).sum::<usize>() as f64,
        };
        let part = |slots: &Vec<usize>,
                    values: Values,
                    gradients: &mut [f32],
                    observations: Option<&mut Observations>,
                    memory: &mut Memory|
         -> Result<f64> {
            let of_part: Vec<usize> = slots.iter().map(|&slot| step[slot]).collect();
            let keys: &[Key] = &slots.iter().map(|&slot| key.fold(slot as u64)).collect::<Vec<_>>();
            let packed = Packed::new(rows, &of_part);
            let output = match &*activation_cache {
                Some(cache) => Some(cache.output(&of_part, packed.sequences(), |sequences, blocks| {
                    let context = Context::new(values, table, &mut *memory, cancel.flag());
                    Ok(model.net.prefix_output(context, sequences, blocks)?)
                })?),
                None => None,
            };
            let prefix = activation_cache.as_ref().zip(output.as_ref());
            let prefix = prefix.map(|(cache, output)| PrefixOutput { blocks: cache.blocks, output });
            let observing = schedule.observer.zip(observations);
            let observing = observing.map(|(observer, observations)| Observing { observer, observations });
            let context = Context { values, table, observing, memory, stop: cancel.flag() };
            Ok(match &packed {
                Packed::Labelled(batch) => {
                    let targets = BatchTargets::new(&batch.labels, outputs);
                    let label_smoothing = schedule.settings.optimisation.label_smoothing;
                    let part = TrainPart {
                        sequences: sequences(batch),
                        targets: targets.targets(),
                        weights: class_weights,
                        label_smoothing,
                        total,
                        dropout,
                        keys,
                        recompute,
                        prefix,
                    };
                    model.net.train(context, gradients, part)?
                }
                Packed::Texts(batch) => {
                    let total = total as usize;
                    let part = TextPart { texts: texts(batch), total, dropout, keys, recompute, prefix };
                    model.net.train_texts(context, gradients, part)?
                }
            })
        };
        state.parameters.zero_gradients();
        let mut loss = 0.0;
        let (groups, concurrent) = (passes.cut.groups(&lengths), passes.cut.concurrent);
        if ranks.size() > 1 {
            let tokens = |slots: &Vec<usize>| slots.iter().map(|&slot| lengths[slot]).sum();
            let tokens: Vec<usize> = groups.iter().flatten().map(tokens).collect();
            let shares = Shares { ranks, owners: &share_out(&tokens, ranks.size()), cancel };
            let observations = schedule.observer.map(|_| &mut state.observations);
            let sums = StepSums { parameters: &mut state.parameters, loss: &mut loss, observations };
            arenas.run_shared(&shares, &groups, concurrent, sums, part)?;
        } else {
            for parts in groups {
                let observations = schedule.observer.map(|_| &mut state.observations);
                arenas.run(&parts, concurrent, &mut state.parameters, &mut loss, observations, part)?;
            }
        }
        Ok((loss / total, lengths.iter().sum()))
    }
}

/// The weights of the classes in the data.
fn class_weights(prepared: &Prepared) -> Vec<f64> {
    prepared.data.labels().map(|labels| labels.weights().to_vec()).unwrap_or_default()
}

/// Copies what pairs and head have learned from other parameters.
fn copy_trained(
    bank: &LoraBank,
    parameters: &mut Parameters,
    old: &LoraBank,
    old_parameters: &Parameters,
) -> Result<()> {
    bank.continue_from(parameters, old, old_parameters)?;
    let head = parameters.list().iter().filter(|p| p.group == Group::Head);
    let names: Vec<String> = head.map(|p| p.name.clone()).collect();
    for name in names {
        if let (Some(id), Some(from)) = (parameters.find(&name), old_parameters.find(&name)) {
            parameters.value_mut(id).copy_from_slice(old_parameters.value(from));
        }
    }
    Ok(())
}

fn no_sample_stage() -> Error {
    Error::Usage("the run has no sample stage, or it is over".into())
}

/// Creates the adapters of the assignment, added to `parameters` with the run's initial values.
pub(super) fn bank(
    model: &Model,
    settings: &TrainSettings,
    assignment: &Assignment,
    parameters: &mut Parameters,
) -> Result<LoraBank> {
    let dims = |kind| {
        let (output, input) = model.config.linear_shape(kind);
        (input, output)
    };
    let Some(method) = settings.adapter.method.adapter() else { return Ok(LoraBank::default()) };
    let method = match settings.selection.unselected {
        Unselected::Scale if !assignment.shared_kinds().is_empty() => AdapterMethod::TiedLora,
        _ => method,
    };
    let (rank, seed) = (settings.adapter.first_rank(), settings.optimisation.seed);
    if settings.adapter.method == Method::Vera {
        let modules: Vec<ModuleId> = assignment.owners.keys().copied().collect();
        return Ok(LoraBank::with_frozen_pairs(&modules, method, rank, dims, seed, parameters));
    }
    let shared_a = settings.adapter.method == Method::ShareLora;
    let new = NewPairs { method, rank, alpha: settings.adapter.alpha, rslora: false, shared_a };
    let mut bank = LoraBank::new(assignment, new, dims, seed, parameters);
    bank.init_vectors(model, parameters)?;
    Ok(bank)
}
