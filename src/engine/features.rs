//! Features of images that were seen lately, by the digest of their bytes: an image that is sent again costs a hash. A job's images
//! are remembered where there is room, and are the first to make room for what somebody asks for.
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

    /// What [`Self::get`] gives, and counts it.
    pub(super) fn look_up(&self, image: &Digest, priority: Priority) -> Option<Arc<[f32]>> {
        let known = self.get(image, priority);
        let outcome = if known.is_some() { "hit" } else { "miss" };
        metrics::features_looked_up(priority.as_str(), outcome);
        known
    }

    pub(super) fn get(&self, image: &Digest, priority: Priority) -> Option<Arc<[f32]>> {
        let mut rows = self.rows();
        match priority {
            Priority::Interactive => rows.get(image).cloned(),
            Priority::Background => rows.peek(image).cloned(),
        }
    }

    pub(super) fn insert(&self, image: Digest, row: Arc<[f32]>, priority: Priority) {
        let mut rows = self.rows();
        match priority {
            Priority::Interactive => {
                rows.put(image, row);
            }
            Priority::Background if rows.len() < rows.cap().get() && !rows.contains(&image) => {
                rows.put(image, row);
                // The first to make room.
                rows.demote(&image);
            }
            Priority::Background => {}
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
    fn what_was_asked_for_least_lately_makes_room_and_a_jobs_before_that() {
        use Priority::{Background, Interactive};
        let cache = FeatureCache::new(2 * (4 * 4 + OVERHEAD), 4).expect("room for two");
        let [a, b, c, d] = [b"a", b"b", b"c", b"d"].map(|bytes| Digest::of(bytes));
        let row = |value: f32| Arc::from(vec![value; 4]);
        cache.insert(a, row(0.0), Interactive);
        cache.insert(b, row(1.0), Background);
        cache.insert(c, row(2.0), Background);
        assert_eq!(cache.get(&c, Background), None, "there is no room for a job's");
        assert_eq!(cache.get(&b, Background), Some(row(1.0)));
        cache.insert(c, row(2.0), Interactive);
        let found = [a, b, c].map(|image| cache.get(&image, Background).is_some());
        assert_eq!(found, [true, false, true], "a job's makes room");
        assert_eq!(cache.get(&a, Interactive), Some(row(0.0)));
        cache.insert(d, row(3.0), Interactive);
        let found = [a, c, d].map(|image| cache.get(&image, Background).is_some());
        assert_eq!(found, [true, false, true], "it was asked for less lately");
        assert!(
            FeatureCache::new(100, 512).is_none(),
            "too small for a row is off"
        );
    }
}
