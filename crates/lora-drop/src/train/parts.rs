//! The parts (micro-batches) of an optimiser step, several of them concurrently where they fit:
//! their gradients, observations and losses.
//!
//! The one rule that is not obvious: each part has a gradient of its own, and these are added up in
//! the order of the parts. So results are bit-identical however many parts run concurrently, and
//! whichever of them ends first.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lora_drop_compute::profile;
use lora_drop_transformer::Values;
use lora_drop_transformer::{Memory, Observations, Parameters};

use crate::Result;
use crate::engine::parts_have_own_gradients;

/// Memory of concurrent micro-batches, which is reused.
#[derive(Default)]
pub struct WorkerArenas {
    /// Memory for activations, one for each worker.
    arenas: Vec<Memory>,
    /// Gradient buffers that are free.
    gradients: Vec<Vec<f32>>,
}

impl WorkerArenas {
    /// The memory for passes that run alone.
    pub fn memory(&mut self) -> &mut Memory {
        self.grow(1);
        &mut self.arenas[0]
    }

    /// Reserves memory for concurrent passes of these numbers of f32.
    pub fn reserve(&mut self, floats: &[usize]) {
        self.grow(floats.len());
        self.arenas.iter_mut().zip(floats).for_each(|(memory, &floats)| memory.reserve(floats));
    }

    /// Bytes of the largest activations that each worker has had, summed.
    pub fn used_bytes(&self) -> usize {
        self.arenas.iter().map(Memory::used_bytes).sum()
    }

    fn grow(&mut self, count: usize) {
        if self.arenas.len() < count {
            self.arenas.resize_with(count, Memory::default);
        }
    }

    /// Runs `train` on these parts, at most `concurrent` at a time, each as soon as a worker is
    /// free. Adds their gradients, losses and observations to the parameters, `loss` and
    /// `observations` in the order of the parts.
    ///
    /// # Errors
    /// Those of `train`. The gradients are then incomplete.
    pub fn run<P: Sync>(
        &mut self,
        parts: &[P],
        concurrent: usize,
        parameters: &mut Parameters,
        loss: &mut f64,
        mut observations: Option<&mut Observations>,
        train: impl Fn(&P, Values, &mut [f32], Option<&mut Observations>, &mut Memory) -> Result<f64> + Sync,
    ) -> Result<()> {
        let (trained, scored) = (parameters.count(), observations.is_some());
        let (values, gradients) = parameters.training();
        if !parts_have_own_gradients(trained) {
            assert!(parts.len().min(concurrent) <= 1, "concurrent parts have gradients of their own");
            for part in parts {
                let memory = self.memory();
                *loss += train(part, values, gradients, observations.as_deref_mut(), memory)?;
            }
            return Ok(());
        }
        let add = &mut |result: &PartResult| {
            gradients.iter_mut().zip(&result.gradients).for_each(|(sum, x)| *sum += x);
            *loss += result.loss;
            if let (Some(all), Some(seen)) = (observations.as_deref_mut(), &result.observations) {
                all.merge(seen);
            }
        };
        self.each(parts, concurrent, Inputs { values, trained, scored }, train, add)
    }

    /// Runs `train` on parts as `run` does, each with a gradient of its own, and calls `on_result`
    /// with the result of each, in the order of the parts.
    ///
    /// # Errors
    /// Those of `train`.
    pub(super) fn each<P: Sync>(
        &mut self,
        parts: &[P],
        concurrent: usize,
        inputs: Inputs,
        train: impl Fn(&P, Values, &mut [f32], Option<&mut Observations>, &mut Memory) -> Result<f64> + Sync,
        on_result: &mut (dyn FnMut(&PartResult) + Send),
    ) -> Result<()> {
        let Inputs { values, trained, scored } = inputs;
        let count = parts.len().min(concurrent);
        self.grow(count);
        let sequencer = Mutex::new(ResultSequencer {
            on_result,
            next: 0,
            waiting: BTreeMap::new(),
            free_gradients: &mut self.gradients,
        });
        let next = AtomicUsize::new(0);
        let work = |memory: &mut Memory| {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(part) = parts.get(number) else { return Ok(()) };
                let mut gradients = lock(&sequencer).free_gradients.pop().unwrap_or_default();
                gradients.clear();
                gradients.resize(trained, 0.0);
                let mut observations = scored.then(Observations::new);
                let loss = train(part, values, &mut gradients, observations.as_mut(), memory)
                    .inspect_err(|_| next.store(parts.len(), Ordering::Relaxed))?;
                lock(&sequencer).add(number, PartResult { gradients, loss, observations });
            }
        };
        let arenas: Vec<&mut Memory> = self.arenas[..count].iter_mut().collect();
        match count {
            0 | 1 => arenas.into_iter().try_for_each(work)?,
            _ => profile::concurrently(arenas, work).into_iter().collect::<Result<()>>()?,
        }
        Ok(())
    }
}

