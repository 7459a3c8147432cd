//! AdamW over all trained tensors, with the gradient norm clipped and the learning rate on its
//! schedule.

use lora_drop_compute::{adamw, profile};
use lora_drop_transformer::{Group, Parameter, Parameters};

use crate::settings::{Optimisation, ScheduleShape, TrainSettings};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// The learning rate over the steps, as a factor: transformers' `get_*_schedule_with_warmup`,
/// except that step k (from 1) of n warm-up steps has k/n of the rate. There, the first step has
/// rate zero and learns nothing, which matters if steps are few.
#[derive(Clone, Copy, Debug)]
pub struct LearningRateSchedule {
    pub shape: ScheduleShape,
    /// Steps in which the rate rises.
    pub warmup_steps: usize,
    /// All steps.
    pub steps: usize,
}

impl LearningRateSchedule {
    /// A schedule whose warm-up is `ratio` of the steps, rounded up.
    pub fn new(shape: ScheduleShape, ratio: f64, steps: usize) -> Self {
        LearningRateSchedule { shape, warmup_steps: (ratio * steps as f64).ceil() as usize, steps }
    }

    /// The schedule of a run over `rows` rows; of both stages if one continues from the other.
    pub fn of_run(settings: &TrainSettings, rows: usize) -> Self {
        Self::new(settings.optimisation.schedule, settings.optimisation.warmup_ratio, settings.steps(rows))
    }

    /// The factor of a step, counted from 0.
    pub fn factor(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return (step + 1) as f64 / self.warmup_steps as f64;
        }
        let rest = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = (step - self.warmup_steps) as f64 / rest;
        match self.shape {
            ScheduleShape::Constant => 1.0,
            ScheduleShape::Linear => (1.0 - done).max(0.0),
            ScheduleShape::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * done).cos())).max(0.0),
        }
    }
}

/// The state of AdamW: both moments of every trained value, in the order of `Parameters::values`,
/// and the number of steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimiser {
    /// Means of gradients.
    pub first: Vec<f32>,
    /// Means of squared gradients.
    pub second: Vec<f32>,
    /// Steps made.
    pub steps: usize,
    /// Steps made before each parameter's first one, by parameter: PyTorch's `step` is counted from
    /// there.
    pub begun: Vec<usize>,
}

impl Optimiser {
    /// The state before the first step.
    pub fn new(parameters: &Parameters) -> Self {
        let (count, tensors) = (parameters.count(), parameters.list().len());
        Optimiser { first: vec![0.0; count], second: vec![0.0; count], steps: 0, begun: vec![0; tensors] }
    }

    /// Continues from another optimiser: parameters with the same name and shape keep their
    /// moments, the others begin with the next step.
    pub(crate) fn continue_from(&mut self, list: &[Parameter], old: &Optimiser, old_list: &[Parameter]) {
        self.steps = old.steps;
        for (number, parameter) in list.iter().enumerate() {
            let same = |other: &&Parameter| other.name == parameter.name && other.shape == parameter.shape;
            let found = old_list.iter().zip(&old.begun).find(|(other, _)| same(other));
            self.begun[number] = found.map_or(old.steps, |(_, &begun)| begun);
            if let Some((other, _)) = found {
                for (moments, old) in [(&mut self.first, &old.first), (&mut self.second, &old.second)] {
                    moments[parameter.range.clone()].copy_from_slice(&old[other.range.clone()]);
                }
            }
        }
    }

    /// The norm of the gradients, before clipping.
    pub(crate) fn gradient_norm(parameters: &Parameters) -> f64 {
        let _phase = profile::phase("optimiser");
        adamw::norm(parameters.gradients())
    }

