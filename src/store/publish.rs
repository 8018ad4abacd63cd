//! The one transaction that turns a finished job into a version that answers.

use jiff::Timestamp;
use serde_json::Value;
use sqlx::AnyConnection;

use super::Store;
use super::activations;
use super::codec::{micros, timestamp, to_column, to_json, version, version_or_none};
use super::error::{PublishError, StoreError};
use super::held_out::HeldOut;
use super::jobs::{self, JobRow};
use super::lineage::{Clash, Removal, Removed, clash, removal};
use super::owner::Owner;
use crate::domain::{
    Activation, Class, Content, Job, JobId, JobKind, ModelConfig, ModelName, Tally, Version, VersionNumber,
};

/// What a job has made.
#[derive(Debug, Clone, PartialEq)]
pub struct Publication<'a> {
    /// The job; it names the model and the task.
    pub job: JobId,
    /// Who runs it.
    pub owner: &'a Owner,
    /// The version that it was made on top of, which must still be the active one; `None` where none was.
    pub base: Option<VersionNumber>,
    /// The snapshot.
    pub snapshot: Content,
    /// What later tasks need of the new classes; where a class goes, of the other ones of its task.
    pub statistics: &'a [u8],
    /// The configuration that it was learned with.
    pub config: ModelConfig,
    /// What the job found out, for the version and as the job's last word.
    pub report: Value,
    /// The new classes in column order. Their task is the job's, whatever they say. None where something is unlearned.
    pub classes: Vec<Class>,
    /// The held-out examples to keep, of the new classes.
    pub held_out: Vec<HeldOut>,
    /// How many examples it was fitted on.
    pub train_count: u32,
    /// How many were held out, kept or not.
    pub held_out_count: u32,
    /// How it does on each task that it knows.
    pub scores: Vec<TaskScore>,
    /// Who activates it.
    pub actor: String,
    /// The time.
    pub now: Timestamp,
}

/// How a version that has no number yet does on a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskScore {
    /// The version that brought the task; `None` for the one that is being published.
    pub task: Option<VersionNumber>,
    /// The new version's right answers.
    pub tally: Tally,
    /// The bare backbone's right answers among the same classes, out of the same total.
    pub zero_shot: Tally,
}

impl Store {
    /// Publishes and activates a version: its number, snapshot, classes, held-out examples and tallies, the entry in
    /// the log, the job's success and the end of the job's examples, all at once or not at all.
    ///
    /// # Errors
    /// [`PublishError`] when the lease is lost, the base is no longer active or knows the task or one of the labels
    /// (to unlearn, when it does not know the task or its class, or nothing else). Nothing is left of it then.
    pub async fn publish(&self, new: Publication<'_>) -> Result<(Version, Activation), PublishError> {
        let mut tx = self.write().await?;
        let job = owned_job(&mut tx, &new).await?;
        let (number, active) = next_number(&mut tx, &job.model).await?;
        if active != new.base {
            return Err(PublishError::BaseMoved { active });
        }
        let removed = removed(&mut tx, &job, &new).await?;
        let version = Version {
            number,
            parent: new.base,
            kind: job.kind,
            task: job.task.clone(),
            job: job.id,
            digest: new.snapshot.digest(),
            bytes: new.snapshot.bytes().len() as u64,
            created_at: timestamp(micros(new.now))?,
            config: new.config.clone(),
            report: new.report.clone(),
        };
        let activation = Activation {
            model: job.model.clone(),
            version: number,
            previous: active,
            actor: new.actor.clone(),
            reason: None,
            at: version.created_at,
        };
        let written = NewVersion {
            model: &job.model,
            version: &version,
            snapshot: new.snapshot.bytes(),
            statistics: new.statistics,
            train_count: new.train_count,
            held_out_count: new.held_out_count,
        };
        written.insert(&mut tx).await?;
        insert_classes(&mut tx, &written, &new.classes).await?;
        if let Some(removed) = removed {
            insert_removal(&mut tx, &written, &removed).await?;
        }
        insert_held_out(&mut tx, &job, number, &new.held_out).await?;
        insert_tallies(&mut tx, &job, number, &new.scores).await?;
        activations::insert(&mut tx, &activation).await?;
        let job = succeed(&mut tx, number, &new).await?;
        jobs::close(&mut tx, &job, new.now).await?;
        tx.commit().await?;
        Ok((version, activation))
    }
}

/// The job, if the publication's owner runs it.
async fn owned_job(connection: &mut AnyConnection, new: &Publication<'_>) -> Result<Job, PublishError> {
    let row: Option<JobRow> = sqlx::query_as(jobs::with_job_columns!(
        "select",
        "from job where id = $1 and owner = $2"
    ))
    .bind(new.job.to_string())
    .bind(new.owner.to_string())
    .fetch_optional(connection)
    .await?;
    match row {
        Some(row) => Ok(Job::try_from(row)?),
        None => Err(PublishError::LeaseLost),
    }
}

/// What the publication removes; `None` where it brings one that the base must not know.
async fn removed(
    connection: &mut AnyConnection,
    job: &Job,
    new: &Publication<'_>,
) -> Result<Option<Removed>, PublishError> {
    let task = || job.task.clone();
    match (job.kind, new.base) {
        (JobKind::Learn | JobKind::Import, None) => Ok(None),
        (JobKind::Learn | JobKind::Import, Some(base)) => {
            let labels = new.classes.iter().map(|class| &class.label);
            match clash(connection, job, base, labels).await? {
                None => Ok(None),
                Some(Clash::Task) => Err(PublishError::TaskExists(task())),
                Some(Clash::Label(label)) => Err(PublishError::LabelExists(label)),
            }
        }
        (JobKind::Unlearn, None) => Err(PublishError::UnknownTask(task())),
        (JobKind::Unlearn, Some(base)) => match removal(connection, job, base).await? {
            Removal::Of(removed) => Ok(Some(removed)),
            Removal::UnknownTask => Err(PublishError::UnknownTask(task())),
            Removal::UnknownClass(label) => Err(PublishError::UnknownClass(label)),
            Removal::OfAll => Err(PublishError::OnlyTask(task())),
        },
    }
}

