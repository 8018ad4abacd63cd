//! One job, phase by phase. How a task is learned stands here; how one is unlearned, in `unlearn`.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::progress::Reporter;
use super::split::{self, Candidate};
use super::stop::{Stop, held};
use super::{Learner, packing};
use crate::adapter::{Fitted, Snapshot};
use crate::domain::{
    Class, ClassId, Job, JobKind, Keep, Model, ModelConfig, NewClass, Phase, Split, VersionNumber,
};
use crate::registry::Serving;
use crate::store::{EncodedExample, HeldOut, Publication, PublishError, StoreError, TaskScore};

/// How often a job starts over from its saved features because another version was activated meanwhile.
const REBASES: usize = 5;

/// The task's examples, as features.
pub(super) struct Examples {
    pub(super) train: Vec<EncodedExample>,
    pub(super) held_out: Vec<EncodedExample>,
    /// Images that could not be decoded.
    discarded: Vec<String>,
}

/// A version that is not published yet.
struct Learned {
    base: Option<VersionNumber>,
    config: ModelConfig,
    /// The classes of the task.
    new: Vec<Class>,
    /// The classes of the version.
    columns: Vec<Class>,
    fitted: Fitted,
    scores: Vec<TaskScore>,
}

/// A job under way.
pub(super) struct Learn<'a> {
    pub(super) learner: &'a Learner,
    pub(super) job: Job,
    pub(super) stop: &'a CancellationToken,
    reporter: Reporter<'a>,
    pub(super) seconds: Map<String, Value>,
}

impl<'a> Learn<'a> {
    pub(super) fn new(learner: &'a Learner, job: Job, stop: &'a CancellationToken) -> Self {
        let reporter = Reporter::new(learner, job.id);
        Self {
            learner,
            job,
            stop,
            reporter,
            seconds: Map::new(),
        }
    }

    /// Takes the job to its end: the published version, or why there is none.
    pub(super) async fn run(mut self) -> Result<VersionNumber, Stop> {
        let lesson = match self.job.kind {
            JobKind::Learn => Some(self.lesson().await?),
            JobKind::Unlearn => None,
            JobKind::Import => {
                return Err(Stop::Failed {
                    code: "nothing_to_run",
                    detail: "an import has succeeded when it is written".to_owned(),
                });
            }
        };
        for _ in 0..REBASES {
            let published = match &lesson {
                Some((classes, examples)) => self.learn_on_active(classes, examples).await?,
                None => self.unlearn_on_active().await?,
            };
            if let Some(version) = published {
                return Ok(version);
            }
            tracing::info!("another version was activated meanwhile; starting over on top of that one");
        }
        let detail = format!("the active version changed {REBASES} times during the job");
        Err(Stop::Later {
            code: "base_moved",
            detail,
        })
    }

    /// The task's classes, and its examples once all are encoded.
    async fn lesson(&mut self) -> Result<(Vec<NewClass>, Arc<Examples>), Stop> {
        let classes = self.learner.store.job_classes(self.job.id).await?;
        let stop = self.stop;
        tokio::select! {
            encoded = self.encode() => encoded?,
            // A chunk can take longer than a server may take to stop.
            () = stop.cancelled() => return Err(Stop::Told),
        }
        let examples = self.examples(&classes).await?;
        Ok((classes, Arc::new(examples)))
    }

    /// Reads all features back and splits them.
    async fn examples(&self, classes: &[NewClass]) -> Result<Examples, Stop> {
        let encoded = self.learner.store.encoded_examples(self.job.id).await?;
        let discarded = self.learner.store.discarded_examples(self.job.id).await?;
        let discarded = discarded
            .into_iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect();
        let share = self.model().await?.config.held_out;
        let candidates: Vec<Candidate> = encoded
            .iter()
            .map(|e| Candidate {
                class: e.class as usize,
                chosen: e.split,
                digest: e.digest,
            })
            .collect();
        let splits = split::assign(&candidates, share);
        let (train, held_out): (Vec<_>, Vec<_>) = encoded
            .into_iter()
            .zip(splits)
            .partition(|(_, split)| *split == Split::Train);
        let only =
            |side: Vec<(EncodedExample, Split)>| side.into_iter().map(|(example, _)| example).collect();
        let examples = Examples {
            train: only(train),
            held_out: only(held_out),
            discarded,
        };
        let has_examples = |class: usize| examples.train.iter().any(|e| e.class as usize == class);
        match (0..classes.len()).find(|&class| !has_examples(class)) {
            Some(class) => Err(Stop::Failed {
                code: "class_without_examples",
                detail: format!("class {} has no usable image to learn from", classes[class].label),
            }),
            None => Ok(examples),
        }
    }

    /// Learns on top of the version that is active now; `None` when another one became active meanwhile.
    async fn learn_on_active(
        &mut self,
        classes: &[NewClass],
        examples: &Arc<Examples>,
    ) -> Result<Option<VersionNumber>, Stop> {
        self.report(Phase::Fit, 0.0, None).await?;
        let started = Instant::now();
        let fit_job = self.prepare(classes, examples).await?;
        let base = fit_job.base.clone();
        let config = fit_job.model.config.clone();
        let fitted = self.fit(fit_job).await?;
        self.took("fit", started);

        let started = Instant::now();
        let new: Vec<Class> = classes.iter().map(|class| self.named(class)).collect();
        let known = base.iter().flat_map(|base| base.snapshot.classes());
        let columns: Vec<Class> = known.chain(&new).cloned().collect();
        let scores = self
            .evaluate(&fitted.head, base.as_deref(), &columns, examples)
            .await?;
        self.took("evaluate", started);

        let learned = Learned {
            base: base.map(|base| base.number),
            config,
            new,
            columns,
            fitted,
            scores,
        };
        self.publish(learned, examples).await
    }

