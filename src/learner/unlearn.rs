//! One job that unlearns a task, or one class of it: a version on top of the active one that does without.
//!
//! There is nothing to encode and nothing to train. What is in closed form is made anew from the statistics of the classes
//! that stay; a trained adapter keeps its weights, and the report says so.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde_json::json;

use super::learn::Learn;
use super::packing;
use super::recall::{RecallError, extended};
use super::stop::Stop;
use crate::adapter::{Remaining, Ridge, Snapshot, Statistics, Unlearned, unlearn};
use crate::blocking;
use crate::domain::{Class, ClassId, Label, ModelConfig, Phase, Task, VersionNumber};
use crate::registry::Serving;
use crate::store::{Publication, TaskScore};

/// What a job starts from.
struct Start {
    base: Arc<Serving>,
    config: ModelConfig,
    /// The task that goes, or that the class belongs to.
    task: Task,
    /// The place of the class among the task's, where others of it stay.
    class: Option<usize>,
    /// The versions that brought the tasks of which something stays.
    known: Vec<VersionNumber>,
}

impl Start {
    /// The classes that go.
    fn gone(&self) -> &[Class] {
        match self.class {
            Some(place) => &self.task.classes[place..=place],
            None => &self.task.classes,
        }
    }
}

/// A version that does without.
struct Without {
    /// Its classes.
    columns: Vec<Class>,
    unlearned: Unlearned,
    /// What is remembered of the task's other classes.
    rest: Statistics,
}

impl Learn<'_> {
    /// Unlearns the job's task or class on top of the version that is active now; `None` when another one became active
    /// meanwhile.
    pub(super) async fn unlearn_on_active(&mut self) -> Result<Option<VersionNumber>, Stop> {
        self.report(Phase::Fit, 0.0, None).await?;
        let started = Instant::now();
        let start = self.start().await?;
        let without = self.without(&start).await?;
        self.took("fit", started);

        let started = Instant::now();
        let scores = self
            .evaluate_known(&without.unlearned.head, &without.columns, &start.known)
            .await?;
        self.took("evaluate", started);
        self.publish_without(start, without, scores).await
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
        let at = tasks.iter().position(|task| task.name == self.job.task);
        let at = at.ok_or_else(unknown)?;
        let class = self.class_of(&tasks[at]).await?;
        let task = if class.is_some() {
            tasks[at].clone()
        } else {
            tasks.remove(at)
        };
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
            class,
            known: tasks.into_iter().map(|task| task.version).collect(),
        })
    }

    /// The place of the class that the job names among the task's; `None` where the whole task goes.
    async fn class_of(&self, task: &Task) -> Result<Option<usize>, Stop> {
        let named = self.learner.store.job_classes(self.job.id).await?;
        let Some(named) = named.into_iter().next() else {
            return Ok(None);
        };
        let label = named.label;
        match task.classes.iter().position(|class| class.label == label) {
            None => Err(Stop::Failed {
                code: "unknown_class",
                detail: format!("the active version knows no class {label}"),
            }),
            Some(_) if task.classes.len() == 1 => Ok(None),
            place => Ok(place),
        }
    }

    /// The classes that stay, the head that scores them, and what is remembered of the task.
    async fn without(&self, start: &Start) -> Result<Without, Stop> {
        let Start { base, task, .. } = start;
        let (mut remembered, mut rest) = (Statistics::default(), Statistics::default());
        let mut is_exact = true;
        for &version in &start.known {
            let recalled = self.learner.recall_task(&self.job.model, base.number, version);
            let mut of_task = recalled.await?;
            if let (Some(place), true) = (start.class, version == task.version) {
                let remaining = self.without_class(of_task, base, place).await?;
                is_exact = remaining.is_exact;
                of_task = remaining.statistics;
                rest = of_task.clone();
            }
            let extended = extended(remembered, of_task.without_rows()).await;
            remembered = extended.map_err(RecallError::from)?;
        }
        let gone: HashSet<ClassId> = start.gone().iter().map(|class| class.id).collect();
        let (keep, columns): (Vec<u32>, Vec<Class>) = (0_u32..)
            .zip(base.snapshot.classes())
            .filter(|(_, class)| !gone.contains(&class.id))
            .map(|(column, class)| (column, class.clone()))
            .unzip();
        let pool = Arc::clone(&self.learner.fit_pool);
        let head = Arc::clone(&base.head);
        let config = start.config.clone();
        let made = blocking::run(move || pool.install(|| unlearn(&head, &remembered, &keep, &config)));
        let mut unlearned = made.await.map_err(|e| Stop::failed("unlearn", &e))?;
        unlearned.exact &= is_exact;
        Ok(Without {
            columns,
            unlearned,
            rest,
        })
    }

    /// A task's statistics without one of its classes.
    async fn without_class(
        &self,
        of_task: Statistics,
        base: &Serving,
        place: usize,
    ) -> Result<Remaining, Stop> {
        let pool = Arc::clone(&self.learner.fit_pool);
        let head = Arc::clone(&base.head);
        let made = blocking::run(move || {
            let projection = head.ridge().map(Ridge::projection);
            pool.install(|| of_task.without(place, projection))
        });
        made.await.map_err(|e| Stop::failed("statistics", &e))
    }

    async fn publish_without(
        &mut self,
        start: Start,
        without: Without,
        scores: Vec<TaskScore>,
    ) -> Result<Option<VersionNumber>, Stop> {
        self.report(Phase::Commit, 0.0, None).await?;
        let labels: Vec<Label> = start.gone().iter().map(|class| class.label.clone()).collect();
        let Without {
            columns,
            unlearned,
            rest,
        } = without;
        let snapshot = Snapshot::new(columns, unlearned.head, start.base.snapshot.backbone().to_owned())
            .map_err(|e| Stop::failed("snapshot", &e))?;
        let (snapshot, content) = packing::pack(snapshot)
            .await
            .map_err(|e| Stop::failed("snapshot", &e))?;
        let statistics = packing::pack_statistics(rest).await;
        let statistics = statistics.map_err(|e| Stop::failed("statistics", &e))?;
        let publication = Publication {
            job: self.job.id,
            owner: &self.learner.owner,
            base: Some(start.base.number),
            snapshot: content,
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
