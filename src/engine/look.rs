//! From bytes to pixels, or, where the image was seen lately, at once to the answer.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use candle_core::Tensor;

use super::decode::Panicked;
use super::error::because;
use super::{Asked, Engine, EngineError, Output, Priority, Shared, Timing};
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

/// What became of an image that was asked about.
pub enum Looked {
    /// It was seen lately: here is the answer.
    Known(Output),
    /// It is to be encoded.
    Pixels(Pixels),
}

impl Engine {
    /// Decodes and resizes one image on the CPU pool.
    ///
    /// # Errors
    /// [`EngineError::Image`], or [`EngineError::Overloaded`] when interactive work finds the pool full; background
    /// work waits instead.
    pub async fn decode(&self, bytes: Bytes, priority: Priority) -> Result<Pixels, EngineError> {
        let shared = Arc::clone(&self.shared);
        let decode = timed(priority, move || shared.pixels(&bytes, None, priority));
        done(self.shared.decode.run(priority, decode).await?)
    }

    /// Looks at all images of an interactive request: answers what is asked about those whose features are remembered, and
    /// decodes the others. One result an image, in order.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`] when the pool has no room for all of them and is not idle.
    pub async fn look(
        &self,
        images: Vec<Bytes>,
        asked: &Asked,
    ) -> Result<Vec<Result<Looked, EngineError>>, EngineError> {
        let looking = |bytes: Bytes| {
            let (shared, asked) = (Arc::clone(&self.shared), asked.clone());
            timed(Priority::Interactive, move || shared.look(&bytes, &asked))
        };
        let works = images.into_iter().map(looking).collect();
        let looked = self.shared.decode.run_all(works).await?;
        Ok(looked.into_iter().map(done).collect())
    }
}

impl Shared {
    /// The answer about an image that is remembered, or the pixels of another one.
    fn look(&self, bytes: &[u8], asked: &Asked) -> Result<Looked, EngineError> {
        let cache = self
            .features
            .as_ref()
            .filter(|_| asked.reads() == Reads::Features);
        let image = cache.map(|_| Digest::of(bytes));
        match cache.zip(image).and_then(|(cache, image)| cache.get(&image)) {
            Some(features) => self.answer(&features, asked).map(Looked::Known),
            None => self
                .pixels(bytes, image, Priority::Interactive)
                .map(Looked::Pixels),
        }
    }

    /// Decodes and resizes an image.
    fn pixels(&self, bytes: &[u8], image: Option<Digest>, priority: Priority) -> Result<Pixels, EngineError> {
        let started = Instant::now();
        let pixels = self.processor.process(bytes, self.limits);
        metrics::image_decoded(priority.as_str(), started.elapsed());
        Ok(Pixels {
            bytes: pixels?,
            image,
        })
    }

    /// What is asked about one row of features.
    fn answer(&self, features: &[f32], asked: &Asked) -> Result<Output, EngineError> {
        let started = Instant::now();
        let values = match asked {
            Asked::Row(_) | Asked::Rows => features.to_vec(),
            Asked::Probabilities(head) => Tensor::from_slice(features, (1, features.len()), &self.target)
                .and_then(|row| head.probabilities(&row))
                .map_err(|error| EngineError::Backbone(because(&error)))?
                .concat(),
        };
        if values.iter().any(|value| !value.is_finite()) {
            return Err(EngineError::NotFinite);
        }
        let head = started.elapsed();
        Ok(Output {
            values,
            timing: Timing {
                head,
                ..Timing::default()
            },
        })
    }
}

/// Work for the decode pool that tells how long it waited.
fn timed<T>(priority: Priority, work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let asked = Instant::now();
    move || {
        metrics::decode_waited(priority.as_str(), asked.elapsed());
        work()
    }
}

/// What a piece of work on the decode pool came to.
fn done<T>(done: Result<Result<T, EngineError>, Panicked>) -> Result<T, EngineError> {
    done.unwrap_or(Err(EngineError::Image(ImageError::Panicked)))
}
