//! AdaLoRA (Zhang et al. 2023): each module's update is B diag(E) A, a sum of triplets of a
//! singular value and its vectors. The least important triplets lose their E, until on average
//! `--rank` of them are left in a module.
//!
//! The rules are PEFT's, with its constants and a mask in every step in which the budget falls. The
//! sums are in the state's observations, for each module: the smoothed sensitivity of each value of
//! A, E and B, then its smoothed uncertainty, then for each triplet whether it is pruned.

use lora_drop_compute::gemm::{Mat, MatMut, Precision, Start, matmul};
use lora_drop_transformer::{ModuleId, Observations, ParamId, Parameters};

use super::learner::Learner;
use super::optimiser::Optimiser;
use super::stage::{Hooks, Next};
use super::state::TrainState;
use crate::Result;
use crate::adapter::{BankPair, LoraBank};
use crate::settings::TrainSettings;

/// Weight of the mean over all A and B of ‖P Pᵀ − I‖ (eq. 4).
const ORTHOGONAL: f32 = 0.5;
/// Smoothing of the sensitivity, and of its uncertainty (eq. 9 and 10).
const BETA: f64 = 0.85;

/// The hooks of a run's last stage.
pub struct AdaLora {
    /// Norm to which gradients are clipped.
    max_grad_norm: f64,
    /// Steps before the budget falls, and the step that ends the fall.
    begin: usize,
    end: usize,
    /// Number of triplets at the beginning and at the end.
    first: usize,
    target: usize,
}

impl AdaLora {
    /// The schedule of the budget over a stage of `steps` optimiser steps.
    pub fn new(settings: &TrainSettings, bank: &LoraBank, steps: usize) -> Self {
        let part = |part: f64| (part * steps as f64) as usize;
        AdaLora {
            max_grad_norm: settings.optimisation.max_grad_norm,
            begin: part(settings.adapter.tinit),
            end: steps - part(settings.adapter.tfinal),
            first: bank.pairs().iter().map(|pair| pair.lora.rank).sum(),
            target: settings.adapter.rank * bank.modules().len(),
        }
    }

    /// The step that ends the fall of the budget.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Number of triplets to keep after a step, counted from 1: the cubic schedule (eq. 12). None
    /// before the fall begins.
    fn budget(&self, step: usize) -> Option<usize> {
        if step >= self.end {
            return Some(self.target);
        }
        let done = step.checked_sub(self.begin).filter(|done| *done > 0)?;
        let left = 1.0 - done as f64 / (self.end - self.begin) as f64;
        let over = self.first.saturating_sub(self.target) as f64;
        Some((over * left.powi(3) + self.target as f64) as usize)
    }
}

impl Hooks for AdaLora {
    /// Adds the gradient of the regularisation: with C = P Pᵀ − I that of ‖C‖ is 2 C P / ‖C‖.
    fn after_gradients(&mut self, learner: &mut Learner) -> Result<()> {
        let halves = 2 * learner.bank.pairs().len();
        for pair in learner.bank.pairs() {
            for (id, width) in [(pair.lora.a, pair.input), (pair.lora.b, pair.output)] {
                regularise(
                    &mut learner.state.parameters,
                    id,
                    [pair.lora.rank, width],
                    ORTHOGONAL / halves as f32,
                );
            }
        }
        Ok(())
    }

    fn after_step(&mut self, learner: &mut Learner) -> Result<Next> {
        let Learner { bank, state, .. } = learner;
        let step = state.optimiser.steps;
        // PEFT observes nothing in the step that ends the fall. If that is the first step, one
        // observation is needed to score the triplets.
        if step < self.end || step == 1 {
            let clip = Optimiser::clip(self.max_grad_norm, Optimiser::gradient_norm(&state.parameters));
            bank.adapted().for_each(|(id, pair)| observe(bank, id, pair, state, clip));
        }
        if step <= self.end
            && let Some(budget) = self.budget(step)
        {
            choose(bank, &mut state.observations, self.first - budget.min(self.first));
        }
        mask(bank, state);
        Ok(Next::Continue)
    }
}

/// Number of sums in a module's observations.
pub fn sums(pair: &BankPair) -> usize {
    2 * values(pair) + pair.lora.rank
}

/// Number of values in A, E and B.
fn values(pair: &BankPair) -> usize {
    pair.parameters() + pair.lora.rank
}

/// Number of values of A and B in the triplets that are left.
pub fn kept(bank: &LoraBank, observations: &Observations) -> usize {
    let of_module = |(id, pair): (ModuleId, &BankPair)| {
        let out = observations
            .get(id)
            .map_or(0, |sums| sums[2 * values(pair)..].iter().filter(|x| **x != 0.0).count());
        (pair.lora.rank - out) * (pair.input + pair.output)
    };
    bank.adapted().map(of_module).sum()
}

