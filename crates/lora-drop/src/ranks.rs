//! The processes ("ranks") of one job that train one model together: each computes some parts of a
//! step and some rows of an evaluation, and all of them have the same state at all times.
//!
//! No rank waits for one that has failed: every collective operation begins with `Ranks::gather`,
//! to which each rank gives its result or its error. A rank that fails alone gives its error to the
//! next gather, whichever that is, and the job is over on all ranks.

mod threads;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// The result of an exchange, or a message that says what failed.
pub type Exchanged<T> = std::result::Result<T, String>;

/// How the processes of a job exchange values. All of them call the same functions in the same
/// order, one at a time; an error, which says what failed, ends the exchange for good.
pub trait Exchange: Send + Sync {
    /// This process's number, from 0.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn size(&self) -> usize;

    /// Returns what each rank gives, in the order of ranks.
    ///
    /// # Errors
    /// The exchange has failed.
    fn gather(&self, mine: Vec<u8>) -> Exchanged<Vec<Vec<u8>>>;

    /// Returns the values of all ranks, `lengths` of them, in the order of ranks.
    ///
    /// # Errors
    /// The exchange has failed.
    fn gather_values(&self, mine: Vec<f32>, lengths: Vec<usize>) -> Exchanged<Vec<f32>>;

    /// Sends each rank its part of `sent`, the first `sent_lengths[0]` values to rank 0, and so on;
    /// returns the parts that the ranks have sent here, in their order, `lengths` of each.
    ///
    /// # Errors
    /// The exchange has failed.
    fn exchange_values(
        &self,
        sent: Vec<f32>,
        sent_lengths: Vec<usize>,
        lengths: Vec<usize>,
    ) -> Exchanged<Vec<f32>>;
}

/// The ranks of a job. This process is one of them, by default the only one. A clone is the same
/// job.
#[derive(Clone, Default)]
pub struct Ranks(Option<Arc<Job>>);

struct Job {
    exchange: Box<dyn Exchange>,
    /// Computing threads if the settings name no number; 0: one per processor.
    threads: usize,
    /// Whether a rank has failed, so that nothing more is exchanged.
    over: AtomicBool,
    /// Whether this rank has failed by itself and the first one has not, or the exchange has
    /// failed.
    failed_here: AtomicBool,
    /// Whether the exchange has failed.
    lost: AtomicBool,
}

/// The only process of a job.
pub(crate) static ALONE: Ranks = Ranks(None);

/// First byte of a rank's message to `gather`: a result, or the kind of its error.
const RESULT: u8 = 0;
const INTERRUPTED: u8 = 1;
const USAGE: u8 = 2;
const NOT_FINITE: u8 = 3;
const OTHER: u8 = 4;

impl Ranks {
    /// The ranks that exchange values in this way. `threads` compute on this rank where the
    /// settings name no number; 0: one per processor.
    pub fn new(exchange: impl Exchange + 'static, threads: usize) -> Self {
        Ranks(Some(Arc::new(Job {
            exchange: Box::new(exchange),
            threads,
            over: AtomicBool::new(false),
            failed_here: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        })))
    }

