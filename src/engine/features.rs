//! Features of images that were seen lately, by the digest of their bytes: an image that is sent again costs a hash. A job's images
//! are remembered where there is room, and push out nothing that somebody asked for.
//!
//! Invariant: what is remembered is bounded in bytes. Features belong to the backbone, which never changes under an engine.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::Priority;
use crate::domain::Digest;
use crate::metrics;

/// Bytes that an entry takes besides its values: its key, its pointers and its place in the table.
const OVERHEAD: usize = 160;

/// The features of the images asked for most recently.
pub(super) struct FeatureCache {
    rows: Mutex<LruCache<Digest, Arc<[f32]>>>,
}

impl FeatureCache {
    /// For rows of `dim` values in at most so many bytes; `None` where not one has room.
    pub(super) fn new(bytes: usize, dim: usize) -> Option<Self> {
        let entries = bytes / (dim * size_of::<f32>() + OVERHEAD);
        NonZeroUsize::new(entries).map(|entries| Self {
            rows: Mutex::new(LruCache::new(entries)),
        })
    }

    /// For who has just asked.
    pub(super) fn get(&self, image: &Digest) -> Option<Arc<[f32]>> {
        let known = self.rows().get(image).cloned();
        metrics::features_looked_up(known.is_some());
        known
    }

    /// What has become known of an image since somebody asked.
    pub(super) fn known_since(&self, image: &Digest) -> Option<Arc<[f32]>> {
        self.rows().peek(image).cloned()
    }

    pub(super) fn insert(&self, image: Digest, row: Arc<[f32]>, priority: Priority) {
        let mut rows = self.rows();
        if priority == Priority::Interactive || rows.len() < rows.cap().get() {
            rows.put(image, row);
        }
    }

    fn rows(&self) -> MutexGuard<'_, LruCache<Digest, Arc<[f32]>>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_least_lately_makes_room() {
        let cache = FeatureCache::new(2 * (4 * 4 + OVERHEAD), 4).expect("room for two");
        let digests = [b"a", b"b", b"c"].map(|bytes| Digest::of(bytes));
        let row = |value: f32| Arc::from(vec![value; 4]);
        cache.insert(digests[0], row(0.0), Priority::Background);
        cache.insert(digests[1], row(1.0), Priority::Background);
        assert_eq!(cache.get(&digests[0]), Some(row(0.0)));
        cache.insert(digests[2], row(2.0), Priority::Background);
        assert_eq!(cache.known_since(&digests[2]), None, "a job's push out nothing");
        cache.insert(digests[2], row(2.0), Priority::Interactive);
        assert_eq!(cache.get(&digests[1]), None);
        assert_eq!(cache.get(&digests[0]), Some(row(0.0)));
        assert_eq!(cache.get(&digests[2]), Some(row(2.0)));
        assert!(
            FeatureCache::new(100, 512).is_none(),
            "too small for a row is off"
        );
    }
}
