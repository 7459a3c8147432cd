//! What the library reports while it works. It never prints: a progress bar, a log and a report are
//! listeners, functions that are called with each [`Event`].

use std::path::Path;

use serde::Deserialize;
use serde::de::Error as _;

use crate::assignment::Assignment;
use crate::format;
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

impl Stage {
    /// Prefix of a stage's metrics: `sample` or `train`.
    pub(crate) fn of_metrics(self) -> &'static str {
        if self == Stage::Sample { "sample" } else { "train" }
    }
}

/// One optimiser step, as it is logged to metrics.jsonl and shown by the progress bar.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct StepRecord {
    /// The stage that the step belongs to.
    pub stage: Stage,
    /// Counted from 1.
    pub step: usize,
    /// Most steps of this stage (the sample stage may end earlier).
    pub steps: usize,
    /// Epochs done, including the fraction of the current one.
    pub epoch: f64,
    /// Mean loss of the step's sequences.
    pub loss: f64,
    /// The learning rate of the step, without a separate one for the head.
    pub learning_rate: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Real tokens in the step.
    pub tokens: usize,
    /// Mean over the stage so far.
    pub tokens_per_second: f64,
}

/// One evaluation on dev, as it is logged to metrics.jsonl.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct EvaluationRecord {
    /// Epochs done, including the fraction of the current one.
    #[serde(serialize_with = "format::whole_as_integer")]
    pub epoch: f64,
    /// The step that it follows, from 1.
    pub step: usize,
    /// Mean loss, without label smoothing.
    pub loss: f64,
    /// Name and value, the deciding metric first; an object in the log.
    #[serde(serialize_with = "as_object", deserialize_with = "from_object")]
    pub metrics: Vec<(String, f64)>,
    /// Whether it is the best so far.
    pub best: bool,
    /// The class that the model predicts for every row although not every row has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_class: Option<OnlyClass>,
}

fn as_object<S: serde::Serializer>(metrics: &[(String, f64)], out: S) -> Result<S::Ok, S::Error> {
    out.collect_map(metrics.iter().map(|(name, value)| (name, value)))
}

fn from_object<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<(String, f64)>, D::Error> {
    // serde_json's maps keep the order of their keys.
    let object = serde_json::Map::deserialize(from)?;
    let value = |value: serde_json::Value| match value {
        // NaN and infinite values are logged as null.
        serde_json::Value::Null => Ok(f64::NAN),
        value => value.as_f64().ok_or_else(|| D::Error::custom("expected a number")),
    };
    object.into_iter().map(|(name, found)| Ok((name, value(found)?))).collect()
}

/// The class that a model predicts for every row, or for every word.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct OnlyClass {
    /// Its name.
    pub name: String,
    /// Share of the rows or words that have it, which is the accuracy.
    pub share: f64,
    /// Whether words have classes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub words: bool,
}

impl std::fmt::Display for OnlyClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let OnlyClass { name, share, words } = self;
        let what = if *words { "word" } else { "row" };
        write!(f, "every {what} is predicted as {name:?}, which {:.1} % of them are", 100.0 * share)
    }
}

/// The progress of generating texts.
#[derive(Clone, Copy, Debug)]
pub struct GenerationProgress {
    /// Finished texts.
    pub done: usize,
    /// All texts.
    pub of: usize,
    /// New tokens so far, those of unfinished texts included.
    pub tokens: usize,
    /// Mean over the stage so far.
    pub tokens_per_second: f64,
    /// Seconds left if the other texts become as long as the finished ones; NaN before the first.
    pub seconds_left: f64,
}

/// An event of a run.
pub enum Event<'a> {
    /// A file of a hub's model is being downloaded: bytes so far and in all.
    Downloading { file: &'a str, done: u64, total: u64 },
    /// The model was read and checked.
    Model(&'a ModelFacts),
    /// The data was read and checked.
    Data(&'a DataFacts),
    /// The run's memory was planned.
    Memory(&'a MemoryEstimate),
    /// The run continues from a checkpoint, in this stage and after this number of its steps.
    Resumed { stage: Stage, steps: usize },
    /// A stage starts: its most steps, and its rows and tokens.
    StageStart { stage: Stage, steps: usize, rows: usize, tokens: usize },
    /// An optimiser step was made.
    Step(&'a StepRecord),
    /// Rows are being measured: tokens so far and in all (stage `Evaluate`).
    Evaluating { done: usize, of: usize },
    /// A token or a text was generated (stage `Generate`).
    Generating(GenerationProgress),
    /// Dev was measured after an epoch.
    Evaluation(&'a EvaluationRecord),
    /// The result on dev without training was measured.
    Baseline(&'a Baseline),
    /// The sample stage scored the modules again after this step: Kendall's tau against the
    /// previous scoring, and whether the ranking is stable.
    Rescored { step: usize, tau: f64, settled: bool },
    /// The output of the lowest `blocks` blocks is computed in the first epoch only.
    Reusing { blocks: usize },
    /// The modules were scored.
    Importance(&'a Importance),
    /// `budget = auto` has found a budget.
    Budget(&'a BudgetCurve),
    /// The modules were chosen.
    Assignment(&'a Assignment),
    /// A stage has ended after this number of seconds.
    StageEnd { stage: Stage, seconds: f64 },
    /// Something that the user should know, though it is not an error.
    Warning(&'a str),
    /// Something worth knowing that needs no action.
    Note(&'a str),
    /// A file was written under its final name.
    Wrote(&'a Path),
}

/// How long the remaining steps of a stage take, by the stage's events. Tokens decide it, because
/// steps differ in length.
#[derive(Clone, Copy, Debug, Default)]
pub struct TimeLeft {
    tokens: usize,
    done: usize,
    tokens_per_second: f64,
}

impl TimeLeft {
    /// Takes over the start or a step of the sample stage or of training.
    pub fn handle(&mut self, event: &Event) {
        match event {
            Event::StageStart { stage: Stage::Sample | Stage::Train, tokens, .. } => {
                *self = TimeLeft { tokens: *tokens, ..TimeLeft::default() };
            }
            Event::Step(record) => {
                self.done += record.tokens;
                self.tokens_per_second = record.tokens_per_second;
            }
            _ => {}
        }
    }

    /// Seconds, without evaluations; None before the first step. The sample stage may end earlier.
    pub fn seconds(&self) -> Option<f64> {
        let seconds = self.tokens.saturating_sub(self.done) as f64 / self.tokens_per_second;
        seconds.is_finite().then_some(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_the_tokens_left() {
        let mut left = TimeLeft::default();
        assert_eq!(left.seconds(), None);
        let step = StepRecord {
            stage: Stage::Train,
            step: 1,
            steps: 3,
            epoch: 0.3,
            loss: 0.5,
            learning_rate: 1e-3,
            grad_norm: 1.0,
            tokens: 60,
            tokens_per_second: 5.0,
        };
        left.handle(&Event::StageStart { stage: Stage::Train, steps: 3, rows: 9, tokens: 100 });
        assert_eq!(left.seconds(), None);
        left.handle(&Event::Step(&step));
        // Dev is measured within the stage.
        left.handle(&Event::StageStart { stage: Stage::Evaluate, steps: 0, rows: 9, tokens: 7 });
        assert_eq!(left.seconds(), Some(8.0));
        left.handle(&Event::Step(&step));
        assert_eq!(left.seconds(), Some(0.0));
    }
}
