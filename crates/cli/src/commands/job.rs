//! The processes ("ranks") that a launcher (mpirun, mpiexec, srun) has started as one job: this one
//! joins the others, and all end together.
//!
//! The first rank reports errors that all ranks know. A rank that panics, or has lost the others,
//! aborts the job, so that none waits for it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lora_drop::Error;
use lora_drop::ranks::{Exchange, Exchanged, Ranks};
use lora_drop_mpi::{Launch, World};

use super::console::eprint_line;
use super::{Failure, exit_code};

/// The job that this process belongs to.
pub struct Job {
    world: Arc<World>,
    ranks: Ranks,
    /// The file in which a rank other than the first logs its own error.
    log: Mutex<Option<PathBuf>>,
}

/// The exchange of values over MPI.
struct Mpi(Arc<World>);

impl Exchange for Mpi {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn gather(&self, mine: Vec<u8>) -> Exchanged<Vec<Vec<u8>>> {
        self.0.all_gather(mine).map_err(|e| e.to_string())
    }

    fn gather_values(&self, mine: Vec<f32>, lengths: Vec<usize>) -> Exchanged<Vec<f32>> {
        self.0.gather_values(mine, lengths).wait().map_err(|e| e.to_string())
    }

    fn exchange_values(
        &self,
        sent: Vec<f32>,
        sent_lengths: Vec<usize>,
        lengths: Vec<usize>,
    ) -> Exchanged<Vec<f32>> {
        self.0.exchange_values(sent, sent_lengths, lengths).wait().map_err(|e| e.to_string())
    }
}

impl Job {
    /// Joins the other processes.
    ///
    /// # Errors
    /// No MPI library can be loaded, or it does not know the job.
    pub fn join(launch: &Launch) -> std::result::Result<Job, lora_drop_mpi::Error> {
        let world = Arc::new(World::join(launch)?);
        let threads = match std::env::var_os("RAYON_NUM_THREADS") {
            // The thread pool reads it.
            Some(_) => 0,
            None => threads(&world, launch)?,
        };
        let ranks = Ranks::new(Mpi(world.clone()), threads);
        Ok(Job { world, ranks, log: Mutex::new(None) })
    }

    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// How many processes there are, and over which library they exchange values.
    pub fn describe(&self) -> String {
        format!("{} processes train together over {}", self.ranks.size(), self.world.library())
    }

    /// Sets the log of what goes wrong on this rank alone: rank-N.log in `folder`, if that exists.
    pub fn log_into(&self, folder: &Path) {
        let log = folder.join(format!("rank-{}.log", self.ranks.rank()));
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = Some(log);
    }

    /// Runs a command on this rank, and ends it when all have.
    pub fn run(self, command: impl FnOnce(&Job) -> std::result::Result<(), Failure>) -> u8 {
        let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| command(&self))) else {
            self.report("the program has panicked; its message is on standard error");
            self.world.abort(101);
        };
        // If this rank has failed by itself, the others learn of it here.
        let outcome = match outcome {
            Ok(()) => self.ranks.agree(Ok(())).map_err(Failure::from),
            Err(Failure::Error(error)) => self.ranks.agree(Err(error)).map_err(Failure::from),
            Err(interrupted) => {
                let _ = self.ranks.agree::<()>(Err(Error::Interrupted));
                Err(interrupted)
            }
        };
        if let Err(Failure::Error(error)) = &outcome
            && self.ranks.failed_here()
            && !self.ranks.is_first()
        {
            self.report(&error.to_string());
        }
        let code = exit_code(outcome, !self.ranks.is_first());
        if self.ranks.is_lost() {
            self.world.abort(1);
        }
        // A launcher may end the others as soon as the first one has ended.
        let _ = self.world.all_gather(Vec::new()).and_then(|_| self.world.finish());
        code
    }

    /// Reports what went wrong on this rank.
    fn report(&self, problem: &str) {
        let rank = self.ranks.rank();
        if rank == 0 {
            return;
        }
        if self.ranks.is_lost() {
            eprint_line(format_args!("error on rank {rank}: {problem}"));
        }
        if let Some(log) = &*self.log.lock().unwrap_or_else(PoisonError::into_inner) {
            // If there is no folder, the error is only on standard error.
            let _ = std::fs::write(log, format!("rank {rank}: {problem}\n"));
        }
    }
}

/// The computing threads of this rank: its share of the processors that it may use, which other
/// ranks on this machine may use as well.
fn threads(world: &World, launch: &Launch) -> std::result::Result<usize, lora_drop_mpi::Error> {
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let mine = [read("/proc/sys/kernel/random/boot_id"), allowed(&status).to_string()].join("\n");
    let all = world.all_gather(mine.clone().into_bytes())?;
    let machine = |text: &str| text.lines().next().unwrap_or_default().to_string();
    let texts: Vec<String> = all.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    let here = texts.iter().filter(|text| machine(text) == machine(&mine));
    let masks: Vec<Vec<usize>> =
        here.map(|text| processors(text.lines().last().unwrap_or_default())).collect();
    let share = share(&processors(allowed(&status)), &masks);
    Ok(share.unwrap_or(most / launch.local_size.unwrap_or(1).max(1)).clamp(1, most))
}

/// The list of processors in a process's status, as Linux has it.
fn allowed(status: &str) -> &str {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.map_or("", str::trim)
}

/// The numbers in a list such as `0-3,8`.
fn processors(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// Number of processors in this rank's share of `own`, where each is divided among all ranks that
/// may use it; None if the system does not say.
fn share(own: &[usize], of_ranks: &[Vec<usize>]) -> Option<usize> {
    let mut users: BTreeMap<usize, usize> = BTreeMap::new();
    of_ranks.iter().flatten().for_each(|&processor| *users.entry(processor).or_default() += 1);
    let part = |processor| 1.0 / users.get(processor).copied().unwrap_or(1).max(1) as f64;
    // Thirds add up to a little less than one, hence the 1e-6.
    (!own.is_empty()).then(|| (own.iter().map(part).sum::<f64>() + 1e-6) as usize)
}

/// The error of a command that a launcher has started in several processes.
pub fn refuse(launch: &Launch) -> Error {
    Error::Usage(format!(
        "{} started {} processes, and only `lora-drop train` (without --dry-run) and `lora-drop eval` run in several; start \
         this command without a launcher",
        launch.launcher, launch.size
    ))
}

/// The error of a process that could not join the others, which do not learn of it.
pub fn refuse_joining(error: lora_drop_mpi::Error, launch: &Launch) -> std::result::Result<(), Failure> {
    let place = if launch.rank == 0 { String::new() } else { format!("rank {}: ", launch.rank) };
    Err(Error::Ranks(format!("{place}{error}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_divided_among_the_ranks_that_may_use_them() {
        let status = "Name:\tx\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3,8\nMems_allowed:\t1\n";
        assert_eq!(processors(allowed(status)), [0, 1, 2, 3, 8]);
        assert!(processors("").is_empty());
        let [all, first, second] = ["0-3", "0-1", "2-3"].map(processors);
        assert_eq!(share(&all, &[all.clone(), all.clone()]), Some(2));
        assert_eq!(share(&all, &[all.clone(), all.clone(), all.clone()]), Some(1));
        // The launcher has divided them already.
        assert_eq!(share(&first, &[first.clone(), second.clone()]), Some(2));
        assert_eq!(share(&[], &[]), None);
        let six = processors("0-5");
        assert_eq!(share(&six, &[six.clone(), six.clone(), six.clone()]), Some(2));
    }
}
