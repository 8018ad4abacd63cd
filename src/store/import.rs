//! The one transaction that takes in a version that was learned elsewhere: a root, with no parent and one task that holds
//! all its classes.

use jiff::Timestamp;
use serde_json::Value;
use sqlx::AnyConnection;

use super::Store;
use super::activations;
use super::codec::{micros, timestamp};
use super::draft::{Binding, bind};
use super::error::{ImportError, StoreError};
use super::events::{self, EventKind};
use super::publish::{NewVersion, insert_classes, next_number};
use crate::domain::{
    Activation, Class, ClassId, Content, Digest, Job, JobId, JobKind, JobState, ModelConfig, ModelName,
    Phase, TaskName, Version,
};

/// A version from elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Import<'a> {
    /// The id of the job that stands for it.
    pub job: JobId,
    /// The model that takes it in.
    pub model: ModelName,
    /// The task that holds its classes.
    pub task: TaskName,
    /// The backbone that it was learned on.
    pub backbone: Digest,
    /// The snapshot.
    pub snapshot: Content,
    /// What later tasks need of its classes.
    pub statistics: &'a [u8],
    /// The model's configuration.
    pub config: ModelConfig,
    /// Where it comes from, for the version and the job.
    pub report: Value,
    /// Its classes in column order.
    pub classes: Vec<Class>,
    /// How many examples it was fitted on, as far as that is known.
    pub train_count: u32,
    /// Whether it answers.
    pub arrival: Arrival,
    /// The time.
    pub now: Timestamp,
}

/// What becomes of a version that was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It answers from now on.
    Active,
    /// It is kept, and what answered before still does.
    Kept,
}

impl Store {
    /// Takes in a version: a job that has succeeded, the number, snapshot and classes, and the entry in the log where it
    /// is activated, all at once or not at all.
    ///
    /// # Errors
    /// [`ImportError`] when there is no such model or it learns on another backbone, or when the database has a class of
    /// one of the ids. Nothing is left of it then.
    pub async fn import(&self, new: Import<'_>) -> Result<Version, ImportError> {
        let mut tx = self.write().await?;
        match bind(&mut tx, &new.model, new.backbone).await? {
            Binding::Bound => {}
            Binding::UnknownModel => return Err(ImportError::UnknownModel(new.model)),
            Binding::OtherBackbone => return Err(ImportError::OtherBackbone(new.model)),
        }
        // Before anything large is written.
        if let Some(id) = taken(&mut tx, &new.classes).await? {
            return Err(ImportError::ClassTaken(id));
        }
        let (number, previous) = next_number(&mut tx, &new.model).await?;
        let version = Version {
            number,
            parent: None,
            kind: JobKind::Import,
            task: new.task.clone(),
            job: new.job,
            digest: new.snapshot.digest(),
            bytes: new.snapshot.bytes().len() as u64,
            created_at: timestamp(micros(new.now))?,
            config: new.config.clone(),
            report: new.report.clone(),
        };
        let job = new.succeeded(&version);
        insert_job(&mut tx, &job).await?;
        let written = NewVersion {
            model: &new.model,
            version: &version,
            snapshot: new.snapshot.bytes(),
            statistics: new.statistics,
            train_count: new.train_count,
            held_out_count: 0,
        };
        written.insert(&mut tx).await?;
        if let Err(error) = insert_classes(&mut tx, &written, &new.classes).await {
            // Where two write side by side, one may have taken them since.
            let _ = tx.rollback().await;
            let mut connection = self.reader.acquire().await?;
            let taken = taken(&mut connection, &new.classes).await?;
            return Err(taken.map_or(error.into(), ImportError::ClassTaken));
        }
        // A job and its version name each other.
        sqlx::query("update job set version = $2 where id = $1")
            .bind(job.id.to_string())
            .bind(i64::from(number.0))
            .execute(&mut *tx)
            .await?;
        events::append(&mut tx, &job, EventKind::State, version.created_at).await?;
        if new.arrival == Arrival::Active {
            let activation = Activation {
                model: new.model,
                version: number,
                previous,
                actor: format!("job:{}", job.id),
                reason: None,
                at: version.created_at,
            };
            activations::insert(&mut tx, &activation).await?;
        }
        tx.commit().await?;
        Ok(version)
    }
}

impl Import<'_> {
    /// The job that stands for it.
    fn succeeded(&self, version: &Version) -> Job {
        Job {
            id: self.job,
            kind: JobKind::Import,
            model: self.model.clone(),
            task: self.task.clone(),
            state: JobState::Succeeded,
            phase: Some(Phase::Commit),
            progress: 1.0,
            attempts: 0,
            version: Some(version.number),
            error: None,
            report: self.report.clone(),
            created_at: version.created_at,
            updated_at: version.created_at,
        }
    }
}

/// The first of the classes' ids that the database has already.
async fn taken(connection: &mut AnyConnection, classes: &[Class]) -> Result<Option<ClassId>, StoreError> {
    for class in classes {
        let known = sqlx::query("select 1 from class where id = $1")
            .bind(class.id.to_string())
            .fetch_optional(&mut *connection)
            .await?;
        if known.is_some() {
            return Ok(Some(class.id));
        }
    }
    Ok(None)
}

/// Writes the job's row without its version, which is not there yet.
async fn insert_job(connection: &mut AnyConnection, job: &Job) -> Result<(), StoreError> {
    sqlx::query(
        "insert into job (id, kind, model, task, state, phase, progress, report, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
    )
    .bind(job.id.to_string())
    .bind(job.kind.as_str())
    .bind(job.model.as_str())
    .bind(job.task.as_str())
    .bind(job.state.as_str())
    .bind(job.phase.map(Phase::as_str))
    .bind(job.progress)
    .bind(job.report.to_string())
    .bind(micros(job.created_at))
    .execute(connection)
    .await?;
    Ok(())
}
