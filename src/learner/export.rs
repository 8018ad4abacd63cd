//! A version as a file that another server takes in and goes on learning with.

use bytes::Bytes;

use super::Learner;
use super::recall::{RecallError, extended};
use crate::adapter::{CodecError, Statistics, export, statistics};
use crate::blocking;
use crate::domain::{Digest, ModelName, VersionNumber};
use crate::store::StoreError;

/// A version's file.
#[derive(Debug, Clone)]
pub struct Exported {
    /// Of the snapshot in it.
    pub digest: Digest,
    /// Its content, in pieces that follow one another.
    pub pieces: Vec<Bytes>,
}

impl Exported {
    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a version could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What it remembers of its classes could not be read.
    #[error(transparent)]
    Recall(#[from] RecallError),
    /// What is stored does not read, or cannot be written.
    #[error("the version cannot be written down")]
    Codec(#[from] CodecError),
}

impl Learner {
    /// A version's file: its snapshot, and the statistics of all classes that it knows. `None` where there is no such
    /// version. The same version always gives the same file.
    ///
    /// # Errors
    /// [`ExportError`] when the store fails or what it holds is damaged.
    pub async fn export(
        &self,
        model: &ModelName,
        version: VersionNumber,
    ) -> Result<Option<Exported>, ExportError> {
        let Some(snapshot) = self.store.snapshot(model, version).await? else {
            return Ok(None);
        };
        let mut remembered = Statistics::default();
        for task in self.store.known(model, version).await? {
            let of_task = self.recall_task(model, version, task).await?;
            let extended = extended(remembered, of_task).await;
            remembered = extended.map_err(RecallError::from)?;
        }
        let digest = snapshot.digest();
        let written = blocking::run(move || {
            let statistics = statistics::encode(&remembered)?;
            drop(remembered);
            export::encode(snapshot.into_bytes(), statistics)
        });
        let pieces = written.await?;
        Ok(Some(Exported { digest, pieces }))
    }
}
