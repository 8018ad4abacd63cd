//! The worker: claims jobs one after another and sees each to its end.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt as _;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::Learner;
use super::learn::Learn;
use super::stop::Stop;
use super::submit::give_back_space;
use crate::domain::{Job, JobError, JobId, JobState, ModelName, VersionNumber};
use crate::metrics;
use crate::store::{Attempt, Lease, StoreError};

/// How often a job is taken up. One that brings down its server each time must not do so for ever.
const MOST_ATTEMPTS: u32 = 10;

/// How often a job is forgiven that the store failed under it, until another one was: it may be the job that the store cannot take.
const MOST_FORGIVEN: u32 = 3;

/// What a tick did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was no job to run.
    Idle,
    /// A job came to its end.
    Ended(JobState),
    /// A job went back into the queue: the worker was told to stop, or something else than the job is at fault.
    Requeued,
    /// A job was lost to another worker, or cancelled, while this one worked on it.
    Lost,
}

/// Runs jobs, one at a time.
pub struct Worker {
    learner: Arc<Learner>,
    /// The job that was run last, where the store did not hear how it ended.
    unsettled: Option<JobId>,
    forgiven: Forgiven,
}

impl Worker {
    pub(super) fn new(learner: Arc<Learner>) -> Self {
        Self {
            learner,
            unsettled: None,
            forgiven: Forgiven::default(),
        }
    }

    /// Runs jobs until told to stop; the job under way then goes back into the queue.
    pub async fn run(mut self, stop: CancellationToken) {
        let learner = Arc::clone(&self.learner);
        while !stop.is_cancelled() {
            match self.tick(&stop).await {
                Ok(Outcome::Idle) => {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = learner.wake.notified() => {}
                        () = tokio::time::sleep(learner.config.poll) => {}
                    }
                }
                Ok(Outcome::Ended(_) | Outcome::Lost) => give_back_space(&learner.store).await,
                // What stood in the way may be over soon, but not at once.
                Ok(Outcome::Requeued) => self.pause(&stop).await,
                Err(error) => {
                    // The job is taken up again once the store answers.
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the worker could not reach the store"
                    );
                    self.pause(&stop).await;
                }
            }
        }
    }

    async fn pause(&self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(self.learner.config.poll) => {}
        }
    }

    /// Claims one job, if there is one, and takes it as far as it gets.
    ///
    /// # Errors
    /// When the store fails. The job is then as it was last saved.
    pub async fn tick(&mut self, stop: &CancellationToken) -> Result<Outcome, StoreError> {
        if let Some(job) = self.unsettled {
            let _it_may_have_ended = self.requeue(job, self.forgiven.attempt(job)).await?;
            self.forgiven.count(job);
            self.unsettled = None;
        }
        let learner = &*self.learner;
        let claimed = learner
            .store
            .claim_job(
                &learner.owner,
                learner.engine.info().digest,
                Timestamp::now(),
                learner.config.lease,
            )
            .await?;
        let Some(job) = claimed else {
            return Ok(Outcome::Idle);
        };
        let span = tracing::info_span!("job", id = %job.id, model = %job.model, task = %job.task);
        self.unsettled = Some(job.id);
        let outcome = self.see_through(job, stop).instrument(span).await?;
        self.unsettled = None;
        Ok(outcome)
    }

    async fn see_through(&self, job: Job, stop: &CancellationToken) -> Result<Outcome, StoreError> {
        let (id, model, attempt) = (job.id, job.model.clone(), job.attempts);
        let started = Instant::now();
        tracing::info!(attempt = job.attempts, "job started");
        let ended = if job.attempts > MOST_ATTEMPTS {
            let detail = format!("it was taken up {MOST_ATTEMPTS} times and never came to an end");
            Err(Stop::Failed {
                code: "too_many_attempts",
                detail,
            })
        } else {
            self.run_under_lease(job, stop).await
        };
        let outcome = match ended {
            Ok(version) => {
                tracing::info!(%version, seconds = started.elapsed().as_secs_f64(), "job succeeded");
                Outcome::Ended(JobState::Succeeded)
            }
            Err(Stop::Failed { code, detail }) => self.fail(id, code, detail).await?,
            Err(Stop::Told) => {
                tracing::info!("job goes back into the queue");
                // An engine that ended by itself, or whose device is lost, may have this job to thank for it: that is bounded.
                let is_told = stop.is_cancelled() && !self.learner.engine.is_lost();
                let attempt = if is_told {
                    Attempt::Forgiven
                } else {
                    Attempt::Counts
                };
                self.requeue(id, attempt).await?
            }
            Err(Stop::Later { code, detail }) => {
                tracing::warn!(code, detail, "job goes back into the queue");
                self.requeue(id, Attempt::Counts).await?
            }
            Err(Stop::LeaseLost) => self.after_a_lost_lease(id, &model, attempt).await?,
            Err(Stop::Store(error)) => return Err(error),
        };
        if outcome == Outcome::Lost {
            tracing::warn!("job was taken over or cancelled");
        }
        if let Outcome::Ended(state) = outcome {
            metrics::job_ended(state);
            metrics::job_ran(started.elapsed());
        }
        Ok(outcome)
    }

    /// Runs the job while its lease is renewed, however long a step of it is silent. A panic costs the attempt, not the
    /// worker.
    async fn run_under_lease(&self, job: Job, stop: &CancellationToken) -> Result<VersionNumber, Stop> {
        let id = job.id;
        let run = AssertUnwindSafe(Learn::new(&self.learner, job, stop).run()).catch_unwind();
        tokio::select! {
            ended = run => ended.unwrap_or_else(|_| {
                Err(Stop::Later {
                    code: "panicked",
                    detail: "it panicked; the log says where".to_owned(),
                })
            }),
            () = self.lease_lost(id) => Err(Stop::LeaseLost),
        }
    }

    /// Renews the lease until it is lost.
    async fn lease_lost(&self, id: JobId) {
        let Learner {
            store, owner, config, ..
        } = &*self.learner;
        loop {
            tokio::time::sleep(config.lease / 3).await;
            // A connection to a database that is gone may never answer; the next one may be to another.
            let renewal = store.renew_lease(id, owner, Timestamp::now(), config.lease);
            match tokio::time::timeout(config.lease / 3, renewal).await {
                Ok(Ok(Lease::Held)) => {}
                Ok(Ok(Lease::Lost)) => return,
                Ok(Err(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the lease could not be renewed");
                }
                Err(_) => tracing::warn!("the store does not answer: the lease could not be renewed"),
            }
        }
    }

    /// A renewal that waited for the commit finds no lease: then the job is not lost but done.
    async fn after_a_lost_lease(
        &self,
        id: JobId,
        model: &ModelName,
        attempt: u32,
    ) -> Result<Outcome, StoreError> {
        let job = self.learner.store.job(id).await?;
        let is_done = job.is_some_and(|job| job.state == JobState::Succeeded && job.attempts == attempt);
        if !is_done {
            return Ok(Outcome::Lost);
        }
        if let Err(error) = self.learner.registry.follow(model).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the new version does not serve yet");
        }
        Ok(Outcome::Ended(JobState::Succeeded))
    }

    async fn requeue(&self, id: JobId, attempt: Attempt) -> Result<Outcome, StoreError> {
        let Learner { store, owner, .. } = &*self.learner;
        let requeued = store.requeue(id, owner, attempt, Timestamp::now()).await?;
        Ok(unless_lost(requeued, Outcome::Requeued))
    }

    async fn fail(&self, id: JobId, code: &str, detail: String) -> Result<Outcome, StoreError> {
        tracing::warn!(code, detail, "job failed");
        let Learner { store, owner, .. } = &*self.learner;
        let error = JobError {
            code: code.to_owned(),
            detail,
        };
        let failed = store.fail_job(id, owner, &error, Timestamp::now()).await?;
        Ok(unless_lost(failed, Outcome::Ended(JobState::Failed)))
    }
}

