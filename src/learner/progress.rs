//! What a job tells the world while it runs.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::Learner;
use crate::domain::{JobId, Phase};
use crate::store::{Lease, Progress, StoreError};

/// The shortest time between two reports within a phase.
const INTERVAL: Duration = Duration::from_millis(250);

/// Tells of one job, not too often.
pub(super) struct Reporter<'a> {
    learner: &'a Learner,
    job: JobId,
    last: Option<(Phase, Instant)>,
}

impl<'a> Reporter<'a> {
    pub(super) fn new(learner: &'a Learner, job: JobId) -> Self {
        Self {
            learner,
            job,
            last: None,
        }
    }

    /// Reports that `share` of `phase` is done, with what is worth telling about it, unless it was said only just now.
    pub(super) async fn report(
        &mut self,
        phase: Phase,
        share: f64,
        details: Option<Map<String, Value>>,
    ) -> Result<Lease, StoreError> {
        let is_recent = |(known, at): (Phase, Instant)| known == phase && at.elapsed() < INTERVAL;
        if self.last.is_some_and(is_recent) {
            return Ok(Lease::Held);
        }
        self.last = Some((phase, Instant::now()));
        let progress = Progress {
            job: self.job,
            owner: &self.learner.owner,
            phase,
            progress: overall(phase, share),
            report: details,
            now: Timestamp::now(),
            lease: self.learner.config.lease,
        };
        self.learner.store.record_progress(progress).await
    }
}

/// The share of the whole job that is done when `share` of `phase` is.
fn overall(phase: Phase, share: f64) -> f64 {
    let (start, end) = match phase {
        Phase::Encode => (0.0, 0.6),
        Phase::Fit => (0.6, 0.9),
        Phase::Evaluate => (0.9, 0.98),
        Phase::Commit => (0.98, 1.0),
    };
    start + (end - start) * share.clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_never_goes_back() {
        let phases = [Phase::Encode, Phase::Fit, Phase::Evaluate, Phase::Commit];
        let steps = phases
            .into_iter()
            .flat_map(|phase| [0.0, 0.5, 1.0].map(|share| overall(phase, share)));
        let steps: Vec<f64> = steps.collect();
        assert!(
            steps.is_sorted() && steps[0].abs() < 1e-12 && (steps[11] - 1.0).abs() < 1e-12,
            "{steps:?}"
        );
    }
}
