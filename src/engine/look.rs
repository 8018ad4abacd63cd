//! From bytes to pixels, or, where the image was seen lately, at once to its features.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::decode::Panicked;
use super::{Engine, EngineError, Priority, Shared};
use crate::clip::ImageError;
use crate::domain::{Digest, Reads};
use crate::metrics;

/// A decoded and resized image.
pub struct Pixels {
    /// 3·s·s, channel first.
    pub(super) bytes: Vec<u8>,
    /// Of the image's bytes, where its features are to be remembered.
    pub(super) image: Option<Digest>,
}

/// What a look at an image found.
pub enum Looked {
    /// It was seen lately: its features.
    Known(Arc<[f32]>),
    /// It is to be encoded.
    Fresh(Pixels),
}

impl Engine {
    /// Looks at one image, of which something is to be read: finds its features where they are remembered, and else decodes and
    /// resizes it on the CPU pool.
    ///
    /// # Errors
    /// [`EngineError::Image`], or [`EngineError::Overloaded`] when interactive work finds the pool full; background
    /// work waits instead.
    pub async fn look(&self, bytes: Bytes, reads: Reads, priority: Priority) -> Result<Looked, EngineError> {
        done(
            self.shared
                .decode
                .run(priority, self.looking(bytes, reads, priority))
                .await?,
        )
    }

    /// Looks at all images of an interactive request. One result an image, in order.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`] when the pool has no room for all of them and is not idle.
    pub async fn look_at_all(
        &self,
        images: Vec<Bytes>,
        reads: Reads,
    ) -> Result<Vec<Result<Looked, EngineError>>, EngineError> {
        let looking = |bytes| self.looking(bytes, reads, Priority::Interactive);
        let works = images.into_iter().map(looking).collect();
        let looked = self.shared.decode.run_all(works).await?;
        Ok(looked.into_iter().map(done).collect())
    }

    /// Work for the decode pool, which tells how long it waited.
    fn looking(
        &self,
        bytes: Bytes,
        reads: Reads,
        priority: Priority,
    ) -> impl FnOnce() -> Result<Looked, EngineError> + use<> {
        let (shared, asked) = (Arc::clone(&self.shared), Instant::now());
        move || {
            metrics::decode_waited(priority.as_str(), asked.elapsed());
            shared.look(&bytes, reads, priority)
        }
    }
}

impl Shared {
    fn look(&self, bytes: &[u8], reads: Reads, priority: Priority) -> Result<Looked, EngineError> {
        let cache = self.features.as_ref().filter(|_| reads == Reads::Features);
        let image = cache.map(|_| Digest::of(bytes));
        if let Some(features) = cache.zip(image).and_then(|(cache, image)| cache.get(&image)) {
            return Ok(Looked::Known(features));
        }
        let started = Instant::now();
        let pixels = self.processor.process(bytes, self.limits);
        metrics::image_decoded(priority.as_str(), started.elapsed());
        Ok(Looked::Fresh(Pixels {
            bytes: pixels?,
            image,
        }))
    }
}

/// What a piece of work on the decode pool came to.
fn done<T>(done: Result<Result<T, EngineError>, Panicked>) -> Result<T, EngineError> {
    done.unwrap_or(Err(EngineError::Image(ImageError::Panicked)))
}
