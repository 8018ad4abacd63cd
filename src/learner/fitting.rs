//! The second phase of a job: the adapter is trained, on threads of its own.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use candle_core::Tensor;
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use super::Learner;
use super::learn::{Examples, Learn};
use super::stop::Stop;
use crate::adapter::{
    Base, FitError, FitInput, FitProgress, Fitted, Prompts, Readout, Statistics, Towers, embedding, fit,
};
use crate::blocking;
use crate::domain::{Anchors, Label, Model, NewClass, Phase, Reads, Strategy};
use crate::engine::{EngineError, Priority, read_out};
use crate::registry::Serving;

/// What a fit starts from, owned so that it can move to a thread.
pub(super) struct FitJob {
    pub(super) model: Model,
    pub(super) base: Option<Arc<Serving>>,
    statistics: Statistics,
    anchors: Tensor,
    features: Tensor,
    labels: Vec<u32>,
    scale: f64,
    readout: Option<Readout>,
    prompts: Option<Arc<dyn Prompts>>,
    turn: OwnedMutexGuard<()>,
}

impl Learn<'_> {
    /// Gathers what the fit needs, when no other one is in memory any more: the base and what it remembers, anchors, and
    /// the examples as tensors.
    pub(super) async fn prepare(
        &self,
        classes: &[NewClass],
        examples: &Arc<Examples>,
    ) -> Result<FitJob, Stop> {
        let Learner {
            engine,
            registry,
            fitting,
            ..
        } = self.learner;
        let turn = tokio::select! {
            turn = Arc::clone(fitting).lock_owned() => turn,
            () = self.stop.cancelled() => return Err(Stop::Told),
        };
        let model = self.model().await?;
        let base = match model.active {
            Some(active) => Some(registry.version(&model.name, active).await?),
            None => None,
        };
        let remembered = match &base {
            Some(base) => self.learner.recall(&model.name, base.number).await?,
            None => Statistics::default(),
        };
        let known = base
            .as_ref()
            .map_or(0, |base| base.snapshot.head().columns() as u32);
        let tensor = |error: candle_core::Error| Stop::failed("tensors", &error);
        let stacked = {
            let (examples, device) = (Arc::clone(examples), registry.device().clone());
            move || embedding::stack(examples.train.iter().map(|example| &example.features), &device)
        };
        let features = blocking::run(stacked).await.map_err(tensor)?;
        let of: Vec<u32> = examples.train.iter().map(|example| example.class).collect();
        let new = self.anchors(&model, classes, (&features, of)).await?;
        let anchors = match &base {
            Some(base) => Tensor::cat(&[base.snapshot.head().anchors(), &new], 0).map_err(tensor)?,
            None => new,
        };
        let (readout, prompts) = match model.config.strategy {
            Strategy::SelfAttention => (Some(engine.readout().clone()), None),
            Strategy::Prompt => (None, Some(self.prompts(&model, base.as_deref(), classes).await?)),
            _ => (None, None),
        };
        Ok(FitJob {
            labels: examples
                .train
                .iter()
                .map(|example| known + example.class)
                .collect(),
            scale: engine.info().logit_scale,
            statistics: remembered,
            model,
            base,
            anchors,
            features,
            readout,
            prompts,
            turn,
        })
    }

    /// What stands for new classes, as unit rows (C, D): their words, or examples that were encoded as `rows` and are of
    /// the classes `of`.
    async fn anchors(
        &self,
        model: &Model,
        classes: &[NewClass],
        (rows, of): (&Tensor, Vec<u32>),
    ) -> Result<Tensor, Stop> {
        let tensor = |error: candle_core::Error| Stop::failed("tensors", &error);
        let means = {
            let (rows, readout) = (rows.clone(), self.learner.engine.readout().clone());
            let (reads, count) = (model.config.strategy.reads(), classes.len());
            move || {
                let features = match reads {
                    Reads::Features => rows,
                    Reads::Tokens => read_out(&readout, &rows)?,
                };
                embedding::class_means(&features, &of, count)
            }
        };
        match model.config.anchors {
            Anchors::Text => self.texts(model, classes).await,
            Anchors::Examples => blocking::run(means).await.map_err(tensor),
            Anchors::Blend => {
                let texts = self.texts(model, classes).await?;
                let means = blocking::run(means).await.map_err(tensor)?;
                embedding::blend(&texts, &means).map_err(tensor)
            }
        }
    }

    /// The embeddings of classes' words as unit rows (C, D).
    async fn texts(&self, model: &Model, classes: &[NewClass]) -> Result<Tensor, Stop> {
        let Learner { engine, registry, .. } = self.learner;
        let words: Vec<String> = classes
            .iter()
            .map(|class| words(&class.label, class.prompt.as_deref()))
            .collect();
        let rows = engine
            .anchors(&words, &model.config.templates, Priority::Background)
            .await?;
        Tensor::new(rows, registry.device()).map_err(|error| Stop::failed("tensors", &error))
    }

    /// The text tower before the version's classes, those of `base` first, in the words of the first template.
    async fn prompts(
        &self,
        model: &Model,
        base: Option<&Serving>,
        classes: &[NewClass],
    ) -> Result<Arc<dyn Prompts>, Stop> {
        let known = base.into_iter().flat_map(|base| base.snapshot.classes());
        let known = known.map(|class| words(&class.label, class.prompt.as_deref()));
        let new = classes
            .iter()
            .map(|class| words(&class.label, class.prompt.as_deref()));
        let template = model.config.templates.first().cloned().unwrap_or_default();
        let words = known.chain(new).collect();
        Ok(self.learner.engine.prompts(words, template).await?)
    }

    /// Runs the fit on its own threads and reports from it; told to stop, it stops after the step under way.
    pub(super) async fn fit(&mut self, job: FitJob) -> Result<Fitted, Stop> {
        let (said, mut hear) = watch::channel::<Option<FitProgress>>(None);
        let abandon = CancellationToken::new();
        let abandoned = abandon.clone();
        // Also when this future is dropped because the lease is lost.
        let _guard = abandon.clone().drop_guard();
        let pool = Arc::clone(&self.learner.fit_pool);
        let mut running = tokio::task::spawn_blocking(move || {
            let _turn = &job.turn;
            let base = job.base.as_ref().map(|base| Base {
                version: base.number,
                head: base.snapshot.head(),
                statistics: &job.statistics,
            });
            let input = FitInput {
                base,
                anchors: &job.anchors,
                features: &job.features,
                labels: &job.labels,
                scale: job.scale,
                towers: Towers {
                    readout: job.readout.as_ref(),
                    prompts: job.prompts.as_deref(),
                },
                config: &job.model.config,
            };
            pool.install(|| {
                fit(&input, &mut |progress| {
                    said.send_replace(Some(progress));
                    if abandoned.is_cancelled() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })
            })
        });
        let mut stopped = None;
        let finished = loop {
            tokio::select! {
                finished = &mut running => break finished,
                () = self.stop.cancelled(), if stopped.is_none() => stopped = Some(Stop::Told),
                Ok(()) = hear.changed(), if stopped.is_none() => {
                    let progress = *hear.borrow_and_update();
                    if let Some(progress) = progress {
                        let share = progress.step as f64 / progress.steps.max(1) as f64;
                        stopped = self.report(Phase::Fit, share, Some(shown(&progress))).await.err();
                    }
                }
            }
            if stopped.is_some() {
                abandon.cancel();
            }
        };
        if let (None, Ok(Err(_)) | Err(_)) = (&stopped, &finished) {
            // It may have been the device that failed, and not the fit. Asked now, a device that is lost is found to be, and
            // the job left to the next process; whatever else is wrong with it is no news of this job.
            if let Err(EngineError::Stopped) = self.learner.engine.check(Duration::ZERO).await {
                tracing::error!("a fit failed as the device was lost");
                return Err(Stop::Told);
            }
        }
        match (stopped, finished) {
            (Some(stop), _) => Err(stop),
            (None, Ok(Ok(fitted))) => Ok(fitted),
            (None, Ok(Err(error @ FitError::NotFinite { .. }))) => Err(Stop::failed("diverged", &error)),
            (None, Ok(Err(error))) => Err(Stop::failed("fit", &error)),
            (None, Err(panic)) => Err(Stop::failed("fit_panicked", &panic)),
        }
    }
}

/// What is said for a class: its prompt, or else its label.
fn words(label: &Label, prompt: Option<&str>) -> String {
    prompt.map_or_else(|| label.words(), str::to_owned)
}

fn shown(progress: &FitProgress) -> Map<String, Value> {
    let entries = [
        ("epoch", json!(progress.epoch)),
        ("epochs", json!(progress.epochs)),
        ("step", json!(progress.step)),
        ("steps", json!(progress.steps)),
        ("loss", json!(progress.loss)),
    ];
    entries
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
