//! What takes a while runs on threads that may block, and never on those that answer requests.

use crate::adapter::{CodecError, Snapshot, SnapshotError, Statistics, statistics};
use crate::domain::Content;

/// The result of some work on a blocking thread; its panic, if it panics, is the caller's.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => unreachable!("blocking tasks are never cancelled: {error}"),
        },
    }
}

/// A snapshot and what the store keeps of it.
pub(super) async fn encode(snapshot: Snapshot) -> Result<(Snapshot, Content), SnapshotError> {
    run(move || {
        let content = Content::of(snapshot.encode()?);
        Ok((snapshot, content))
    })
    .await
}

/// What the store keeps of statistics.
pub(super) async fn encode_statistics(of: Statistics) -> Result<Vec<u8>, CodecError> {
    run(move || statistics::encode(&of)).await
}

/// Statistics of some tasks, and of the next one after them.
pub(super) async fn extend(mut sum: Statistics, next: Statistics) -> candle_core::Result<Statistics> {
    run(move || sum.extend(next).map(|()| sum)).await
}
