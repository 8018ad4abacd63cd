//! The first phase of a job: every image becomes what the model's strategy reads of it, features or tokens, saved chunk
//! by chunk. Below and in the store both are called features. A chunk is decoded while the one before it is encoded.

use std::time::Instant;

use futures::future::{try_join, try_join_all};

use super::learn::Learn;
use super::stop::{Stop, causes, held};
use super::{Learner, LearnerConfig};
use crate::domain::{Features, Phase, Reads};
use crate::engine::{Asked, EngineError, Looked, Priority};
use crate::store::PendingExample;

/// Images that are encoded together, and where the next ones begin.
struct Chunk {
    /// Position, and what a look at the image found, or why it is none.
    images: Vec<(u32, Result<Looked, String>)>,
    end: u32,
}

impl Learn<'_> {
    /// Turns every image that is left into features, saved chunk by chunk.
    pub(super) async fn encode(&mut self) -> Result<(), Stop> {
        let started = Instant::now();
        let model = self.model().await?;
        let reads = model.config.strategy.reads();
        let (asked, limit) = (Asked::Row(reads), self.most_rows(reads));
        // Counted once: nobody but the lease's holder encodes a job's images.
        let counts = self.learner.store.example_counts(self.job.id).await?;
        let most = self.learner.most_examples(&model);
        if u64::from(counts.total) > most {
            // It was accepted where more is allowed.
            return Err(Stop::Failed {
                code: "too_many_examples",
                detail: format!(
                    "a fit of this model holds {most} examples here, and the task has {}",
                    counts.total
                ),
            });
        }
        let mut done = counts.encoded + counts.discarded;
        let share = |done| f64::from(done) / f64::from(counts.total.max(1));
        self.report(Phase::Encode, share(done), None).await?;
        let mut chunk = self.next_chunk(0, limit, &asked).await?;
        while let Some(decoded) = chunk {
            done += decoded.images.len() as u32;
            let next = self.next_chunk(decoded.end, limit, &asked);
            let encoded = self.encode_chunk(decoded);
            chunk = try_join(next, encoded).await?.0;
            self.report(Phase::Encode, share(done), None).await?;
        }
        self.took("encode", started);
        Ok(())
    }

    /// Images in a chunk: no more than configured, and so few that their rows have no more bytes than their files may.
    fn most_rows(&self, reads: Reads) -> u32 {
        let LearnerConfig {
            chunk, chunk_bytes, ..
        } = self.learner.config;
        let row = self.learner.engine.row_width(reads) * size_of::<f32>();
        let fit = chunk_bytes / (row as u64).max(1);
        chunk.min(u32::try_from(fit).unwrap_or(u32::MAX)).max(1)
    }

    /// The next images from a position on, decoded unless their features are remembered; `None` where there are no more.
    async fn next_chunk(&self, from: u32, limit: u32, asked: &Asked) -> Result<Option<Chunk>, Stop> {
        let Learner {
            store,
            engine,
            config,
            ..
        } = self.learner;
        let pending = store
            .pending_images(self.job.id, from, limit, config.chunk_bytes)
            .await?;
        let Some(last) = pending.last() else {
            return Ok(None);
        };
        let end = last.position + 1;
        let decode = |example: PendingExample| async move {
            let image = match engine.look(example.image.into(), asked).await {
                Ok(image) => Ok(image),
                Err(EngineError::Image(error)) => Err(causes(&error)),
                Err(error) => return Err(error),
            };
            Ok((example.position, image))
        };
        let images = try_join_all(pending.into_iter().map(decode)).await?;
        Ok(Some(Chunk { images, end }))
    }

    async fn encode_chunk(&self, chunk: Chunk) -> Result<(), Stop> {
        let engine = &self.learner.engine;
        let mut positions = Vec::with_capacity(chunk.images.len());
        let mut images = Vec::with_capacity(chunk.images.len());
        for (position, image) in chunk.images {
            match image {
                Ok(image) => {
                    positions.push(position);
                    images.push(image);
                }
                Err(why) => self.discard(position, &why).await?,
            }
        }
        let outputs = engine.encode(images, Priority::Background).await?;
        let mut features = Vec::with_capacity(outputs.len());
        for (position, output) in positions.into_iter().zip(outputs) {
            match Features::from_f32(&output.values) {
                Some(row) => features.push((position, row)),
                None => {
                    self.discard(position, "its features leave the range of float16")
                        .await?;
                }
            }
        }
        held(
            self.learner
                .store
                .save_features(self.job.id, &self.learner.owner, &features)
                .await?,
        )
    }

    async fn discard(&self, position: u32, error: &str) -> Result<(), Stop> {
        let Learner { store, owner, .. } = self.learner;
        held(store.discard_example(self.job.id, owner, position, error).await?)
    }
}
