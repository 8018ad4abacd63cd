//! The thread that owns the backbone, and what its callers hold of it.
//!
//! What it does is [`Worker`]'s. Invariant: however it ends, everyone who waits for it learns of that.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use candle_core::{Device, Tensor};
use tokio_util::sync::CancellationToken;

use super::batching::Policy;
use super::features::FeatureCache;
use super::queue::{PushError, Queue};
use super::worker::Worker;
use super::{Priority, Work};
use crate::clip::Backbone;

pub(super) struct DeviceThread {
    queue: Arc<Queue>,
    last_success: Arc<Mutex<Option<Instant>>>,
    lost: CancellationToken,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl DeviceThread {
    /// What it encodes of images with a digest is remembered in `features`. After a batch that failed, `works` says whether the
    /// device still does.
    pub(super) fn start(
        backbone: Backbone,
        policy: Policy,
        capacity: usize,
        features: Option<Arc<FeatureCache>>,
        works: fn(&Device) -> bool,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(policy, capacity, backbone.images_abreast()));
        let last_success = Arc::new(Mutex::new(None));
        let lost = CancellationToken::new();
        let worker = Worker {
            overlaps: backbone.encodes_aside(),
            backbone,
            queue: Arc::clone(&queue),
            features,
            works,
            last_success: Arc::clone(&last_success),
        };
        let thread = std::thread::Builder::new().name("device".to_owned()).spawn({
            let lost = lost.clone();
            move || {
                // Whatever ends this thread, callers must learn of it instead of waiting for ever.
                let _abandon = AbandonOnDrop(&worker.queue);
                if worker.work().is_err() {
                    tracing::error!("the device computes nothing any more");
                    lost.cancel();
                }
            }
        })?;
        Ok(Self {
            queue,
            last_success,
            lost,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub(super) fn push(&self, work: Vec<Work>, priority: Priority) -> Result<(), PushError> {
        self.queue.push(work, priority)
    }

    pub(super) fn queue_depth(&self) -> (usize, usize) {
        self.queue.depth()
    }

    /// When a forward last gave finite numbers.
    pub(super) fn last_success(&self) -> Option<Instant> {
        *self.last_success.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancelled when the device is lost: nothing is computed from then on.
    pub(super) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    pub(super) fn stop(&self) {
        self.queue.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the device thread panicked");
        }
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Whether a device still computes. An error of CUDA's is often for the life of the process (`CUDA_ERROR_ILLEGAL_ADDRESS` and
/// its like): whatever is asked of the device afterwards fails with it.
pub(super) fn computes(device: &Device) -> bool {
    let sum = || {
        let one = Tensor::new(&[1.0_f32], device)?;
        (&one + &one)?.to_vec1::<f32>()
    };
    sum().is_ok_and(|sum| sum == [2.0])
}

struct AbandonOnDrop<'a>(&'a Queue);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::worker::tests::{backbone, work};
    use super::super::{EngineError, Output};
    use super::*;

    /// A thread whose device `works` or not, and what it answers to an image of the wrong size, whose batch fails.
    async fn after_a_failure(
        works: fn(&Device) -> bool,
    ) -> (DeviceThread, Option<Result<Output, EngineError>>) {
        let policy = Policy {
            max_batch: 1,
            max_wait: Duration::ZERO,
            background_batch: 1,
            background_every: 1,
            batch_time: Duration::MAX,
        };
        let thread = DeviceThread::start(backbone().await, policy, 8, None, works);
        let thread = thread.expect("a thread");
        let answer = ask(&thread).await;
        (thread, answer)
    }

    /// `None` where nobody answers.
    async fn ask(thread: &DeviceThread) -> Option<Result<Output, EngineError>> {
        let (work, answer) = work(7, 190);
        thread.push(vec![work], Priority::Interactive).ok()?;
        answer.await.ok()
    }

    #[tokio::test]
    async fn a_device_that_computes_nothing_any_more_ends_its_thread() {
        for works in [(|_| false) as fn(&Device) -> bool, |_| {
            panic!("the context is gone")
        }] {
            let (thread, answer) = after_a_failure(works).await;
            assert!(answer.is_none(), "the engine has stopped, and says nothing else");
            let lost = tokio::time::timeout(Duration::from_mins(1), thread.lost().cancelled()).await;
            assert!(lost.is_ok() && ask(&thread).await.is_none());
        }
    }

    #[tokio::test]
    async fn a_batch_that_fails_on_a_device_that_works_costs_nothing_else() {
        let (thread, answer) = after_a_failure(computes).await;
        assert!(answer.is_some_and(|answer| answer.is_err()));
        assert!(ask(&thread).await.is_some() && !thread.lost().is_cancelled());
    }
}