    /// Ranks that are threads of this process, to try a job without MPI. Each computes on `threads`
    /// threads, and each has to be used by a thread of its own.
    pub fn of_threads(size: usize, threads: usize) -> Vec<Ranks> {
        threads::exchanges(size).map(|exchange| Ranks::new(exchange, threads)).collect()
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |job| job.exchange.rank())
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |job| job.exchange.size())
    }

    /// Whether this is the rank that writes files and reports events.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether this rank has failed by itself and the first one has not, or the exchange has
    /// failed.
    pub fn failed_here(&self) -> bool {
        self.0.as_ref().is_some_and(|job| job.failed_here.load(Ordering::SeqCst))
    }

    /// Whether the exchange has failed, so that other ranks may wait for this one.
    pub fn is_lost(&self) -> bool {
        self.0.as_ref().is_some_and(|job| job.lost.load(Ordering::SeqCst))
    }

    /// The number of computing threads for a setting; 0: one per processor.
    pub fn threads(&self, setting: usize) -> usize {
        if setting > 0 { setting } else { self.0.as_ref().map_or(0, |job| job.threads) }
    }

    /// Gathers the results of all ranks, in the order of ranks.
    ///
    /// # Errors
    /// This rank's own error, or that of the first rank that has failed; `Error::Interrupted` only
    /// if every rank that failed was interrupted; `Error::Ranks` if the exchange fails.
    pub(crate) fn gather(&self, mine: Result<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let Some(job) = &self.0 else { return Ok(vec![mine?]) };
        if job.over.load(Ordering::SeqCst) {
            mine?;
            return Err(Error::Ranks("the job of this process is over".to_string()));
        }
        let message = match &mine {
            Ok(made) => [&[RESULT], &made[..]].concat(),
            Err(error) => encode_error(error),
        };
        let mut all = job.exchange.gather(message).map_err(|problem| job.fail(problem))?;
        let kind = |message: &[u8]| message.first().copied().unwrap_or(OTHER);
        let failed = |message: &Vec<u8>| kind(message) != RESULT;
        let first = all.iter().position(|message| failed(message) && kind(message) != INTERRUPTED);
        if let Some(rank) = first.or_else(|| all.iter().position(failed)) {
            job.over.store(true, Ordering::SeqCst);
            job.failed_here.store(failed(&all[self.rank()]) && !failed(&all[0]), Ordering::SeqCst);
            return Err(match mine {
                Err(error) if first.is_none() || !matches!(error, Error::Interrupted) => error,
                _ => decode_error(rank, &all[rank]),
            });
        }
        for message in &mut all {
            message.remove(0);
        }
        Ok(all)
    }

    /// Gathers the values of all ranks, in the order of ranks, as JSON.
    ///
    /// # Errors
    /// Those of `gather`; `Error::Ranks` if a rank's message cannot be parsed.
    pub(crate) fn exchange<T: Serialize + DeserializeOwned>(&self, mine: Result<T>) -> Result<Vec<T>> {
        if self.0.is_none() {
            return Ok(vec![mine?]);
        }
        let fault = |error: serde_json::Error| Error::Ranks(format!("a rank of another version: {error}"));
        let all = self.gather(mine.and_then(|mine| serde_json::to_vec(&mine).map_err(fault)))?;
        all.iter().map(|message| serde_json::from_slice(message).map_err(fault)).collect()
    }

    /// Checks that all ranks have the same value as the first one. `differs` gets a rank's value
    /// and the first one's, and says how they differ.
    ///
    /// # Errors
    /// Those of `exchange`; `Error::Ranks` with what differs on which rank.
    pub(crate) fn compare<T: Serialize + DeserializeOwned>(
        &self,
        mine: Result<T>,
        differs: impl Fn(&T, &T) -> Option<String>,
    ) -> Result<()> {
        let all = self.exchange(mine)?;
        let found = all.iter().enumerate().find_map(|(rank, other)| Some((rank, differs(other, &all[0])?)));
        self.agree(match found {
            Some((rank, problem)) => {
                Err(Error::Ranks(format!("rank {rank} does not fit the others: {problem}")))
            }
            None => Ok(()),
        })
    }

    /// Returns this rank's result if no rank has failed.
    ///
    /// # Errors
    /// This rank's own error, or that of the first rank that has failed; `Error::Interrupted` only
    /// if every rank that failed was interrupted; `Error::Ranks` if the exchange fails.
    pub fn agree<T>(&self, mine: Result<T>) -> Result<T> {
        if self.0.is_none() {
            return mine;
        }
        match mine {
            Ok(mine) => self.gather(Ok(Vec::new())).map(|_| mine),
            Err(error) => Err(self.gather(Err(error)).err().unwrap_or(Error::Interrupted)),
        }
    }

    /// Runs `work` on the first rank, and then on the others.
    ///
    /// # Errors
    /// Those of `agree` for the first rank's work; this rank's own.
    pub fn first_then_others<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.is_first() {
            return self.agree(work());
        }
        self.agree(Ok(()))?;
        work()
    }

    /// Offsets of the ranks' slices of `count` values, (ranks + 1).
    fn slices(&self, count: usize) -> Vec<usize> {
        let size = self.size();
        (0..=size).map(|rank| (count as u128 * rank as u128 / size as u128) as usize).collect()
    }

    /// Adds summands to `sum` in their order: summand i is that of rank `owners[i]`, and `own` has
    /// the summands of this rank.
    ///
    /// # Errors
    /// `Error::Ranks`.
    pub(crate) fn add_up(&self, sum: &mut SliceSum, owners: &[usize], own: Summands) -> Result<()> {
        let Some(job) = &self.0 else { return Ok(()) };
        let (rank, width) = (self.rank(), sum.values.len());
        let mut counts = vec![0; self.size()];
        owners.iter().for_each(|&owner| counts[owner] += 1);
        let sent_lengths = own.slices.windows(2).map(|ends| (ends[1] - ends[0]) * counts[rank]).collect();
        let lengths: Vec<usize> = counts.iter().map(|count| count * width).collect();
        let mut places: Vec<usize> =
            lengths.iter().scan(0, |end, length| Some(std::mem::replace(end, *end + length))).collect();
        let received = job.exchange.exchange_values(own.values, sent_lengths, lengths);
        let received = received.map_err(|problem| job.fail(problem))?;
        for &owner in owners {
            let summand = &received[places[owner]..][..width];
            sum.values.iter_mut().zip(summand).for_each(|(sum, x)| *sum += x);
            places[owner] += width;
        }
        Ok(())
    }

    /// Makes a zero sum for this rank's slice of summands of `count` values.
    pub(crate) fn slice_sum(&self, count: usize) -> SliceSum {
        let slices = self.slices(count);
        SliceSum { values: vec![0.0; slices[self.rank() + 1] - slices[self.rank()]] }
    }

    /// Makes room for this rank's `own` summands of `count` values each.
    pub(crate) fn summands(&self, count: usize, own: usize) -> Summands {
        Summands { slices: self.slices(count), own, filled: 0, values: vec![0.0; count * own] }
    }

    /// Gathers the sums of all ranks' slices into one of `count` values.
    ///
    /// # Errors
    /// `Error::Ranks`.
    pub(crate) fn whole_sum(&self, sum: SliceSum, count: usize) -> Result<Vec<f32>> {
        let Some(job) = &self.0 else { return Ok(sum.values) };
        let lengths = self.slices(count).windows(2).map(|ends| ends[1] - ends[0]).collect();
        job.exchange.gather_values(sum.values, lengths).map_err(|problem| job.fail(problem))
    }
}

