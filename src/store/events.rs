//! What happened to a job, in order, for those who follow it.

use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::AnyConnection;

use super::Store;
use super::codec::{from_json, micros, number, timestamp};
use super::error::StoreError;
use super::estimate::remaining_seconds;
use crate::domain::{Job, JobId, Phase};

/// One event in the life of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobEvent {
    /// Its place among the job's events: 1, 2, 3, …
    pub sequence: u64,
    /// `state` for a change of state, `progress` otherwise.
    pub name: String,
    /// The job after the event: `state`, `phase`, `progress`, `attempts`, `version`, `error`; `step`, `steps` and
    /// `loss` while it is fitted, and `remaining_seconds` where they can be told.
    pub data: Value,
    /// When.
    pub at: Timestamp,
}

impl Store {
    /// At most `limit` events of a job in order, from the one after `after`; 0 for all.
    pub async fn job_events(&self, job: JobId, after: u64, limit: u32) -> Result<Vec<JobEvent>, StoreError> {
        let rows: Vec<EventRow> = sqlx::query_as(
            "select sequence, name, data, at from job_event
             where job = $1 and sequence > $2 order by sequence limit $3",
        )
        .bind(job.to_string())
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(i64::from(limit))
        .fetch_all(&self.reader)
        .await?;
        rows.into_iter().map(JobEvent::try_from).collect()
    }
}

/// What an event is about.
#[derive(Clone, Copy)]
pub(super) enum EventKind {
    State,
    Progress,
}

impl EventKind {
    fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Progress => "progress",
        }
    }
}

/// Appends an event that shows `job`. The caller's transaction has written the job's row, whose lock keeps two
/// events from taking the same sequence number.
pub(super) async fn append(
    connection: &mut AnyConnection,
    job: &Job,
    kind: EventKind,
    now: Timestamp,
) -> Result<(), StoreError> {
    let remaining_seconds = match kind {
        EventKind::State => None,
        EventKind::Progress => remaining_seconds(connection, job, now).await?,
    };
    // The report keeps the last step of an earlier attempt; only while fitting it is the current one.
    let fitting = |field: &str| match job.phase {
        Some(Phase::Fit) => job.report[field].clone(),
        _ => Value::Null,
    };
    let data = json!({
        "state": job.state,
        "phase": job.phase,
        "progress": job.progress,
        "step": fitting("step"),
        "steps": fitting("steps"),
        "loss": fitting("loss"),
        "remaining_seconds": remaining_seconds,
        "attempts": job.attempts,
        "version": job.version,
        "error": job.error,
    });
    sqlx::query(
        "insert into job_event (job, sequence, name, data, at)
         values ($1, (select coalesce(max(sequence), 0) + 1 from job_event where job = $1), $2, $3, $4)",
    )
    .bind(job.id.to_string())
    .bind(kind.name())
    .bind(data.to_string())
    .bind(micros(now))
    .execute(connection)
    .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct EventRow {
    sequence: i64,
    name: String,
    data: String,
    at: i64,
}

impl TryFrom<EventRow> for JobEvent {
    type Error = StoreError;

    fn try_from(row: EventRow) -> Result<Self, StoreError> {
        Ok(Self {
            sequence: number("event's sequence", row.sequence)?,
            name: row.name,
            data: from_json("event", &row.data)?,
            at: timestamp(row.at)?,
        })
    }
}
