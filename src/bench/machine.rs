//! What figures were taken on.

use std::fs;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::worker::cores;

/// The machine, as far as it tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Operating system, its release, and architecture.
    pub system: String,
    /// Mean number of threads that wanted to run over the minute before: beyond zero, others were at work too.
    pub load_before: Option<f64>,
}

impl Machine {
    /// This one, now.
    pub fn here() -> Self {
        let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
        let system = format!("{} {} {}", std::env::consts::OS, release.trim(), std::env::consts::ARCH);
        Self {
            cpu: field(&read("/proc/cpuinfo").unwrap_or_default(), "model name"),
            cores: cores(),
            memory_bytes: field(&read("/proc/meminfo").unwrap_or_default(), "MemTotal")
                .and_then(|size| kibibytes(&size)),
            system: system.split_whitespace().collect::<Vec<_>>().join(" "),
            load_before: read("/proc/loadavg").and_then(|load| load.split(' ').next()?.parse().ok()),
        }
    }
}

/// Processor time of this process so far, over all threads, in seconds.
pub fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The value of the first line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let values = text.lines().filter_map(|line| line.split_once(':'));
    values.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

fn kibibytes(size: &str) -> Option<u64> {
    size.strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_the_kernel_writes_them() {
        let info = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nmodel name\t: other\n";
        assert_eq!(field(info, "model name").as_deref(), Some("Some CPU @ 2.00GHz"));
        assert_eq!(
            field("MemTotal:       24689764 kB\n", "MemTotal").and_then(|size| kibibytes(&size)),
            Some(24_689_764 << 10)
        );
        assert_eq!(field(info, "flags"), None);
    }
}
