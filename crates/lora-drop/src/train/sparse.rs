//! SparseAdapter on LoRA (He et al. 2022): a plain LoRA trains on the sample, then a mask keeps a
//! part of the values of all A and B. Only these train on; the others are zero.
//!
//! The sample stage has to come first: B begins as zero, so before it no value of B is large, and
//! no value of A has a gradient. During the sample stage, the state's observations of a module are
//! the sums of its gradients, A's and then B's; in fine-tuning they are 1 for each value that is
//! kept.

use std::time::Instant;

use lora_drop_compute::random::Key;
use lora_drop_transformer::{ModuleId, Observations, ParamId, Parameters};

use super::learner::Learner;
use super::prepare::Prepared;
use super::sample_stage;
use super::stage::{Hooks, Next};
use super::windows::window;
use crate::adapter::{BankPair, LoraBank};
use crate::assignment::Assignment;
use crate::events::{Event, Stage};
use crate::settings::{SparseBy, TrainSettings};
use crate::{Cancel, Error, Result};

/// Trains on the sample, chooses the values to keep, and begins fine-tuning with them.
///
/// # Errors
/// Those of the loop; scores that are not finite.
pub fn run(
    prepared: &Prepared,
    settings: &TrainSettings,
    learner: &mut Learner,
    hooks: &mut dyn Hooks,
    cancel: &Cancel,
) -> Result<()> {
    let began = Instant::now();
    let (schedule, tokens) = sample_stage::schedule(prepared, settings, None)?;
    let before = learner.state.seconds;
    hooks.on_event(&sample_stage::stage_start(&schedule, tokens, learner.state.optimiser.steps));
    let summed = match settings.adapter.sparse_by {
        SparseBy::Snip => window(schedule.steps_per_epoch()).min(schedule.steps),
        SparseBy::Magnitude | SparseBy::Random => 0,
    };
    let mut summing = SumGradients { from: schedule.steps - summed, hooks };
    learner.run(&schedule, prepared.data.train(), &mut summing, cancel)?;
    let kept = mask(&learner.bank, &learner.state.parameters, &learner.state.observations, settings)?;
    let seconds = before + began.elapsed().as_secs_f64();
    learner.state.progress.sample_seconds = seconds;
    hooks.on_event(&Event::StageEnd { stage: Stage::Sample, seconds });

    learner.begin_training(settings, &Assignment::all_own(prepared.modules()))?;
    learner.state.observations = kept;
    let Learner { bank, state, .. } = learner;
    for (id, tensor, at) in tensors(bank) {
        let kept = &state.observations.get(id).unwrap_or_default()[at..];
        let range = state.parameters.info(tensor).range.clone();
        // A moment that is not cleared would move its value.
        clear(&mut state.optimiser.first[range.clone()], kept);
        clear(&mut state.optimiser.second[range], kept);
        clear(state.parameters.value_mut(tensor), kept);
    }
    Ok(())
}

/// Number of values that are kept of `all`.
pub fn count(all: usize, settings: &TrainSettings) -> usize {
    ((settings.selection.density() * all as f64) as usize).max(1)
}

/// Number of values that the mask keeps.
pub fn kept(bank: &LoraBank, observations: &Observations) -> usize {
    let of_module =
        |id: &ModuleId| observations.get(*id).map_or(0, |kept| kept.iter().filter(|x| **x != 0.0).count());
    bank.modules().keys().map(of_module).sum()
}

/// A and B of each module, each with the offset of its values among the module's.
fn tensors(bank: &LoraBank) -> impl Iterator<Item = (ModuleId, ParamId, usize)> {
    bank.adapted()
        .flat_map(|(id, pair)| [(id, pair.lora.a, 0), (id, pair.lora.b, pair.lora.rank * pair.input)])
}

fn clear(values: &mut [f32], kept: &[f64]) {
    values.iter_mut().zip(kept).filter(|(_, kept)| **kept == 0.0).for_each(|(value, _)| *value = 0.0);
}

/// Marks the values to keep with 1: those with the largest scores over all modules, the first of
/// them in a tie. `gradients` are sums over steps.
fn mask(
    bank: &LoraBank,
    parameters: &Parameters,
    gradients: &Observations,
    settings: &TrainSettings,
) -> Result<Observations> {
    let mut scores: Vec<(f64, u32)> = Vec::with_capacity(bank.unique_parameters());
    let random = Key::new(settings.optimisation.seed).fold(RANDOM);
    for (id, tensor, at) in tensors(bank) {
        let sums = gradients.get(id).unwrap_or_default();
        for (i, w) in parameters.value(tensor).iter().enumerate() {
            let place = scores.len() as u32;
            let score = match settings.adapter.sparse_by {
                SparseBy::Magnitude => f64::from(*w).abs(),
                SparseBy::Snip => (f64::from(*w) * sums[at + i]).abs(),
                SparseBy::Random => random.uniform(u64::from(place)),
            };
            scores.push((score, place));
        }
    }
    if scores.iter().any(|(score, _)| !score.is_finite()) {
        let problem = "the scores of the LoRA's values are not finite after the sample stage; try a lower `learning_rate`";
        return Err(Error::NotFinite(problem.to_string()));
    }
    let most = count(scores.len(), settings);
    if most < scores.len() {
        scores.select_nth_unstable_by(most, |x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
    }
    let mut marks = vec![0.0; scores.len()];
    scores[..most].iter().for_each(|(_, place)| marks[*place as usize] = 1.0);
    let (mut kept, mut rest) = (Observations::new(), &marks[..]);
    for (id, pair) in bank.adapted() {
        let (own, behind) = rest.split_at(BankPair::parameters(pair));
        kept.of(id, own.len()).copy_from_slice(own);
        rest = behind;
    }
    Ok(kept)
}

/// Folded into the seed's key for the random choice.
const RANDOM: u64 = 0x73_7061_7273_6500;

/// Hooks of the sample stage: they add up the gradients of all steps after the first `from`.
struct SumGradients<'a> {
    from: usize,
    hooks: &'a mut dyn Hooks,
}

