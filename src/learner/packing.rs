//! Snapshots and statistics as the store keeps them. They may be large, so threads that may block pack them.

use crate::adapter::{CodecError, Snapshot, SnapshotError, Statistics, statistics};
use crate::blocking;
use crate::domain::Content;

/// A snapshot and what the store keeps of it.
pub(super) async fn pack(snapshot: Snapshot) -> Result<(Snapshot, Content), SnapshotError> {
    let packed = blocking::run(move || {
        let content = Content::of(snapshot.encode()?);
        Ok((snapshot, content))
    });
    packed.await
}

/// What the store keeps of statistics.
pub(super) async fn pack_statistics(of: Statistics) -> Result<Vec<u8>, CodecError> {
    blocking::run(move || statistics::encode(&of)).await
}
