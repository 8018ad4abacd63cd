//! The queue: who runs which job.
//!
//! A model's jobs run one at a time in the order in which they were accepted. A worker that claims a job holds it by
//! a lease, which every sign of progress extends. A lease that runs out may be taken over by any other worker; the
//! one that lost it finds out at its next call, and nothing that it writes after counts.

use std::time::Duration;

use jiff::Timestamp;

use super::Store;
use super::codec::{micros, micros_after};
use super::error::StoreError;
use super::events::{self, EventKind};
use super::jobs::{JobRow, Lease, with_job_columns};
use super::location::Location;
use super::owner::Owner;
use crate::domain::{Digest, Job, JobId};

/// What a job's return to the queue says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// It was tried and did not come to an end.
    Counts,
    /// Its worker was told to stop, or the store failed; nothing was wrong with it.
    Forgiven,
}

/// Times that another worker may be quicker before [`Store::claim_job`] leaves it at that.
const CLAIM_TRIES: u32 = 16;

impl Store {
    /// Takes up the oldest job that may run: a queued one, or one whose lease ran out, of a model that has no job
    /// running under a live lease and learns on `backbone`. Its `attempts` count this one; it is for the caller to fail a job that has had
    /// too many.
    pub async fn claim_job(
        &self,
        owner: &Owner,
        backbone: Digest,
        now: Timestamp,
        lease: Duration,
    ) -> Result<Option<Job>, StoreError> {
        for _ in 0..CLAIM_TRIES {
            let idle = sqlx::query(CLAIMABLE_MODEL)
                .bind(micros(now))
                .bind(backbone.to_string())
                .fetch_optional(&self.reader)
                .await?;
            if idle.is_none() {
                return Ok(None);
            }
            let mut tx = self.write().await?;
            // The model is locked first: jobs of one model are claimed one after the other, and what the second
            // statement reads is what the last claim of the model left behind.
            let statement = match self.location {
                Location::Sqlite(_) => CLAIMABLE_MODEL,
                Location::Postgres(_) => CLAIMABLE_MODEL_LOCKED,
            };
            let Some((model,)): Option<(String,)> = sqlx::query_as(statement)
                .bind(micros(now))
                .bind(backbone.to_string())
                .fetch_optional(&mut *tx)
                .await?
            else {
                return Ok(None);
            };
            let claimed: Option<JobRow> = sqlx::query_as(CLAIM)
                .bind(model)
                .bind(micros(now))
                .bind(owner.to_string())
                .bind(micros_after(now, lease))
                .fetch_optional(&mut *tx)
                .await?;
            if let Some(row) = claimed {
                let job = Job::try_from(row)?;
                events::append(&mut tx, &job, EventKind::State, now).await?;
                tx.commit().await?;
                return Ok(Some(job));
            }
        }
        Ok(None)
    }

    /// Extends a job's lease and changes nothing else.
    pub async fn renew_lease(
        &self,
        job: JobId,
        owner: &Owner,
        now: Timestamp,
        lease: Duration,
    ) -> Result<Lease, StoreError> {
        let mut tx = self.write().await?;
        let renewed = sqlx::query("update job set lease_until = $3 where id = $1 and owner = $2")
            .bind(job.to_string())
            .bind(owner.to_string())
            .bind(micros_after(now, lease))
            .execute(&mut *tx)
            .await?
            .rows_affected();
        tx.commit().await?;
        Ok(if renewed > 0 { Lease::Held } else { Lease::Lost })
    }

    /// Puts a job that its owner cannot finish now back into the queue, in its old place.
    pub async fn requeue(
        &self,
        job: JobId,
        owner: &Owner,
        attempt: Attempt,
        now: Timestamp,
    ) -> Result<Lease, StoreError> {
        let mut tx = self.write().await?;
        let row: Option<JobRow> = sqlx::query_as(with_job_columns!(
            "update job set state = 'queued', owner = null, lease_until = null, attempts = attempts - $4, updated_at = $3
             where id = $1 and owner = $2 returning",
            ""
        ))
        .bind(job.to_string())
        .bind(owner.to_string())
        .bind(micros(now))
        .bind(i64::from(attempt == Attempt::Forgiven))
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else {
            return Ok(Lease::Lost);
        };
        events::append(&mut tx, &Job::try_from(row)?, EventKind::State, now).await?;
        tx.commit().await?;
        Ok(Lease::Held)
    }

    /// Puts the jobs that earlier boots of this server left running back into the queue, and says how many. To be
    /// called once at the start, before the first claim.
    pub async fn requeue_orphans(&self, owner: &Owner, now: Timestamp) -> Result<u32, StoreError> {
        let mut tx = self.write().await?;
        let rows: Vec<JobRow> = sqlx::query_as(with_job_columns!(
            "update job set state = 'queued', owner = null, lease_until = null, updated_at = $3
             where state = 'running' and owner like $1 and owner <> $2 returning",
            ""
        ))
        .bind(owner.any_boot())
        .bind(owner.to_string())
        .bind(micros(now))
        .fetch_all(&mut *tx)
        .await?;
        let mut count = 0;
        for row in rows {
            events::append(&mut tx, &Job::try_from(row)?, EventKind::State, now).await?;
            count += 1;
        }
        tx.commit().await?;
        Ok(count)
    }
}

/// A model with a job to run, the one with the oldest such job first. `$1`: now, `$2`: the backbone. The open states
/// are named for the index `job_open`, which spares the jobs of all times.
macro_rules! claimable_model {
    ($lock:literal) => {
        concat!(
            "select model.name from model join job on job.model = model.name
             where model.backbone = $2 and job.state in ('queued', 'running')
                and ((job.state = 'running' and job.lease_until <= $1)
                    or (job.state = 'queued' and not exists (
                        select 1 from job other where other.model = model.name and other.state = 'running')))
             order by job.created_at, job.id limit 1 ",
            $lock
        )
    };
}

const CLAIMABLE_MODEL: &str = claimable_model!("");
const CLAIMABLE_MODEL_LOCKED: &str = claimable_model!("for no key update of model skip locked");

/// Its job: the one whose lease ran out, or else the oldest. What was read is asked again where the row is written,
/// because on PostgreSQL an owner may have extended its lease in between. `$1`: model, `$2`: now, `$3`: owner,
/// `$4`: the lease's end.
const CLAIM: &str = with_job_columns!(
    "update job set state = 'running', owner = $3, lease_until = $4, attempts = attempts + 1, updated_at = $2
     where id = (
         select id from job
         where model = $1 and state in ('queued', 'running') and (
             (state = 'running' and lease_until <= $2)
             or (state = 'queued'
                 and not exists (select 1 from job other where other.model = $1 and other.state = 'running')))
         order by created_at, id limit 1)
     and (state = 'queued' or (state = 'running' and lease_until <= $2))
     returning",
    ""
);
