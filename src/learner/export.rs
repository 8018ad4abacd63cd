//! A version as a file that another server takes in and goes on learning with.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::sync::Arc;

use super::Learner;
use super::recall::{RecallError, extended};
use crate::adapter::{CodecError, Statistics, export, statistics};
use crate::blocking;
use crate::domain::{Digest, ModelName, VersionNumber};
use crate::store::StoreError;

/// A version's file.
#[derive(Debug)]
pub struct Exported {
    /// Of the snapshot in it.
    pub digest: Digest,
    /// Its content, from the start.
    pub file: File,
    /// Its size in bytes.
    pub length: u64,
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
    /// The spool file failed.
    #[error("the version cannot be spooled")]
    Spool(#[from] io::Error),
}

impl Learner {
    /// A version's file, written to `spool`, which is empty: its snapshot, and the statistics of all classes that it knows. `None`
    /// where there is no such version. The same version always gives the same file.
    ///
    /// # Errors
    /// [`ExportError`] when the store fails or what it holds is damaged.
    pub async fn export(
        self: &Arc<Self>,
        model: &ModelName,
        version: VersionNumber,
        spool: File,
    ) -> Result<Option<Exported>, ExportError> {
        let (learner, model) = (Arc::clone(self), model.clone());
        self.move_to_the_end(async move { learner.export_in_turn(&model, version, spool).await })
            .await
    }

    async fn export_in_turn(
        &self,
        model: &ModelName,
        version: VersionNumber,
        mut spool: File,
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
            for piece in export::encode(snapshot.into_bytes(), statistics)? {
                spool.write_all(&piece)?;
            }
            let length = spool.stream_position()?;
            spool.rewind()?;
            Ok(Exported {
                digest,
                file: spool,
                length,
            })
        });
        written.await.map(Some)
    }
}
