//! The training loop: the optimiser steps of one stage, with a place for hooks on either side of
//! the optimiser.

use std::time::Instant;

use lora_drop_compute::profile;

use super::activation_cache::ActivationCache;
use super::learner::Learner;
use super::optimiser::Optimiser;
use super::schedule::StageSchedule;
use crate::data::TaskRows;
use crate::events::{Event, Stage, StepRecord};
use crate::settings::Dtype;
use crate::{Cancel, Result, finite};

/// Whether a stage continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// With the next step.
    Continue,
    /// The stage ends.
    Stop,
}

/// Called around the optimiser in each step of a stage. Whatever a hook needs after a restart
/// belongs in the learner's state.
pub trait Hooks {
    /// Called when the step's gradients are complete, before the optimiser uses them.
    ///
    /// # Errors
    /// An error ends the stage.
    fn after_gradients(&mut self, _: &mut Learner) -> Result<()> {
        Ok(())
    }

    /// Called after the optimiser's update, when the step is counted: the place to measure, to
    /// score, and to write the state.
    ///
    /// # Errors
    /// An error ends the stage.
    fn after_step(&mut self, _: &mut Learner) -> Result<Next> {
        Ok(Next::Continue)
    }

    /// Called with each of the stage's events.
    fn on_event(&mut self, _: &Event) {}
}

/// Only listens.
impl<F: FnMut(&Event)> Hooks for F {
    fn on_event(&mut self, event: &Event) {
        self(event);
    }
}

impl Learner {
    /// Runs a stage from the current state until a hook returns [`Next::Stop`] or its steps are
    /// done: in each step the gradients of its rows, hooks, the optimiser, hooks.
    ///
    /// # Errors
    /// `Error::NotFinite` if the loss or the gradient is not finite, `Error::Interrupted` soon
    /// after `cancel` was raised, and those of hooks. Unless a hook failed, the state is then the
    /// one after the last complete step.
    pub fn run(
        &mut self,
        schedule: &StageSchedule,
        rows: TaskRows,
        hooks: &mut dyn Hooks,
        cancel: &Cancel,
    ) -> Result<()> {
        let StageSchedule { settings, stage, lr_schedule, .. } = schedule;
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
            let learning_rate = settings.optimisation.learning_rate * lr_schedule.factor(number);
            let batch = &order[place * settings.optimisation.step_rows()..];
            let batch = &batch[..batch.len().min(settings.optimisation.step_rows())];
            let seen = schedule.observer.map(|_| self.state.observations.clone());
            let (loss, tokens) = match self.gradients(schedule, rows, batch, cancel) {
                Ok(found) => found,
                Err(error) => {
                    // Discards what the incomplete step has added: the step will be made again.
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
            state.optimiser.step(&mut state.parameters, &settings.optimisation, lr_schedule, grad_norm);
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
            if let Some(failure) = self.activation_cache.as_ref().and_then(ActivationCache::take_failure) {
                hooks.on_event(&Event::Warning(&failure));
            }
            hooks.on_event(&Event::Step(&record));
            if hooks.after_step(self)? == Next::Stop {
                break;
            }
        }
        Ok(())
    }
}
