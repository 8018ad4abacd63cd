//! Memory that forwards use again.
//!
//! Owner: a tower. Invariant: what is computed at the same time has a room each, and there are as many as there ever were in use
//! together: a forward may run in another's pause, and threads that have images of their own each take one, or another while
//! they wait for pieces that others took over.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) struct Rooms<R>(Mutex<Vec<R>>);

impl<R> Default for Rooms<R> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<R> Rooms<R> {
    /// Does `work` in a room that is free, or in a `new` one. After a panic it is gone.
    pub(crate) fn with<T>(&self, new: impl FnOnce() -> R, work: impl FnOnce(&mut R) -> T) -> T {
        let free = self.free().pop();
        let mut room = free.unwrap_or_else(new);
        let done = work(&mut room);
        self.free().push(room);
        done
    }

    fn free(&self) -> MutexGuard<'_, Vec<R>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
