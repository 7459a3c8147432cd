//! The machine that a run was made on, for summary.json, and its clock.

use std::time::{SystemTime, UNIX_EPOCH};

use lora_drop_compute::gemm::{Precision, instructions};
use serde::{Deserialize, Serialize};

/// The properties of a machine that a run's speed and rounding depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name, or its architecture if the system does not say.
    pub cpu: String,
    /// Processors that the process may use.
    pub cores: usize,
    /// Bytes of main memory; 0 if the system does not say.
    pub memory_bytes: u64,
    /// The instructions that matrix products use.
    pub kernels: String,
}

impl Machine {
    /// This machine, with the instructions that it has for products in this precision.
    pub(crate) fn of_this(precision: Precision) -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| cpu_name(&text));
        let memory = std::fs::read_to_string("/proc/meminfo").ok();
        Machine {
            cpu: cpu.unwrap_or_else(|| std::env::consts::ARCH.to_string()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory.and_then(|text| crate::rss::parse(&text, "MemTotal:")).unwrap_or(0),
            kernels: instructions(precision).to_string(),
        }
    }
}

/// The first processor's name in Linux's list.
fn cpu_name(list: &str) -> Option<String> {
    let line = list.lines().find_map(|line| line.strip_prefix("model name"))?;
    let name = line.split_once(':')?.1.trim();
    (!name.is_empty()).then(|| name.to_string())
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        assert_eq!(cpu_name("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n"), Some("A CPU @ 2 GHz".into()));
        assert_eq!(cpu_name("processor\t: 0\nmodel name\t:\n"), None);
        let machine = Machine::of_this(Precision::F32);
        assert!(machine.cores > 0 && !machine.cpu.is_empty() && !machine.kernels.is_empty());
        #[cfg(target_os = "linux")]
        assert!(machine.memory_bytes > 1 << 20);
    }
}
