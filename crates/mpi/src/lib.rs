//! Processes ("ranks") of a job, and the few collective operations that data-parallel training
//! needs. The MPI library is loaded at run time: building needs no MPI, and a program that was
//! started without a launcher loads none.
//!
//! ```no_run
//! # fn main() -> Result<(), lora_drop_mpi::Error> {
//! if let Some(launch) = lora_drop_mpi::Launch::from_environment()? {
//!     let world = lora_drop_mpi::World::join(&launch)?;
//!     let names = world.all_gather(format!("rank {}", world.rank()).into_bytes())?;
//!     assert_eq!(names.len(), world.size());
//!     world.finish()?;
//! }
//! # Ok(())
//! # }
//! ```

mod calls;
mod launch;
mod library;
mod world;

pub use launch::{Launch, Launcher};
pub use world::{Pending, World};

/// Errors of joining a job and of its collective operations.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A variable of the launcher is missing or has an invalid value.
    #[error("{name} is {value:?}, expected {expected}; {launcher} sets it for each process")]
    Variable { name: &'static str, value: String, expected: String, launcher: Launcher },
    /// No MPI library could be loaded.
    #[error(
        "{launcher} started {size} processes, but no MPI library could be loaded ({}); install MPICH, Open MPI or \
         Intel MPI, or name its libmpi in {}", tried.join("; "), library::VARIABLE
    )]
    NotFound { launcher: Launcher, size: usize, tried: Vec<String> },
    /// The library lacks a function or an object, or does not support MPI_THREAD_FUNNELED.
    #[error("{library}: not an MPI library that can be used: {problem}")]
    Symbol { library: String, problem: String },
    /// The library and the launcher disagree about the rank or the number of processes.
    #[error(
        "{launcher} says that this is process {rank} of {size}, and {library} says {seen_rank} of {seen_size}; \
         start the job with the launcher of this library, or name the launcher's library in {}",
        library::VARIABLE
    )]
    OtherJob {
        launcher: Launcher,
        rank: usize,
        size: usize,
        library: String,
        seen_rank: usize,
        seen_size: usize,
    },
    /// Bytes or floats did not arrive as they were sent.
    #[error("{library}: {problem}; name another MPI library in {}", library::VARIABLE)]
    Garbled { library: String, problem: String },
    /// A function of the library failed.
    #[error("{function} failed: {message}")]
    Call { function: &'static str, message: String },
    /// A buffer does not have the expected length, or a call has too many values for MPI.
    #[error("{0}")]
    Sizes(String),
}

type Result<T> = std::result::Result<T, Error>;
