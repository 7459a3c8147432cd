//! What a run tells while it works. The library never prints: a progress bar, a log and a report
//! are listeners.

use std::path::Path;

use crate::assignment::Assignment;
use crate::score::{BudgetCurve, Importance};
use crate::summary::{Baseline, DataFacts, MemoryEstimate, ModelFacts};

/// The part of a run that events belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Training on the sample.
    Sample,
    /// Training on the whole set.
    Train,
    /// Measuring on dev.
    Evaluate,
    /// Writing the texts that are measured against references.
    Generate,
}

/// One optimiser step, as it is logged to metrics.jsonl and shown by the progress bar.
#[derive(Clone, Debug, serde::Serialize)]
pub struct StepRecord {
    pub stage: Stage,
    /// From 1.
    pub step: usize,
    /// Steps in this stage, at most (the sample stage may end earlier).
    pub steps: usize,
    /// Epochs done, with the fraction of the running one.
    pub epoch: f64,
    /// Mean loss of the step's sequences.
    pub loss: f64,
    pub learning_rate: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Real tokens in the step.
    pub tokens: usize,
    /// Since the stage began.
    pub tokens_per_second: f64,
}

/// One evaluation on dev, as it is logged to metrics.jsonl.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EvaluationRecord {
    /// The epoch it follows, from 1.
    pub epoch: usize,
    pub step: usize,
    pub loss: f64,
    /// Name and value, the deciding metric first; an object in the log.
    #[serde(serialize_with = "as_object")]
    pub metrics: Vec<(String, f64)>,
    /// Whether it is the best so far.
    pub best: bool,
    /// The one class that every row was given, though not every row has it; not in the log.
    #[serde(skip)]
    pub only_class: Option<OnlyClass>,
}

fn as_object<S: serde::Serializer>(metrics: &[(String, f64)], out: S) -> Result<S::Ok, S::Error> {
    out.collect_map(metrics.iter().map(|(name, value)| (name, value)))
}

/// A model that gives every row the same class, which says nothing of the rows.
#[derive(Clone, Debug, PartialEq)]
pub struct OnlyClass {
    pub name: String,
    /// The share of the rows that have it: the accuracy.
    pub share: f64,
}

impl std::fmt::Display for OnlyClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let OnlyClass { name, share } = self;
        write!(f, "every row is predicted as {name:?}, which {:.1} % of them are", 100.0 * share)
    }
}

/// How far the writing of texts is.
#[derive(Clone, Copy, Debug)]
pub struct GenerationProgress {
    /// Texts that are done, of all.
    pub done: usize,
    pub of: usize,
    /// New tokens so far, those of unfinished texts counted.
    pub tokens: usize,
    /// Since the stage began.
    pub tokens_per_second: f64,
    /// If the other texts become as long as those that are done; not a number before one is.
    pub seconds_left: f64,
}

/// What happened.
pub enum Event<'a> {
    /// A file of a hub's model comes in; bytes.
    Downloading {
        file: &'a str,
        done: u64,
        total: u64,
    },
    /// The model was read and checked.
    Model(&'a ModelFacts),
    /// The data was read and checked.
    Data(&'a DataFacts),
    /// The run's memory was planned.
    Memory(&'a MemoryEstimate),
    /// A stage starts, with this many steps at most, of this many tokens in all.
    StageStart {
        stage: Stage,
        steps: usize,
        rows: usize,
        tokens: usize,
    },
    /// An optimiser step was made, or (stage Evaluate) this number of tokens is done.
    Step(&'a StepRecord),
    Evaluating {
        done: usize,
        of: usize,
    },
    /// This number of texts is done (stage Generate).
    Generating(GenerationProgress),
    Evaluation(&'a EvaluationRecord),
    /// What dev gives without training was found.
    Baseline(&'a Baseline),
    /// The sample stage scored the modules again: Kendall's tau against the scoring before.
    Rescored {
        step: usize,
        tau: f64,
        settled: bool,
    },
    /// So many of the lowest blocks are computed in the first epoch alone.
    Reusing {
        blocks: usize,
    },
    Importance(&'a Importance),
    /// A budget was found.
    Budget(&'a BudgetCurve),
    Assignment(&'a Assignment),
    StageEnd {
        stage: Stage,
        seconds: f64,
    },
    /// Something the user should know, and that is no error.
    Warning(&'a str),
    /// Something worth knowing that is as it should be.
    Note(&'a str),
    /// A file was written under its final name.
    Wrote(&'a Path),
}
