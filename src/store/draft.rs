//! Jobs on their way into the queue.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use sqlx::{Any, AnyConnection, Transaction};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::codec::{micros, timestamp, version};
use super::error::{EnqueueError, StoreError};
use super::events::{self, EventKind};
use super::lineage::{Clash, Removal, clash, removal};
use super::{Store, WRITE_PATIENCE};
use crate::domain::{
    Digest, Features, Job, JobId, JobKind, JobState, Label, ModelName, NewClass, Split, TaskName,
};

/// What a job is asked to do.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The model that it works on.
    pub model: ModelName,
    /// The backbone that encodes its examples.
    pub backbone: Digest,
    /// The task's name.
    pub task: TaskName,
    /// The classes that the task brings; examples name them by position. To unlearn, the one class that goes, or none where
    /// the whole task does.
    pub classes: Vec<NewClass>,
    /// When it was asked for.
    pub now: Timestamp,
}

/// An example and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewExample {
    /// What the caller calls it.
    pub name: String,
    /// Position of its class among the job's.
    pub class: u32,
    /// Its part of the task, where the caller chose one.
    pub split: Option<Split>,
    /// Of its content.
    pub digest: Digest,
}

/// A job that takes in its examples one by one and joins the queue when it is committed. Dropped before, it leaves
/// nothing behind.
///
/// It holds a transaction open, on SQLite the only one that may write: feed it from local disk, not from a client,
/// and call nothing else that writes meanwhile.
pub struct JobDraft {
    tx: Transaction<'static, Any>,
    job: Job,
    next_position: i64,
    _place: OwnedSemaphorePermit,
}

impl Store {
    /// Begins a job once there is a place for it, within [`WRITE_PATIENCE`]: on SQLite there is one, and otherwise half of the
    /// connections are places.
    ///
    /// # Errors
    /// [`EnqueueError`] when there is no such model or it learns on another backbone, when its active version or another open job has the task's name
    /// or one of the labels, or when a label occurs twice; to unlearn, when the active version does not know the task or
    /// its class, or nothing else.
    pub async fn begin_job(&self, new: NewJob) -> Result<JobDraft, EnqueueError> {
        let job = Job {
            id: new.id,
            kind: new.kind,
            model: new.model,
            task: new.task,
            state: JobState::Queued,
            phase: None,
            progress: 0.0,
            attempts: 0,
            version: None,
            error: None,
            report: Value::Null,
            created_at: timestamp(micros(new.now))?,
            updated_at: timestamp(micros(new.now))?,
        };
        let place = timeout(WRITE_PATIENCE, Arc::clone(&self.drafts).acquire_owned()).await;
        let place = place.map_err(|_| StoreError::Unavailable(sqlx::Error::PoolTimedOut))?;
        let place = place.expect("nobody closes the semaphore");
        self.bind_model(&job.model, new.backbone).await?;
        let mut draft = JobDraft {
            tx: self.write().await?,
            job,
            next_position: 0,
            _place: place,
        };
        draft.insert_job().await?;
        draft.insert_classes(&new.classes).await?;
        draft.reserve_labels(&new.classes).await?;
        draft.check_active_version(&new.classes).await?;
        let now = draft.job.created_at;
        events::append(&mut draft.tx, &draft.job, EventKind::State, now).await?;
        Ok(draft)
    }

    /// A model's features are all of one backbone. The first job decides on which, and again the next one for as long
    /// as nothing came of those before. A transaction of its own: a draft must not keep the model's row from a job
    /// that publishes meanwhile.
    async fn bind_model(&self, name: &ModelName, backbone: Digest) -> Result<(), EnqueueError> {
        let mut tx = self.write().await?;
        let binding = bind(&mut tx, name, backbone).await?;
        tx.commit().await?;
        match binding {
            Binding::Bound => Ok(()),
            Binding::UnknownModel => Err(EnqueueError::UnknownModel(name.clone())),
            Binding::OtherBackbone => Err(EnqueueError::OtherBackbone(name.clone())),
        }
    }
}

/// What became of a wish to bind a model to a backbone.
pub(super) enum Binding {
    Bound,
    UnknownModel,
    OtherBackbone,
}

/// Binds a model to a backbone if it is free to be. Locks the model's row.
pub(super) async fn bind(
    connection: &mut AnyConnection,
    name: &ModelName,
    backbone: Digest,
) -> Result<Binding, StoreError> {
    let model: Option<(Option<String>,)> = sqlx::query_as(
        "update model set backbone = case
             when active is null and not exists (
                 select 1 from job where job.model = $1 and job.state in ('queued', 'running'))
             then $2 else coalesce(backbone, $2) end
         where name = $1 returning backbone",
    )
    .bind(name.as_str())
    .bind(backbone.to_string())
    .fetch_optional(connection)
    .await?;
    Ok(match model {
        None => Binding::UnknownModel,
        Some((bound,)) if bound.as_deref() == Some(&backbone.to_string()) => Binding::Bound,
        Some(_) => Binding::OtherBackbone,
    })
}

