//! The facts of a run: what was found, what came out. `summary.json` is the serialised `Summary`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::folder::{is_being_written, recover};
use crate::machine::Machine;
use crate::settings::definition::choices;
use crate::{Error, Result};

/// What was found in the model's folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The folder or the hub name as given.
    pub model: String,
    /// `bert`, `roberta`, `mpnet`: config.json's model_type.
    pub architecture: String,
    pub layers: usize,
    pub hidden_size: usize,
    pub heads: usize,
    pub vocabulary: usize,
    pub max_positions: usize,
    /// All weights without a head for labels.
    pub parameters: usize,
    /// Whether it predicts tokens, and has no head for labels.
    #[serde(default)]
    pub decoder: bool,
    /// Whether the head for labels is the checkpoint's; None where none is wanted, or an adapter
    /// brings it.
    pub head_found: Option<bool>,
    /// Whether the head is an adapter's.
    #[serde(default)]
    pub head_from_adapter: bool,
}

/// What was found in the data.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DataFacts {
    pub splits: Vec<SplitFacts>,
    /// Class names in index order; empty for regression.
    pub classes: Vec<String>,
    pub text_column: String,
    pub pair_column: Option<String>,
    pub label_column: String,
    pub max_length: usize,
    /// `truncate`, `drop` or `error`
    pub over_length: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SplitFacts {
    /// `train`, `dev` or `test`
    pub name: String,
    pub file: String,
    pub rows: usize,
    /// Tokens as trained on, special tokens counted.
    pub tokens: usize,
    /// Shortest, median and longest row in tokens, before over-long ones were cut or dropped.
    pub shortest: usize,
    pub median_length: usize,
    pub longest: usize,
    /// Rows of more than max_length tokens, before they were cut or dropped.
    pub over_long: usize,
    /// Those of them that are so far over it that their tokens were not counted to the end: their
    /// lengths are at least what is said here.
    #[serde(default)]
    pub uncounted: usize,
    /// Rows per class in index order; empty for regression.
    pub per_class: Vec<usize>,
    /// Smallest, mean and largest label of a regression.
    pub label_range: Option<(f64, f64, f64)>,
    /// Whether an earlier run's tokens were read instead of being made.
    #[serde(default)]
    pub cached: bool,
}

/// What a run would be, found out without training (`--dry-run`).
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub model: ModelFacts,
    pub data: DataFacts,
    pub method: String,
    /// All trained values in stage 3, the head included, at most.
    pub trainable_parameters: usize,
    /// Values in unique LoRA pairs in stage 3: least and most, since a threshold decides only after
    /// the scoring.
    pub lora_parameters: (usize, usize),
    /// What plain LoRA on the same target modules would have.
    pub lora_parameters_full: usize,
    /// Rows and most optimiser steps of the sample stage; 0 without one.
    pub sample_rows: usize,
    pub sample_steps: usize,
    /// Rows, optimiser steps and tokens of stage 3 over all its epochs.
    pub train_rows: usize,
    pub train_steps: usize,
    pub train_tokens: usize,
    /// Estimated peak of resident memory: `memory.total`.
    pub memory_bytes: u64,
    pub memory: MemoryEstimate,
    /// Estimated time of the whole run.
    pub seconds: f64,
}

/// The peak of resident memory, estimated before the first step, and its parts in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// Tokens of a micro-batch.
    pub micro_tokens: usize,
    /// How many micro-batches run concurrently at most; 1 where they run one by one.
    #[serde(default = "one")]
    pub together: usize,
    /// Whether activations are recomputed in the backward pass.
    pub recompute: bool,
    /// What `--memory-limit` allows.
    pub limit: Option<u64>,
    /// Code, libraries, the tokenizer, and what reading the data has left behind.
    pub program: u64,
    /// The rows' tokens.
    pub data: u64,
    /// Mapped files, as far as they are read.
    pub weights: u64,
    /// Weights that are not as in their file: widened, quantized, rounded or packed.
    pub copies: u64,
    /// Trained values, their gradients (further ones for micro-batches that run concurrently) and
    /// AdamW's two moments.
    pub parameters: u64,
    /// Of the largest micro-batch, its logits counted, or of the largest that run concurrently.
    pub activations: u64,
    /// Packed panels of products and blocks of attention.
    pub scratch: u64,
    /// Their sum, or what reading the data has taken where that is more.
    pub total: u64,
}

