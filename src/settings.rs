//! Every setting of a training run, with its default: one structure for the command line, the recipe and the library.

mod criterion;
mod method;
mod output;
mod readers;
mod recipe;
mod size;
mod toml_file;
mod validate;
pub mod words;

use std::path::PathBuf;

use lora_drop_compute::gemm::Precision;
use serde::{Deserialize, Serialize};

use crate::assignment::Rest;

pub use criterion::{Basis, CriterionName};
pub use method::Method;
pub use readers::{Given, Reader, Situation, refused};
pub use recipe::Recipe;
pub(crate) use recipe::{check_table, unknown_among};
pub use size::Size;
pub(crate) use toml_file::{TomlFile, one_line};

/// Tokens of a row at most, where nothing else is said and the model takes as many.
pub(crate) const MAX_LENGTH: usize = 256;

/// The metrics that may decide which epoch is best.
pub const METRICS: [&str; 6] = ["accuracy", "f1", "mcc", "pearson", "spearman", "perplexity"];

/// What is learned of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// The tokens of texts; decoders alone.
    Text,
    /// Each row's class.
    Classification,
    /// Each row's number.
    Regression,
}

impl Task {
    /// The name that options and recipes have.
    pub fn name(self) -> &'static str {
        match self {
            Task::Text => "text",
            Task::Classification => "classification",
            Task::Regression => "regression",
        }
    }
}

/// Which modules compete with each other for being kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Each module type has a ranking of its own over the layers.
    #[default]
    Module,
    /// One ranking of whole layers, the scores of a layer's modules added up.
    Layer,
}

/// What is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    #[default]
    Modules,
    Added,
    Directions,
}

/// What becomes of the modules that are not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unselected {
    /// All of a type share one LoRA.
    #[default]
    Share,
    /// All of a type share one LoRA, and each has a vector of its own on either side of B, as in Tied-LoRA.
    Scale,
    /// They have none.
    Drop,
    Neighbours,
}

impl Unselected {
    /// Whether there are shared pairs.
    pub fn shares(self) -> bool {
        self != Unselected::Drop
    }
}

/// Which values of a LoRA a SparseAdapter keeps: those with the largest scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SparseBy {
    /// |w|
    Magnitude,
    /// |w · g|, g the sum of the gradients of the sample stage's last window (SNIP, Lee et al. 2019).
    #[default]
    Snip,
    /// By chance.
    Random,
}

/// What stage 3 starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Newly initialised LoRA and head.
    #[default]
    Fresh,
    /// What the sample stage has trained (a shared pair: the best common pair of its layers').
    Continue,
}

/// How long the sample stage trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SampleEpochs {
    /// Until the ranking settles.
    #[default]
    Auto,
    Epochs(usize),
}

/// How many parameters are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// This fraction in (0, 1].
    Share(f64),
    /// The smallest that costs nothing that held-out rows would show.
    Auto,
}

/// The course of the learning rate behind its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    #[default]
    Linear,
    Cosine,
    Constant,
}

/// What happens to rows of more than `max_length` tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverLength {
    #[default]
    Truncate,
    Drop,
    Error,
}

/// What a decoder's frozen matrices are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quantise {
    /// 8 bits a value, and a scale for each 32.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4 bits a value, and a scale for each 32.
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// What linear layers multiply in while a model trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    #[default]
    F32,
    /// Factors rounded to bf16, sums in f32.
    Bf16,
}

impl Dtype {
    pub fn precision(self) -> Precision {
        match self {
            Dtype::F32 => Precision::F32,
            Dtype::Bf16 => Precision::Bf16,
        }
    }
}

/// How modules are chosen; the ways exclude each other.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// Keep until the cumulative importance reaches this fraction T in (0, 1].
    Threshold(f64),
    /// Keep this many layers (of each module type, or of the one ranking).
    TopK(usize),
    /// Keep as many as fit into this fraction in (0, 1] of plain LoRA's parameters, the shared pairs counted.
    Budget(f64),
    /// The same with a fraction that is found behind the sample stage.
    Auto,
    /// Keep these layers, whatever their importance.
    Layers(Vec<usize>),
}