/// Values that parts read, and whether parts are observed.
pub(super) struct Inputs<'a> {
    pub values: Values<'a>,
    /// The number of trained values.
    pub trained: usize,
    pub scored: bool,
}

/// Result of a part.
pub(super) struct PartResult {
    pub gradients: Vec<f32>,
    pub loss: f64,
    pub observations: Option<Observations>,
}

/// Passes on the results of parts in the order of the parts.
struct ResultSequencer<'a> {
    on_result: &'a mut (dyn FnMut(&PartResult) + Send),
    /// Number of the part whose result is passed on next.
    next: usize,
    /// Results of parts that ended before an earlier part.
    waiting: BTreeMap<usize, PartResult>,
    free_gradients: &'a mut Vec<Vec<f32>>,
}

/// No thread panics while it holds this lock, so a poisoned lock guards nothing half done.
fn lock<'a, 'b>(sequencer: &'a Mutex<ResultSequencer<'b>>) -> MutexGuard<'a, ResultSequencer<'b>> {
    sequencer.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ResultSequencer<'_> {
    /// Passes on this part's result if those of all earlier parts were, and then those of later
    /// parts that waited for it. Only the calling thread is busy with it; the others compute their
    /// parts.
    fn add(&mut self, number: usize, result: PartResult) {
        self.waiting.insert(number, result);
        while let Some(result) = self.waiting.remove(&self.next) {
            (self.on_result)(&result);
            self.free_gradients.push(result.gradients);
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use lora_drop_compute::rows::second_moment;
    use lora_drop_transformer::{Group, ModuleId, ModuleKind};

    use super::*;
    use crate::Error;
    use crate::engine::MAX_OWN_GRADIENT_VALUES;

    /// Returns the sum of losses, the gradients and the moments of five parts, `concurrent` of them
    /// concurrently.
    fn sums(values: usize, concurrent: usize, threads: usize) -> (f64, Vec<f32>, Vec<f64>) {
        let mut parameters = Parameters::new();
        parameters.add("a", &[values], Group::Lora, true, &vec![0.5; values]);
        parameters.zero_gradients();
        let module = ModuleId { layer: 0, kind: ModuleKind::Query };
        let (mut arenas, mut loss, mut moments) = (WorkerArenas::default(), 0.0, Observations::new());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let run = pool.install(|| {
            let parts = [1u32, 2, 3, 4, 5];
            let train = |part: &u32,
                         values: Values,
                         gradients: &mut [f32],
                         moments: Option<&mut Observations>,
                         _: &mut Memory| {
                // Earlier parts take longer, so that later ones end before them.
                std::thread::sleep(std::time::Duration::from_millis(2 * u64::from(5 - part)));
                // Two additions, so that rounding shows if parts add to one sum.
                for add in [0.1, 1e-9 * *part as f32] {
                    gradients.iter_mut().zip(values.values).for_each(|(g, v)| *g += v + add);
                }
                let z = [0.1 * *part as f32, 0.7];
                second_moment(1, &z, moments.expect("asked for").of(module, 1));
                Ok(0.1 * f64::from(*part))
            };
            arenas.run(&parts, concurrent, &mut parameters, &mut loss, Some(&mut moments), train)
        });
        run.unwrap();
        (loss, parameters.gradients().to_vec(), moments.get(module).unwrap().to_vec())
    }

    #[test]
    fn concurrent_parts_give_the_bits_of_sequential_ones() {
        let one_by_one = sums(100_000, 1, 1);
        assert!((one_by_one.0 - 1.5).abs() < 1e-9 && (one_by_one.1[99_999] - 5.5).abs() < 1e-5);
        assert!((one_by_one.2[0] - (0.55 + 5.0 * 0.49)).abs() < 1e-6);
        for (concurrent, threads) in [(2, 2), (2, 1), (3, 4), (5, 8)] {
            assert!(sums(100_000, concurrent, threads) == one_by_one, "{concurrent} on {threads}");
        }
    }

    #[test]
    fn parts_of_many_values_add_to_one_gradient() {
        let (loss, gradients, _) = sums(MAX_OWN_GRADIENT_VALUES + 1, 1, 2);
        assert!((loss - 1.5).abs() < 1e-9 && (gradients[MAX_OWN_GRADIENT_VALUES] - 5.5).abs() < 1e-5);
    }

    #[test]
    fn run_returns_the_error_of_a_part() {
        let mut parameters = Parameters::new();
        parameters.add("a", &[1], Group::Lora, true, &[0.5]);
        parameters.zero_gradients();
        let mut arenas = WorkerArenas::default();
        for concurrent in [1, 2] {
            let train =
                |part: &i32, _: Values, _: &mut [f32], _: Option<&mut Observations>, _: &mut Memory| {
                    match part {
                        0 => Ok(1.0),
                        _ => Err(Error::Interrupted),
                    }
                };
            let failed = arenas.run(&[0, 1, 2], concurrent, &mut parameters, &mut 0.0, None, train);
            assert!(matches!(failed, Err(Error::Interrupted)));
        }
    }
}
