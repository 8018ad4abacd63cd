//! What the device thread does: takes a batch, encodes it, applies each asked head to its rows, replies.
//!
//! Where packed weights compute, a background batch has pauses, and what is urgent is taken, encoded and answered in them. Where an
//! image tower computes by itself, on a GPU, the next images are sent to it meanwhile, and then those before are
//! answered.
//!
//! The device thread does it, or, while it waits for a forward that has pauses, the thread of the pool that runs this one.
//!
//! Invariant: whatever happens to a batch, everyone in it is answered, or sees an engine that has stopped.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use candle_core::Device;

use super::encoded::{Answers, Ask, Encoded, Inputs, by_kind, grouped};
use super::error::because;
use super::features::FeatureCache;
use super::queue::{Batch, Queue};
use super::{EngineError, Output, Priority, Timing};
use crate::clip::{Backbone, Pause};
use crate::metrics;

/// What the device thread works with.
pub(super) struct Worker {
    pub(super) backbone: Backbone,
    pub(super) queue: Arc<Queue>,
    /// What is encoded of images with a digest is remembered here, and they are looked up here once more when their turn has come.
    pub(super) features: Option<Arc<FeatureCache>>,
    /// Whether the device still does, after a batch that failed.
    pub(super) works: fn(&Device) -> bool,
    /// When a forward last gave finite numbers.
    pub(super) last_success: Arc<Mutex<Option<Instant>>>,
    /// Whether images are begun before those before them are answered.
    pub(super) overlaps: bool,
}

/// The device is lost. Those whose batch found it, or was begun then, were not told why: callers see an engine that has stopped,
/// as it will have, and a job is taken up again by the next process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lost;

/// Images or texts of a batch that are encoded, or will be soon.
struct Begun {
    encoded: Encoded,
    asks: Vec<Ask>,
    are_images: bool,
    /// How many the backbone encodes: none where all are known by now.
    count: usize,
    priority: Priority,
    /// When the device was free for them.
    started: Instant,
    /// How long it did something else since.
    paused: Duration,
}

impl Begun {
    /// Behind what was over at a time, if anything was.
    fn behind(mut self, over: Option<Instant>) -> Self {
        self.started = over.map_or(self.started, |over| over.max(self.started));
        self
    }
}

/// What came between a batch: how long it took, unless the device was lost to it.
struct Between(Mutex<Result<Duration, Lost>>);

impl Between {
    fn new() -> Self {
        Self(Mutex::new(Ok(Duration::ZERO)))
    }

    fn so_far(&self) -> Result<Duration, Lost> {
        *self.state()
    }

    /// What began at a time is over, and the device was lost or not.
    fn add<T>(&self, went: Result<T, Lost>, started: Instant) {
        let mut state = self.state();
        *state = went.and(*state).map(|before| before + started.elapsed());
    }

    fn state(&self) -> MutexGuard<'_, Result<Duration, Lost>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Runs batches until the queue is closed and empty.
    pub(super) fn work(&self) -> Result<(), Lost> {
        let mut begun: Option<Begun> = None;
        loop {
            let batch = match &begun {
                None => match self.queue.next_batch() {
                    None => return Ok(()),
                    batch => batch,
                },
                Some(Begun { priority, .. }) => self.queue.next_beside(*priority),
            };
            match batch {
                Some(batch) => self.follow(batch, &mut begun)?,
                None => {
                    self.finish(begun.take())?;
                }
            }
        }
    }

    /// Runs a batch, or begins it where it overlaps with what was `begun`, which is finished.
    fn follow(&self, batch: Batch, begun: &mut Option<Begun>) -> Result<(), Lost> {
        let priority = batch.priority;
        for (inputs, asks) in by_kind(batch, self.features.as_deref()) {
            if self.overlaps && inputs.are_images() {
                let next = self.begin(&inputs, asks, priority)?;
                let over = self.finish(begun.take())?;
                *begun = next.map(|next| next.behind(over));
            } else {
                self.finish(begun.take())?;
                self.finish(self.begin(&inputs, asks, priority)?)?;
            }
        }
        Ok(())
    }

