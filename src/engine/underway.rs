//! Images on their way to the device: who sends one that others wait for shares their pixels, or waits until it is decoded for all of
//! them. Where it cannot be, each of them finds out.
//!
//! Invariants: pixels belong to those who wait for an answer, and nothing here keeps them; what decodes never waits for other work of
//! its pool, as it might be given the same image then.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use lru::LruCache;

use crate::domain::Digest;

/// Images that are found again; of more of them at a time, some are decoded twice.
const IMAGES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// The images sent most recently, as long as somebody waits for them.
pub(super) struct Underway {
    images: Mutex<LruCache<Digest, Weak<Decoded>>>,
}

/// What becomes of an image: pixels, 3·s·s bytes, channel first, or nothing where it could not be decoded.
#[derive(Default)]
pub(super) struct Decoded(OnceLock<Option<Vec<u8>>>);

impl Decoded {
    pub(super) fn new(pixels: Vec<u8>) -> Arc<Self> {
        Arc::new(Self(OnceLock::from(Some(pixels))))
    }

    /// Its pixels; none where it could not be decoded.
    pub(super) fn pixels(&self) -> &[u8] {
        self.0.get().and_then(Option::as_deref).unwrap_or_default()
    }
}

impl Underway {
    pub(super) fn new() -> Self {
        Self {
            images: Mutex::new(LruCache::new(IMAGES)),
        }
    }

    /// An image with its pixels: those that somebody has, or what `decode` gives.
    ///
    /// # Errors
    /// Those of `decode`.
    pub(super) fn decoded<E>(
        &self,
        image: Digest,
        mut decode: impl FnMut() -> Result<Vec<u8>, E>,
    ) -> Result<Arc<Decoded>, E> {
        let (image, mut failed) = (self.find(image), None);
        let pixels = image
            .0
            .get_or_init(|| decode().map_err(|error| failed = Some(error)).ok());
        match failed {
            None if pixels.is_some() => Ok(image),
            // Somebody else has failed. Waiting for each other in turn, all who sent it would hold all threads.
            None => decode().map(Decoded::new),
            Some(error) => Err(error),
        }
    }

    fn find(&self, image: Digest) -> Arc<Decoded> {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.get(&image).and_then(Weak::upgrade).unwrap_or_else(|| {
            let decoded = Arc::default();
            images.put(image, Arc::downgrade(&decoded));
            decoded
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    /// Waits until so many have come, but not for ever.
    fn wait_for(count: usize, come: &AtomicUsize) -> bool {
        let started = Instant::now();
        while come.load(Ordering::SeqCst) < count && started.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        come.load(Ordering::SeqCst) >= count
    }

    #[test]
    fn an_image_is_decoded_once_while_somebody_waits_for_it() {
        let (underway, image) = (Underway::new(), Digest::of(b"image"));
        let (come, decoded) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let look = || {
            come.fetch_add(1, Ordering::SeqCst);
            let decode = || {
                // All of them have sent it by now.
                assert!(wait_for(8, &come));
                Ok::<_, ()>(vec![decoded.fetch_add(1, Ordering::SeqCst) as u8])
            };
            underway.decoded(image, decode).expect("pixels")
        };
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(look)).collect();
            let pixels = threads.into_iter().map(|thread| thread.join().expect("pixels"));
            pixels.collect::<Vec<_>>()
        });
        assert!(all.iter().all(|of| Arc::ptr_eq(of, &all[0])));
        let other = underway.decoded(Digest::of(b"other"), || Ok::<_, ()>(vec![7]));
        assert_eq!(other.expect("pixels").pixels(), [7]);
        assert_eq!(look().pixels(), [0]);
        drop(all);
        assert_eq!(look().pixels(), [1], "nobody waited for it any more");
    }

    #[test]
    fn those_who_waited_for_one_that_failed_try_beside_one_another() {
        let (underway, image) = (Underway::new(), Digest::of(b"image"));
        let (come, tried) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let look = || {
            come.fetch_add(1, Ordering::SeqCst);
            let decode = || {
                let is_first = tried.fetch_add(1, Ordering::SeqCst) == 0;
                // The first one fails when all wait for it, and none of the others before all have begun.
                Err(if is_first {
                    wait_for(4, &come)
                } else {
                    wait_for(4, &tried)
                })
            };
            underway.decoded(image, decode).map(drop)
        };
        std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(look));
            assert_eq!(
                threads.map(|thread| thread.join().expect("an error")),
                [Err(true); 4]
            );
        });
        let panics = || underway.decoded(image, || -> Result<_, ()> { panic!("a decoder") });
        assert!(std::thread::scope(|scope| scope.spawn(panics).join().is_err()));
        let after = underway.decoded(image, || Ok::<_, ()>(vec![1]));
        assert_eq!(after.expect("pixels").pixels(), [1]);
    }
}
