//! The CPU pool that decodes and resizes.
//!
//! Its threads take work in the order it came. So that a classification need not wait behind the pictures of a job,
//! background work enters only while it leaves a thread free, where there is more than one. Invariant: a panic in a
//! decoder costs its own image, never a thread or the process.

use std::iter::repeat_n;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};

use super::{EngineError, Priority};

pub(super) struct DecodePool {
    pool: ThreadPool,
    /// Interactive work that runs or waits.
    places: Arc<Semaphore>,
    capacity: usize,
    /// Background work that runs, or will as soon as a thread is free.
    background: Arc<Semaphore>,
}

/// The work panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Panicked;

impl DecodePool {
    pub(super) fn start(threads: usize, capacity: usize) -> std::io::Result<Self> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|n| format!("decode-{n}"))
            .build()
            .map_err(std::io::Error::other)?;
        let capacity = capacity.max(1);
        Ok(Self {
            background: Arc::new(Semaphore::new(
                pool.current_num_threads().saturating_sub(1).max(1),
            )),
            pool,
            places: Arc::new(Semaphore::new(capacity)),
            capacity,
        })
    }

    /// Runs one piece of work. Interactive work that finds the pool full is refused; background work waits.
    pub(super) async fn run<T, F>(
        &self,
        priority: Priority,
        work: F,
    ) -> Result<Result<T, Panicked>, EngineError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let place = match priority {
            Priority::Interactive => self.interactive(1)?,
            Priority::Background => Arc::clone(&self.background)
                .acquire_owned()
                .await
                .map_err(|_| EngineError::Stopped)?,
        };
        self.spawn(place, work).await
    }

    /// Runs all the work of one interactive request, or refuses all of it, and then `last`, with what it came to, on the thread that
    /// is done last. Like the device's queue, an idle pool takes any amount, so that one request may be larger than the pool's
    /// capacity.
    pub(super) async fn run_all<T, U, F, L>(
        &self,
        works: Vec<F>,
        last: L,
    ) -> Result<Result<U, Panicked>, EngineError>
    where
        T: Send + 'static,
        U: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
        L: FnOnce(Vec<Result<T, Panicked>>) -> U + Send + Sync + 'static,
    {
        if works.is_empty() {
            return Ok(caught(|| last(Vec::new())));
        }
        let (count, mut places) = (works.len(), self.interactive(works.len())?);
        let (reply, receiver) = oneshot::channel();
        let gathering = Arc::new(Gathering {
            done: Mutex::new(works.iter().map(|_| None).collect()),
            last,
            reply,
        });
        // Each piece gives its place back when it is done. Where there are fewer places, the last pieces have them.
        let without = count.saturating_sub(self.capacity);
        for ((index, work), gathering) in works.into_iter().enumerate().zip(repeat_n(gathering, count)) {
            let place = if index < without { None } else { places.split(1) };
            self.pool.spawn(move || {
                // A caller that went away meanwhile does not want the result.
                if !gathering.reply.is_closed() {
                    gathering.add(index, caught(work));
                }
                drop(place);
                // Every piece holds it; so who is done last has it alone.
                if let Some(gathering) = Arc::into_inner(gathering) {
                    gathering.end();
                }
            });
        }
        receiver.await.map_err(|_| EngineError::Stopped)
    }

    /// Goes on with work that nobody new waits for, on any thread.
    pub(super) fn go_on(&self, work: impl FnOnce() + Send + 'static) {
        self.pool.spawn(move || {
            let _ = caught(work);
        });
    }

    fn interactive(&self, count: usize) -> Result<OwnedSemaphorePermit, EngineError> {
        let count = count.min(self.capacity) as u32;
        Arc::clone(&self.places)
            .try_acquire_many_owned(count)
            .map_err(|error| match error {
                TryAcquireError::NoPermits => EngineError::Overloaded,
                TryAcquireError::Closed => EngineError::Stopped,
            })
    }

    /// Hands `work` to a thread at once. Its place is held until it is done, also when the caller goes away.
    fn spawn<P, T, F>(
        &self,
        place: P,
        work: F,
    ) -> impl Future<Output = Result<Result<T, Panicked>, EngineError>> + use<P, T, F>
    where
        P: Send + 'static,
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (reply, receiver) = oneshot::channel();
        self.pool.spawn(move || {
            if reply.is_closed() {
                // A caller that went away meanwhile does not want the result.
                return drop(place);
            }
            let done = caught(work);
            // Before the answer: whoever has it finds the pool as free as it is.
            drop(place);
            let _ = reply.send(done);
        });
        async move { receiver.await.map_err(|_| EngineError::Stopped) }
    }
}

/// What the work of a request has come to so far, and what is to be made of all of it.
struct Gathering<T, L, U> {
    done: Mutex<Vec<Option<Result<T, Panicked>>>>,
    last: L,
    reply: oneshot::Sender<Result<U, Panicked>>,
}

impl<T, U, L: FnOnce(Vec<Result<T, Panicked>>) -> U> Gathering<T, L, U> {
    fn add(&self, index: usize, done: Result<T, Panicked>) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(done);
    }

    fn end(self) {
        let done = self.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (last, reply) = (self.last, self.reply);
        if !reply.is_closed() {
            let _ = reply.send(caught(|| last(done.into_iter().flatten().collect())));
        }
    }
}

