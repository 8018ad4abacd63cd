//! The CPU pool that decodes and resizes.

use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::{Semaphore, TryAcquireError, oneshot};

use super::{EngineError, Priority};

pub(super) struct DecodePool {
    pool: ThreadPool,
    places: Arc<Semaphore>,
}

impl DecodePool {
    pub(super) fn start(threads: usize, capacity: usize) -> std::io::Result<Self> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|n| format!("decode-{n}"))
            .build()
            .map_err(std::io::Error::other)?;
        Ok(Self {
            pool,
            places: Arc::new(Semaphore::new(capacity)),
        })
    }

    /// Runs `work` on the pool. Its place is held until it is done, also when the caller goes away.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        priority: Priority,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let places = Arc::clone(&self.places);
        let place = match priority {
            Priority::Interactive => places.try_acquire_owned().map_err(|e| match e {
                TryAcquireError::NoPermits => EngineError::Overloaded,
                TryAcquireError::Closed => EngineError::Stopped,
            })?,
            Priority::Background => places.acquire_owned().await.map_err(|_| EngineError::Stopped)?,
        };
        let (reply, receiver) = oneshot::channel();
        self.pool.spawn(move || {
            let _place = place;
            if !reply.is_closed() {
                // A caller that went away meanwhile does not want the result.
                let _ = reply.send(work());
            }
        });
        receiver.await.map_err(|_| EngineError::Stopped)
    }
}
