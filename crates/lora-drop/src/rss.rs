//! The main memory of this process.

/// Peak bytes of this process in main memory, mapped files included; None if the system does not
/// say (Linux does).
pub fn peak_rss_bytes() -> Option<u64> {
    parse(&status()?, "VmHWM:")
}

/// Bytes of this process that are in main memory now; None if the system does not say.
pub fn rss_bytes() -> Option<u64> {
    parse(&status()?, "VmRSS:")
}

/// Reads /proc/self/status. On other systems the path may be that of another process, as on Wine.
fn status() -> Option<String> {
    if cfg!(target_os = "linux") { std::fs::read_to_string("/proc/self/status").ok() } else { None }
}

/// The bytes of a line such as `VmHWM:   1234 kB`.
pub(crate) fn parse(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_line_is_read() {
        let peak = |status: &str| parse(status, "VmHWM:");
        assert_eq!(peak("VmPeak:\t 9 kB\nVmHWM:\t    1234 kB\nVmRSS:\t 1 kB\n"), Some(1_263_616));
        assert_eq!(parse("VmHWM:\t    1234 kB\nVmRSS:\t 1 kB\n", "VmRSS:"), Some(1024));
        assert_eq!(peak("VmRSS:\t 1 kB\n"), None);
        assert_eq!(peak("VmHWM:\t many kB\n"), None);
        assert_eq!(peak(&format!("VmHWM:\t {} kB\n", u64::MAX)), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn touched_memory_is_counted() {
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(rss_bytes().unwrap() >= block.len() as u64);
        assert!(peak_rss_bytes().unwrap() >= rss_bytes().unwrap());
    }
}
