//! The parts of an optimiser step, divided among the ranks of a job.
//!
//! Each rank computes its parts, with a gradient for each. It then gets its slice of the gradients
//! of all parts, adds them up in the order of the parts, and gathers the other ranks' sums. So the
//! sums are bit-identical to those of one process, on any number of ranks. If parts have no
//! gradients of their own (`engine::parts_have_own_gradients`), all parts of a rank add to one, and
//! results depend on the number of ranks.

use std::collections::BTreeSet;

use lora_drop_compute::profile;
use lora_drop_transformer::Values;
use lora_drop_transformer::{Memory, ModuleId, ModuleKind, Observations, Parameters};

use super::parts::{Inputs, PartResult, WorkerArenas};
use crate::engine::parts_have_own_gradients;
use crate::ranks::{Ranks, Summands};
use crate::{Cancel, Error, Result};

/// Most values (256 MB) of all parts' gradients that are exchanged at once.
const MAX_ROUND_VALUES: usize = 64 << 20;

/// The phase of a step in which ranks wait for each other and exchange values.
const EXCHANGE: &str = "exchange between ranks";

/// Which rank computes which part of a step.
pub struct Shares<'a> {
    pub ranks: &'a Ranks,
    /// The rank of each part, over all groups.
    pub owners: &'a [usize],
    pub cancel: &'a Cancel,
}

/// The sums to which the parts of a step are added.
pub struct StepSums<'a> {
    pub parameters: &'a mut Parameters,
    pub loss: &'a mut f64,
    pub observations: Option<&'a mut Observations>,
}

/// Bytes that a rank needs for the exchange of a step of at most `parts` parts: the gradients that
/// it sends, and the slices that it receives.
pub fn exchange_bytes(ranks: &Ranks, trained: usize, parts: usize) -> usize {
    if ranks.size() == 1 {
        return 0;
    }
    let parts =
        if parts_have_own_gradients(trained) { parts.min(round_parts(ranks, trained)) } else { ranks.size() };
    2 * size_of::<f32>() * trained * (parts.div_ceil(ranks.size()) + 1)
}

/// Most parts whose gradients are exchanged at once.
fn round_parts(ranks: &Ranks, trained: usize) -> usize {
    (MAX_ROUND_VALUES / trained.max(1)).max(ranks.size())
}

impl WorkerArenas {
    /// Runs all groups of a step's parts together with the other ranks, as `run` does one group.
    ///
    /// # Errors
    /// Those of `train` on any rank, `Error::Interrupted` where one was asked to stop, and those of
    /// the exchange. The gradients are then incomplete.
    pub fn run_shared<P: Sync>(
        &mut self,
        shares: &Shares,
        groups: &[Vec<P>],
        concurrent: usize,
        mut sums: StepSums,
        train: impl Fn(&P, Values, &mut [f32], Option<&mut Observations>, &mut Memory) -> Result<f64> + Sync,
    ) -> Result<()> {
        let Shares { ranks, owners, cancel } = shares;
        let trained = sums.parameters.count();
        let mut sum = ranks.slice_sum(trained);
        let most = if parts_have_own_gradients(trained) { round_parts(ranks, trained) } else { owners.len() };
        for start in (0..owners.len()).step_by(most.max(1)) {
            let round = start..owners.len().min(start + most);
            // The rank of each summand.
            let summands: Vec<usize> = match parts_have_own_gradients(trained) {
                true => owners[round.clone()].to_vec(),
                false => BTreeSet::from_iter(owners[round.clone()].iter().copied()).into_iter().collect(),
            };
            let mut numbers = 0..;
            let mut is_own = |_: &&P| {
                let number = numbers.next().unwrap_or(usize::MAX);
                round.contains(&number) && owners[number] == ranks.rank()
            };
            let own: Vec<Vec<&P>> =
                groups.iter().map(|group| group.iter().filter(&mut is_own).collect()).collect();
            let count = summands.iter().filter(|&&owner| owner == ranks.rank()).count();
            let computed =
                self.compute_own(&own, concurrent, &mut sums, ranks.summands(trained, count), &train);

            let _phase = profile::phase(EXCHANGE);
            let (own, encoded) = match computed.and_then(|computed| cancel.check().map(|()| computed)) {
                Ok((own, encoded)) => (own, Ok(encoded)),
                Err(error) => (ranks.summands(trained, 0), Err(error)),
            };
            let all = ranks.gather(encoded)?;
            let mut messages: Vec<&[u8]> = all.iter().map(|message| &message[..]).collect();
            for &owner in &summands {
                let (loss, seen) = decode_result(&mut messages[owner]).ok_or_else(undecodable)?;
                *sums.loss += loss;
                if let Some(all) = sums.observations.as_deref_mut() {
                    all.merge(&seen);
                }
            }
            ranks.add_up(&mut sum, &summands, own)?;
        }
        let _phase = profile::phase(EXCHANGE);
        sums.parameters.training().1.copy_from_slice(&ranks.whole_sum(sum, trained)?);
        Ok(())
    }

