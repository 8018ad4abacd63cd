//! One job that unlearns a task: a version on top of the active one, without the task's classes.
//!
//! There is nothing to encode and nothing to train. What is in closed form is made anew from the statistics of the tasks
//! that stay; a trained adapter keeps its weights, and the report says so.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde_json::json;

use super::learn::Learn;
use super::stop::Stop;
use super::submit::joined;
use crate::adapter::{Snapshot, Statistics, Unlearned, statistics, unlearn};
use crate::domain::{Class, ClassId, Digest, ModelConfig, Phase, Task, VersionNumber};
use crate::registry::Serving;
use crate::store::{Publication, TaskScore};

/// What a job starts from.
struct Start {
    base: Arc<Serving>,
    config: ModelConfig,
    /// The task that goes.
    task: Task,
    /// The versions that brought the tasks which stay.
    others: Vec<VersionNumber>,
}

impl Learn<'_> {
    /// Unlearns the job's task on top of the version that is active now; `None` when another one became active meanwhile.
    pub(super) async fn unlearn_on_active(&mut self) -> Result<Option<VersionNumber>, Stop> {
        self.report(Phase::Fit, 0.0, None).await?;
        let started = Instant::now();
        let start = self.start().await?;
        let (columns, unlearned) = self.without(&start).await?;
        self.took("fit", started);

        let started = Instant::now();
        let scores = self
            .evaluate_known(&unlearned.head, &columns, &start.others)
            .await?;
        self.took("evaluate", started);
        self.publish_without(start, columns, (unlearned, scores)).await
    }

    async fn start(&self) -> Result<Start, Stop> {
        let model = self.model().await?;
        let unknown = || Stop::Failed {
            code: "unknown_task",
            detail: format!("the active version knows no task {}", self.job.task),
        };
        let active = model.active.ok_or_else(unknown)?;
        let base = self.learner.registry.version(&model.name, active).await?;
        let mut tasks = self.learner.store.tasks(&model.name, active).await?;
        let place = tasks.iter().position(|task| task.name == self.job.task);
        let task = tasks.remove(place.ok_or_else(unknown)?);
        if tasks.is_empty() {
            return Err(Stop::Failed {
                code: "only_task",
                detail: format!("the active version knows no task but {}", task.name),
            });
        }
        Ok(Start {
            base,
            config: model.config,
            task,
            others: tasks.into_iter().map(|task| task.version).collect(),
        })
    }

    /// The classes that stay and the head that scores them.
    async fn without(&self, start: &Start) -> Result<(Vec<Class>, Unlearned), Stop> {
        let Start { base, task, .. } = start;
        let remaining: Statistics = self
            .learner
            .recall(&self.job.model, base.number, Some(task.version))
            .await?;
        let gone: HashSet<ClassId> = task.classes.iter().map(|class| class.id).collect();
        let (keep, columns): (Vec<u32>, Vec<Class>) = (0_u32..)
            .zip(base.snapshot.classes())
            .filter(|(_, class)| !gone.contains(&class.id))
            .map(|(column, class)| (column, class.clone()))
            .unzip();
        let pool = Arc::clone(&self.learner.fit_pool);
        let head = Arc::clone(&base.head);
        let made = tokio::task::spawn_blocking(move || pool.install(|| unlearn(&head, &remaining, &keep)));
        let unlearned = joined(made).await.map_err(|e| Stop::failed("unlearn", &e))?;
        Ok((columns, unlearned))
    }

    async fn publish_without(
        &mut self,
        start: Start,
        columns: Vec<Class>,
        (unlearned, scores): (Unlearned, Vec<TaskScore>),
    ) -> Result<Option<VersionNumber>, Stop> {
        self.report(Phase::Commit, 0.0, None).await?;
        let snapshot = Snapshot::new(columns, unlearned.head, start.base.snapshot.backbone().to_owned())
            .map_err(|e| Stop::failed("snapshot", &e))?;
        let bytes = snapshot.encode().map_err(|e| Stop::failed("snapshot", &e))?;
        // It brings no classes, so there is nothing to remember of any.
        let statistics =
            statistics::encode(&Statistics::default()).map_err(|e| Stop::failed("statistics", &e))?;
        let labels: Vec<_> = start.task.classes.iter().map(|class| &class.label).collect();
        let publication = Publication {
            job: self.job.id,
            owner: &self.learner.owner,
            base: Some(start.base.number),
            snapshot: &bytes,
            digest: Digest::of(&bytes),
            statistics: &statistics,
            config: start.config,
            report: json!({
                "exact": unlearned.exact,
                "unlearned": { "task": start.task.name, "version": start.task.version, "classes": labels },
                "seconds": self.seconds,
            }),
            classes: Vec::new(),
            held_out: Vec::new(),
            train_count: 0,
            held_out_count: 0,
            scores,
            actor: format!("job:{}", self.job.id),
            now: Timestamp::now(),
        };
        self.commit(publication, snapshot).await
    }
}
