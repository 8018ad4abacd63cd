//! Versions in memory that are not active, up to a number of them, and who loads one.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{self, Arc, MutexGuard, PoisonError, Weak};

use lru::LruCache;
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use super::Serving;
use crate::domain::{ModelName, VersionNumber};

/// A version of a model.
type Key = (ModelName, VersionNumber);

/// Versions that are loaded at a time: each is in memory as bytes, too, as long as that takes.
const LOADS: usize = 2;

/// Who loads a version has it locked.
type Turns = Mutex<()>;

/// Where a version is.
pub(super) enum Found {
    Here(Arc<Serving>),
    /// It is to be loaded, by who was told so.
    Stored(Turn),
}

/// To load a version.
pub(super) struct Turn {
    _of_version: OwnedMutexGuard<()>,
    _of_all: OwnedSemaphorePermit,
}

/// The versions that were asked for last.
pub(super) struct Pinned {
    versions: sync::Mutex<LruCache<Key, Arc<Serving>>>,
    loading: sync::Mutex<HashMap<Key, Weak<Turns>>>,
    loads: Arc<Semaphore>,
}

impl Pinned {
    /// Room for `most`.
    pub(super) fn new(most: NonZeroUsize) -> Self {
        Self {
            versions: sync::Mutex::new(LruCache::new(most)),
            loading: sync::Mutex::default(),
            loads: Arc::new(Semaphore::new(LOADS)),
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Serving>> {
        locked(&self.versions).get(key).cloned()
    }

    pub(super) fn keep(&self, serving: Arc<Serving>) {
        let key = (serving.model.clone(), serving.number);
        locked(&self.versions).put(key, serving);
    }

    /// Where a version is once nobody else loads it.
    pub(super) async fn find(&self, key: &Key) -> Found {
        let of_version = self.turns(key).lock_owned().await;
        if let Some(serving) = self.get(key) {
            return Found::Here(serving);
        }
        let of_all = Arc::clone(&self.loads).acquire_owned().await;
        Found::Stored(Turn {
            _of_version: of_version,
            _of_all: of_all.expect("nobody closes it"),
        })
    }

    /// Where those who would load a version wait for one another.
    fn turns(&self, key: &Key) -> Arc<Turns> {
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

    #[tokio::test]
    async fn few_are_loaded_at_a_time() {
        let pinned = Pinned::new(NonZeroUsize::MIN);
        let key = |number| ("model".parse().expect("a name"), VersionNumber(number));
        let keys = [1, 2, 3].map(key);
        let (first, second) = (pinned.find(&keys[0]).await, pinned.find(&keys[1]).await);
        assert!(matches!(first, Found::Stored(_)) && matches!(second, Found::Stored(_)));
        let mut third = Box::pin(pinned.find(&keys[2]));
        assert!(futures::poll!(&mut third).is_pending());
        drop(first);
        assert!(matches!(third.await, Found::Stored(_)));
    }
}
