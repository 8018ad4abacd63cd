//! Threads that may block: what takes a while runs there, and never on those that answer requests.

/// The result of some work on a blocking thread; its panic, if it panics, is the caller's.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => unreachable!("blocking tasks are never cancelled: {error}"),
        },
    }
}
