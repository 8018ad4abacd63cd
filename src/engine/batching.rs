//! The batching policy: what the device does next. Pure; the queue and the clock are its caller's.
//!
//! Interactive work goes first. Background work (the images of a job) runs when nothing interactive waits, in
//! chunks small enough that a classification never waits for long, and at least once in every
//! [`Policy::background_every`] batches, so that a busy server still learns.

use std::time::Duration;

/// The limits the policy works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Most images in an interactive batch.
    pub max_batch: usize,
    /// How long the oldest interactive image may wait for others to join it.
    pub max_wait: Duration,
    /// Most images in a background batch.
    pub background_batch: usize,
    /// While both kinds wait, one batch in this many is a background one.
    pub background_every: u32,
}

/// What waits in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Interactive images.
    pub interactive: usize,
    /// Age of the oldest of them.
    pub oldest: Duration,
    /// Background images.
    pub background: usize,
    /// Interactive batches since the last background one.
    pub since_background: u32,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Take this many interactive images.
    Interactive(usize),
    /// Take this many background images.
    Background(usize),
    /// Look again when something arrives, or after this time.
    Wait(Duration),
    /// Look again when something arrives.
    Sleep,
}

impl Policy {
    /// The next step for what waits now.
    pub fn decide(&self, waiting: Waiting) -> Decision {
        let background = Decision::Background(waiting.background.min(self.background_batch));
        if waiting.interactive == 0 {
            return if waiting.background > 0 {
                background
            } else {
                Decision::Sleep
            };
        }
        if waiting.background > 0 && waiting.since_background.saturating_add(1) >= self.background_every {
            return background;
        }
        let left = self.max_wait.saturating_sub(waiting.oldest);
        if waiting.interactive < self.max_batch && !left.is_zero() {
            return Decision::Wait(left);
        }
        Decision::Interactive(waiting.interactive.min(self.max_batch))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy {
        max_batch: 8,
        max_wait: Duration::from_millis(2),
        background_batch: 4,
        background_every: 8,
    };

    fn waiting() -> impl Strategy<Value = Waiting> {
        (
            0_usize..40,
            0_u64..5,
            0_usize..40,
            prop_oneof![0_u32..20, Just(u32::MAX)],
        )
            .prop_map(|(interactive, ms, background, since)| Waiting {
                interactive,
                oldest: Duration::from_millis(ms),
                background,
                since_background: since,
            })
    }

    proptest! {
        #[test]
        fn never_takes_more_than_waits_or_fits(waiting in waiting()) {
            match POLICY.decide(waiting) {
                Decision::Interactive(n) => prop_assert!(n > 0 && n <= waiting.interactive && n <= POLICY.max_batch),
                Decision::Background(n) => prop_assert!(n > 0 && n <= waiting.background && n <= POLICY.background_batch),
                Decision::Wait(time) => prop_assert!(waiting.interactive > 0 && time <= POLICY.max_wait),
                Decision::Sleep => prop_assert!(waiting.interactive == 0 && waiting.background == 0),
            }
        }

        #[test]
        fn what_has_waited_long_enough_is_served(mut waiting in waiting()) {
            waiting.oldest = POLICY.max_wait;
            prop_assume!(waiting.interactive > 0);
            prop_assert!(!matches!(POLICY.decide(waiting), Decision::Wait(_) | Decision::Sleep));
        }
    }

    #[test]
    fn background_work_is_not_starved() {
        let mut waiting = Waiting {
            interactive: 100,
            oldest: POLICY.max_wait,
            background: 10,
            since_background: 0,
        };
        let mut batches = 0;
        while let Decision::Interactive(_) = POLICY.decide(waiting) {
            waiting.since_background += 1;
            batches += 1;
        }
        assert_eq!(batches, 7);
    }

    #[test]
    fn a_full_batch_does_not_wait() {
        let full = Waiting {
            interactive: 9,
            ..Waiting::default()
        };
        assert_eq!(POLICY.decide(full), Decision::Interactive(8));
    }
}