fn unless_lost(lease: Lease, outcome: Outcome) -> Outcome {
    match lease {
        Lease::Held => outcome,
        Lease::Lost => Outcome::Lost,
    }
}

/// The job that the store failed under last, and how often it did.
#[derive(Default)]
struct Forgiven {
    last: Option<(JobId, u32)>,
}

impl Forgiven {
    fn times(&self, job: JobId) -> u32 {
        let last = self.last.filter(|(known, _)| *known == job);
        last.map_or(0, |(_, times)| times)
    }

    /// What one more failure says about a job: as a rule nothing.
    fn attempt(&self, job: JobId) -> Attempt {
        if self.times(job) < MOST_FORGIVEN {
            Attempt::Forgiven
        } else {
            Attempt::Counts
        }
    }

    fn count(&mut self, job: JobId) {
        self.last = Some((job, self.times(job) + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_forgiven_a_few_times() {
        let (one, other) = (JobId::new(), JobId::new());
        let mut forgiven = Forgiven::default();
        for _ in 0..MOST_FORGIVEN {
            assert_eq!(forgiven.attempt(one), Attempt::Forgiven);
            forgiven.count(one);
        }
        assert_eq!(forgiven.attempt(one), Attempt::Counts);
        assert_eq!(forgiven.attempt(other), Attempt::Forgiven);
        forgiven.count(other);
        assert_eq!(
            forgiven.attempt(one),
            Attempt::Forgiven,
            "another one was meanwhile"
        );
    }
}
