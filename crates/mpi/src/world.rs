//! Processes of a job. A thread of its own makes all calls to MPI (MPI_THREAD_FUNNELED), so
//! computation continues while values are in transit.

use std::ffi::c_int;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::calls::{self, Calls, StartError, Unit};
use crate::launch::Launch;
use crate::{Error, Result, library};

/// How long an aborting process waits for MPI to end it: MPI's thread may be blocked in another
/// call.
const ABORT_WAIT: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce(&dyn Calls) + Send>;

/// Processes of the job that this one belongs to. All ranks must call the same functions in the
/// same order.
pub struct World {
    rank: usize,
    size: usize,
    library: String,
    jobs: Sender<Job>,
}

/// Result of an operation that is in progress.
#[must_use = "the values are there when it has been waited for"]
pub struct Pending<T>(Receiver<Result<T>>);

impl<T> Pending<T> {
    /// Waits for the operation to end and returns its result.
    ///
    /// # Errors
    /// [`Error::Call`] if MPI fails, and the errors of the operation.
    pub fn wait(self) -> Result<T> {
        self.0.recv().unwrap_or_else(|_| Err(gone()))
    }
}

impl World {
    /// Loads an MPI library, joins the launcher's job, and checks with all ranks that bytes and
    /// floats arrive as they are sent.
    ///
    /// # Errors
    /// [`Error::NotFound`] if no library can be loaded, [`Error::Symbol`] if one cannot be used,
    /// [`Error::OtherJob`] if its rank or size is not the launcher's, [`Error::Garbled`] if the
    /// check fails, and [`Error::Call`] if MPI does.
    pub fn join(launch: &Launch) -> Result<World> {
        let (jobs, received) = channel::<Job>();
        let (ready, started) = channel();
        let candidates = library::candidates(launch);
        let (launcher, size) = (launch.launcher, launch.size);
        std::thread::Builder::new()
            .name("mpi".to_string())
            .spawn(move || {
                let mut tried = Vec::new();
                for path in candidates {
                    match calls::start(&path) {
                        Ok(calls) => {
                            let _ =
                                ready.send(calls.place().map(|place| (place, path.display().to_string())));
                            received.iter().for_each(|job| job(&*calls));
                            return;
                        }
                        Err(StartError::NotLoaded(reason)) => tried.push(reason),
                        Err(StartError::Unusable(error)) => {
                            let _ = ready.send(Err(error));
                            return;
                        }
                    }
                }
                let _ = ready.send(Err(Error::NotFound { launcher, size, tried }));
            })
            .map_err(|error| Error::Call { function: "a thread for MPI", message: error.to_string() })?;
        let ((rank, size), library) = started.recv().unwrap_or_else(|_| Err(gone()))?;
        if (rank, size) != (launch.rank, launch.size) {
            return Err(Error::OtherJob {
                launcher,
                rank: launch.rank,
                size: launch.size,
                library,
                seen_rank: rank,
                seen_size: size,
            });
        }
        let world = World { rank, size, library, jobs };
        world.check()?;
        Ok(world)
    }

    /// Returns this process's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Returns the number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the library's path or name, for messages.
    pub fn library(&self) -> &str {
        &self.library
    }

    /// Gathers the bytes of all ranks; returns them in rank order.
    ///
    /// # Errors
    /// [`Error::Call`] if MPI fails; [`Error::Sizes`] if the bytes of all ranks add up to 2 GiB or
    /// more.
    pub fn all_gather(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let size = self.size;
        let gathered = self.begin(move |calls| {
            let mut lengths = vec![0; size_of::<u64>() * size];
            let ones = vec![size_of::<u64>() as c_int; size];
            calls.all_gather(Unit::Byte, &(mine.len() as u64).to_ne_bytes(), &mut lengths, &ones)?;
            let lengths: Vec<usize> = lengths
                .chunks_exact(size_of::<u64>())
                .map(|bytes| u64::from_ne_bytes(bytes.try_into().expect("eight bytes")) as usize)
                .collect();
            let mut received = vec![0; lengths.iter().sum()];
            calls.all_gather(Unit::Byte, &mine, &mut received, &counts(&lengths)?)?;
            let mut rest = &received[..];
            Ok(lengths.iter().map(|&length| rest.split_off(..length).unwrap_or_default().to_vec()).collect())
        });
        gathered.wait()
    }

    /// Gathers the values of all ranks on all ranks, in rank order; rank r has `lengths[r]` values.
    ///
    /// # Errors
    /// From [`Pending::wait`]: [`Error::Call`] if MPI fails; [`Error::Sizes`] for 2^31 values or
    /// more, or if `mine` is not as long as `lengths` says.
    pub fn gather_values(&self, mine: Vec<f32>, lengths: Vec<usize>) -> Pending<Vec<f32>> {
        let rank = self.rank;
        self.begin(move |calls| {
            fits("a rank's values", mine.len(), lengths[rank])?;
            let mut received = vec![0.0; lengths.iter().sum()];
            calls.all_gather(Unit::Float, bytes(&mine), bytes_mut(&mut received), &counts(&lengths)?)?;
            Ok(received)
        })
    }

