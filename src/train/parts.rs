//! The parts of an optimiser step, several of them side by side where they fit: their gradients, moments and losses.
//!
//! The one rule that is not obvious: each part's gradient is a sum of its own, and these are added up in the order of the parts.
//! So it changes no bit whether parts run side by side or one behind the other.

use lora_drop_compute::profile;
use lora_drop_transformer::encoder::Memory;
use lora_drop_transformer::linear::Values;
use lora_drop_transformer::{Moments, Parameters};
use rayon::prelude::*;

use crate::Result;
use crate::engine::apart;

/// Values that a task adds at a time.
const PIECE: usize = 1 << 15;

/// What parts need that run side by side: memory for activations, and gradients.
#[derive(Default)]
pub struct Workplaces {
    places: Vec<Workplace>,
}

#[derive(Default)]
struct Workplace {
    memory: Memory,
    gradients: Vec<f32>,
}

impl Workplaces {
    /// The memory for passes that run by themselves.
    pub fn memory(&mut self) -> &mut Memory {
        self.grow(1);
        &mut self.places[0].memory
    }

    /// Bytes of all activations.
    pub fn bytes(&self) -> usize {
        self.places.iter().map(|place| size_of_val(place.memory.floats())).sum()
    }

    fn grow(&mut self, count: usize) {
        if self.places.len() < count {
            self.places.resize_with(count, Workplace::default);
        }
    }

    /// Runs `train` on these parts side by side, and adds to gradients, `loss` and moments what they give, part by part.
    ///
    /// # Errors
    /// Those of `train`. The gradients are then incomplete.
    pub fn run<P: Send>(
        &mut self,
        parts: Vec<P>,
        parameters: &mut Parameters,
        loss: &mut f64,
        moments: Option<&mut Moments>,
        train: impl Fn(P, Values, &mut [f32], Option<&mut Moments>, &mut Memory) -> Result<f64> + Sync,
    ) -> Result<()> {
        let count = parts.len();
        self.grow(count);
        let scored = moments.is_some();
        let apart = apart(parameters.count());
        assert!(apart || count == 1, "parts side by side have gradients of their own");
        let (values, gradients) = parameters.training();
        let run = |part: P, gradients: &mut [f32], memory: &mut Memory| {
            let mut moments = scored.then(Moments::new);
            let loss = train(part, values, gradients, moments.as_mut(), memory)?;
            Ok((loss, moments))
        };
        let results: Vec<Result<(f64, Option<Moments>)>> = if !apart {
            let memory = &mut self.places[0].memory;
            parts.into_iter().map(|part| run(part, gradients, memory)).collect()
        } else {
            let alone = |(part, place): (P, &mut Workplace)| {
                place.gradients.clear();
                place.gradients.resize(values.values.len(), 0.0);
                run(part, &mut place.gradients, &mut place.memory)
            };
            let work: Vec<_> = parts.into_iter().zip(&mut self.places).collect();
            let results = match count {
                1 => work.into_iter().map(alone).collect(),
                _ => profile::side_by_side(work, alone),
            };
            for place in &self.places[..count] {
                add(gradients, &place.gradients);
            }
            results
        };
        let mut all = moments;
        for result in results {
            let (part, moments) = result?;
            *loss += part;
            if let (Some(all), Some(moments)) = (all.as_deref_mut(), moments) {
                all.add_all(&moments);
            }
        }
        Ok(())
    }
}

fn add(sum: &mut [f32], x: &[f32]) {
    let pieces = sum.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
    pieces.for_each(|(sum, x)| sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x));
}

#[cfg(test)]
mod tests {
    use lora_drop_transformer::{Group, LoraPair, LoraTable, ModuleId, ModuleKind};

    use super::*;
    use crate::Error;
    use crate::engine::MOST_APART;

    /// The sum of losses, the gradients and the moments of five parts that run in groups of so many.
    fn sums(values: usize, together: usize, threads: usize) -> (f64, Vec<f32>, Vec<f64>) {
        let mut parameters = Parameters::new();
        let id = parameters.add("a", &[values], Group::Lora, true, &vec![0.5; values]);
        parameters.zero_gradients();
        let mut table = LoraTable::empty(1);
        let module = ModuleId { layer: 0, kind: ModuleKind::Query };
        table.set(module, Some(LoraPair { a: id, b: id, rank: 1, scale: 1.0 }));
        let (mut places, mut loss, mut moments) = (Workplaces::default(), 0.0, Moments::new());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            for parts in (1..=5).collect::<Vec<u32>>().chunks(together) {
                let (parts, moments) = (parts.to_vec(), Some(&mut moments));
                let run = places.run(
                    parts,
                    &mut parameters,
                    &mut loss,
                    moments,
                    |part, values, gradients, moments, _| {
                        // Two additions, so that it shows whether parts add to one sum.
                        for add in [0.1, 1e-9 * part as f32] {
                            gradients.iter_mut().zip(values.values).for_each(|(g, v)| *g += v + add);
                        }
                        let z = [0.1 * part as f32, 0.7];
                        moments.expect("asked for").add(0, &table, |_| &z);
                        Ok(0.1 * f64::from(part))
                    },
                );
                run.unwrap();
            }
        });
        (loss, parameters.gradients().to_vec(), moments.get(module).unwrap().to_vec())
    }

    #[test]
    fn the_same_bits_side_by_side_and_one_by_one() {
        let one_by_one = sums(100_000, 1, 1);
        assert!((one_by_one.0 - 1.5).abs() < 1e-9 && (one_by_one.1[99_999] - 5.5).abs() < 1e-5);
        assert!((one_by_one.2[0] - (0.55 + 5.0 * 0.49)).abs() < 1e-6);
        for (together, threads) in [(2, 2), (2, 1), (3, 4), (5, 8)] {
            assert!(sums(100_000, together, threads) == one_by_one, "{together} on {threads}");
        }
    }

    #[test]
    fn many_values_have_one_gradient() {
        let (loss, gradients, _) = sums(MOST_APART + 1, 1, 2);
        assert!((loss - 1.5).abs() < 1e-9 && (gradients[MOST_APART] - 5.5).abs() < 1e-5);
    }

    #[test]
    fn an_error_of_a_part_is_the_error() {
        let mut parameters = Parameters::new();
        parameters.add("a", &[1], Group::Lora, true, &[0.5]);
        parameters.zero_gradients();
        let mut places = Workplaces::default();
        let failed = places.run(vec![0, 1], &mut parameters, &mut 0.0, None, |part, _, _, _, _| match part {
            0 => Ok(1.0),
            _ => Err(Error::Interrupted),
        });
        assert!(matches!(failed, Err(Error::Interrupted)));
    }
}