/// A training run's settings. The serialised form is the recipe: the command line's option names as keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct TrainSettings {
    /// A folder as Hugging Face has them, or a hub name (org/name).
    pub model: String,
    /// A folder with train and dev files, or one file.
    pub data: PathBuf,
    /// Where the run's files go.
    pub output: PathBuf,
    /// None: texts for a decoder, for an encoder what the labels say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    pub method: Method,
    pub rank: usize,
    pub alpha: f64,
    pub lora_dropout: f64,
    /// Under the architecture's own names; empty: query and value. `all-linear` for every linear layer of the blocks.
    pub target_modules: Vec<String>,
    /// What the modules are scored by.
    pub criterion: CriterionName,
    /// AdaLoRA: the fractions of the steps before its budget falls, and after it has fallen.
    pub tinit: f64,
    pub tfinal: f64,
    pub sparse_by: SparseBy,
    pub sample_ratio: f64,
    /// `auto` or a number of epochs.
    #[serde(with = "sample_epochs")]
    pub sample_epochs: SampleEpochs,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// `auto` or a fraction.
    #[serde(with = "budget", skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Layers that are kept without any scoring, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_layers: Option<Vec<usize>>,
    pub scope: Scope,
    pub keep: Keep,
    pub unselected: Unselected,
    /// Of the shared pairs, with the scale of all others; None: `rank`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_rank: Option<usize>,
    pub restart: Restart,
    pub epochs: usize,
    /// Optimiser steps of the run, whatever `epochs` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<usize>,
    pub learning_rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_learning_rate: Option<f64>,
    /// Sequences.
    pub batch_size: usize,
    pub grad_accumulation: usize,
    /// Tokens. None: 256, or what the model takes where that is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    pub over_length: OverLength,
    /// Gigabytes that the tokens of all runs may take in the user's cache folder; 0 keeps none.
    pub token_cache: f64,
    pub weight_decay: f64,
    pub warmup_ratio: f64,
    pub schedule: Schedule,
    /// 0: gradients are not clipped.
    pub max_grad_norm: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_dropout: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_dropout: Option<f64>,
    pub label_smoothing: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    pub seed: u64,
    /// 0: all.
    pub threads: usize,
    pub overwrite: bool,
    /// What linear layers multiply in.
    pub dtype: Dtype,
    /// Store a decoder's frozen matrices so; None: as their file has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantise>,
    /// Keep only the blocks' inputs in the forward pass and compute the rest again on the way back.
    pub recompute: bool,
    /// Tokens of a micro-batch, into which a step's rows are cut; a longer row has one to itself. None: by the model, or fewer
    /// where `memory_limit` needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_tokens: Option<usize>,
    /// Foreseen peak of resident memory that the run must not be above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Size>,
    /// Gigabytes that the output of blocks in and below which nothing trains may take on disk; 0 computes it in each step.
    pub activation_cache: f64,
    /// Prompts and completions are turns of user and assistant, in the model's chat template.
    pub chat: bool,
    /// What is made of a prompt, with `{prompt}` in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_template: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_column: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_column: Option<String>,
    /// Column names, where the usual ones do not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_column: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair_column: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// Which of these were given, and by whom.
    #[serde(skip)]
    pub given: Given,
}

impl Default for TrainSettings {
    fn default() -> Self {
        TrainSettings {
            model: String::new(),
            data: PathBuf::new(),
            output: PathBuf::new(),
            task: None,
            method: Method::default(),
            rank: 8,
            alpha: 16.0,
            lora_dropout: 0.0,
            target_modules: Vec::new(),
            criterion: CriterionName::default(),
            tinit: 0.15,
            tfinal: 0.5,
            sparse_by: SparseBy::default(),
            sample_ratio: 0.1,
            sample_epochs: SampleEpochs::Auto,
            threshold: None,
            top_k: None,
            budget: None,
            keep_layers: None,
            scope: Scope::default(),
            keep: Keep::default(),
            unselected: Unselected::default(),
            shared_rank: None,
            restart: Restart::default(),
            epochs: 3,
            max_steps: None,
            learning_rate: 5e-4,
            head_learning_rate: None,
            batch_size: 32,
            grad_accumulation: 1,
            max_length: None,
            over_length: OverLength::default(),
            token_cache: 1.0,
            weight_decay: 0.1,
            warmup_ratio: 0.06,
            schedule: Schedule::default(),
            max_grad_norm: 1.0,
            hidden_dropout: None,
            attention_dropout: None,
            label_smoothing: 0.0,
            metric: None,
            seed: 0,
            threads: 0,
            overwrite: false,
            dtype: Dtype::default(),
            quantize: None,
            recompute: false,
            micro_tokens: None,
            memory_limit: None,
            activation_cache: 4.0,
            chat: false,
            prompt_template: None,
            prompt_column: None,
            completion_column: None,
            text_column: None,
            pair_column: None,
            label_column: None,
            given: Given::default(),
        }
    }
}

