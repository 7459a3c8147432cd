//! Which MPI library is loaded: one that is named, the launcher's own, or the system's.

use std::env;
use std::path::PathBuf;

use crate::launch::Launch;

/// Names the library to be loaded, and wins over all others.
pub const VARIABLE: &str = "LORA_DROP_MPI";

/// The ABI of MPI 5.0 (MPICH 5, Intel MPI, Open MPI 6), MPICH's family, Open MPI 4 and 5.
const NAMES: [&str; 3] = ["libmpi_abi.so.1", "libmpi.so.12", "libmpi.so.40"];

/// The libraries to be tried, in this order. A library works only with the launcher of its family,
/// so those that lie beside the launcher come before the system's.
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

/// The library folders of the program that started this one: an Open MPI daemon, MPICH's proxy.
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
