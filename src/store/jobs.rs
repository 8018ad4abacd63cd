//! Jobs: how far they are and how they end. How they succeed stands in `publish`, who runs them in `queue`.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};
use sqlx::AnyConnection;

use super::Store;
use super::codec::{from_json, micros, micros_after, number, parse, timestamp, to_json, version_or_none};
use super::error::{CancelError, StoreError};
use super::events::{self, EventKind};
use super::examples;
use super::owner::Owner;
use crate::domain::{Job, JobError, JobId, JobState, Phase};

/// Whether a job is still its worker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Lease {
    /// The call took effect.
    Held,
    /// The job is somebody else's or has ended; the call had no effect and the work is void.
    Lost,
}

/// A sign of progress.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress<'a> {
    /// The job.
    pub job: JobId,
    /// Who runs it.
    pub owner: &'a Owner,
    /// What it is doing.
    pub phase: Phase,
    /// Share of the work done, 0 to 1.
    pub progress: f64,
    /// Fields to set in its report, if any.
    pub report: Option<Map<String, Value>>,
    /// The time.
    pub now: Timestamp,
    /// How long from now the owner may be silent.
    pub lease: Duration,
}

/// The columns of [`JobRow`], and with them the statements that read one.
macro_rules! with_job_columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, kind, model, task, state, phase, progress, attempts, version, error, report, created_at, updated_at ",
            $after
        )
    };
}
pub(super) use with_job_columns;

impl Store {
    /// The job with this id.
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let row: Option<JobRow> = sqlx::query_as(with_job_columns!("select", "from job where id = $1"))
            .bind(id.to_string())
            .fetch_optional(&self.reader)
            .await?;
        row.map(Job::try_from).transpose()
    }

    /// Records how far a job is and extends its lease.
    pub async fn record_progress(&self, progress: Progress<'_>) -> Result<Lease, StoreError> {
        let mut tx = self.write().await?;
        let row: Option<JobRow> = sqlx::query_as(with_job_columns!(
            "update job set phase = $3, progress = $4, updated_at = $5, lease_until = $6
             where id = $1 and owner = $2 returning",
            ""
        ))
        .bind(progress.job.to_string())
        .bind(progress.owner.to_string())
        .bind(progress.phase.as_str())
        .bind(progress.progress)
        .bind(micros(progress.now))
        .bind(micros_after(progress.now, progress.lease))
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else {
            return Ok(Lease::Lost);
        };
        let mut job = Job::try_from(row)?;
        if let Some(fields) = progress.report {
            job.report = write_report(&mut tx, &job, fields).await?;
        }
        events::append(&mut tx, &job, EventKind::Progress, progress.now).await?;
        tx.commit().await?;
        Ok(Lease::Held)
    }

    /// Ends a job with an error. Its examples are deleted, images and features alike: to try again, the caller
    /// sends them again.
    pub async fn fail_job(
        &self,
        job: JobId,
        owner: &Owner,
        error: &JobError,
        now: Timestamp,
    ) -> Result<Lease, StoreError> {
        let mut tx = self.write().await?;
        let row: Option<JobRow> = sqlx::query_as(with_job_columns!(
            "update job set state = 'failed', error = $3, owner = null, lease_until = null, updated_at = $4
             where id = $1 and owner = $2 returning",
            ""
        ))
        .bind(job.to_string())
        .bind(owner.to_string())
        .bind(to_json("job's error", error)?)
        .bind(micros(now))
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else {
            return Ok(Lease::Lost);
        };
        close(&mut tx, &Job::try_from(row)?, now).await?;
        tx.commit().await?;
        Ok(Lease::Held)
    }

    /// Ends a job that is queued or running, whoever runs it; `None` when there is no such job. Its examples are
    /// deleted. A worker that runs it finds its lease lost.
    ///
    /// # Errors
    /// [`CancelError::Final`] when it has ended already.
    pub async fn cancel_job(&self, id: JobId, now: Timestamp) -> Result<Option<Job>, CancelError> {
        let mut tx = self.write().await?;
        let row: Option<JobRow> = sqlx::query_as(with_job_columns!(
            "update job set state = 'cancelled', owner = null, lease_until = null, updated_at = $2
             where id = $1 and state in ('queued', 'running') returning",
            ""
        ))
        .bind(id.to_string())
        .bind(micros(now))
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else {
            tx.rollback().await?;
            return match self.job(id).await? {
                None => Ok(None),
                Some(job) => Err(CancelError::Final(job.state)),
            };
        };
        let job = Job::try_from(row)?;
        close(&mut tx, &job, now).await?;
        tx.commit().await?;
        Ok(Some(job))
    }
}

/// What follows a job's end in the same transaction: its labels are free again, its examples go, its watchers hear.
pub(super) async fn close(
    connection: &mut AnyConnection,
    job: &Job,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query("delete from job_label where job = $1")
        .bind(job.id.to_string())
        .execute(&mut *connection)
        .await?;
    examples::delete(connection, job.id).await?;
    events::append(connection, job, EventKind::State, now).await
}

/// Sets fields of a job's report; the others stay. Gives the whole report.
async fn write_report(
    connection: &mut AnyConnection,
    job: &Job,
    fields: Map<String, Value>,
) -> Result<Value, StoreError> {
    let mut report = match &job.report {
        Value::Object(report) => report.clone(),
        _ => Map::new(),
    };
    report.extend(fields);
    let report = Value::Object(report);
    sqlx::query("update job set report = $2 where id = $1")
        .bind(job.id.to_string())
        .bind(report.to_string())
        .execute(connection)
        .await?;
    Ok(report)
}

#[derive(sqlx::FromRow)]
pub(super) struct JobRow {
    id: String,
    kind: String,
    model: String,
    task: String,
    state: String,
    phase: Option<String>,
    progress: f64,
    attempts: i64,
    version: Option<i64>,
    error: Option<String>,
    report: String,
    created_at: i64,
    updated_at: i64,
}

impl TryFrom<JobRow> for Job {
    type Error = StoreError;

    fn try_from(row: JobRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("job's id", &row.id)?,
            kind: parse("job's kind", &row.kind)?,
            model: parse("model's name", &row.model)?,
            task: parse("task's name", &row.task)?,
            state: parse::<JobState>("job's state", &row.state)?,
            phase: row
                .phase
                .map(|phase| parse::<Phase>("job's phase", &phase))
                .transpose()?,
            progress: row.progress,
            attempts: number("job's attempts", row.attempts)?,
            version: version_or_none(row.version)?,
            error: row
                .error
                .map(|error| from_json::<JobError>("job's error", &error))
                .transpose()?,
            report: from_json("job's report", &row.report)?,
            created_at: timestamp(row.created_at)?,
            updated_at: timestamp(row.updated_at)?,
        })
    }
}