impl TrainSettings {
    /// Tokens of a row at most, for a model that takes `most`.
    pub fn row_tokens(&self, most: usize) -> usize {
        self.max_length.unwrap_or(MAX_LENGTH.min(most))
    }

    /// Rows of an optimiser step.
    pub fn step_rows(&self) -> usize {
        self.batch_size * self.grad_accumulation
    }

    /// Optimiser steps over `rows` training rows. With `--restart continue` the sample stage's are among them, and there is at
    /// least one behind it.
    pub fn steps(&self, rows: usize) -> usize {
        let least = if self.samples() && self.restart == Restart::Continue { 2 } else { 1 };
        self.max_steps.unwrap_or(self.epochs * rows.div_ceil(self.step_rows())).max(least)
    }

    /// Epochs over `rows` training rows, a part of one counted as one.
    pub fn epochs_over(&self, rows: usize) -> usize {
        self.steps(rows).div_ceil(rows.div_ceil(self.step_rows()))
    }

    /// Whether a sample stage finds out which modules, or which values of them, are kept.
    pub fn samples(&self) -> bool {
        self.method.has_sample() && self.keep_layers.is_none()
    }

    /// The rank that pairs begin with: AdaLoRA's have half as much again, as in PEFT, and lose it on the way.
    pub fn first_rank(&self) -> usize {
        if self.method == Method::AdaLora { (3 * self.rank).div_ceil(2) } else { self.rank }
    }

    /// The part of a LoRA's values that a SparseAdapter keeps.
    pub fn density(&self) -> f64 {
        match self.budget {
            Some(Budget::Share(share)) => share,
            Some(Budget::Auto) | None => 0.5,
        }
    }

    /// What becomes of the modules that are not kept.
    pub fn rest(&self) -> Rest {
        let shared_rank = match self.keep {
            Keep::Added => Some(self.rank / 2),
            _ => self.shared_rank,
        };
        Rest { unselected: self.unselected, shared_rank }
    }

    /// The selection rule that the exclusive settings amount to; T = 0.9 where none is given.
    pub fn selection(&self) -> Selection {
        match (self.threshold, self.top_k, self.budget, &self.keep_layers) {
            (_, _, _, Some(layers)) => Selection::Layers(layers.clone()),
            (_, Some(k), _, _) => Selection::TopK(k),
            (_, _, Some(Budget::Share(f)), _) => Selection::Budget(f),
            (_, _, Some(Budget::Auto), _) => Selection::Auto,
            (t, _, _, _) => Selection::Threshold(t.unwrap_or(0.9)),
        }
    }
}

/// `budget` as the recipe has it: the word auto, or a number.
mod budget {
    use super::Budget;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<Budget>, out: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(Budget::Share(share)) => out.serialize_f64(*share),
            Some(Budget::Auto) => out.serialize_str("auto"),
            None => out.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Budget>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(f64),
            Word(String),
        }
        match Form::deserialize(input)? {
            Form::Number(share) => Ok(Some(Budget::Share(share))),
            Form::Word(word) if word == "auto" => Ok(Some(Budget::Auto)),
            Form::Word(_) => {
                Err(serde::de::Error::custom("expected \"auto\" or a fraction above 0, up to 1"))
            }
        }
    }
}

/// `sample-epochs` as the recipe has it: the word auto, or a number.
mod sample_epochs {
    use super::SampleEpochs;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &SampleEpochs, out: S) -> Result<S::Ok, S::Error> {
        match value {
            SampleEpochs::Auto => out.serialize_str("auto"),
            SampleEpochs::Epochs(n) => out.serialize_u64(*n as u64),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<SampleEpochs, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(usize),
            Word(String),
        }
        match Form::deserialize(input)? {
            Form::Number(n) if n > 0 => Ok(SampleEpochs::Epochs(n)),
            Form::Word(w) if w == "auto" => Ok(SampleEpochs::Auto),
            _ => Err(serde::de::Error::custom("expected \"auto\" or a number of epochs from 1 up")),
        }
    }
}
