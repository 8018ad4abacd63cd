//! The bounded queue between the callers and the device thread.
//!
//! Callers push and never block: a full lane is an error they pass on. Only the device thread takes, or, while it waits for a
//! forward, the thread that runs this one. Work whose caller went away is dropped here, before it costs a forward.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::batching::{Decision, Pace, Policy, Waiting};
use super::{Priority, Work};

/// Why work was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PushError {
    /// The lane is at its limit.
    Full,
    /// The device thread is going or gone.
    Closed,
}

#[derive(Default)]
struct Lanes {
    interactive: VecDeque<Work>,
    background: VecDeque<Work>,
    /// Interactive batches taken since the last background one.
    since_background: u32,
    /// Of an image.
    images: Pace,
    /// See [`Waiting::abreast`].
    abreast: usize,
    closed: bool,
}

impl Lanes {
    /// What is awaited still.
    fn waiting(&mut self) -> Waiting {
        self.interactive.retain(Work::is_awaited);
        self.background.retain(Work::is_awaited);
        let oldest = self.interactive.front();
        Waiting {
            interactive: self.interactive.len(),
            oldest: oldest.map(|work| work.enqueued.elapsed()).unwrap_or_default(),
            background: self.background.len(),
            since_background: self.since_background,
            image_time: self.images.time(),
            abreast: self.abreast,
        }
    }

    fn take(&mut self, priority: Priority, count: usize) -> Batch {
        let lane = match priority {
            Priority::Interactive => {
                self.since_background = self.since_background.saturating_add(1);
                &mut self.interactive
            }
            Priority::Background => {
                self.since_background = 0;
                &mut self.background
            }
        };
        let work = lane.drain(..count).collect();
        Batch { work, priority }
    }
}

/// What the device does at a time.
pub(super) struct Batch {
    pub(super) work: Vec<Work>,
    pub(super) priority: Priority,
}

pub(super) struct Queue {
    lanes: Mutex<Lanes>,
    arrived: Condvar,
    policy: Policy,
    capacity: usize,
}

impl Queue {
    /// For a device that computes so many images `abreast`.
    pub(super) fn new(policy: Policy, capacity: usize, abreast: usize) -> Self {
        Self {
            lanes: Mutex::new(Lanes {
                abreast,
                ..Lanes::default()
            }),
            arrived: Condvar::new(),
            policy,
            capacity,
        }
    }

    /// Appends all of `work` or, when not all of it fits, none. A lane that is empty takes any amount, so that one
    /// request may be larger than the queue.
    pub(super) fn push(&self, work: Vec<Work>, priority: Priority) -> Result<(), PushError> {
        let mut lanes = self.lock();
        if lanes.closed {
            return Err(PushError::Closed);
        }
        let lane = match priority {
            Priority::Interactive => &mut lanes.interactive,
            Priority::Background => &mut lanes.background,
        };
        let is_full = |lane: &VecDeque<Work>| !lane.is_empty() && lane.len() + work.len() > self.capacity;
        if is_full(lane) {
            // What nobody waits for any more takes no room.
            lane.retain(Work::is_awaited);
            if is_full(lane) {
                return Err(PushError::Full);
            }
        }
        lane.extend(work);
        drop(lanes);
        self.arrived.notify_one();
        Ok(())
    }

