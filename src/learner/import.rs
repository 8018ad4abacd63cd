//! A version that was learned elsewhere becomes one of a model here.
//!
//! Its classes become one task of their own, so the snapshot is written anew with that task's name; it keeps its digest
//! only where that changes nothing. Classes keep their ids unless the database has one of them: an id stands for one
//! class of one model, so a version that comes back to where it was learned gets new ones.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;

use super::{Learner, packing};
use crate::adapter::{Imported, Snapshot, SnapshotError, VettingError, Widths, export, statistics};
use crate::blocking;
use crate::domain::{
    Class, ClassId, Digest, JobId, JobState, Model, ModelConfig, ModelName, Reads, TaskName, Version,
};
use crate::metrics;
use crate::registry::Serving;
use crate::store::{self, Arrival, Import};

/// A version to take in.
#[derive(Debug)]
pub struct NewVersion {
    /// The model that takes it in.
    pub model: ModelName,
    /// The task that is to hold its classes.
    pub task: TaskName,
    /// Whether it answers.
    pub arrival: Arrival,
    /// The file, as it was exported.
    pub file: File,
    /// Most classes.
    pub most_classes: usize,
}

/// Why a version was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file is no version, or a damaged one.
    #[error("the file cannot be read as a version")]
    Unreadable(#[source] SnapshotError),
    /// It was learned on another backbone than the one that is loaded.
    #[error("the version was learned on another backbone ({0}) than the one that is loaded")]
    OtherBackbone(String),
    /// More classes than allowed.
    #[error("more than {0} classes")]
    TooManyClasses(usize),
    /// Two of its classes have the same label.
    #[error("the version cannot be taken in")]
    LabelTwice(#[source] VettingError),
    /// The model learns by another strategy than the one that made it.
    #[error("the model cannot learn on top of the version")]
    OtherStrategy(#[source] VettingError),
    /// The file does not hold what the model learns with.
    #[error("the model cannot learn on top of the version")]
    StatisticsMissing(#[source] VettingError),
    /// It is damaged in another way.
    #[error("the version cannot be taken in")]
    Unsound(#[source] VettingError),
    /// The spool file failed.
    #[error("the upload could not be read back")]
    Io(#[from] io::Error),
    /// It could not be written down.
    #[error("the version cannot be written down")]
    Encode(#[source] SnapshotError),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] store::ImportError),
}

/// What the file says, as far as it goes into the store.
struct Intake {
    snapshot: Snapshot,
    statistics: Vec<u8>,
    /// Of the snapshot as it came.
    digest: Digest,
    /// How many examples its classes were learned from, as far as that is known.
    train_count: u32,
}

impl Learner {
    /// Takes a version in: a root of the model's history, which later tasks are learned on top of as on any other.
    ///
    /// # Errors
    /// [`ImportError`]; nothing is stored then.
    pub async fn import(self: &Arc<Self>, new: NewVersion, now: Timestamp) -> Result<Version, ImportError> {
        let learner = Arc::clone(self);
        self.move_to_the_end(async move { learner.import_in_turn(new, now).await })
            .await
    }

    async fn import_in_turn(&self, new: NewVersion, now: Timestamp) -> Result<Version, ImportError> {
        let model = self.store.model(&new.model).await;
        let unknown = || store::ImportError::UnknownModel(new.model.clone());
        let model = model.map_err(store::ImportError::from)?.ok_or_else(unknown)?;
        let (arriving, intake) = self.take_in(new, &model).await?;
        let named = intake.classes(&arriving.task);
        match self.arrive(&arriving, &intake, named.clone(), now).await {
            Err(ImportError::Store(store::ImportError::ClassTaken(_))) => {
                let renewed = named.into_iter().map(|class| Class {
                    id: ClassId::new(),
                    ..class
                });
                self.arrive(&arriving, &intake, renewed.collect(), now).await
            }
            arrived => arrived,
        }
    }

    /// Reads the file and sees whether the model could go on from it.
    async fn take_in(&self, new: NewVersion, model: &Model) -> Result<(Arriving, Intake), ImportError> {
        let NewVersion {
            model: name,
            task,
            arrival,
            file,
            most_classes,
        } = new;
        let config = model.config.clone();
        let arriving = Arriving {
            model: name,
            task,
            arrival,
            config: config.clone(),
        };
        let backbone = self.engine.info().digest.to_string();
        let widths = Widths {
            features: self.engine.row_width(Reads::Features),
            tokens: self.engine.row_width(Reads::Tokens),
        };
        let device = self.registry.device().clone();
        let read = blocking::run(move || {
            let found = export::decode(read_whole(file)?, &device).map_err(ImportError::Unreadable)?;
            if found.snapshot.backbone() != backbone {
                return Err(ImportError::OtherBackbone(found.snapshot.backbone().to_owned()));
            }
            if found.snapshot.classes().len() > most_classes {
                return Err(ImportError::TooManyClasses(most_classes));
            }
            let vetted = found.vetted(&config, widths)?;
            Intake::of(vetted).map_err(ImportError::Encode)
        });
        Ok((arriving, read.await?))
    }

    /// Stores the version with these classes, and lets it answer where that is wished.
    async fn arrive(
        &self,
        new: &Arriving,
        intake: &Intake,
        classes: Vec<Class>,
        now: Timestamp,
    ) -> Result<Version, ImportError> {
        let Intake {
            snapshot: found,
            statistics,
            digest: original,
            train_count,
        } = intake;
        let snapshot = Snapshot::new(classes, found.head().clone(), found.backbone().to_owned());
        let snapshot = snapshot.map_err(ImportError::Encode)?;
        let (snapshot, content) = packing::pack(snapshot).await.map_err(ImportError::Encode)?;
        let digest = content.digest();
        let mut tasks: Vec<&TaskName> = found.classes().iter().map(|class| &class.task).collect();
        tasks.dedup();
        let version = self.store.import(Import {
            job: JobId::new(),
            model: new.model.clone(),
            task: new.task.clone(),
            backbone: self.engine.info().digest,
            snapshot: content,
            statistics,
            config: new.config.clone(),
            report: json!({ "imported": { "digest": original, "tasks": tasks } }),
            classes: snapshot.classes().to_vec(),
            train_count: *train_count,
            arrival: new.arrival,
            now,
        });
        let version = version.await?;
        metrics::job_ended(JobState::Succeeded);
        if new.arrival == Arrival::Active {
            let serving = Serving::new(new.model.clone(), version.number, digest, snapshot);
            self.registry.keep(Arc::new(serving));
            if let Err(error) = self.registry.follow(&new.model).await {
                // The version is stored; the registry's next refresh brings it in.
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the imported version does not serve yet"
                );
            }
        }
        Ok(version)
    }
}

/// Where a version goes.
struct Arriving {
    model: ModelName,
    task: TaskName,
    arrival: Arrival,
    config: ModelConfig,
}

impl Intake {
    fn of(vetted: Imported) -> Result<Self, SnapshotError> {
        let Imported { snapshot, statistics } = vetted;
        let counts = statistics.classes.iter().map(|class| class.count);
        let train_count = counts.fold(0_usize, usize::saturating_add);
        Ok(Self {
            digest: Digest::of(&snapshot.encode()?),
            statistics: statistics::encode(&statistics)?,
            train_count: u32::try_from(train_count).unwrap_or(u32::MAX),
            snapshot,
        })
    }

    /// Its classes as those of one task.
    fn classes(&self, task: &TaskName) -> Vec<Class> {
        let classes = self.snapshot.classes().iter();
        classes
            .map(|class| Class {
                task: task.clone(),
                ..class.clone()
            })
            .collect()
    }
}

impl From<VettingError> for ImportError {
    fn from(error: VettingError) -> Self {
        match error {
            VettingError::LabelTwice(_) => Self::LabelTwice(error),
            VettingError::Strategy { .. } => Self::OtherStrategy(error),
            VettingError::StatisticsMissing(_) => Self::StatisticsMissing(error),
            VettingError::NoClasses
            | VettingError::Width { .. }
            | VettingError::IdTwice(_)
            | VettingError::Prompt { .. }
            | VettingError::Unsound(_)
            | VettingError::Tensor(_) => Self::Unsound(error),
        }
    }
}

fn read_whole(mut file: File) -> io::Result<Vec<u8>> {
    let length = file.seek(io::SeekFrom::End(0))?;
    file.rewind()?;
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