impl JobDraft {
    /// Adds an encoded image. `false`, and nothing added, when the class has the same content in that split already.
    pub async fn add_image(&mut self, example: NewExample, image: &[u8]) -> Result<bool, StoreError> {
        self.add(example, Some(image), None).await
    }

    /// Adds an example that arrived as features. `false`, and nothing added, when the class has the same content in
    /// that split already.
    pub async fn add_features(
        &mut self,
        example: NewExample,
        features: &Features,
    ) -> Result<bool, StoreError> {
        self.add(example, None, Some(features.to_le_bytes())).await
    }

    /// Puts the job into the queue.
    pub async fn commit(self) -> Result<Job, StoreError> {
        self.tx.commit().await?;
        Ok(self.job)
    }

    async fn add(
        &mut self,
        example: NewExample,
        image: Option<&[u8]>,
        features: Option<Vec<u8>>,
    ) -> Result<bool, StoreError> {
        let added = sqlx::query(
            "insert into job_example (job, position, class, split, name, digest, image, features)
             values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing",
        )
        .bind(self.job.id.to_string())
        .bind(self.next_position)
        .bind(i64::from(example.class))
        .bind(example.split.map(Split::as_str))
        .bind(example.name)
        .bind(example.digest.to_string())
        .bind(image)
        .bind(features)
        .execute(&mut *self.tx)
        .await?
        .rows_affected();
        self.next_position += i64::from(added > 0);
        Ok(added > 0)
    }

    async fn insert_job(&mut self) -> Result<(), EnqueueError> {
        let inserted = sqlx::query(
            "insert into job (id, kind, model, task, state, report, created_at, updated_at)
             values ($1, $2, $3, $4, $5, $6, $7, $7)
             on conflict (model, task) where state in ('queued', 'running') do nothing",
        )
        .bind(self.job.id.to_string())
        .bind(self.job.kind.as_str())
        .bind(self.job.model.as_str())
        .bind(self.job.task.as_str())
        .bind(self.job.state.as_str())
        .bind(self.job.report.to_string())
        .bind(micros(self.job.created_at))
        .execute(&mut *self.tx)
        .await?
        .rows_affected();
        match inserted {
            0 => Err(EnqueueError::TaskInFlight(self.job.task.clone())),
            _ => Ok(()),
        }
    }

    async fn insert_classes(&mut self, classes: &[NewClass]) -> Result<(), EnqueueError> {
        for (position, class) in (0_i64..).zip(classes) {
            let inserted = sqlx::query(
                "insert into job_class (job, position, label, prompt) values ($1, $2, $3, $4)
                 on conflict (job, label) do nothing",
            )
            .bind(self.job.id.to_string())
            .bind(position)
            .bind(class.label.as_str())
            .bind(class.prompt.as_deref())
            .execute(&mut *self.tx)
            .await?
            .rows_affected();
            if inserted == 0 {
                return Err(EnqueueError::LabelTwice(class.label.clone()));
            }
        }
        Ok(())
    }

    /// Sorted, so that two drafts that wait for each other's labels on PostgreSQL cannot wait in a circle.
    async fn reserve_labels(&mut self, classes: &[NewClass]) -> Result<(), EnqueueError> {
        let mut labels: Vec<&Label> = classes.iter().map(|class| &class.label).collect();
        labels.sort();
        for label in labels {
            let inserted = sqlx::query(
                "insert into job_label (model, label, job) values ($1, $2, $3)
                 on conflict (model, label) do nothing",
            )
            .bind(self.job.model.as_str())
            .bind(label.as_str())
            .bind(self.job.id.to_string())
            .execute(&mut *self.tx)
            .await?
            .rows_affected();
            if inserted == 0 {
                return Err(EnqueueError::LabelInFlight(label.clone()));
            }
        }
        Ok(())
    }

    /// After the reservations: a job that ended before them has its version in sight now.
    async fn check_active_version(&mut self, classes: &[NewClass]) -> Result<(), EnqueueError> {
        let Some((active,)): Option<(i64,)> =
            sqlx::query_as("select active from model where name = $1 and active is not null")
                .bind(self.job.model.as_str())
                .fetch_optional(&mut *self.tx)
                .await?
        else {
            return match self.job.kind {
                JobKind::Learn | JobKind::Import => Ok(()),
                JobKind::Unlearn => Err(EnqueueError::UnknownTask(self.job.task.clone())),
            };
        };
        if self.job.kind == JobKind::Unlearn {
            return match removal(&mut self.tx, &self.job, version(active)?).await? {
                Removal::Of(_) => Ok(()),
                Removal::UnknownTask => Err(EnqueueError::UnknownTask(self.job.task.clone())),
                Removal::UnknownClass(label) => Err(EnqueueError::UnknownClass(label)),
                Removal::OfAll => Err(EnqueueError::OnlyTask(self.job.task.clone())),
            };
        }
        let labels = classes.iter().map(|class| &class.label);
        match clash(&mut self.tx, &self.job, version(active)?, labels).await? {
            None => Ok(()),
            Some(Clash::Task) => Err(EnqueueError::TaskExists(self.job.task.clone())),
            Some(Clash::Label(label)) => Err(EnqueueError::LabelExists(label)),
        }
    }
}
