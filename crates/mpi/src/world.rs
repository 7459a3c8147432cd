//! All processes of a job. MPI lives on a thread of its own, which alone calls it
//! (MPI_THREAD_FUNNELED), so whoever computes may go on while values travel.

use std::ffi::c_int;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::calls::{self, Calls, Unit};
use crate::launch::Launch;
use crate::{Error, Result, library};

/// How long a process that aborts waits for MPI to end it: it may be within another call.
const ABORT_WAIT: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce(&dyn Calls) + Send>;

/// The processes of the job that this one belongs to. Every rank calls the same functions in the
/// same order.
pub struct World {
    rank: usize,
    size: usize,
    library: String,
    jobs: Sender<Job>,
}

/// Values on their way.
#[must_use = "the values are there when it has been waited for"]
pub struct Pending<T>(Receiver<Result<T>>);

impl<T> Pending<T> {
    /// Waits for the values.
    ///
    /// # Errors
    /// [`Error::Call`] where MPI failed.
    pub fn wait(self) -> Result<T> {
        self.0.recv().unwrap_or_else(|_| Err(gone()))
    }
}

impl World {
    /// Loads an MPI library, joins the job that the launcher has begun, and checks with all ranks
    /// that bytes and floats arrive as they are sent.
    ///
    /// # Errors
    /// [`Error::NotFound`] where no library can be loaded, [`Error::OtherJob`] where it knows
    /// another rank or size than the launcher, and what its functions say.
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
                        Err(Ok(reason)) => tried.push(reason),
                        Err(Err(error)) => {
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

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The library's path or name, for messages.
    pub fn library(&self) -> &str {
        &self.library
    }

    /// Returns what each rank gives, in the order of ranks.
    ///
    /// # Errors
    /// [`Error::Call`]; [`Error::Sizes`] where all of it is 2 GiB or more.
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

    /// Gives all ranks the values of each, `lengths` of them, in the order of ranks.
    ///
    /// # Errors
    /// By [`Pending::wait`]: [`Error::Call`]; [`Error::Sizes`] for 2^31 values or more, and where
    /// this rank has not as many as `lengths` says.
    pub fn gather_values(&self, mine: Vec<f32>, lengths: Vec<usize>) -> Pending<Vec<f32>> {
        let rank = self.rank;
        self.begin(move |calls| {
            fits("a rank's values", mine.len(), lengths[rank])?;
            let mut received = vec![0.0; lengths.iter().sum()];
            calls.all_gather(Unit::Float, bytes(&mine), bytes_mut(&mut received), &counts(&lengths)?)?;
            Ok(received)
        })
    }

    /// Sends each rank its part of `sent`, the first `sent_lengths[0]` values to rank 0, and so on.
    /// Returns the parts that the ranks have sent here, in their order, `lengths` of each.
    ///
    /// # Errors
    /// As of [`World::gather_values`].
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
        // MPI ends the process; where its thread waits for other ranks, the launcher ends them when
        // this one is gone.
        let _: std::result::Result<(), RecvTimeoutError> = ended.recv_timeout(ABORT_WAIT);
        std::process::exit(code)
    }

    /// Leaves the job, when all ranks do.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn finish(&self) -> Result<()> {
        self.begin(|calls| calls.finish()).wait()
    }

    /// Checks that bytes and floats arrive where and as they are sent, so that a library whose
    /// constants are others is found before anything is computed with it.
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

    /// Begins something on MPI's thread.
    fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Calls) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let (sender, receiver) = channel();
        // Where the thread has ended, the receiver hears of it.
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

/// Lengths as MPI has them. All of them together have to fit a C integer, for the places of values
/// do.
fn counts(lengths: &[usize]) -> Result<Vec<c_int>> {
    let all: usize = lengths.iter().sum();
    if c_int::try_from(all).is_err() {
        return Err(Error::Sizes(format!("{all} values at once, expected fewer than {}", c_int::MAX)));
    }
    Ok(lengths.iter().map(|&length| length as c_int).collect())
}

fn bytes(values: &[f32]) -> &[u8] {
    // SAFETY: the same memory; bytes need no alignment, and every pattern of bits is one.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn bytes_mut(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: as above; every pattern of bits is a float too.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
