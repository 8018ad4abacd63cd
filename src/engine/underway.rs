//! Images on their way to the device: who sends one that others have sent just before shares their pixels, or waits until it is
//! decoded for them.
//!
//! Invariant: pixels belong to those who wait for an answer; here nothing keeps them.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lru::LruCache;

use crate::domain::Digest;

/// Images that are found again; of more of them at a time, some are decoded twice.
const IMAGES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Held by who decodes the image.
type Slot = Arc<Mutex<Weak<Vec<u8>>>>;

/// The images decoded most recently, or being decoded.
pub(super) struct Underway {
    slots: Mutex<LruCache<Digest, Slot>>,
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
    /// Those of `decode`. They are the caller's alone.
    pub(super) fn pixels<E>(
        &self,
        image: Digest,
        decode: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Arc<Vec<u8>>, E> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.get_or_insert(image, Slot::default))
        };
        // A decoder that panicked has left nothing.
        let mut held = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pixels) = held.upgrade() {
            return Ok(pixels);
        }
        let pixels = Arc::new(decode()?);
        *held = Arc::downgrade(&pixels);
        Ok(pixels)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
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
    fn what_fails_is_tried_again() {
        let (underway, image) = (Underway::new(), Digest::of(b"image"));
        assert_eq!(underway.pixels(image, || Err("no image")), Err("no image"));
        let panicked = std::thread::scope(|scope| {
            let panics = || underway.pixels(image, || -> Result<_, ()> { panic!("a decoder") });
            scope.spawn(panics).join().is_err()
        });
        assert!(panicked);
        assert_eq!(
            underway.pixels(image, || Ok::<_, ()>(vec![1])),
            Ok(Arc::new(vec![1]))
        );
    }
}