    /// Computes this rank's parts. Returns the gradients to send, and losses and observations as
    /// bytes.
    fn compute_own<P: Sync>(
        &mut self,
        groups: &[Vec<&P>],
        concurrent: usize,
        sums: &mut StepSums,
        mut own: Summands,
        train: impl Fn(&P, Values, &mut [f32], Option<&mut Observations>, &mut Memory) -> Result<f64> + Sync,
    ) -> Result<(Summands, Vec<u8>)> {
        let (trained, scored) = (sums.parameters.count(), sums.observations.is_some());
        let mut encoded = Vec::new();
        if parts_have_own_gradients(trained) {
            let (values, _) = sums.parameters.training();
            let on_result = &mut |result: &PartResult| {
                own.push(&result.gradients);
                encode_result(result.loss, result.observations.as_ref(), &mut encoded);
            };
            for parts in groups {
                let inputs = Inputs { values, trained, scored };
                let train =
                    |part: &&P,
                     values: Values,
                     gradients: &mut [f32],
                     seen: Option<&mut Observations>,
                     memory: &mut Memory| train(part, values, gradients, seen, memory);
                self.each(parts, concurrent, inputs, train, on_result)?;
            }
        } else if groups.iter().any(|parts| !parts.is_empty()) {
            let (mut loss, mut seen) = (0.0, scored.then(Observations::new));
            for part in groups.iter().flatten() {
                let (values, gradients) = sums.parameters.training();
                loss += train(part, values, gradients, seen.as_mut(), self.memory())?;
            }
            own.push(sums.parameters.gradients());
            encode_result(loss, seen.as_ref(), &mut encoded);
        }
        Ok((own, encoded))
    }
}

/// Encodes a part's loss and observations.
fn encode_result(loss: f64, observations: Option<&Observations>, out: &mut Vec<u8>) {
    let number = |out: &mut Vec<u8>, number: usize| out.extend((number as u64).to_le_bytes());
    out.extend(loss.to_le_bytes());
    let seen: Vec<(ModuleId, &[f64])> = observations.into_iter().flat_map(Observations::iter).collect();
    number(out, seen.len());
    for (module, sums) in seen {
        number(out, module.layer);
        number(out, ModuleKind::ALL.iter().position(|&kind| kind == module.kind).unwrap_or(0));
        number(out, sums.len());
        sums.iter().for_each(|sum| out.extend(sum.to_le_bytes()));
    }
}

/// Decodes what `encode_result` has written; None if the bytes are something else.
fn decode_result(bytes: &mut &[u8]) -> Option<(f64, Observations)> {
    let mut word = || bytes.split_off(..8).and_then(|word| <[u8; 8]>::try_from(word).ok());
    let loss = f64::from_le_bytes(word()?);
    let mut observations = Observations::new();
    for _ in 0..u64::from_le_bytes(word()?) {
        let mut number = || Some(u64::from_le_bytes(word()?) as usize);
        let (layer, kind, count) = (number()?, number()?, number()?);
        let module = ModuleId { layer, kind: *ModuleKind::ALL.get(kind)? };
        for sum in observations.of(module, count) {
            *sum = f64::from_le_bytes(word()?);
        }
    }
    Some((loss, observations))
}