/// Adds the gradient of `weight` · ‖P Pᵀ − I‖ to that of P, (rank, width).
fn regularise(parameters: &mut Parameters, id: ParamId, [rank, width]: [usize; 2], weight: f32) {
    let (list, values, gradients) = parameters.split();
    let range = list[id.index()].range.clone();
    let p = Mat::new(&values[range.clone()], rank, width);
    let mut c = vec![0.0; rank * rank];
    matmul(Precision::F32, MatMut::new(&mut c, rank, rank), Start::Zero, 1.0, &[(p, p.t())]);
    (0..rank).for_each(|i| c[i * rank + i] -= 1.0);
    let norm = c.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
    if norm > 0.0 {
        let gradient = MatMut::new(&mut gradients[range], rank, width);
        matmul(Precision::F32, gradient, Start::Keep, 2.0 * weight / norm, &[(Mat::new(&c, rank, rank), p)]);
    }
}

/// Smooths the sensitivity I = |w · g| of each value, and its uncertainty |I − average of I|.
/// Gradients are multiplied by `clip`, as the optimiser does.
fn observe(bank: &LoraBank, id: ModuleId, pair: &BankPair, state: &mut TrainState, clip: f64) {
    let TrainState { parameters, observations, .. } = state;
    let (average, rest) = observations.of(id, sums(pair)).split_at_mut(values(pair));
    let mut sums = average.iter_mut().zip(rest);
    for tensor in [pair.lora.a, bank.vector_ids(id)[0], pair.lora.b] {
        let of = parameters.value(tensor).iter().zip(parameters.gradient(tensor));
        for ((w, g), (average, uncertainty)) in of.zip(&mut sums) {
            let sensitivity = (f64::from(*w) * f64::from(*g) * clip).abs();
            *average = BETA * *average + (1.0 - BETA) * sensitivity;
            *uncertainty = BETA * *uncertainty + (1.0 - BETA) * (sensitivity - *average).abs();
        }
    }
}

/// Computes the score of each triplet (eq. 7): average · uncertainty of E, plus the means of this
/// product over its row of A and its column of B.
fn scores(pair: &BankPair, sums: &[f64]) -> Vec<f64> {
    let (average, uncertainty) = sums[..2 * values(pair)].split_at(values(pair));
    let score: Vec<f64> = average.iter().zip(uncertainty).map(|(i, u)| i * u).collect();
    let (a, rest) = score.split_at(pair.lora.rank * pair.input);
    let (e, b) = rest.split_at(pair.lora.rank);
    let mean = |row: &[f64]| row.iter().sum::<f64>() / row.len() as f64;
    let rows = a.chunks_exact(pair.input).zip(b.chunks_exact(pair.output));
    rows.zip(e).map(|((a, b), e)| e + mean(a) + mean(b)).collect()
}

/// Marks the pruned triplets: the `out` triplets with the smallest scores over all modules, and any
/// that tie with the largest of these.
fn choose(bank: &LoraBank, observations: &mut Observations, out: usize) {
    let of_module = |(id, pair)| Some((id, scores(pair, observations.get(id)?)));
    let scores: Vec<(ModuleId, Vec<f64>)> = bank.adapted().filter_map(of_module).collect();
    let mut all: Vec<f64> = scores.iter().flat_map(|(_, scores)| scores).copied().collect();
    all.sort_by(f64::total_cmp);
    let most = out.checked_sub(1).and_then(|last| all.get(last)).copied().unwrap_or(f64::NEG_INFINITY);
    for ((id, scores), (_, pair)) in scores.iter().zip(bank.adapted()) {
        let marks = &mut observations.of(*id, sums(pair))[2 * values(pair)..];
        marks.iter_mut().zip(scores).for_each(|(mark, score)| *mark = f64::from(u8::from(*score <= most)));
    }
}