impl Job {
    fn fail(&self, problem: String) -> Error {
        self.over.store(true, Ordering::SeqCst);
        self.failed_here.store(true, Ordering::SeqCst);
        self.lost.store(true, Ordering::SeqCst);
        Error::Ranks(format!("the processes of the job have lost each other: {problem}"))
    }
}

/// The sum of this rank's slice of summands.
pub(crate) struct SliceSum {
    values: Vec<f32>,
}

/// Summands of one rank in the order in which they are sent: the first rank's slices of all
/// summands, the second rank's, and so on.
pub(crate) struct Summands {
    slices: Vec<usize>,
    own: usize,
    filled: usize,
    values: Vec<f32>,
}

impl Summands {
    /// Adds the next summand.
    pub(crate) fn push(&mut self, summand: &[f32]) {
        for ends in self.slices.windows(2) {
            let width = ends[1] - ends[0];
            let start = ends[0] * self.own + self.filled * width;
            self.values[start..][..width].copy_from_slice(&summand[ends[0]..ends[1]]);
        }
        self.filled += 1;
    }
}

/// Distributes pieces of work with these weights; returns the rank of each piece. The heaviest
/// pieces come first, each to the rank with the least work so far.
pub(crate) fn share_out(weights: &[usize], ranks: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&piece| (Reverse(weights[piece]), piece));
    let mut loads: BinaryHeap<_> = (0..ranks).map(|rank| Reverse((0, rank))).collect();
    let mut owners = vec![0; weights.len()];
    for piece in order {
        if let Some(Reverse((load, rank))) = loads.pop() {
            owners[piece] = rank;
            loads.push(Reverse((load + weights[piece], rank)));
        }
    }
    owners
}

/// Encodes an error for the other ranks.
fn encode_error(error: &Error) -> Vec<u8> {
    let kind = match error {
        Error::Interrupted => INTERRUPTED,
        Error::Usage(_) => USAGE,
        Error::NotFinite(_) => NOT_FINITE,
        _ => OTHER,
    };
    [&[kind], error.to_string().as_bytes()].concat()
}

