//! What a version remembers of the classes that it knows.

use super::Learner;
use super::stop::Stop;
use crate::adapter::{CodecError, Statistics, statistics};
use crate::blocking;
use crate::domain::{ModelName, VersionNumber};
use crate::store::StoreError;

/// Why statistics could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum RecallError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The version knows nothing that this one brought.
    #[error("there is nothing to remember of the task of version {0}")]
    UnknownTask(VersionNumber),
    /// What is stored does not read.
    #[error("a version's statistics do not read")]
    Codec(#[from] CodecError),
    /// Statistics of several tasks do not go together.
    #[error("the statistics of tasks do not go together")]
    Tensor(#[from] candle_core::Error),
}

impl Learner {
    /// What a fit looks at: the statistics of all classes that a version knows, in column order, without their rows.
    pub(super) async fn recall(
        &self,
        model: &ModelName,
        version: VersionNumber,
    ) -> Result<Statistics, RecallError> {
        let mut remembered = Statistics::default();
        for task in self.store.known(model, version).await? {
            let of_task = self.recall_task(model, version, task).await?;
            remembered = extended(remembered, of_task.without_rows()).await?;
        }
        Ok(remembered)
    }

    /// All that a version remembers of the task that the version `task` brought.
    pub(super) async fn recall_task(
        &self,
        model: &ModelName,
        version: VersionNumber,
        task: VersionNumber,
    ) -> Result<Statistics, RecallError> {
        let bytes = self.store.statistics(model, version, task).await?;
        let bytes = bytes.ok_or(RecallError::UnknownTask(task))?;
        let device = self.registry.device().clone();
        Ok(blocking::run(move || statistics::decode(&bytes, &device)).await?)
    }
}

/// Statistics of some tasks, and of the next one after them.
pub(super) async fn extended(mut sum: Statistics, next: Statistics) -> candle_core::Result<Statistics> {
    blocking::run(move || sum.extend(next).map(|()| sum)).await
}

impl From<RecallError> for Stop {
    fn from(error: RecallError) -> Self {
        match error {
            RecallError::Store(error) => error.into(),
            error => Self::failed("statistics", &error),
        }
    }
}