    /// A new class with an id of its own.
    fn named(&self, class: &NewClass) -> Class {
        Class {
            id: ClassId::new(),
            label: class.label.clone(),
            prompt: class.prompt.clone(),
            task: self.job.task.clone(),
        }
    }

    /// Writes everything in one transaction, then lets the version answer; `None` when the base is no longer active.
    async fn publish(
        &mut self,
        learned: Learned,
        examples: &Examples,
    ) -> Result<Option<VersionNumber>, Stop> {
        self.report(Phase::Commit, 0.0, None).await?;
        let Learned {
            base,
            config,
            new,
            columns,
            fitted,
            scores,
        } = learned;
        let backbone = self.learner.engine.info().digest.to_string();
        let snapshot =
            Snapshot::new(columns, fitted.head, backbone).map_err(|e| Stop::failed("snapshot", &e))?;
        let (snapshot, content) = packing::pack(snapshot)
            .await
            .map_err(|e| Stop::failed("snapshot", &e))?;
        let statistics = packing::pack_statistics(fitted.statistics).await;
        let statistics = statistics.map_err(|e| Stop::failed("statistics", &e))?;
        let kept = match config.keep {
            Keep::Needed | Keep::All => examples.held_out.as_slice(),
            // They have been scored; nothing of a single example stays.
            Keep::None => &[],
        };
        let held_out = kept.iter().map(|e| HeldOut {
            class: new[e.class as usize].id,
            digest: e.digest,
            features: e.features.clone(),
        });
        let publication = Publication {
            job: self.job.id,
            owner: &self.learner.owner,
            base,
            snapshot: content,
            statistics: &statistics,
            config,
            report: json!({
                "fit": fitted.report,
                "seconds": self.seconds,
                "examples": {
                    "train": examples.train.len(),
                    "held_out": examples.held_out.len(),
                    "discarded": examples.discarded,
                },
            }),
            held_out: held_out.collect(),
            classes: new,
            train_count: examples.train.len() as u32,
            held_out_count: examples.held_out.len() as u32,
            scores,
            actor: format!("job:{}", self.job.id),
            now: Timestamp::now(),
        };
        self.commit(publication, snapshot).await
    }

    /// Writes a version and lets it answer; `None` when its base is no longer active.
    pub(super) async fn commit(
        &self,
        publication: Publication<'_>,
        snapshot: Snapshot,
    ) -> Result<Option<VersionNumber>, Stop> {
        let digest = publication.snapshot.digest();
        let version = match self.learner.store.publish(publication).await {
            Ok((version, _)) => version.number,
            Err(PublishError::BaseMoved { .. }) => return Ok(None),
            Err(PublishError::LeaseLost) => return Err(Stop::LeaseLost),
            Err(PublishError::Store(error)) => return Err(error.into()),
            Err(error @ PublishError::TaskExists(_)) => return Err(Stop::failed("task_exists", &error)),
            Err(error @ PublishError::LabelExists(_)) => return Err(Stop::failed("label_exists", &error)),
            Err(error @ PublishError::UnknownTask(_)) => return Err(Stop::failed("unknown_task", &error)),
            Err(error @ PublishError::UnknownClass(_)) => return Err(Stop::failed("unknown_class", &error)),
            Err(error @ PublishError::OnlyTask(_)) => return Err(Stop::failed("only_task", &error)),
        };
        // Only now: what serves is what is committed.
        let registry = &self.learner.registry;
        registry.keep(Arc::new(Serving::new(
            self.job.model.clone(),
            version,
            digest,
            snapshot,
        )));
        if let Err(error) = registry.follow(&self.job.model).await {
            // The version is published; the registry's next refresh brings it in.
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the new version does not serve yet"
            );
        }
        Ok(Some(version))
    }

    pub(super) async fn model(&self) -> Result<Model, Stop> {
        self.learner
            .store
            .model(&self.job.model)
            .await?
            .ok_or_else(|| Stop::Failed {
                code: "unknown_model",
                detail: format!("there is no model {} any more", self.job.model),
            })
    }

    pub(super) async fn report(
        &mut self,
        phase: Phase,
        share: f64,
        details: Option<Map<String, Value>>,
    ) -> Result<(), Stop> {
        if self.stop.is_cancelled() {
            return Err(Stop::Told);
        }
        match self.reporter.report(phase, share, details).await {
            // A word that is lost is no reason to lose the work: the lease has its own renewal, and whether it still
            // holds is asked again where something is written.
            Err(error @ StoreError::Unavailable(_)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "progress could not be recorded");
                Ok(())
            }
            told => held(told?),
        }
    }

    pub(super) fn took(&mut self, phase: &str, started: Instant) {
        self.seconds
            .insert(phase.to_owned(), json!(started.elapsed().as_secs_f64()));
    }
}
