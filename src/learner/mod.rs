//! Jobs: from labelled examples to a published version, while the server serves.
//!
//! ```text
//! upload ─▶ submit ─▶ job in the store ─▶ worker: encode ─▶ fit ─▶ evaluate ─▶ publish (one transaction) ─▶ serve
//! ```
//!
//! A job that unlearns a task or a class has nothing to encode, and makes its head from what is remembered instead of fitting one.
//! Versions also leave as files and come in as such, without a worker: `export`, `import`.
//!
//! The worker's input is the store, never a message: [`Worker::tick`] claims a job under a lease and takes it as far
//! as it gets. A crash at any point loses no example and publishes nothing or everything; the job is taken up again
//! where its last saved features are. [`Learner::submit`] only wakes the worker earlier.

mod encoding;
mod evaluation;
mod export;
mod fitting;
mod import;
mod layout;
mod learn;
mod packing;
mod progress;
mod recall;
mod split;
mod stop;
mod submit;
mod threads;
mod unlearn;
mod upload;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use rayon::ThreadPool;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::engine::Engine;
use crate::registry::Registry;
use crate::store::{Owner, Store};

pub use export::{ExportError, Exported};
pub use import::{ImportError, NewVersion};
pub use layout::LayoutError;
pub use recall::RecallError;
pub use submit::{NewTask, SubmitError};
pub use upload::{ArchiveKind, Item, Upload, UploadError, UploadLimits};
pub use worker::{Outcome, Worker};

/// How jobs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LearnerConfig {
    /// Threads that fit and evaluate.
    pub fit_threads: usize,
    /// Most images decoded and encoded between two savings of features.
    pub chunk: u32,
    /// Most bytes of them, unless one alone has more.
    pub chunk_bytes: u64,
    /// Most bytes that a fit reads of a task's examples, in f32.
    pub fit_bytes: u64,
    /// How long a worker may go silent before another takes its job.
    pub lease: Duration,
    /// How often an idle worker looks for jobs that others left.
    pub poll: Duration,
}

/// Accepts tasks and makes workers; owns the threads that fit.
pub struct Learner {
    engine: Engine,
    registry: Arc<Registry>,
    store: Store,
    owner: Owner,
    config: LearnerConfig,
    fit_pool: Arc<ThreadPool>,
    /// Held by a fit as long as it is in memory: one that nobody waits for any more may still be.
    fitting: Arc<tokio::sync::Mutex<()>>,
    wake: Notify,
    /// What goes on also where nobody waits for it any more.
    aside: TaskTracker,
    /// Held by the one version that is taken in or written down at a time: it is in memory a few times over.
    moving: Arc<tokio::sync::Mutex<()>>,
}

impl Learner {
    /// A learner for this boot of the server.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn new(
        engine: Engine,
        registry: Arc<Registry>,
        store: Store,
        owner: Owner,
        config: LearnerConfig,
    ) -> std::io::Result<Self> {
        let fit_pool = threads::start(config.fit_threads)?;
        Ok(Self {
            engine,
            registry,
            store,
            owner,
            config,
            fit_pool: Arc::new(fit_pool),
            fitting: Arc::default(),
            wake: Notify::new(),
            aside: TaskTracker::new(),
            moving: Arc::default(),
        })
    }

    /// Most bytes that a fit reads of a task's examples.
    pub fn fit_bytes(&self) -> u64 {
        self.config.fit_bytes
    }

    /// Waits for what goes on although nobody else waits for it, and is to be called before the store is closed.
    pub async fn finish(&self) {
        self.aside.close();
        self.aside.wait().await;
    }

    /// The result of some work that goes on where nobody waits for it any more; its panic, if it panics, is the caller's.
    async fn to_the_end<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let working = self.aside.spawn(work.in_current_span());
        working
            .await
            .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
    }

    /// The same, of work on a version that is taken in or written down: when no other one is.
    async fn move_to_the_end<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let turn = Arc::clone(&self.moving).lock_owned().await;
        let moving = async move {
            let _turn = turn;
            work.await
        };
        self.to_the_end(moving).await
    }

    /// A worker that runs this learner's jobs.
    pub fn worker(self: &Arc<Self>) -> Worker {
        Worker::new(Arc::clone(self))
    }
}
