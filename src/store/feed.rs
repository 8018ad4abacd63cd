//! Activations as other servers make them, on PostgreSQL.

use std::fmt;

use sqlx::postgres::PgListener;

use super::Store;
use super::codec::parse;
use super::error::StoreError;
use super::location::Location;
use crate::domain::ModelName;

/// The channel that the schema's trigger announces committed activations on.
const CHANNEL: &str = "clipkeep_activation";

/// Announcements from all servers that share the database, this one included.
pub struct ActivationFeed {
    listener: PgListener,
}

/// News from the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announcement {
    /// The model's active version may have changed: read it.
    Model(ModelName),
    /// The connection was lost for a while: read every model's.
    Missed,
}

impl Store {
    /// Listens for activations; `None` on SQLite, which one server has to itself. What was activated before the
    /// call returns is not announced: listen first, then read.
    pub async fn activation_feed(&self) -> Result<Option<ActivationFeed>, StoreError> {
        match self.location {
            Location::Sqlite(_) => Ok(None),
            Location::Postgres(_) => {
                let mut listener = PgListener::connect(&self.location.url()).await?;
                listener.listen(CHANNEL).await?;
                Ok(Some(ActivationFeed { listener }))
            }
        }
    }
}

impl ActivationFeed {
    /// Waits for the next announcement, and connects again where the connection is lost.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the database cannot be reached; the next call tries again.
    pub async fn next(&mut self) -> Result<Announcement, StoreError> {
        match self.listener.try_recv().await? {
            Some(notification) => Ok(Announcement::Model(parse(
                "model's name",
                notification.payload(),
            )?)),
            None => Ok(Announcement::Missed),
        }
    }
}

impl fmt::Debug for ActivationFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActivationFeed").finish_non_exhaustive()
    }
}