/// Takes the model's next number and reads its active version. The model's row stays locked: whoever publishes or
/// activates beside us waits, and reads what we leave.
pub(super) async fn next_number(
    connection: &mut AnyConnection,
    model: &ModelName,
) -> Result<(VersionNumber, Option<VersionNumber>), StoreError> {
    let (next, active): (i64, Option<i64>) = sqlx::query_as(
        "update model set next_version = next_version + 1 where name = $1 returning next_version, active",
    )
    .bind(model.as_str())
    .fetch_one(connection)
    .await?;
    Ok((version(next - 1)?, version_or_none(active)?))
}

/// A version on its way into the database, however it came about.
pub(super) struct NewVersion<'a> {
    pub(super) model: &'a ModelName,
    pub(super) version: &'a Version,
    pub(super) snapshot: &'a [u8],
    pub(super) statistics: &'a [u8],
    pub(super) train_count: u32,
    pub(super) held_out_count: u32,
}

impl NewVersion<'_> {
    /// Writes the version's row. The caller's transaction has taken its number.
    pub(super) async fn insert(&self, connection: &mut AnyConnection) -> Result<(), StoreError> {
        let Self { model, version, .. } = self;
        sqlx::query(
            "insert into version (model, number, parent, task, job, digest, bytes, config, report, train, held_out,
                                  created_at, statistics, snapshot)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        )
        .bind(model.as_str())
        .bind(i64::from(version.number.0))
        .bind(to_column(version.parent))
        .bind(version.task.as_str())
        .bind(version.job.to_string())
        .bind(version.digest.to_string())
        .bind(i64::try_from(version.bytes).unwrap_or(i64::MAX))
        .bind(to_json("version's configuration", &version.config)?)
        .bind(version.report.to_string())
        .bind(i64::from(self.train_count))
        .bind(i64::from(self.held_out_count))
        .bind(micros(version.created_at))
        .bind(self.statistics)
        .bind(self.snapshot)
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// Writes the classes that a version brings, in column order.
pub(super) async fn insert_classes(
    connection: &mut AnyConnection,
    new: &NewVersion<'_>,
    classes: &[Class],
) -> Result<(), StoreError> {
    for (position, class) in (0_i64..).zip(classes) {
        sqlx::query(
            "insert into class (id, model, version, position, label, prompt) values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(class.id.to_string())
        .bind(new.model.as_str())
        .bind(i64::from(new.version.number.0))
        .bind(position)
        .bind(class.label.as_str())
        .bind(class.prompt.as_deref())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn insert_removal(
    connection: &mut AnyConnection,
    new: &NewVersion<'_>,
    removed: &Removed,
) -> Result<(), StoreError> {
    sqlx::query("insert into removal (model, version, task_version, class) values ($1, $2, $3, $4)")
        .bind(new.model.as_str())
        .bind(i64::from(new.version.number.0))
        .bind(i64::from(removed.task.0))
        .bind(removed.class.as_deref())
        .execute(connection)
        .await?;
    Ok(())
}

async fn insert_held_out(
    connection: &mut AnyConnection,
    job: &Job,
    number: VersionNumber,
    held_out: &[HeldOut],
) -> Result<(), StoreError> {
    for (position, example) in (0_i64..).zip(held_out) {
        sqlx::query(
            "insert into held_out (model, version, position, class, digest, features)
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(job.model.as_str())
        .bind(i64::from(number.0))
        .bind(position)
        .bind(example.class.to_string())
        .bind(example.digest.to_string())
        .bind(example.features.to_le_bytes())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn insert_tallies(
    connection: &mut AnyConnection,
    job: &Job,
    number: VersionNumber,
    scores: &[TaskScore],
) -> Result<(), StoreError> {
    for score in scores {
        sqlx::query(
            "insert into tally (model, version, task_version, correct, zero_shot_correct, total)
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(job.model.as_str())
        .bind(i64::from(number.0))
        .bind(i64::from(score.task.unwrap_or(number).0))
        .bind(i64::from(score.tally.correct))
        .bind(i64::from(score.zero_shot.correct))
        .bind(i64::from(score.tally.total))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Last, because only here the lease is checked on the locked row.
async fn succeed(
    connection: &mut AnyConnection,
    number: VersionNumber,
    new: &Publication<'_>,
) -> Result<Job, PublishError> {
    let row: Option<JobRow> = sqlx::query_as(jobs::with_job_columns!(
        "update job set state = 'succeeded', phase = 'commit', progress = 1, version = $3, report = $4,
                        owner = null, lease_until = null, updated_at = $5
         where id = $1 and owner = $2 returning",
        ""
    ))
    .bind(new.job.to_string())
    .bind(new.owner.to_string())
    .bind(i64::from(number.0))
    .bind(new.report.to_string())
    .bind(micros(new.now))
    .fetch_optional(connection)
    .await?;
    match row {
        Some(row) => Ok(Job::try_from(row)?),
        None => Err(PublishError::LeaseLost),
    }
}
