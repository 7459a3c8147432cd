//! Choice of the MPI library: the one that the user names, the launcher's, or the system's.

use std::env;
use std::path::PathBuf;

use crate::launch::Launch;

/// Environment variable that names the library to load; if it is set, no other library is tried.
pub const VARIABLE: &str = "LORA_DROP_MPI";

/// Library names of MPI 5.0's ABI (MPICH 5, Intel MPI, Open MPI 6), MPICH's family, and Open MPI 4
/// and 5.
const NAMES: [&str; 3] = ["libmpi_abi.so.1", "libmpi.so.12", "libmpi.so.40"];

/// Returns the libraries to try, in order. A library works only with the launcher of its family, so
/// libraries installed beside the launcher come before the system's.
pub fn candidates(launch: &Launch) -> Vec<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        return vec![named.into()];
    }
    let mut names = NAMES;
    if launch.launcher.is_open_mpi() {
        names.reverse();
    }
    let folders = launcher_folders();
    let beside = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    let beside = beside.filter(|path| path.exists());
    beside.chain(names.iter().map(PathBuf::from)).collect()
}

/// Returns the library folders beside the program that started this one: Open MPI's daemon or
/// MPICH's proxy.
fn launcher_folders() -> Vec<PathBuf> {
    #[cfg(target_os = "linux")]
    {
        let parent = std::os::unix::process::parent_id();
        let Ok(program) = std::fs::read_link(format!("/proc/{parent}/exe")) else { return Vec::new() };
        let Some(root) = program.parent().and_then(|bin| bin.parent()) else { return Vec::new() };
        ["lib", "lib64"].iter().map(|lib| root.join(lib)).collect()
    }
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}