    /// Encodes what is of one kind, or has the device do so; `None` where that failed, of which they are told.
    fn begin(&self, inputs: &Inputs, asks: Vec<Ask>, priority: Priority) -> Result<Option<Begun>, Lost> {
        let started = Instant::now();
        let between = Between::new();
        let serve = || self.serve_between(&between);
        let pause: Option<Pause<'_>> = match priority {
            Priority::Interactive => None,
            Priority::Background => Some(&serve),
        };
        let encoded = caught(|| Encoded::of(&self.backbone, inputs, &asks, pause));
        let paused = between.so_far()?;
        match encoded {
            Ok(encoded) => Ok(Some(Begun {
                encoded,
                asks,
                are_images: inputs.are_images(),
                count: inputs.encoded(),
                priority,
                started,
                paused,
            })),
            Err(reason) => self.refuse(asks, &reason).map(|()| None),
        }
    }

    /// Runs what is urgent between the steps of a background batch.
    fn serve_between(&self, between: &Between) {
        while between.so_far().is_ok()
            && let Some(batch) = self.queue.next_beside(Priority::Background)
        {
            let started = Instant::now();
            let mut begun = None;
            let went = self.follow(batch, &mut begun).and_then(|()| self.finish(begun));
            between.add(went, started);
        }
    }

    /// Waits for what was begun, if anything was, and replies to everyone in it. Says when the forward was over.
    fn finish(&self, begun: Option<Begun>) -> Result<Option<Instant>, Lost> {
        let Some(begun) = begun else { return Ok(None) };
        let (answers, timing, over) = match caught(|| self.answer(&begun)) {
            Ok(done) => done,
            Err(reason) => return self.refuse(begun.asks, &reason).map(|()| None),
        };
        let priority = begun.priority.as_str();
        if begun.count > 0 {
            metrics::batch_encoded(priority, begun.count, timing.encode, timing.head);
        }
        if begun.count > 0 && begun.are_images {
            self.queue.took(begun.count, timing.encode);
        }
        let mut are_finite = true;
        for (ask, values) in begun.asks.into_iter().zip(answers) {
            let timing = Timing {
                queue: (over.saturating_duration_since(ask.enqueued)).saturating_sub(timing.encode),
                ..timing
            };
            metrics::queue_waited(priority, timing.queue);
            let output = Output::finite(values, timing);
            are_finite &= output.is_ok();
            // The caller may have gone away during the forward.
            let _ = ask.reply.send(output);
        }
        if are_finite && begun.count > 0 {
            *self.last_success.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        Ok(Some(over))
    }

    /// Answers and times, and when the forward was over.
    fn answer(&self, begun: &Begun) -> candle_core::Result<(Answers, Timing, Instant)> {
        let Begun { encoded, asks, .. } = begun;
        let (of_rows, of_heads) = grouped(asks);
        let rows = encoded.rows()?;
        // This waits for a device that is at it still: otherwise the heads' time would hold the forward's.
        let features = rows.features()?;
        let mut answers = vec![Vec::new(); asks.len()];
        rows.answer(asks, &of_rows, &mut answers)?;
        let over = Instant::now();
        let encode = over.saturating_duration_since(begun.started);
        if let Some(cache) = &self.features {
            for ask in asks {
                let row = features[ask.row as usize].as_slice();
                if let Some(image) = ask.image
                    && row.iter().all(|value| value.is_finite())
                {
                    cache.insert(image, row.into(), begun.priority);
                }
            }
        }
        let started = Instant::now();
        rows.answer(asks, &of_heads, &mut answers)?;
        let timing = Timing {
            queue: Duration::ZERO,
            encode: encode.saturating_sub(begun.paused),
            head: started.elapsed(),
        };
        Ok((answers, timing, over))
    }

    /// Tells those whose batch failed, if the device still works.
    fn refuse(&self, asks: Vec<Ask>, reason: &str) -> Result<(), Lost> {
        tracing::error!(reason, asks = asks.len(), "a batch failed");
        let device = self.backbone.device();
        if !catch_unwind(AssertUnwindSafe(|| (self.works)(device))).unwrap_or(false) {
            return Err(Lost);
        }
        for ask in asks {
            let _ = ask.reply.send(Err(EngineError::Backbone(reason.to_owned())));
        }
        Ok(())
    }
}

/// What comes of it, or why nothing does. A panic in a tensor library must cost one batch, not the server.
fn caught<T, E: Error + 'static>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| because(&error)),
        Err(_) => Err("a forward panicked".to_owned()),
    }
}

#[cfg(test)]
pub(super) mod tests;
