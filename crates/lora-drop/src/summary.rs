//! The facts of a run: about model and data, the plan, and the results. summary.json is a
//! serialised [`Summary`].

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::folder::{is_being_written, recover};
use crate::format;
use crate::machine::Machine;
use crate::settings::definition::choices;
use crate::{Error, Result};

/// A model's sizes and its head.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The folder or hub name, as given.
    pub model: String,
    /// `bert`, `roberta`, `mpnet`: config.json's model_type.
    pub architecture: String,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Attention heads of a layer.
    pub heads: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Positions that the model has.
    pub max_positions: usize,
    /// Values of all weights, without a head for labels.
    pub parameters: usize,
    /// Whether it predicts tokens and has no head for labels.
    #[serde(default)]
    pub decoder: bool,
    /// Whether the head for labels is the checkpoint's; None if no head is needed or an adapter has
    /// it.
    pub head_found: Option<bool>,
    /// Whether the head is an adapter's.
    #[serde(default)]
    pub head_from_adapter: bool,
}

/// The splits and columns of a data set.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DataFacts {
    /// Train, dev and, if there is one, test.
    pub splits: Vec<SplitFacts>,
    /// Class names in index order; empty for regression.
    pub classes: Vec<String>,
    /// Of two classes, the one whose F1 is measured.
    #[serde(default)]
    pub positive_class: Option<String>,
    /// Weights of the classes in the loss, in index order; empty for 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_weights: Vec<f64>,
    /// The column of the text or prompt.
    pub text_column: String,
    /// The column of a pair's second text, or of the completion.
    pub pair_column: Option<String>,
    /// The column of the label.
    pub label_column: String,
    /// Most tokens of a row.
    pub max_length: usize,
    /// `truncate`, `drop` or `error`, or `split` for plain texts
    pub over_length: String,
    /// Where the rows come from; empty for one source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceFacts>,
}

/// A source of rows among several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceFacts {
    /// The folder or file.
    pub name: String,
    pub weight: Option<f64>,
    /// Number of its rows that are trained on.
    pub rows: usize,
    /// Number of its rows in an epoch, where they are repeated by the weights.
    pub of_epoch: usize,
}

/// Counts of a split's rows, tokens and labels.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SplitFacts {
    /// `train`, `dev` or `test`
    pub name: String,
    /// Its files.
    pub file: String,
    /// Number of rows.
    pub rows: usize,
    /// Number of tokens as trained on, special tokens included.
    pub tokens: usize,
    /// Tokens of the shortest row, before over-long rows were cut or dropped.
    pub shortest: usize,
    /// Median of the rows' tokens, before over-long rows were cut or dropped.
    pub median_length: usize,
    /// The 95th percentile of the rows' tokens, before over-long rows were cut or dropped.
    #[serde(default)]
    pub length_95: usize,
    /// Tokens of the longest row, before over-long rows were cut or dropped.
    pub longest: usize,
    /// Rows by their tokens, before over-long rows were cut or dropped.
    #[serde(default)]
    pub lengths: Vec<LengthRange>,
    /// Rows of more than `max_length` tokens, before they were cut or dropped.
    pub over_long: usize,
    /// Over-long rows whose tokens were not counted to the end because they are far over the limit:
    /// their lengths are lower bounds.
    #[serde(default)]
    pub uncounted: usize,
    /// Tokens that stand for text that the tokenizer's vocabulary does not have.
    #[serde(default)]
    pub unknown: usize,
    /// Tokens that are learned; 0 for labelled rows.
    #[serde(default)]
    pub learned: usize,
    /// Words that have a token; 0 if words have no labels.
    #[serde(default)]
    pub words: usize,
    /// Words that have no token, because they lie beyond `max_length` or the tokenizer drops them.
    #[serde(default)]
    pub unread_words: usize,
    /// Rows per class in index order, or words; empty for regression.
    pub per_class: Vec<usize>,
    /// Smallest, mean and largest label of a regression.
    pub label_range: Option<(f64, f64, f64)>,
    /// Whether the tokens were read from the cache of an earlier run.
    #[serde(default)]
    pub cached: bool,
}

