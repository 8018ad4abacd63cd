//! Versions in memory that are not active, up to a number of them, and who loads one.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{self, Arc, MutexGuard, PoisonError, Weak};

use lru::LruCache;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::Serving;
use crate::domain::{ModelName, VersionNumber};

/// A version of a model.
type Key = (ModelName, VersionNumber);

/// Who loads a version has it locked.
type Turns = Mutex<()>;
pub(super) type Turn = OwnedMutexGuard<()>;

/// The versions that were asked for last.
pub(super) struct Pinned {
    versions: sync::Mutex<LruCache<Key, Arc<Serving>>>,
    loading: sync::Mutex<HashMap<Key, Weak<Turns>>>,
}

impl Pinned {
    /// Room for `most`.
    pub(super) fn new(most: NonZeroUsize) -> Self {
        Self {
            versions: sync::Mutex::new(LruCache::new(most)),
            loading: sync::Mutex::default(),
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Serving>> {
        locked(&self.versions).get(key).cloned()
    }

    pub(super) fn keep(&self, serving: Arc<Serving>) {
        let key = (serving.model.clone(), serving.number);
        locked(&self.versions).put(key, serving);
    }

    /// Where those who would load a version wait for one another.
    pub(super) fn turns(&self, key: &Key) -> Arc<Turns> {
        let mut loading = locked(&self.loading);
        if let Some(turns) = loading.get(key).and_then(Weak::upgrade) {
            return turns;
        }
        loading.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::default();
        loading.insert(key.clone(), Arc::downgrade(&turns));
        turns
    }
}

fn locked<T>(mutex: &sync::Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_load_the_same_version_wait_for_one_another() {
        let pinned = Pinned::new(NonZeroUsize::MIN);
        let key = |number| ("model".parse().expect("a name"), VersionNumber(number));
        let turns = pinned.turns(&key(1));
        assert!(Arc::ptr_eq(&turns, &pinned.turns(&key(1))));
        assert!(!Arc::ptr_eq(&turns, &pinned.turns(&key(2))));
        assert_eq!(locked(&pinned.loading).len(), 2);
        drop(turns);
        let _others = pinned.turns(&key(3));
        assert_eq!(locked(&pinned.loading).len(), 1, "nobody waits for the others");
    }
}
