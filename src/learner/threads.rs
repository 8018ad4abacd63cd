//! The threads that fit, unlearn and evaluate. They have what those who answer leave of the processor: beside a busy server a fit
//! goes on, at a fraction of its pace.

use rayon::{ThreadPool, ThreadPoolBuilder};

/// So many of them.
pub(super) fn start(threads: usize) -> std::io::Result<ThreadPool> {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|n| format!("fit-{n}"))
        .start_handler(|_| step_back())
        .build()
        .map_err(std::io::Error::other)
}

/// Gives this thread the lowest priority that `nice` has.
#[cfg(target_os = "linux")]
fn step_back() {
    const LOWEST: i32 = 19;
    // Linux keeps this for each thread, under its own id.
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), LOWEST) {
        tracing::warn!(%error, "fits compete with those who answer: their threads keep their priority");
    }
}

/// Elsewhere a priority is the whole process's.
#[cfg(not(target_os = "linux"))]
fn step_back() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn priority() -> i32 {
        rustix::process::getpriority_process(Some(rustix::thread::gettid())).expect("a priority")
    }

    #[test]
    fn fits_have_what_others_leave() {
        let (before, pool) = (priority(), start(2).expect("threads"));
        assert!(pool.broadcast(|_| priority()).iter().all(|of| *of == 19));
        assert_eq!(priority(), before, "nobody else's changes");
    }
}
