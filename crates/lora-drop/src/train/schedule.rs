//! Which rows a stage trains on in which order, and how its learning rate goes: a function of
//! settings and data alone.

use std::ops::Range;

use lora_drop_transformer::Observer;

use super::optimiser::LearningRateSchedule;
use crate::data::{TaskRows, batch};
use crate::events::Stage;
use crate::score::Window;
use crate::settings::TrainSettings;

/// One stage of training: its rows, steps and random streams.
///
/// If the stage continues an earlier one, steps are counted over both. The epoch, and the place in
/// it, follow from the step.
pub struct StageSchedule<'a> {
    pub settings: &'a TrainSettings,
    pub stage: Stage,
    /// Indices of the rows to train on.
    pub rows: Vec<usize>,
    /// Optimiser steps at the end of the stage.
    pub steps: usize,
    pub lr_schedule: LearningRateSchedule,
    /// The observer of modules in forward passes; its sums are in the state.
    pub observer: Option<&'a dyn Observer>,
}

impl<'a> StageSchedule<'a> {
    /// Fine-tuning on `rows` rows by the settings.
    pub fn of_training(settings: &'a TrainSettings, rows: usize) -> Self {
        let steps = settings.steps(rows);
        let lr_schedule = LearningRateSchedule::of_run(settings, rows);
        StageSchedule {
            settings,
            stage: Stage::Train,
            rows: (0..rows).collect(),
            steps,
            lr_schedule,
            observer: None,
        }
    }

    pub(crate) fn steps_per_epoch(&self) -> usize {
        self.rows.len().div_ceil(self.settings.optimisation.step_rows())
    }

    /// The rows of an epoch (from 0), in the order of its steps: a function of seed, stage and
    /// epoch.
    pub fn order(&self, epoch: usize) -> Vec<usize> {
        batch::epoch_order(&self.rows, self.settings.optimisation.seed, self.stage as u64, epoch as u64)
    }

    /// Rows and tokens of a range of the stage's steps, counted from 0; a repeated row counts each
    /// time.
    pub fn window(&self, range: Range<usize>, rows: TaskRows) -> Window {
        let per_epoch = self.steps_per_epoch();
        let mut window = Window { steps: range.len(), ..Window::default() };
        for epoch in range.start / per_epoch..range.end.div_ceil(per_epoch) {
            for (number, step) in
                batch::steps(&self.order(epoch), self.settings.optimisation.step_rows()).enumerate()
            {
                if range.contains(&(epoch * per_epoch + number)) {
                    window.rows += step.len();
                    window.tokens += step.iter().map(|&row| rows.length(row)).sum::<usize>();
                }
            }
        }
        window
    }
}
