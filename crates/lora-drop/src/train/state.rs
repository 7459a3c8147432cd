//! All that changes while a run trains, as one value. With the settings, the model and the data it
//! decides what follows, bit for bit: random numbers and the order of the rows are functions of the
//! seed, the stage and the step.

use lora_drop_transformer::{Observations, Parameters};
use serde::{Deserialize, Serialize};

use super::optimiser::Optimiser;
use crate::assignment::Assignment;
use crate::events::Stage;
use crate::run_record::DevFindings;
use crate::score::{Importance, RankingStability};
use crate::settings::TrainSettings;
use crate::summary::Baseline;

/// Everything that changes from step to step.
pub struct TrainState {
    /// The sample stage, or training.
    pub stage: Stage,
    /// The values and gradients of everything that trains.
    pub parameters: Parameters,
    /// AdamW's moments, and the number of steps: the epoch and the place in its order follow from
    /// it.
    pub optimiser: Optimiser,
    /// Real tokens of these steps.
    pub tokens: usize,
    /// Seconds of these steps, without evaluation and scoring.
    pub seconds: f64,
    /// The criterion's sums since the sample stage's window began.
    pub observations: Observations,
    /// The sample stage's scorings.
    pub settling: RankingStability,
    pub progress: Progress,
}

/// The results of a run so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The result on dev without training.
    pub baseline: Option<Baseline>,
    /// Seconds of measuring it.
    pub baseline_seconds: f64,
    /// The assignment of the pairs in training.
    pub assignment: Assignment,
    /// The sample stage's last scoring, once it is over.
    pub importance: Option<Importance>,
    /// Optimiser steps of the sample stage, once it is over.
    pub sample_steps: usize,
    /// Seconds of the sample stage.
    pub sample_seconds: f64,
    /// The best epoch.
    pub best: Option<Best>,
    /// The stage's steps at the last evaluation, or before its first step.
    pub evaluated: usize,
    /// Seconds of measuring dev.
    pub evaluate_seconds: f64,
}

/// The best measurement so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Epochs done, including the fraction of the current one.
    pub epoch: f64,
    /// Steps of the stage.
    pub step: usize,
    /// Mean loss on dev, without label smoothing.
    pub loss: f64,
    /// Name and value, the task's default metric first.
    pub metrics: Vec<(String, f64)>,
    /// The model's answers on dev then.
    pub dev: DevFindings,
}

impl TrainState {
    /// The state before the first step of a run that trains these parameters, whose pairs are those
    /// of the assignment.
    pub fn new(settings: &TrainSettings, parameters: Parameters, assignment: &Assignment) -> Self {
        TrainState {
            stage: if settings.samples() { Stage::Sample } else { Stage::Train },
            optimiser: Optimiser::new(&parameters),
            parameters,
            tokens: 0,
            seconds: 0.0,
            observations: Observations::new(),
            settling: RankingStability::new(settings.selection.scope),
            progress: Progress { assignment: assignment.clone(), ..Progress::default() },
        }
    }

    /// Begins fine-tuning with other parameters; returns the previous ones and their optimiser.
    pub(super) fn begin_training(
        &mut self,
        parameters: Parameters,
        assignment: &Assignment,
    ) -> (Parameters, Optimiser) {
        self.stage = Stage::Train;
        (self.tokens, self.seconds) = (0, 0.0);
        self.observations = Observations::new();
        self.progress.assignment = assignment.clone();
        let optimiser = std::mem::replace(&mut self.optimiser, Optimiser::new(&parameters));
        (std::mem::replace(&mut self.parameters, parameters), optimiser)
    }
}