/// Sets E of the pruned triplets to 0.
fn mask(bank: &LoraBank, state: &mut TrainState) {
    let TrainState { parameters, observations, .. } = state;
    for (id, pair) in bank.adapted() {
        let Some(sums) = observations.get(id) else { continue };
        let e = parameters.value_mut(bank.vector_ids(id)[0]).iter_mut();
        e.zip(&sums[2 * values(pair)..]).filter(|(_, out)| **out != 0.0).for_each(|(e, _)| *e = 0.0);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::AtomicBool;

    use lora_drop_transformer::{
        Checkpoint, Context, DropoutRates, Head, ModuleKind, Sequences, Targets, TrainPart,
    };

    use super::*;
    use crate::Cancel;
    use crate::assignment::Assignment;
    use crate::model::ModelFiles;
    use crate::settings::{AdapterSettings, Method, ScheduleShape};
    use crate::train::{Learner, LearningRateSchedule};

    const STEPS: usize = 12;
    static GO: AtomicBool = AtomicBool::new(false);

    fn tensor(file: &Checkpoint, name: &str) -> Vec<f32> {
        file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).to_vec()
    }

    fn integers(file: &Checkpoint, name: &str) -> Vec<u32> {
        let (chunks, _) = file.bytes(name).expect(name).as_chunks();
        chunks.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }

    fn transposed(x: &[f32], rows: usize) -> Vec<f32> {
        let columns = x.len() / rows;
        (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect()
    }

    fn close(what: &str, got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (got, want) in got.iter().zip(want) {
            assert_eq!(*got == 0.0, *want == 0.0, "{what}: {got}, PEFT has {want}");
            // Rounding decides where AdamW moves a value whose gradient is nearly 0.
            assert!((got - want).abs() <= 1e-3 * want.abs().max(0.5), "{what}: {got}, PEFT has {want}");
        }
    }

    /// Twelve steps of PEFT's AdaLoRA, E after each of them (tools/golden/golden_adapters.py).
    #[test]
    fn steps_through_the_fall_of_the_budget_are_pefts() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert");
        let open = |name: &str| Checkpoint::open_file(&folder.join(name)).unwrap();
        let (golden, own) = (open("golden.safetensors"), open("adapters.safetensors"));
        let adapter = AdapterSettings {
            method: Method::AdaLora,
            rank: 2,
            alpha: 8.0,
            tinit: 2.5 / STEPS as f64,
            tfinal: 3.5 / STEPS as f64,
            ..AdapterSettings::default()
        };
        let mut settings = TrainSettings { adapter, ..TrainSettings::default() };
        settings.optimisation.learning_rate = 2e-3;
        let files = ModelFiles::open(folder.to_str().unwrap(), &Cancel::new(), &mut |_| {}).unwrap();
        let modules = files.config.modules(&[ModuleKind::Query, ModuleKind::Value]);
        let assignment = Assignment::all_own(modules.clone());
        let mut learner = Learner::load(&files, Some(Head::of_sequences(3)), &settings, &assignment).unwrap();
        for &id in &modules {
            let (pair, name) = (
                learner.bank.pair_of(id).unwrap().clone(),
                format!("layers.{}.{}", id.layer, id.kind.name()),
            );
            assert_eq!(pair.lora.rank, 3);
            let [e] = *learner.bank.vector_ids(id) else { panic!("one vector") };
            let a = tensor(&golden, &format!("lora.{name}.lora_A"));
            let b = transposed(&tensor(&golden, &format!("lora.{name}.lora_B")), pair.output);
            let parameters = &mut learner.state.parameters;
            parameters.value_mut(pair.lora.a).copy_from_slice(&a[..3 * pair.input]);
            parameters.value_mut(pair.lora.b).copy_from_slice(&b[..3 * pair.output]);
            parameters
                .value_mut(e)
                .copy_from_slice(&tensor(&own, &format!("adalora.start.{name}.inner"))[..3]);
        }
        let (ids, types) = (integers(&golden, "input.ids"), integers(&golden, "input.token_types"));
        let wide = |name: &str| integers(&golden, name).iter().map(|x| *x as usize).collect::<Vec<_>>();
        let (offsets, labels) = (wide("input.offsets"), wide("input.labels"));
        let norms = tensor(&own, "adalora.steps.grad_norms");
        let lr_schedule =
            LearningRateSchedule { shape: ScheduleShape::Constant, warmup_steps: 0, steps: STEPS };
        let mut hooks = AdaLora::new(&settings, &learner.bank, STEPS);
        assert_eq!((hooks.begin, hooks.end, hooks.first, hooks.target), (2, 9, 18, 12));
        for step in 1..=STEPS {
            let Learner { model, table, state, arenas, .. } = &mut learner;
            state.parameters.zero_gradients();
            let (values, gradients) = state.parameters.training();
            let context = Context { values, table, observing: None, memory: arenas.memory(), stop: &GO };
            let part = TrainPart {
                sequences: Sequences { ids: &ids, types: &types, offsets: &offsets, labelled: &[] },
                targets: Targets::Classes(&labels),
                label_smoothing: 0.0,
                total: labels.len() as f64,
                weights: &[],
                dropout: DropoutRates::NONE,
                keys: &[lora_drop_compute::random::Key::new(0); 6],
                recompute: false,
                prefix: None,
            };
            model.net.train(context, gradients, part).unwrap();
            hooks.after_gradients(&mut learner).unwrap();
            let norm = Optimiser::gradient_norm(&learner.state.parameters);
            close(&format!("the norm of step {step}"), &[norm as f32], &norms[step - 1..step]);
            let state = &mut learner.state;
            state.optimiser.step(&mut state.parameters, &settings.optimisation, &lr_schedule, norm);
            hooks.after_step(&mut learner).unwrap();
            for &id in &modules {
                let name = format!("adalora.steps.{step}.layers.{}.{}.inner", id.layer, id.kind.name());
                let e = learner.bank.vectors(id, &learner.state.parameters).unwrap();
                close(&name, &e, &tensor(&own, &name));
            }
        }
        for &id in &modules {
            let (pair, name) =
                (learner.bank.pair_of(id).unwrap(), format!("layers.{}.{}", id.layer, id.kind.name()));
            let half = |half: &str| tensor(&own, &format!("adalora.steps.final.{name}.lora_{half}"));
            close("A", learner.state.parameters.value(pair.lora.a), &half("A"));
            close("B", &learner.bank.b(pair, &learner.state.parameters), &half("B"));
        }
        assert_eq!(kept(&learner.bank, &learner.state.observations), 12 * 64);
    }
}