    /// Sends each rank its part of `sent`: the first `sent_lengths[0]` values to rank 0, and so on.
    /// Returns the parts that the ranks send to this one, in rank order: `lengths[r]` values of
    /// rank r.
    ///
    /// # Errors
    /// From [`Pending::wait`]: [`Error::Call`] if MPI fails; [`Error::Sizes`] for 2^31 values or
    /// more, or if the sum of `sent_lengths` is not the length of `sent`.
    pub fn exchange_values(
        &self,
        sent: Vec<f32>,
        sent_lengths: Vec<usize>,
        lengths: Vec<usize>,
    ) -> Pending<Vec<f32>> {
        self.begin(move |calls| {
            fits("values to be sent", sent.len(), sent_lengths.iter().sum())?;
            let mut received = vec![0.0; lengths.iter().sum()];
            let (sent_counts, counts) = (counts(&sent_lengths)?, counts(&lengths)?);
            let to = bytes_mut(&mut received);
            calls.all_to_all(Unit::Float, bytes(&sent), &sent_counts, to, &counts)?;
            Ok(received)
        })
    }

    /// Ends all processes of the job, this one with the exit status `code`.
    pub fn abort(&self, code: i32) -> ! {
        let (sender, ended) = channel::<()>();
        let _ = self.jobs.send(Box::new(move |calls| {
            calls.abort(code);
            drop(sender);
        }));
        // MPI ends the process. If MPI's thread is blocked in a call that waits for other ranks,
        // the launcher ends these once this process is gone.
        let _: std::result::Result<(), RecvTimeoutError> = ended.recv_timeout(ABORT_WAIT);
        std::process::exit(code)
    }

    /// Leaves the job (MPI_Finalize), which all ranks must do.
    ///
    /// # Errors
    /// [`Error::Call`] if MPI fails.
    pub fn finish(&self) -> Result<()> {
        self.begin(|calls| calls.finish()).wait()
    }

    /// Checks that bytes and floats arrive unchanged at the right rank, so that a library with
    /// other constants than expected is detected before anything is computed with it.
    fn check(&self) -> Result<()> {
        let garbled =
            |problem: &str| Error::Garbled { library: self.library.clone(), problem: problem.into() };
        let word = |rank: usize| format!("lora-drop {rank:08}").into_bytes();
        let words = self.all_gather(word(self.rank))?;
        if !words.iter().enumerate().all(|(rank, found)| *found == word(rank)) {
            return Err(garbled("bytes do not arrive as they were sent"));
        }
        let value = |from: usize, to: usize| (from * self.size + to) as f32 + 0.5;
        let ranks = 0..self.size;
        let sent = ranks.clone().map(|to| value(self.rank, to)).collect();
        let ones = vec![1; self.size];
        let exchanged = self.exchange_values(sent, ones.clone(), ones.clone()).wait()?;
        let gathered = self.gather_values(vec![value(self.rank, 0)], ones).wait()?;
        if !ranks.clone().map(|from| value(from, self.rank)).eq(exchanged)
            || !ranks.map(|from| value(from, 0)).eq(gathered)
        {
            return Err(garbled("values do not arrive as they were sent"));
        }
        Ok(())
    }

    /// Queues an operation for MPI's thread.
    fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Calls) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let (sender, receiver) = channel();
        // If the thread has ended, the operation and its sender are dropped, and the receiver
        // returns an error.
        let _ = self.jobs.send(Box::new(move |calls| {
            let _ = sender.send(work(calls));
        }));
        Pending(receiver)
    }
}

fn gone() -> Error {
    Error::Call { function: "MPI", message: "its thread has ended".to_string() }
}

fn fits(what: &str, seen: usize, expected: usize) -> Result<()> {
    match seen == expected {
        true => Ok(()),
        false => Err(Error::Sizes(format!("{what} are {seen}, expected {expected}"))),
    }
}

/// Converts lengths to MPI's counts. Their sum must fit a C integer because MPI's offsets do.
fn counts(lengths: &[usize]) -> Result<Vec<c_int>> {
    let all: usize = lengths.iter().sum();
    if c_int::try_from(all).is_err() {
        return Err(Error::Sizes(format!("{all} values at once, expected fewer than {}", c_int::MAX)));
    }
    Ok(lengths.iter().map(|&length| length as c_int).collect())
}

fn bytes(values: &[f32]) -> &[u8] {
    // SAFETY: the slice covers the same memory; u8 needs no alignment and every bit pattern is a
    // valid u8.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn bytes_mut(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: as in `bytes`; and every bit pattern written through the slice is a valid f32.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