/// Decodes the error of another rank.
fn decode_error(rank: usize, message: &[u8]) -> Error {
    let (kind, text) = message.split_first().unwrap_or((&OTHER, &[]));
    let text = String::from_utf8_lossy(text);
    match *kind {
        INTERRUPTED => Error::Interrupted,
        NOT_FINITE => Error::NotFinite(text.into_owned()),
        USAGE => Error::Usage(format!("rank {rank}: {text}")),
        _ => Error::Ranks(format!("rank {rank}: {text}")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs `work` on each of `size` ranks at the same time; returns what they give.
    pub(crate) fn on_ranks<T: Send>(size: usize, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
        let work = &work;
        std::thread::scope(|scope| {
            let start = |ranks| scope.spawn(move || work(ranks));
            let running: Vec<_> = Ranks::of_threads(size, 1).into_iter().map(start).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn work_is_shared_out_evenly() {
        assert_eq!(share_out(&[5, 5, 5, 5], 2), [0, 1, 0, 1]);
        assert_eq!(share_out(&[1, 9, 4, 4], 2), [1, 0, 1, 1]);
        assert_eq!(share_out(&[3, 3], 4), [0, 1]);
        assert_eq!(share_out(&[3, 1, 2], 1), [0, 0, 0]);
        assert!(share_out(&[], 3).is_empty());
    }

    #[test]
    fn sums_are_in_the_order_of_the_summands() {
        let summand = |part: usize| -> Vec<f32> {
            (0..7).map(|i| ((i * 37 + part * 101) % 50) as f32 * 0.1 - 2.1 * part as f32).collect()
        };
        let owners = [2, 0, 0, 1, 2, 0];
        let mut expected = vec![0.0; 7];
        (0..owners.len()).for_each(|part| {
            expected.iter_mut().zip(summand(part)).for_each(|(sum, x)| *sum += x);
        });
        for size in [3, 4, 9] {
            let sums = on_ranks(size, |ranks| {
                let mut sum = ranks.slice_sum(7);
                // In two rounds.
                for round in [0..4, 4..6] {
                    let own: Vec<usize> =
                        round.clone().filter(|&part| owners[part] == ranks.rank()).collect();
                    let mut summands = ranks.summands(7, own.len());
                    own.into_iter().for_each(|part| summands.push(&summand(part)));
                    ranks.add_up(&mut sum, &owners[round], summands).unwrap();
                }
                ranks.whole_sum(sum, 7).unwrap()
            });
            assert!(sums.iter().all(|sum| *sum == expected), "{size}");
        }
    }

    #[test]
    fn the_error_of_one_rank_is_that_of_all() {
        let errors = |size: usize, fails: &(dyn Fn(usize) -> Option<Error> + Sync)| {
            on_ranks(size, |ranks| {
                let mine = fails(ranks.rank()).map_or(Ok(()), Err);
                let error = ranks.agree(mine).map_err(|error| error.to_string());
                // The job is over, and nobody waits.
                assert_eq!(ranks.gather(Ok(Vec::new())).is_err(), error.is_err());
                (error, ranks.failed_here())
            })
        };
        assert!(errors(3, &|_| None).iter().all(|(outcome, here)| outcome.is_ok() && !here));
        let one = errors(3, &|rank| (rank == 1).then(|| Error::Input("no disk".to_string())));
        let messages: Vec<_> = one.iter().map(|(outcome, _)| outcome.clone().unwrap_err()).collect();
        assert_eq!(messages, ["rank 1: no disk", "no disk", "rank 1: no disk"]);
        assert_eq!(one.iter().map(|(_, here)| *here).collect::<Vec<_>>(), [false, true, false]);
        // An error counts more than an interruption.
        let both = errors(2, &|rank| match rank {
            0 => Some(Error::Interrupted),
            _ => Some(Error::NotFinite("the loss is NaN".to_string())),
        });
        assert!(both.iter().all(|(outcome, _)| outcome.as_ref().unwrap_err() == "the loss is NaN"));
        let stopped = errors(2, &|rank| (rank == 1).then_some(Error::Interrupted));
        assert!(stopped.iter().all(|(outcome, _)| outcome.as_ref().unwrap_err() == "interrupted"));
    }
}