/// Rows whose numbers of tokens are in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LengthRange {
    /// The fewest tokens of the range.
    pub from: usize,
    /// The most tokens of the range.
    pub to: usize,
    /// Number of rows.
    pub rows: usize,
}

/// The sizes of a run, computed without training (`--dry-run`).
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What was found in the model's folder.
    pub model: ModelFacts,
    /// What was found in the data.
    pub data: DataFacts,
    /// The method's name.
    pub method: String,
    /// Most trained values in fine-tuning, the head included.
    pub trainable_parameters: usize,
    /// Fewest and most values of unique LoRA pairs in fine-tuning, since a threshold decides only
    /// after the scoring.
    pub lora_parameters: (usize, usize),
    /// Values that plain LoRA on the same target modules would have.
    pub lora_parameters_full: usize,
    /// Rows of the sample stage; 0 without one.
    pub sample_rows: usize,
    /// Most optimiser steps of the sample stage; 0 without one.
    pub sample_steps: usize,
    /// Rows of fine-tuning.
    pub train_rows: usize,
    /// Optimiser steps of fine-tuning over all epochs.
    pub train_steps: usize,
    /// Tokens of fine-tuning over all epochs.
    pub train_tokens: usize,
    /// Estimated peak of resident memory in bytes: `memory.total`.
    pub memory_bytes: u64,
    /// That peak by its parts.
    pub memory: MemoryEstimate,
    /// Estimated seconds of the whole run.
    pub seconds: f64,
}

/// The peak of resident memory as estimated before the first step, and its parts, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// Tokens of a micro-batch.
    pub micro_tokens: usize,
    /// Most micro-batches that run concurrently; 1: one by one.
    #[serde(rename = "together", default = "one")]
    pub concurrent: usize,
    /// Whether activations are recomputed in the backward pass.
    pub recompute: bool,
    /// What `memory_limit` allows.
    pub limit: Option<u64>,
    /// Code, libraries, the tokenizer, and memory that reading the data has not returned.
    pub program: u64,
    /// The rows' tokens.
    pub data: u64,
    /// The parts of mapped files that are read.
    pub weights: u64,
    /// Weights in another form than in their file: widened, quantized, rounded or packed.
    pub copies: u64,
    /// Trained values, their gradients (one for each concurrent micro-batch) and AdamW's two
    /// moments.
    pub parameters: u64,
    /// Activations of the largest concurrent micro-batches, logits included.
    pub activations: u64,
    /// Packed panels of products and blocks of attention.
    pub scratch: u64,
    /// The sum of the parts, or the peak while reading the data if that is more.
    pub total: u64,
}

/// The default for summaries of older versions.
fn one() -> usize {
    1
}

impl MemoryEstimate {
    /// The parts with their names.
    pub fn parts(&self) -> [(&'static str, u64); 7] {
        [
            ("program", self.program),
            ("data", self.data),
            ("weights", self.weights),
            ("copies", self.copies),
            ("parameters", self.parameters),
            ("activations", self.activations),
            ("scratch", self.scratch),
        ]
    }

    pub(crate) fn sum(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}

choices! {
    /// The state of a run.
    Status {
        /// It is running, or its process was killed.
        Running = "running",
        /// Its process was killed or the machine went down. No file says so: [`Summary::read`]
        /// concludes it from `Running` in a folder that no process writes to.
        Stopped = "stopped",
        /// It has ended as planned.
        Finished = "finished",
        /// Ended by Ctrl-C or a signal.
        Interrupted = "interrupted",
        /// Ended by a loss, gradient, weight or logit that is not finite.
        Diverged = "diverged",
        /// Ended by another error.
        Failed = "failed",
    }
}

/// The result on dev without training, for comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// How it was made.
    pub kind: BaselineKind,
    /// The metric's name, or `loss`.
    pub name: String,
    /// The metric's value.
    pub value: f64,
    /// The most frequent class, if that is the baseline.
    pub class: Option<String>,
}

/// How a baseline is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BaselineKind {
    /// The class that most rows of dev have, predicted for every row.
    CommonestClass,
    /// The mean of train's labels, predicted for every row.
    Mean,
    /// The model as loaded.
    Untrained,
}

