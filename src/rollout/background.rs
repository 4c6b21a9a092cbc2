//! Threads that compute where others serve.

/// Lets the calling thread compute when the threads that serve leave time for it. Threads that it starts do the same.
pub(super) fn step_back() {
    #[cfg(target_os = "linux")]
    {
        // The last: against a thread of the usual priority it gets about a seventieth of a core.
        const NICE: i32 = 19;
        // On Linux a thread has a priority of its own.
        let lowered = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
        if let Err(error) = lowered {
            tracing::debug!(%error, "a thread keeps its priority");
        }
    }
}
