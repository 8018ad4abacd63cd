//! What a version remembers of the classes that it knows.

use super::Learner;
use super::stop::Stop;
use crate::adapter::{CodecError, Statistics, statistics};
use crate::domain::{ModelName, VersionNumber};
use crate::store::StoreError;

/// Why statistics could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum RecallError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored does not read.
    #[error("a version's statistics do not read")]
    Codec(#[from] CodecError),
    /// Statistics of several tasks do not go together.
    #[error("the statistics of tasks do not go together")]
    Tensor(#[from] candle_core::Error),
}

impl Learner {
    /// The statistics of all classes that a version knows, in column order, less those of the task that the version
    /// `without` brought.
    pub(super) async fn recall(
        &self,
        model: &ModelName,
        version: VersionNumber,
        without: Option<VersionNumber>,
    ) -> Result<Statistics, RecallError> {
        let mut remembered = Statistics::default();
        for (task, bytes) in self.store.statistics(model, version).await? {
            if Some(task) != without {
                remembered.extend(statistics::decode(&bytes, self.registry.device())?)?;
            }
        }
        Ok(remembered)
    }
}

impl From<RecallError> for Stop {
    fn from(error: RecallError) -> Self {
        match error {
            RecallError::Store(error) => error.into(),
            error => Self::failed("statistics", &error),
        }
    }
}