/// What some work comes to; its panic is told in the log.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        tracing::error!("work on the decode pool panicked");
        Panicked
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use super::*;

    fn pool(threads: usize, capacity: usize) -> DecodePool {
        DecodePool::start(threads, capacity).expect("threads")
    }

    /// Work that waits until its sender is dropped.
    fn gated() -> (Sender<()>, impl Fn() + Clone + Send + 'static) {
        let (gate, waits) = channel::<()>();
        let waits = Arc::new(Mutex::new(waits));
        (gate, move || {
            let waits = waits.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let _ = waits.recv();
        })
    }

    /// What each piece comes to.
    async fn all<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        pool: &DecodePool,
        works: Vec<F>,
    ) -> Result<Vec<Result<T, Panicked>>, EngineError> {
        let done = pool.run_all(works, |done| done).await?;
        Ok(done.expect("there is nothing to panic at"))
    }

    async fn soon<T>(work: impl Future<Output = T>) -> T {
        let waited = tokio::time::timeout(Duration::from_secs(10), work).await;
        waited.expect("done within ten seconds")
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_work_and_nothing_else() {
        let pool = pool(1, 2);
        for priority in [Priority::Interactive, Priority::Background] {
            let panicking = pool.run(priority, || -> u8 {
                panic!("a decoder met something unexpected")
            });
            assert_eq!(soon(panicking).await.expect("an answer"), Err(Panicked));
            let next = pool.run(priority, || 7);
            assert_eq!(soon(next).await.expect("an answer"), Ok(7));
        }
        let works: Vec<_> = (0..4)
            .map(|n| move || if n == 1 { panic!("one of four") } else { n })
            .collect();
        let done = soon(all(&pool, works)).await.expect("an answer");
        assert_eq!(done, [Ok(0), Err(Panicked), Ok(2), Ok(3)]);
        assert!(
            soon(all::<u8, fn() -> u8>(&pool, Vec::new()))
                .await
                .expect("an answer")
                .is_empty()
        );
        let last = |_| panic!("what is made of all");
        let done: Result<(), _> = soon(pool.run_all(vec![|| 7, || 8], last))
            .await
            .expect("an answer");
        assert_eq!(done, Err(Panicked));
    }

    #[tokio::test]
    async fn background_work_leaves_a_thread_to_interactive_work() {
        let pool = Arc::new(pool(2, 4));
        let (gate, work) = gated();
        let jobs: Vec<_> = (0..10)
            .map(|_| {
                let (pool, work) = (Arc::clone(&pool), work.clone());
                tokio::spawn(async move { pool.run(Priority::Background, work).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let answer = soon(pool.run(Priority::Interactive, || 7)).await;
        assert_eq!(answer.expect("an answer"), Ok(7));
        assert!(jobs.iter().all(|job| !job.is_finished()));
        drop(gate);
        for job in jobs {
            let done = soon(job).await.expect("no panic");
            assert_eq!(done.expect("an answer"), Ok(()));
        }
    }

    #[tokio::test]
    async fn an_idle_pool_takes_a_request_larger_than_itself_and_a_busy_one_refuses() {
        let pool = pool(1, 2);
        let numbers = || (0..5).map(|n| move || n).collect::<Vec<_>>();
        let done: Vec<_> = (0..5).map(Ok).collect();
        assert_eq!(soon(all(&pool, numbers())).await.expect("an idle pool"), done);

        let (gate, work) = gated();
        let mut busy = Box::pin(all(&pool, vec![work.clone(), work]));
        // The first look hands the work over.
        assert!(futures::poll!(&mut busy).is_pending());
        let refused = soon(all(&pool, numbers())).await;
        assert!(matches!(refused, Err(EngineError::Overloaded)), "{refused:?}");
        drop(gate);
        assert_eq!(soon(busy).await.expect("an answer").len(), 2);
        assert_eq!(soon(all(&pool, numbers())).await.expect("an idle pool"), done);
    }

    #[tokio::test]
    async fn nothing_more_is_done_for_a_request_whose_caller_has_left() {
        let pool = pool(1, 3);
        let (gate, work) = gated();
        let ran = Arc::new(AtomicUsize::new(0));
        let counted = || {
            let (work, ran) = (work.clone(), Arc::clone(&ran));
            move || {
                work();
                ran.fetch_add(1, Ordering::Relaxed)
            }
        };
        let all_ran = Arc::clone(&ran);
        let last = move |_| all_ran.fetch_add(100, Ordering::Relaxed);
        let mut left = Box::pin(pool.run_all(vec![counted(), counted(), counted()], last));
        assert!(futures::poll!(&mut left).is_pending());
        drop(left);
        drop(gate);
        // The one thread takes work in order: when this is done, so is what was before it.
        let numbers = vec![|| 7; 3];
        let done = loop {
            match soon(all(&pool, numbers.clone())).await {
                Err(EngineError::Overloaded) => tokio::task::yield_now().await,
                done => break done.expect("an answer"),
            }
        };
        assert_eq!(done, [Ok(7); 3]);
        assert!(ran.load(Ordering::Relaxed) <= 1, "the first may have been begun");
    }
}