    /// The factor by which gradients of this norm are clipped; a `max_grad_norm` of 0 clips
    /// nothing.
    pub(crate) fn clip(max_grad_norm: f64, norm: f64) -> f64 {
        if max_grad_norm > 0.0 { (max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
    }

    /// Updates the values from the gradients, whose norm is `norm`, with the settings' rates at
    /// this point of the schedule.
    pub fn step(
        &mut self,
        parameters: &mut Parameters,
        settings: &Optimisation,
        lr_schedule: &LearningRateSchedule,
        norm: f64,
    ) {
        let _phase = profile::phase("optimiser");
        let scale = Self::clip(settings.max_grad_norm, norm);
        let factor = lr_schedule.factor(self.steps);
        let head_rate = settings.head_learning_rate.unwrap_or(settings.learning_rate);
        self.steps += 1;
        let (list, values, gradients) = parameters.split();
        for (parameter, begun) in list.iter().zip(&self.begun) {
            let rate = if parameter.group == Group::Head { head_rate } else { settings.learning_rate };
            let update = adamw::Update {
                learning_rate: rate * factor,
                weight_decay: if parameter.decay { settings.weight_decay } else { 0.0 },
                beta1: BETA1,
                beta2: BETA2,
                epsilon: EPSILON,
                step: (self.steps - begun) as i32,
                gradient_scale: scale as f32,
            };
            let at = parameter.range.clone();
            adamw::update(
                update,
                &mut values[at.clone()],
                &gradients[at.clone()],
                &mut self.first[at.clone()],
                &mut self.second[at],
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_those_of_transformers_after_a_warm_up_that_learns() {
        // get_linear_schedule_with_warmup(2, 10) and get_cosine_schedule_with_warmup(2, 10) from
        // step 2 on
        let linear = LearningRateSchedule { shape: ScheduleShape::Linear, warmup_steps: 2, steps: 10 };
        let factors: Vec<f64> = (0..11).map(|s| linear.factor(s)).collect();
        assert_eq!(factors, [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]);
        let cosine = LearningRateSchedule { shape: ScheduleShape::Cosine, ..linear };
        assert_eq!(cosine.factor(2), 1.0);
        assert!((cosine.factor(6) - 0.5).abs() < 1e-12 && cosine.factor(10).abs() < 1e-12);
        let constant = LearningRateSchedule { shape: ScheduleShape::Constant, ..linear };
        assert_eq!((constant.factor(0), constant.factor(1), constant.factor(7)), (0.5, 1.0, 1.0));
        // The only step of a run has the whole rate, whatever the warm-up.
        assert_eq!(LearningRateSchedule::new(ScheduleShape::Linear, 0.06, 1).factor(0), 1.0);
        assert_eq!(LearningRateSchedule::new(ScheduleShape::Linear, 0.06, 100).warmup_steps, 6);
        assert_eq!(LearningRateSchedule::new(ScheduleShape::Linear, 0.06, 10).warmup_steps, 1);
    }

    #[test]
    fn the_head_has_its_own_learning_rate_and_the_norm_is_clipped() {
        let mut parameters = Parameters::new();
        let lora = parameters.add("lora", &[1], Group::Lora, true, &[1.0]);
        let head = parameters.add("head", &[1], Group::Head, false, &[1.0]);
        parameters.zero_gradients();
        let (_, _, gradients) = parameters.split();
        gradients.copy_from_slice(&[30.0, 40.0]);
        let settings = Optimisation {
            learning_rate: 0.1,
            head_learning_rate: Some(0.01),
            weight_decay: 0.5,
            ..Optimisation::default()
        };
        let lr_schedule = LearningRateSchedule { shape: ScheduleShape::Constant, warmup_steps: 0, steps: 1 };
        let mut optimiser = Optimiser::new(&parameters);
        let norm = Optimiser::gradient_norm(&parameters);
        assert_eq!(norm, 50.0);
        optimiser.step(&mut parameters, &settings, &lr_schedule, norm);
        // The first step of Adam is the rate whatever the gradient; decay is 0.1 · 0.5 of the
        // LoRA's value.
        assert!((parameters.value(lora)[0] - (0.95 - 0.1)).abs() < 1e-6);
        assert!((parameters.value(head)[0] - 0.99).abs() < 1e-6);
        assert!((optimiser.first[0] - 0.1 * 30.0 / 50.0).abs() < 1e-6);
    }
}
