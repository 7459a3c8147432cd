//! All that changes while a run trains, as one value. With the settings, the model and the data it
//! decides what follows, bit for bit: random numbers and the order of the rows are functions of the
//! seed, the stage and the step.

use lora_drop_transformer::{Observations, Parameters};
use serde::{Deserialize, Serialize};

use super::optimiser::Optimiser;
use crate::assignment::Assignment;
use crate::events::Stage;
use crate::record::DevFindings;
use crate::score::{Importance, Settling};
use crate::settings::TrainSettings;
use crate::summary::Baseline;

/// Where a run is.
pub struct TrainState {
    /// The sample stage, or training.
    pub stage: Stage,
    /// Everything that trains.
    pub parameters: Parameters,
    /// AdamW's moments, and the steps of this stage that are made: epoch and place in its order
    /// follow from them.
    pub optimiser: Optimiser,
    /// Real tokens in these steps, and their seconds, without evaluation and scoring.
    pub tokens: usize,
    pub seconds: f64,
    /// What passes and gradients have shown of the modules since the sample stage's window began.
    pub observations: Observations,
    /// The sample stage's scorings.
    pub settling: Settling,
    pub progress: Progress,
}

/// What a run has found so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    pub baseline: Option<Baseline>,
    pub baseline_seconds: f64,
    /// That of the pairs in training.
    pub assignment: Assignment,
    /// The sample stage's last scoring, once it is over.
    pub importance: Option<Importance>,
    pub sample_seconds: f64,
    pub best: Option<Best>,
    pub evaluate_seconds: f64,
}

/// The best measurement so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// From 1.
    pub epoch: usize,
    pub loss: f64,
    /// Name and value, the task's default metric first.
    pub metrics: Vec<(String, f64)>,
    /// What the model made of dev's rows then.
    pub dev: DevFindings,
}

impl TrainState {
    /// Before the first step of a run that trains these parameters, with pairs as the assignment
    /// has them.
    pub fn new(settings: &TrainSettings, parameters: Parameters, assignment: &Assignment) -> Self {
        TrainState {
            stage: if settings.samples() { Stage::Sample } else { Stage::Train },
            optimiser: Optimiser::new(&parameters),
            parameters,
            tokens: 0,
            seconds: 0.0,
            observations: Observations::new(),
            settling: Settling::new(settings.selection.scope),
            progress: Progress { assignment: assignment.clone(), ..Progress::default() },
        }
    }

    /// Begins training with other parameters; returns those before, and their optimiser.
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
