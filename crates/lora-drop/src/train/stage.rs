//! The training loop: the optimiser steps of one stage, with a place for hooks on either side of
//! the optimiser.

use std::time::Instant;

use lora_drop_compute::profile;

use super::learner::Learner;
use super::optimiser::Optimiser;
use super::reuse::Reuse;
use super::schedule::Schedule;
use crate::data::TaskRows;
use crate::events::{Event, Stage, StepRecord};
use crate::settings::Dtype;
use crate::{Cancel, Result, finite};

/// What a stage does between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    GoOn,
    Enough,
}

/// What happens around the optimiser in each step of a stage, beside the step itself. Whatever a
/// hook has to know again after a restart belongs into the learner's state.
pub trait Hooks {
    /// After the step's gradients are added up, and before anything is made of them.
    ///
    /// # Errors
    /// They end the stage.
    fn after_gradients(&mut self, _: &mut Learner) -> Result<()> {
        Ok(())
    }

    /// After the optimiser's update, when the step is counted: the place to measure, to score, and
    /// to write the state.
    ///
    /// # Errors
    /// They end the stage.
    fn after_step(&mut self, _: &mut Learner) -> Result<Next> {
        Ok(Next::GoOn)
    }

    /// Hears of the stage's events.
    fn tell(&mut self, _: &Event) {}
}

/// Only listens.
impl<F: FnMut(&Event)> Hooks for F {
    fn tell(&mut self, event: &Event) {
        self(event);
    }
}

impl Learner {
    /// Runs a stage from where the state is in it, until a hook says enough or the epochs are over:
    /// for each step the gradients of its rows, hooks, the optimiser, hooks.
    ///
    /// # Errors
    /// `Error::NotFinite` where the loss or the gradient is no number, `Error::Interrupted` soon
    /// after `cancel` was raised, and those of hooks. The state is then as the last whole step has
    /// left it, unless a hook failed.
    pub fn run(
        &mut self,
        schedule: &Schedule,
        rows: TaskRows,
        hooks: &mut dyn Hooks,
        cancel: &Cancel,
    ) -> Result<()> {
        let Schedule { settings, stage, course, .. } = schedule;
        let (per_epoch, steps) = (schedule.steps_per_epoch(), schedule.steps);
        let mut order = Vec::new();
        while self.state.optimiser.steps < steps {
            let number = self.state.optimiser.steps;
            let (epoch, place) = (number / per_epoch, number % per_epoch);
            if place == 0 || order.is_empty() {
                order = schedule.order(epoch);
            }
            let began = Instant::now();
            let root =
                profile::root(if *stage == Stage::Sample { "sample step" } else { "step" }, number + 1);
            let learning_rate = settings.optimisation.learning_rate * course.factor(number);
            let batch = &order[place * settings.optimisation.step_rows()..];
            let batch = &batch[..batch.len().min(settings.optimisation.step_rows())];
            let seen = schedule.observer.map(|_| self.state.observations.clone());
            let (loss, tokens) = match self.gradients(schedule, rows, batch, cancel) {
                Ok(found) => found,
                Err(error) => {
                    // Without what a part of a step has added: the step will be made again.
                    if let Some(seen) = seen {
                        self.state.observations = seen;
                    }
                    return Err(error);
                }
            };
            hooks.after_gradients(self)?;

            let grad_norm = Optimiser::gradient_norm(&self.state.parameters);
            let found = finite::Step {
                number: number + 1,
                loss,
                grad_norm,
                learning_rate,
                updated: number > 0 || self.continued,
                bf16: settings.compute.dtype == Dtype::Bf16,
            };
            found.check()?;
            let state = &mut self.state;
            state.optimiser.step(&mut state.parameters, &settings.optimisation, course, grad_norm);
            drop(root);

            state.tokens += tokens;
            state.seconds += began.elapsed().as_secs_f64();
            let record = StepRecord {
                stage: *stage,
                step: number + 1,
                steps,
                epoch: epoch as f64 + (place + 1) as f64 / per_epoch as f64,
                loss,
                learning_rate,
                grad_norm,
                tokens,
                tokens_per_second: state.tokens as f64 / state.seconds,
            };
            if let Some(failure) = self.reuse.as_ref().and_then(Reuse::failure) {
                hooks.tell(&Event::Warning(&failure));
            }
            hooks.tell(&Event::Step(&record));
            if hooks.after_step(self)? == Next::Enough {
                break;
            }
        }
        Ok(())
    }
}