    /// Blocks until there is a batch to run; `None` once the queue is closed and empty.
    pub(super) fn next_batch(&self) -> Option<Batch> {
        let mut lanes = self.lock();
        loop {
            let waiting = lanes.waiting();
            match self.policy.decide(waiting) {
                Decision::Take(priority, count) => return Some(lanes.take(priority, count)),
                Decision::Wait(time) => {
                    lanes = self
                        .arrived
                        .wait_timeout(lanes, time)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
                Decision::Sleep if lanes.closed => return None,
                Decision::Sleep => {
                    lanes = self.arrived.wait(lanes).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// A batch for a device that is at one of some priority; `None` where none is to be run yet. Beside a background one that is an
    /// interactive one, until the background's turn has come. Does not block.
    pub(super) fn next_beside(&self, at_work: Priority) -> Option<Batch> {
        let mut lanes = self.lock();
        let mut waiting = lanes.waiting();
        if at_work == Priority::Background {
            // As if it waited for its turn.
            waiting.background = 1;
        }
        match self.policy.decide(waiting) {
            Decision::Take(Priority::Background, _) if at_work == Priority::Background => None,
            Decision::Take(priority, count) => Some(lanes.take(priority, count)),
            Decision::Wait(_) | Decision::Sleep => None,
        }
    }

    /// Takes in what a batch of images took, for the size of those to come.
    pub(super) fn took(&self, images: usize, time: Duration) {
        self.lock().images.took(time / images.max(1) as u32);
    }

    /// Refuses further work; what waits is still done.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Refuses further work and drops what waits, so that its callers learn that nobody will do it.
    pub(super) fn abandon(&self) {
        let mut lanes = self.lock();
        lanes.closed = true;
        let dropped = (
            std::mem::take(&mut lanes.interactive),
            std::mem::take(&mut lanes.background),
        );
        // Callers are woken by the drop, which is none of the lock's business.
        drop(lanes);
        drop(dropped);
        self.arrived.notify_all();
    }

    /// Interactive and background work that waits.
    pub(super) fn depth(&self) -> (usize, usize) {
        let lanes = self.lock();
        (lanes.interactive.len(), lanes.background.len())
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        // Nothing that can panic runs under the lock, and the lanes are consistent between statements.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::sync::oneshot;
    use tokio::sync::oneshot::error::TryRecvError;

    use super::super::{EngineError, Input, Output};
    use super::*;

    type Reply = oneshot::Receiver<Result<Output, EngineError>>;

    fn queue() -> Queue {
        let policy = Policy {
            max_batch: 2,
            max_wait: Duration::ZERO,
            background_batch: 2,
            background_every: 8,
            batch_time: Duration::from_secs(1),
        };
        Queue::new(policy, 4, 1)
    }

    fn work(count: usize) -> (Vec<Work>, Vec<Reply>) {
        let one = |_| {
            let (reply, receiver) = oneshot::channel();
            let input = Input::Text { tokens: vec![1] };
            let work = Work {
                input,
                enqueued: Instant::now(),
                reply,
            };
            (work, receiver)
        };
        (0..count).map(one).unzip()
    }

    #[test]
    fn callers_of_an_abandoned_queue_hear_of_it() {
        let queue = queue();
        let (interactive, mut replies) = work(3);
        let (background, more) = work(2);
        queue.push(interactive, Priority::Interactive).expect("room");
        queue.push(background, Priority::Background).expect("room");
        replies.extend(more);
        assert!(
            replies
                .iter_mut()
                .all(|reply| matches!(reply.try_recv(), Err(TryRecvError::Empty)))
        );
        queue.abandon();
        assert!(
            replies
                .iter_mut()
                .all(|reply| matches!(reply.try_recv(), Err(TryRecvError::Closed)))
        );
        assert_eq!(queue.depth(), (0, 0));
        assert_eq!(
            queue.push(work(1).0, Priority::Interactive),
            Err(PushError::Closed)
        );
    }

    #[test]
    fn an_empty_lane_takes_any_amount_and_a_used_one_its_capacity() {
        let queue = queue();
        let (first, _replies) = work(9);
        assert_eq!(queue.push(first, Priority::Interactive), Ok(()));
        let (second, _replies) = work(1);
        assert_eq!(queue.push(second, Priority::Interactive), Err(PushError::Full));
        let (other, _replies) = work(4);
        assert_eq!(queue.push(other, Priority::Background), Ok(()));
    }

    #[test]
    fn what_nobody_waits_for_any_more_takes_no_room() {
        let queue = queue();
        let (first, replies) = work(9);
        queue.push(first, Priority::Interactive).expect("room");
        drop(replies);
        let (second, _replies) = work(1);
        assert_eq!(queue.push(second, Priority::Interactive), Ok(()));
        assert_eq!(queue.depth(), (1, 0));
    }

    #[test]
    fn what_is_urgent_is_taken_until_the_background_s_turn() {
        let queue = queue();
        let (background, _replies) = work(1);
        queue.push(background, Priority::Background).expect("room");
        let batch = queue.next_batch().expect("a batch");
        assert_eq!((batch.priority, batch.work.len()), (Priority::Background, 1));
        assert!(queue.next_beside(Priority::Background).is_none(), "nothing waits");
        let (background, _of_more) = work(1);
        queue.push(background, Priority::Background).expect("room");
        assert!(
            queue.next_beside(Priority::Background).is_none(),
            "nothing is urgent"
        );
        let beside = queue.next_beside(Priority::Interactive).expect("a batch");
        assert_eq!((beside.priority, beside.work.len()), (Priority::Background, 1));
        let (interactive, _replies) = work(20);
        queue.push(interactive, Priority::Interactive).expect("room");
        let mut taken = 0;
        while let Some(batch) = queue.next_beside(Priority::Background) {
            assert_eq!((batch.priority, batch.work.len()), (Priority::Interactive, 2));
            taken += 1;
        }
        assert_eq!(taken, 7, "seven of eight batches");
        assert_eq!(queue.depth(), (6, 0));
    }
}