/// Of a summary that does not say.
fn one() -> usize {
    1
}

impl MemoryEstimate {
    /// The parts, by what they are called.
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
    /// How a run has ended, if it has.
    Status {
        /// It is under way, or its process was killed.
        Running = "running",
        /// Its process ended without a word: it was killed, or the machine went down. No file says
        /// so: it is what a reader finds where `Running` is written and nobody is writing.
        Stopped = "stopped",
        Finished = "finished",
        /// Ended by Ctrl-C or a signal.
        Interrupted = "interrupted",
        /// Ended by a loss, gradient, weight or logit that is not finite.
        Diverged = "diverged",
        /// Ended by another error.
        Failed = "failed",
    }
}

/// What dev's rows give without training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    pub kind: BaselineKind,
    /// The metric, or `loss`.
    pub name: String,
    pub value: f64,
    /// The commonest class.
    pub class: Option<String>,
}

/// Where a baseline comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BaselineKind {
    /// Every row is given the class that most rows of dev have.
    CommonestClass,
    /// Every row is given the mean of train's labels.
    Mean,
    /// The model as it was loaded.
    Untrained,
}

/// What came out of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    pub version: String,
    pub method: String,
    pub model: String,
    pub data: String,
    pub seed: u64,
    pub status: Status,
    /// What ended a run that diverged or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Name and value on dev at the best epoch.
    pub metrics: BTreeMap<String, f64>,
    /// The metric that decided which epoch is best.
    pub metric: String,
    /// From 1; 0 where no epoch was measured.
    pub best_epoch: usize,
    pub epochs: usize,
    /// Optimiser steps that were made, those on the sample counted; 0 of runs of older versions.
    #[serde(default)]
    pub steps: usize,
    /// All trained values, the head included.
    pub trainable_parameters: usize,
    /// Values in unique LoRA pairs.
    pub lora_parameters: usize,
    /// What plain LoRA on the same target modules would have.
    pub lora_parameters_full: usize,
    /// lora_parameters / lora_parameters_full
    pub retained_ratio: f64,
    /// Module type (the architecture's name) → numbers of the layers that own their LoRA.
    pub kept: BTreeMap<String, Vec<usize>>,
    /// Real tokens that stage 3 trained on.
    pub train_tokens: usize,
    pub train_tokens_per_second: f64,
    /// Optimiser steps of the sample stage (0 without one), and whether the ranking had settled.
    pub sample_steps: usize,
    pub sample_settled: bool,
    pub sample_seconds: f64,
    pub train_seconds: f64,
    pub evaluate_seconds: f64,
    /// From the run's start to the end of its first optimiser step.
    #[serde(default)]
    pub startup_seconds: f64,
    pub total_seconds: f64,
    pub peak_rss_bytes: u64,
    /// What had been estimated of it; None of runs of older versions.
    #[serde(default)]
    pub memory: Option<MemoryEstimate>,
    /// Bytes of activations that the largest passes have taken, concurrent ones together; 0 of
    /// runs of older versions.
    #[serde(default)]
    pub activation_bytes: u64,
    pub threads: usize,
    /// What dev gives without training; None of runs of older versions.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// None of runs of older versions.
    #[serde(default)]
    pub machine: Option<Machine>,
    /// When this was written, in local time as RFC 3339 has it; empty of runs of older versions.
    #[serde(default)]
    pub date: String,
    /// File name → bytes, of the adapter files.
    pub files: BTreeMap<String, u64>,
    /// The names of all files that the run has written; empty of runs of older versions.
    #[serde(default)]
    pub outputs: Vec<String>,
}

impl Summary {
    /// Reads the summary of the run in a folder, whatever has become of it.
    ///
    /// # Errors
    /// `Error::Io` and `Error::Input` with the file.
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
