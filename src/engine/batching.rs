//! The batching policy: what the device does next. Pure; the queue and the clock are its caller's.
//!
//! Interactive work goes first. Background work (the images of a job) runs when nothing interactive waits, in batches small
//! enough that a classification never waits for long, and at least once in every [`Policy::background_every`] batches, so
//! that a busy server still learns. Where a background batch has pauses, what arrives meanwhile is encoded in them, by the same
//! count.
//!
//! An idle device waits for nobody unless told to: batches grow while it is busy, up to as many images as it encodes in
//! [`Policy::batch_time`] at the pace that was measured. While others wait, a batch has an equal number of images for each thread:
//! what is left over would be computed by all of them together, and slower.

use std::time::Duration;

use super::Priority;

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
    /// How long an interactive batch may take; a background one, a quarter of it. An image is always taken.
    pub batch_time: Duration,
}

/// Background batches go into an interactive one's time.
const BACKGROUND_SHARE: u32 = 4;

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
    /// What an image takes on the device; zero while nobody knows.
    pub image_time: Duration,
    /// Images that the device computes side by side, each by a thread of its own; less than two where it computes all together.
    pub abreast: usize,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Take this many of these images.
    Take(Priority, usize),
    /// Look again when something arrives, or after this time.
    Wait(Duration),
    /// Look again when something arrives.
    Sleep,
}

impl Policy {
    /// The next step for what waits now.
    pub fn decide(&self, waiting: Waiting) -> Decision {
        let fitting = |most: usize, time: Duration| most.min(fitting(time, waiting.image_time));
        let background_batch = fitting(self.background_batch, self.batch_time / BACKGROUND_SHARE);
        let background = Decision::Take(Priority::Background, waiting.background.min(background_batch));
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
        let batch = in_rows(fitting(self.max_batch, self.batch_time), waiting.abreast);
        let left = self.max_wait.saturating_sub(waiting.oldest);
        if waiting.interactive < batch && !left.is_zero() {
            return Decision::Wait(left);
        }
        Decision::Take(Priority::Interactive, waiting.interactive.min(batch))
    }
}

/// How many images go into `time`; at least one.
fn fitting(time: Duration, image_time: Duration) -> usize {
    match image_time.as_nanos() {
        0 => usize::MAX,
        one => usize::try_from(time.as_nanos() / one)
            .unwrap_or(usize::MAX)
            .max(1),
    }
}

/// The most of `images` that are whole rows of so many; all of them, where they are not even one.
fn in_rows(images: usize, abreast: usize) -> usize {
    if images < abreast {
        images
    } else {
        images - images.checked_rem(abreast).unwrap_or(0)
    }
}

/// What something takes on the device, by the times it took of late.
#[derive(Debug, Clone, Copy, Default)]
pub enum Pace {
    /// It was never done.
    #[default]
    Cold,
    /// It was done once: that waited for memory, for threads, perhaps for a device to wake, and says nothing of times to come.
    Warm,
    /// What it takes.
    Measured(Duration),
}

impl Pace {
    /// What it takes; zero while nobody knows.
    pub fn time(self) -> Duration {
        match self {
            Self::Cold | Self::Warm => Duration::ZERO,
            Self::Measured(time) => time,
        }
    }

    /// Takes in that it took so long. The last eight or so weigh most.
    pub fn took(&mut self, time: Duration) {
        *self = match *self {
            Self::Cold => Self::Warm,
            Self::Warm => Self::Measured(time),
            Self::Measured(before) => Self::Measured((before * 7 + time) / 8),
        };
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
        batch_time: Duration::from_millis(80),
    };

    fn waiting() -> impl Strategy<Value = Waiting> {
        (
            0_usize..40,
            0_u64..5,
            0_usize..40,
            prop_oneof![0_u32..20, Just(u32::MAX)],
            0_u64..200,
            0_usize..12,
        )
            .prop_map(|(interactive, ms, background, since, image, abreast)| Waiting {
                interactive,
                oldest: Duration::from_millis(ms),
                background,
                since_background: since,
                image_time: Duration::from_millis(image),
                abreast,
            })
    }

    proptest! {
        #[test]
        fn never_takes_more_than_waits_or_fits(waiting in waiting()) {
            match POLICY.decide(waiting) {
                Decision::Take(priority, n) => {
                    let (waits, most) = match priority {
                        Priority::Interactive => (waiting.interactive, POLICY.max_batch),
                        Priority::Background => (waiting.background, POLICY.background_batch),
                    };
                    prop_assert!(n > 0 && n <= waits && n <= most);
                }
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
            ..Waiting::default()
        };
        let mut batches = 0;
        while let Decision::Take(Priority::Interactive, _) = POLICY.decide(waiting) {
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
        assert_eq!(POLICY.decide(full), Decision::Take(Priority::Interactive, 8));
    }

    #[test]
    fn batches_are_as_large_as_their_time_allows() {
        let busy = |image_ms| Waiting {
            interactive: 100,
            image_time: Duration::from_millis(image_ms),
            ..Waiting::default()
        };
        let taken = [5, 10, 16, 40, 500].map(|image_ms| POLICY.decide(busy(image_ms)));
        assert_eq!(
            taken,
            [8, 8, 5, 2, 1].map(|n| Decision::Take(Priority::Interactive, n))
        );
        let learning = |image_ms| Waiting {
            interactive: 0,
            background: 100,
            ..busy(image_ms)
        };
        let taken = [1, 5, 10, 500].map(|image_ms| POLICY.decide(learning(image_ms)));
        assert_eq!(
            taken,
            [4, 4, 2, 1].map(|n| Decision::Take(Priority::Background, n))
        );
    }

    #[test]
    fn a_batch_that_others_wait_behind_has_as_many_images_for_each_thread() {
        let policy = Policy {
            max_batch: 32,
            ..POLICY
        };
        let taken = |interactive, image_ms| {
            let decision = policy.decide(Waiting {
                interactive,
                oldest: POLICY.max_wait,
                image_time: Duration::from_millis(image_ms),
                abreast: 4,
                ..Waiting::default()
            });
            match decision {
                Decision::Take(Priority::Interactive, taken) => taken,
                other => panic!("{other:?}"),
            }
        };
        // 7 and 16 and 2 fit.
        assert_eq!([taken(100, 11), taken(100, 5), taken(100, 40)], [4, 16, 2]);
        assert_eq!([taken(3, 11), taken(15, 5)], [3, 15], "all that wait");
    }

    #[test]
    fn the_pace_follows_what_things_take() {
        let mut pace = Pace::default();
        pace.took(Duration::from_secs(9));
        assert_eq!(pace.time(), Duration::ZERO, "the first time does not count");
        pace.took(Duration::from_millis(10));
        assert_eq!(pace.time(), Duration::from_millis(10));
        for _ in 0..50 {
            pace.took(Duration::from_millis(20));
        }
        assert!(pace.time().abs_diff(Duration::from_millis(20)) < Duration::from_millis(1));
    }
}