impl Hooks for SumGradients<'_> {
    fn after_gradients(&mut self, learner: &mut Learner) -> Result<()> {
        self.hooks.after_gradients(learner)?;
        let Learner { bank, state, .. } = learner;
        if state.optimiser.steps >= self.from {
            for (id, tensor, at) in tensors(bank) {
                let count = bank.pair_of(id).map_or(0, BankPair::parameters);
                let sums = &mut state.observations.of(id, count)[at..];
                let gradient = state.parameters.gradient(tensor);
                sums.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += f64::from(*g));
            }
        }
        Ok(())
    }

    fn after_step(&mut self, learner: &mut Learner) -> Result<Next> {
        self.hooks.after_step(learner)
    }

    fn on_event(&mut self, event: &Event) {
        self.hooks.on_event(event);
    }
}

/// Hooks of fine-tuning: values that are not kept have no gradient, so they stay zero.
pub struct MaskGradients;

impl Hooks for MaskGradients {
    fn after_gradients(&mut self, learner: &mut Learner) -> Result<()> {
        let Learner { bank, state, .. } = learner;
        let (list, _, gradients) = state.parameters.split();
        for (id, tensor, at) in tensors(bank) {
            let kept = &state.observations.get(id).unwrap_or_default()[at..];
            clear(&mut gradients[list[tensor.index()].range.clone()], kept);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lora_drop_transformer::{AdapterMethod, ModuleKind};

    use super::*;
    use crate::adapter::NewPairs;
    use crate::adapter::init::RandomStream;
    use crate::settings::{Budget, Method};

    /// Query and value of two layers, with values and gradients many of which are equal.
    fn pairs() -> (LoraBank, Parameters, Observations) {
        let ids = (0..2)
            .flat_map(|layer| [ModuleKind::Query, ModuleKind::Value].map(|kind| ModuleId { layer, kind }));
        let new =
            NewPairs { method: AdapterMethod::Lora, rank: 3, alpha: 6.0, rslora: false, shared_a: false };
        let (mut parameters, mut numbers) = (Parameters::new(), RandomStream::new(7, "values"));
        let dims = |kind| if kind == ModuleKind::Query { (5, 4) } else { (5, 7) };
        let bank = LoraBank::new(&Assignment::all_own(ids), new, dims, 1, &mut parameters);
        let mut draw = |_| (numbers.uniform(1.0) * 4.0).round() / 4.0;
        let values: Vec<f32> = (0..parameters.count()).map(&mut draw).collect();
        parameters.set_values(&values);
        let mut gradients = Observations::new();
        for (id, pair) in bank.adapted() {
            let sums = gradients.of(id, pair.parameters());
            sums.iter_mut().for_each(|sum| *sum = f64::from(draw(0)));
        }
        (bank, parameters, gradients)
    }

    #[test]
    fn the_mask_is_that_of_a_sort_of_all_values() {
        let (bank, parameters, gradients) = pairs();
        type Score = fn(f64, f64) -> f64;
        let ways: [(SparseBy, Score); 2] =
            [(SparseBy::Magnitude, |w, _| w.abs()), (SparseBy::Snip, |w, g| (w * g).abs())];
        for ((sparse_by, score), share) in ways.into_iter().zip([0.3, 0.5]) {
            let budget = Some(Budget::Share(share));
            let mut settings = TrainSettings::default();
            (settings.adapter.method, settings.adapter.sparse_by) = (Method::SparseAdapter, sparse_by);
            settings.selection.budget = budget;
            let kept = mask(&bank, &parameters, &gradients, &settings).unwrap();
            // Module by module, A's values and then B's.
            let mut all: Vec<(f64, ModuleId, usize)> = Vec::new();
            for (id, pair) in bank.adapted() {
                let values = parameters.value(pair.lora.a).iter().chain(parameters.value(pair.lora.b));
                let sums = gradients.get(id).unwrap();
                let scored = values.zip(sums).map(|(w, g)| score(f64::from(*w), *g));
                all.extend(scored.enumerate().map(|(place, score)| (score, id, place)));
            }
            let most = (share * all.len() as f64) as usize;
            all.sort_by(|x, y| y.0.total_cmp(&x.0));
            assert!(all[most - 1].0 == all[most].0, "equal scores are on both sides");
            for (number, (_, id, place)) in all.into_iter().enumerate() {
                assert_eq!(kept.get(id).unwrap()[place], f64::from(number < most), "{id:?} {place}");
            }
        }
    }

    #[test]
    fn by_chance_the_seed_decides() {
        let (bank, parameters, gradients) = pairs();
        let of = |seed| {
            let mut settings = TrainSettings::default();
            (settings.adapter.sparse_by, settings.optimisation.seed) = (SparseBy::Random, seed);
            mask(&bank, &parameters, &gradients, &settings).unwrap()
        };
        let [one, again, two] = [1, 1, 2]
            .map(|seed| bank.adapted().map(|(id, _)| of(seed).get(id).unwrap().to_vec()).collect::<Vec<_>>());
        assert!(one == again && one != two);
        assert_eq!(kept(&bank, &of(1)), parameters.count() / 2);
    }
}
