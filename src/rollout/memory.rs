//! How much memory there is for one more model.

use std::fs;

/// What a session takes for each byte of its graph: the weights as they are read, and as they are laid out to compute.
const COPIES: u64 = 2;

/// Bytes that `sessions` on a graph of `bytes` are expected to take.
pub(super) fn needed(bytes: u64, sessions: usize) -> u64 {
    bytes.saturating_mul(COPIES).saturating_mul(sessions as u64)
}

/// Bytes that this process may still take; none where the system does not tell.
pub(super) fn available() -> Option<u64> {
    fail::fail_point!("rollout_memory", |bytes| bytes.and_then(|bytes| bytes.parse().ok()));
    [of_host(), of_group()].into_iter().flatten().min()
}

fn of_host() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// What the control group leaves (version 2), with what it could take back from the page cache.
fn of_group() -> Option<u64> {
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let (most, current) = (number(read("memory.max")?)?, number(read("memory.current")?)?);
    let reclaimable = read("memory.stat")
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok()));
    Some(most.saturating_sub(current.saturating_sub(reclaimable.unwrap_or(0))))
}

/// Has the allocator of glibc hold large blocks apart, so that those of a model go back to the system when it is freed. By
/// itself it does so until the first is freed, and then takes blocks of that size from the heaps, where what lives longer
/// keeps the holes open: over many rollouts that would look like a leak.
pub(super) fn hold_large_blocks_apart() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // More than librdkafka takes to compress a batch, which would otherwise be mapped anew each time.
        const LARGE: libc::c_int = 4 << 20;
        // SAFETY: it takes no pointer and changes two numbers that the allocator reads at its next call. As by itself, it
        // keeps twice such a block at the end of a heap.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * LARGE);
        }
    }
}

/// Gives memory that was freed back to the system. The allocator of glibc keeps what one thread has allocated and another
/// has freed.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer, and may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