/// The results of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// lora-drop's version.
    pub version: String,
    /// The method's name.
    pub method: String,
    /// The model, as given.
    pub model: String,
    /// The data's path, as given.
    pub data: String,
    /// The seed of all random numbers.
    pub seed: u64,
    /// Whether and how the run has ended.
    pub status: Status,
    /// The error that ended a run that diverged or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Metrics on dev at the best epoch, by name.
    pub metrics: BTreeMap<String, f64>,
    /// The metric that decided which epoch is best.
    pub metric: String,
    /// Epochs done at the best evaluation, including the fraction of the current one; 0 without an
    /// evaluation.
    #[serde(serialize_with = "format::whole_as_integer")]
    pub best_epoch: f64,
    /// Planned epochs.
    pub epochs: usize,
    /// Optimiser steps that were made, those on the sample included; 0 for older versions.
    #[serde(default)]
    pub steps: usize,
    /// All trained values, the head included.
    pub trainable_parameters: usize,
    /// Values of unique LoRA pairs.
    pub lora_parameters: usize,
    /// Values that plain LoRA on the same target modules would have.
    pub lora_parameters_full: usize,
    /// `lora_parameters` / `lora_parameters_full`.
    pub retained_ratio: f64,
    /// The layers that own their LoRA, from 0, by the architecture's name of the module type.
    pub kept: BTreeMap<String, Vec<usize>>,
    /// Real tokens that fine-tuning has trained on.
    pub train_tokens: usize,
    /// Real tokens per second of fine-tuning's steps.
    pub train_tokens_per_second: f64,
    /// Optimiser steps of the sample stage; 0 without one.
    pub sample_steps: usize,
    /// Whether the sample stage's ranking had settled.
    pub sample_settled: bool,
    /// Seconds of the sample stage.
    pub sample_seconds: f64,
    /// Seconds of fine-tuning's steps.
    pub train_seconds: f64,
    /// Seconds of measuring dev.
    pub evaluate_seconds: f64,
    /// Seconds from the run's start to the end of its first optimiser step, without the baseline.
    #[serde(default)]
    pub startup_seconds: f64,
    /// Seconds of writing checkpoints.
    #[serde(default)]
    pub checkpoint_seconds: f64,
    /// Seconds of the whole run.
    pub total_seconds: f64,
    /// Peak of resident memory in bytes; 0 if the system does not say.
    pub peak_rss_bytes: u64,
    /// The estimate of that peak; None for older versions.
    #[serde(default)]
    pub memory: Option<MemoryEstimate>,
    /// Bytes of activations that the largest concurrent passes have used; 0 for older versions.
    #[serde(default)]
    pub activation_bytes: u64,
    /// Number of computing threads.
    pub threads: usize,
    /// The result on dev without training; None for older versions.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// The machine of the run; None for older versions.
    #[serde(default)]
    pub machine: Option<Machine>,
    /// The local time at which this was written, as in RFC 3339; empty for older versions.
    #[serde(default)]
    pub date: String,
    /// Bytes of the model's files, by name.
    pub files: BTreeMap<String, u64>,
    /// The names of all files that the run has written; empty for older versions.
    #[serde(default)]
    pub outputs: Vec<String>,
}

impl Summary {
    /// Reads the summary of the run in a folder, also of one that is running or was killed.
    ///
    /// # Errors
    /// `Error::Io` or `Error::Input`, with the file.
    pub fn read(run: &Path) -> Result<Self> {
        recover(run)?;
        let path = run.join("summary.json");
        let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let mut summary: Summary = serde_json::from_slice(&text).map_err(|e| {
            Error::Input(format!("{}: not a summary of lora-drop train: {e}", path.display()))
        })?;
        if summary.status == Status::Running && !is_being_written(run) {
            summary.status = Status::Stopped;
        }
        Ok(summary)
    }
}
