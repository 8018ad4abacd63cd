//! Images on their way to the device: who sends one that others have sent just before shares their pixels, or waits until it is
//! decoded for all of them. Where it cannot be, each of them finds out.
//!
//! Invariants: pixels belong to those who wait for an answer, and nothing here keeps them; what decodes never waits for other work of
//! its pool, as it might be given the same image then.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lru::LruCache;

use crate::domain::Digest;

/// Images that are found again; of more of them at a time, some are decoded twice.
const IMAGES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// The images decoded most recently, or being decoded.
pub(super) struct Underway {
    slots: Mutex<LruCache<Digest, Slot>>,
}

/// Held by who decodes the image.
type Slot = Arc<Mutex<State>>;

enum State {
    /// Pixels, if somebody has them. The vector is one of its own: a slot keeps no more of it than its length.
    Decoded(Weak<Vec<u8>>),
    /// It is being decoded; whoever sees this waited for somebody who failed.
    Tried,
}

impl Default for State {
    fn default() -> Self {
        Self::Decoded(Weak::new())
    }
}

impl Underway {
    pub(super) fn new() -> Self {
        Self {
            slots: Mutex::new(LruCache::new(IMAGES)),
        }
    }

    /// An image's pixels: those that somebody has, or what `decode` gives.
    ///
    /// # Errors
    /// Those of `decode`.
    pub(super) fn pixels<E>(
        &self,
        image: Digest,
        decode: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Arc<Vec<u8>>, E> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.get_or_insert(image, Slot::default))
        };
        let mut state = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Decoded(pixels) => {
                if let Some(pixels) = pixels.upgrade() {
                    return Ok(pixels);
                }
            }
            // One after another, those who sent it would keep all threads waiting.
            State::Tried => {
                drop(state);
                return decode().map(Arc::new);
            }
        }
        *state = State::Tried;
        let pixels = Arc::new(decode()?);
        *state = State::Decoded(Arc::downgrade(&pixels));
        Ok(pixels)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;

    #[test]
    fn an_image_is_decoded_once_while_somebody_has_it() {
        let (underway, image) = (Underway::new(), Digest::of(b"image"));
        let decoded = AtomicU8::new(0);
        let look = || {
            let decode = || Ok::<_, Infallible>(vec![decoded.fetch_add(1, Ordering::Relaxed)]);
            underway.pixels(image, decode).expect("infallible")
        };
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(look)).collect();
            let pixels = threads.into_iter().map(|thread| thread.join().expect("pixels"));
            pixels.collect::<Vec<_>>()
        });
        assert!(all.iter().all(|pixels| Arc::ptr_eq(pixels, &all[0])));
        let other = underway.pixels(Digest::of(b"other"), || Ok::<_, Infallible>(vec![7]));
        assert_eq!(*other.expect("infallible"), [7]);
        assert_eq!(*look(), [0]);
        drop(all);
        assert_eq!(*look(), [1], "nobody had it any more");
    }

    #[test]
    fn whoever_waited_for_one_that_failed_tries_beside_the_others() {
        let (underway, image) = (Underway::new(), Digest::of(b"image"));
        let panicked = std::thread::scope(|scope| {
            let panics = || underway.pixels(image, || -> Result<_, ()> { panic!("a decoder") });
            scope.spawn(panics).join().is_err()
        });
        assert!(panicked);
        // None of them is done before all have begun.
        let together = Barrier::new(3);
        let fail = || {
            together.wait();
            Err("no image")
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| assert_eq!(underway.pixels(image, fail), Err("no image")));
            }
        });
    }
}
