//! The bounded queue between the callers and the device thread.
//!
//! Callers push and never block: a full lane is an error they pass on. The device thread alone takes. Work whose
//! caller went away is dropped here, before it costs a forward.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::batching::{Decision, Policy, Waiting};
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
    since_background: u32,
    closed: bool,
}

pub(super) struct Queue {
    lanes: Mutex<Lanes>,
    arrived: Condvar,
    policy: Policy,
    capacity: usize,
}

impl Queue {
    pub(super) fn new(policy: Policy, capacity: usize) -> Self {
        Self {
            lanes: Mutex::default(),
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
        if !lane.is_empty() && lane.len() + work.len() > self.capacity {
            return Err(PushError::Full);
        }
        lane.extend(work);
        drop(lanes);
        self.arrived.notify_one();
        Ok(())
    }

    /// Blocks until there is a batch to run; `None` once the queue is closed and empty.
    pub(super) fn next_batch(&self) -> Option<Vec<Work>> {
        let mut lanes = self.lock();
        loop {
            lanes.interactive.retain(Work::is_awaited);
            lanes.background.retain(Work::is_awaited);
            let waiting = Waiting {
                interactive: lanes.interactive.len(),
                oldest: lanes
                    .interactive
                    .front()
                    .map(|work| work.enqueued.elapsed())
                    .unwrap_or_default(),
                background: lanes.background.len(),
                since_background: lanes.since_background,
            };
            match self.policy.decide(waiting) {
                Decision::Interactive(count) => {
                    lanes.since_background += 1;
                    return Some(lanes.interactive.drain(..count).collect());
                }
                Decision::Background(count) => {
                    lanes.since_background = 0;
                    return Some(lanes.background.drain(..count).collect());
                }
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

    /// Refuses further work; what waits is still done.
    pub(super) fn close(&self) {
        self.lock().closed = true;
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
