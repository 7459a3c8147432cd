//! Rank and size of a job, from the environment that a launcher (mpirun, mpiexec, srun) sets.

use std::env;
use std::fmt;

use crate::{Error, Result};

/// Names of the environment variables that a launcher sets.
#[derive(Debug)]
struct Variables {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
    local_size: &'static str,
}

/// Launchers in the order in which they are looked for: srun with PMI sets PMI's variables and its
/// own.
///
/// For Slurm the size is that of the job step: SLURM_NTASKS is also set in a batch script, whose
/// single process is not one of several.
const LAUNCHERS: [Variables; 3] = [
    Variables {
        name: "Open MPI's launcher",
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    Variables { name: "mpiexec or srun", rank: "PMI_RANK", size: "PMI_SIZE", local_size: "MPI_LOCALNRANKS" },
    Variables {
        name: "srun",
        rank: "SLURM_PROCID",
        size: "SLURM_STEP_NUM_TASKS",
        local_size: "SLURM_STEP_TASKS_PER_NODE",
    },
];

/// Launcher that started the process. `Display` writes its name for messages.
#[derive(Clone, Copy, Debug)]
pub struct Launcher(&'static Variables);

impl Launcher {
    /// Whether the launcher is Open MPI's, which cannot start processes of another MPI library.
    pub(crate) fn is_open_mpi(self) -> bool {
        self.0.rank.starts_with("OMPI_")
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

/// Rank of a process, and size of the job that a launcher started.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    pub launcher: Launcher,
    /// Number of this process, from 0.
    pub rank: usize,
    pub size: usize,
    /// Number of the job's processes on this machine, if the launcher gives it.
    pub local_size: Option<usize>,
}

impl Launch {
    /// Reads the launcher's variables; None if the process was started without a launcher or alone.
    ///
    /// # Errors
    /// [`Error::Variable`] if a variable is missing or not a number, or the rank is not below the
    /// size.
    pub fn from_environment() -> Result<Option<Launch>> {
        Launch::from_variables(|name| env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Launch>> {
        let Some(found) = LAUNCHERS.iter().find(|launcher| variable(launcher.size).is_some()) else {
            return Ok(None);
        };
        let number = |name: &'static str, below: usize| {
            let value = variable(name).unwrap_or_default();
            value.parse::<usize>().ok().filter(|&number| number < below).ok_or_else(|| Error::Variable {
                name,
                value,
                expected: match below {
                    usize::MAX => "a number of processes".to_string(),
                    size => format!("a number below {size}"),
                },
                launcher: Launcher(found),
            })
        };
        let size = number(found.size, usize::MAX)?;
        if size <= 1 {
            return Ok(None);
        }
        let rank = number(found.rank, size)?;
        // Slurm writes "2(x3)" for two processes on each of three machines, which gives None.
        let local_size = variable(found.local_size).and_then(|value| value.parse().ok());
        Ok(Some(Launch { launcher: Launcher(found), rank, size, local_size }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        Launch::from_variables(|name| find(name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn each_launcher_says_rank_and_size() {
        for variables in [
            [
                ("OMPI_COMM_WORLD_RANK", "2"),
                ("OMPI_COMM_WORLD_SIZE", "4"),
                ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ],
            [("PMI_RANK", "2"), ("PMI_SIZE", "4"), ("MPI_LOCALNRANKS", "2")],
            [("SLURM_PROCID", "2"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_STEP_TASKS_PER_NODE", "2")],
        ] {
            let found = launch(&variables).unwrap().unwrap();
            assert_eq!((found.rank, found.size, found.local_size), (2, 4, Some(2)));
        }
    }

    #[test]
    fn a_process_alone_is_none() {
        assert!(launch(&[]).unwrap().is_none());
        assert!(launch(&[("PMI_RANK", "0"), ("PMI_SIZE", "1")]).unwrap().is_none());
        // A batch script of a job with four tasks.
        assert!(launch(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]).unwrap().is_none());
    }

    #[test]
    fn a_rank_that_is_missing_or_no_number_is_named() {
        for rank in [None, Some("x"), Some("4"), Some("-1")] {
            let mut variables = vec![("PMI_SIZE", "4")];
            variables.extend(rank.map(|rank| ("PMI_RANK", rank)));
            let message = launch(&variables).unwrap_err().to_string();
            assert!(message.starts_with("PMI_RANK is "), "{message}");
            assert!(message.contains("a number below 4"), "{message}");
        }
    }
}
