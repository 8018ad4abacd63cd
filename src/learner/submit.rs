//! Accepting a task: every example is looked at once, and all of them or none enter the store.

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::Learner;
use super::upload::{Upload, UploadError};
use crate::blocking;
use crate::clip::ImageError;
use crate::domain::{Digest, Job, JobId, JobKind, Label, Model, ModelName, NewClass, TaskName};
use crate::metrics;
use crate::store::{CancelError, EnqueueError, NewExample, NewJob, Store, StoreError};

/// Unusable images that are named in one answer.
const NAMED_IMAGES: usize = 20;
/// Examples read ahead of the store.
const READ_AHEAD: usize = 4;

/// A task to learn.
pub struct NewTask {
    /// The model that learns it.
    pub model: ModelName,
    /// Its name.
    pub name: TaskName,
    /// Its classes and examples.
    pub upload: Upload,
}

/// Why a task was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The upload is unusable.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// Some examples are no usable images: their names and what is wrong, the first of them.
    #[error("some examples are no usable images")]
    Images(Vec<(String, ImageError)>),
    /// A fit would read more of so many examples than it may.
    #[error(
        "more than {most} examples, of which a fit of this model would read more than {} MiB: teach them as several tasks",
        .bytes >> 20
    )]
    TooManyToFit {
        /// As many as may be.
        most: u64,
        /// The bound on what is read of them.
        bytes: u64,
    },
    /// The model does not exist, or knows or is about to know the task or one of its labels.
    #[error(transparent)]
    Enqueue(#[from] EnqueueError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Has what ended jobs left leave the database's files.
pub(super) async fn give_back_space(store: &Store) {
    if let Err(error) = store.give_back_space().await {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(
            error,
            "the space of a job's images stays with the database for now"
        );
    }
}

impl Learner {
    /// Checks a task, puts it into the store as a job and wakes the worker.
    ///
    /// Only headers of images are looked at; an image that turns out damaged later is left out and reported.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing is stored then.
    pub async fn submit(&self, task: NewTask, now: Timestamp) -> Result<Job, SubmitError> {
        let NewTask { model, name, upload } = task;
        upload.check()?;
        self.check_fit(&model, upload.len()).await?;
        let upload = self.check_images(upload).await?;
        let classes = upload.classes().to_vec();
        let new = NewJob {
            id: JobId::new(),
            kind: JobKind::Learn,
            model,
            backbone: self.engine.info().digest,
            task: name,
            classes,
            now,
        };
        let mut draft = self.store.begin_job(new).await?;
        let mut examples = read_ahead(upload);
        while let Some(example) = examples.recv().await {
            let (example, image) = example?;
            draft.add_image(example, &image).await?;
        }
        let job = draft.commit().await?;
        self.wake.notify_one();
        Ok(job)
    }

    /// Puts a job into the store that unlearns a task of the active version, or only its class with the label `class`, and
    /// wakes the worker.
    ///
    /// # Errors
    /// [`EnqueueError`] when there is no such model, task or class, or nothing else beside it, or when a job of the task is
    /// open; nothing is stored then.
    pub async fn unlearn(
        &self,
        model: ModelName,
        task: TaskName,
        class: Option<Label>,
        now: Timestamp,
    ) -> Result<Job, EnqueueError> {
        let class = class.map(|label| NewClass { label, prompt: None });
        let new = NewJob {
            id: JobId::new(),
            kind: JobKind::Unlearn,
            model,
            backbone: self.engine.info().digest,
            task,
            classes: class.into_iter().collect(),
            now,
        };
        let job = self.store.begin_job(new).await?.commit().await?;
        self.wake.notify_one();
        Ok(job)
    }

    /// Cancels a job that has not ended; `None` where there is no such job. Its images are gone when this returns. Goes on where
    /// nobody waits for it any more: with many images it takes a while, and is not taken back.
    ///
    /// # Errors
    /// [`CancelError`] when it has ended, or the store fails.
    pub async fn cancel(&self, job: JobId, now: Timestamp) -> Result<Option<Job>, CancelError> {
        let store = self.store.clone();
        let aside = self.aside.clone();
        let cancelling = async move {
            let cancelled = store.cancel_job(job, now).await?;
            if let Some(job) = &cancelled {
                metrics::job_ended(job.state);
                aside.spawn(async move { give_back_space(&store).await });
            }
            Ok(cancelled)
        };
        self.to_the_end(cancelling).await
    }

    /// Whether a fit can hold so many examples.
    async fn check_fit(&self, name: &ModelName, examples: usize) -> Result<(), SubmitError> {
        let model = self.store.model(name).await?;
        let model = model.ok_or_else(|| EnqueueError::UnknownModel(name.clone()))?;
        let most = self.most_examples(&model);
        if examples as u64 > most {
            let bytes = self.config.fit_bytes;
            return Err(SubmitError::TooManyToFit { most, bytes });
        }
        Ok(())
    }

    /// As many examples as a fit of this model may hold.
    pub(super) fn most_examples(&self, model: &Model) -> u64 {
        let row = self.engine.row_width(model.config.strategy.reads()) * size_of::<f32>();
        self.config.fit_bytes / (row as u64).max(1)
    }

    async fn check_images(&self, mut upload: Upload) -> Result<Upload, SubmitError> {
        let engine = self.engine.clone();
        let checked = blocking::run(move || {
            let mut unusable = Vec::new();
            for index in 0..upload.len() {
                let (item, bytes) = upload.read(index)?;
                if let Err(error) = engine.inspect(&bytes) {
                    unusable.push((item.name.clone(), error));
                    if unusable.len() == NAMED_IMAGES {
                        break;
                    }
                }
            }
            upload.rewind();
            if unusable.is_empty() {
                Ok(upload)
            } else {
                Err(SubmitError::Images(unusable))
            }
        });
        checked.await
    }
}

/// Reads the examples on a blocking thread, a few ahead of whoever receives them.
fn read_ahead(mut upload: Upload) -> mpsc::Receiver<Result<(NewExample, Vec<u8>), UploadError>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        for index in 0..upload.len() {
            let example = upload.read(index).map(|(item, image)| {
                let digest = Digest::of(&image);
                (
                    NewExample {
                        name: item.name.clone(),
                        class: item.class as u32,
                        split: item.split,
                        digest,
                    },
                    image,
                )
            });
            let failed = example.is_err();
            // The receiver goes away when the store fails; there is nobody left to read for.
            if sender.blocking_send(example).is_err() || failed {
                break;
            }
        }
    });
    receiver
}