fn undecodable() -> Error {
    Error::Ranks("a rank has sent other losses than its parts have".to_string())
}

#[cfg(test)]
mod tests {
    use lora_drop_transformer::Group;

    use super::*;
    use crate::engine::MAX_OWN_GRADIENT_VALUES;
    use crate::ranks::share_out;
    use crate::ranks::tests::on_ranks;

    const MODULE: ModuleId = ModuleId { layer: 3, kind: ModuleKind::Gate };

    /// The sums of seven parts in three groups, on this number of ranks.
    fn sums(trained: usize, size: usize, concurrent: usize) -> Vec<(f64, Vec<f32>, Vec<f64>)> {
        on_ranks(size, |ranks| {
            let mut parameters = Parameters::new();
            parameters.add("a", &[trained], Group::Lora, true, &vec![0.5; trained]);
            parameters.zero_gradients();
            let (mut loss, mut seen) = (0.0, Observations::new());
            let groups = [vec![1u32, 2, 3, 4, 5], vec![6], vec![7]];
            let train = |part: &u32,
                         values: Values,
                         gradients: &mut [f32],
                         seen: Option<&mut Observations>,
                         _: &mut Memory| {
                for add in [0.1, 1e-9 * *part as f32] {
                    gradients.iter_mut().zip(values.values).for_each(|(g, v)| *g += v + add);
                }
                seen.expect("asked for").of(MODULE, 2)[1] += 0.1 * f64::from(*part);
                Ok(0.1 * f64::from(*part))
            };
            let mut arenas = WorkerArenas::default();
            let owners = share_out(&[1; 7], size);
            let shares = Shares { ranks: &ranks, owners: &owners, cancel: &Cancel::new() };
            let all =
                StepSums { parameters: &mut parameters, loss: &mut loss, observations: Some(&mut seen) };
            arenas.run_shared(&shares, &groups, concurrent, all, train).unwrap();
            (loss, parameters.gradients().to_vec(), seen.get(MODULE).unwrap().to_vec())
        })
    }

    #[test]
    fn any_number_of_ranks_gives_the_same_bits() {
        let one = sums(1001, 1, 1).remove(0);
        assert!((one.0 - 2.8).abs() < 1e-9 && (one.1[1000] - 7.7).abs() < 1e-5);
        for (size, concurrent) in [(1, 2), (2, 1), (3, 2), (4, 1), (9, 1)] {
            assert!(sums(1001, size, concurrent).iter().all(|all| *all == one), "{size}, {concurrent}");
        }
        // Fewer values than ranks.
        assert!(sums(2, 5, 1).iter().all(|all| all.1 == one.1[..2]));
    }

    #[test]
    fn ranks_with_one_gradient_each_have_the_same_sums() {
        for size in [2, 9] {
            let all = sums(MAX_OWN_GRADIENT_VALUES + 1, size, 1);
            assert!(all.iter().all(|each| *each == all[0]));
            assert!((all[0].0 - 2.8).abs() < 1e-9 && (all[0].1[MAX_OWN_GRADIENT_VALUES] - 7.7).abs() < 1e-5);
        }
    }

    #[test]
    fn cancelling_one_rank_stops_all() {
        let errors = on_ranks(3, |ranks| {
            let mut parameters = Parameters::new();
            parameters.add("a", &[1], Group::Lora, true, &[0.5]);
            parameters.zero_gradients();
            let (cancel, mut loss) = (Cancel::new(), 0.0);
            if ranks.rank() == 2 {
                cancel.raise();
            }
            let shares = Shares { ranks: &ranks, owners: &[0, 1], cancel: &cancel };
            let all = StepSums { parameters: &mut parameters, loss: &mut loss, observations: None };
            let train =
                |_: &(), _: Values, _: &mut [f32], _: Option<&mut Observations>, _: &mut Memory| Ok(1.0);
            WorkerArenas::default().run_shared(&shares, &[vec![(), ()]], 1, all, train).unwrap_err()
        });
        assert!(errors.iter().all(|error| matches!(error, Error::Interrupted)));
    }
}
