//! The store: models, jobs, versions and the activation log in a database.
//!
//! Owner: whoever holds a [`Store`], a cheap handle to a pool of connections. This is the only module that knows SQL.
//! It sees snapshots, statistics and images as bytes; what they mean is somebody else's business.
//!
//! Two databases: a SQLite file, for one server with nothing to install, and PostgreSQL, for several that share their
//! models. A statement is written once and runs on both; where the dialects differ the two stand side by side.
//!
//! Invariants:
//! - Each method is one transaction. A crash before its commit leaves nothing behind, after it everything.
//! - A version never changes, its number is never given out again, and every change of what is active is in the log.
//! - A model runs one job at a time, and only the owner of a job's lease may move it on.
//! - Time comes from the caller.
//!
//! What must not happen: a row leaving this module, a statement put together at run time, or a connection string with
//! its password in an error or a log.

mod activations;
mod codec;
mod draft;
mod error;
mod estimate;
mod events;
mod examples;
mod feed;
mod held_out;
mod histories;
mod import;
mod jobs;
mod lineage;
mod location;
mod models;
mod owner;
mod publish;
mod queue;
mod versions;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyPoolOptions, install_default_drivers};
use sqlx::migrate::Migrator;
use sqlx::{Any, AnyConnection, AnyPool, Connection as _, Executor as _, Row as _, Transaction};
use tokio::sync::Semaphore;

pub use activations::{Activate, Activated, ActivationEntry};
pub use draft::{JobDraft, NewExample, NewJob};
pub use error::{
    ActivateError, CancelError, CreateModelError, EnqueueError, ImportError, PublishError, StoreError,
};
pub use events::JobEvent;
pub use examples::{EncodedExample, ExampleCounts, PendingExample};
pub use feed::{ActivationFeed, Announcement};
pub use held_out::{HeldOut, History, TaskTally, VersionTallies};
pub use histories::Histories;
pub use import::{Arrival, Import};
pub use jobs::{Lease, Progress};
pub use location::Location;
pub use owner::Owner;
pub use publish::{Publication, TaskScore};
pub use queue::Attempt;

/// What the connection that writes to SQLite sets, in this order: pages are twice as large as usual, because snapshots and
/// statistics lie in chains of them, and the file may give freed ones back (both must be said before it has a table: a file
/// from before keeps its own), the log is written ahead, what is deleted is overwritten (images are not kept), and the log
/// shrinks again after a large job.
const WRITER_PRAGMAS: &str = "pragma page_size = 8192; pragma auto_vacuum = incremental; \
     pragma journal_mode = wal; pragma secure_delete = on; pragma journal_size_limit = 67108864";

static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// How long a call waits for a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a write waits on SQLite for the writes before it, of this process or another: a job that takes in its
/// examples holds the lock for as long as that lasts. `busy_timeout` says the same in milliseconds.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);

/// A handle to the database; clones share its connections.
#[derive(Clone)]
pub struct Store {
    /// Where statements that only read run.
    reader: AnyPool,
    /// Where transactions that write run. SQLite has one writer at a time, so there it is a pool of one connection,
    /// which queues the writers of this process fairly; elsewhere it is the same pool as `reader`.
    writer: AnyPool,
    /// Places of jobs on their way into the queue: each keeps a connection for as long as its examples take, and half of them are
    /// for everyone else, as long as there are two.
    drafts: Arc<Semaphore>,
    location: Location,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("location", &self.location)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database with at most `connections` connections (and one more to write, on SQLite) and brings its
    /// schema up to date. A SQLite file is created when it is missing, in a directory that exists.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it cannot be reached, [`StoreError::Migrate`] when the schema is not one that
    /// this program can bring up to date.
    pub async fn connect(location: Location, connections: u32) -> Result<Self, StoreError> {
        install_default_drivers();
        let url = location.url();
        let store = match location {
            Location::Sqlite(_) => {
                // The writer first: the journal's mode is the file's and takes hold before anybody reads.
                let writer = sqlite_pool(1, WRITER_PRAGMAS)
                    .acquire_timeout(WRITE_PATIENCE)
                    .connect(&url)
                    .await?;
                let reader = sqlite_pool(connections, "pragma query_only = on")
                    .connect(&url)
                    .await?;
                Self {
                    reader,
                    writer,
                    drafts: Arc::new(Semaphore::new(1)),
                    location,
                }
            }
            Location::Postgres(_) => {
                // A pool is patient with a server that refuses connections and forgets why. One attempt by hand says
                // at once what is wrong.
                AnyConnection::connect(&url).await?.close().await?;
                let pool = AnyPoolOptions::new()
                    .max_connections(connections)
                    .acquire_timeout(PATIENCE)
                    .connect(&url)
                    .await?;
                Self {
                    reader: pool.clone(),
                    writer: pool,
                    drafts: Arc::new(Semaphore::new((connections as usize / 2).max(1))),
                    location,
                }
            }
        };
        store.migrate().await?;
        Ok(store)
    }

    /// Asks the database for an answer.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when none comes.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("select 1").execute(&self.reader).await?;
        Ok(())
    }

    /// The kind of database: `sqlite` or `postgres`.
    pub fn kind(&self) -> &'static str {
        match self.location {
            Location::Sqlite(_) => "sqlite",
            Location::Postgres(_) => "postgres",
        }
    }

    /// Closes the connections once running calls are done.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }

    /// A transaction that may write. On SQLite it takes the file's only write lock at once, so that what it reads
    /// still holds when it writes.
    async fn write(&self) -> Result<Transaction<'static, Any>, sqlx::Error> {
        match self.location {
            Location::Sqlite(_) => self.writer.begin_with("begin immediate").await,
            Location::Postgres(_) => self.writer.begin().await,
        }
    }

    /// Gives the disk space of ended jobs back to the file system, and has their images leave the log as well. PostgreSQL sees
    /// to its space itself.
    pub async fn give_back_space(&self) -> Result<(), StoreError> {
        if let Location::Sqlite(_) = self.location {
            let mut writer = self.writer.acquire().await?;
            // Page by page: as many rows are to be asked for.
            sqlx::query("pragma incremental_vacuum")
                .fetch_all(&mut *writer)
                .await?;
            // By a connection of its own, with little patience, while no other one of this process writes: who reads for long, such as
            // a backup, must not keep writers waiting. Then the next job's end does it.
            let mut checkpointer = AnyConnection::connect(&self.location.url()).await?;
            checkpointer.execute("pragma busy_timeout = 500").await?;
            let row = checkpointer.fetch_one("pragma wal_checkpoint(truncate)").await?;
            checkpointer.close().await?;
            if row.try_get::<i64, _>(0)? != 0 {
                tracing::info!(
                    "somebody reads the database: its log keeps ended jobs' images until the next job ends"
                );
            }
        }
        Ok(())
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        match self.location {
            Location::Sqlite(_) => {
                // SQLite has no advisory lock: the write lock keeps a second process from migrating beside us.
                let mut tx = self.write().await?;
                SQLITE_MIGRATIONS
                    .run_direct(None, &mut *tx, false)
                    .await
                    .map_err(StoreError::Migrate)?;
                tx.commit().await?;
            }
            Location::Postgres(_) => {
                POSTGRES_MIGRATIONS
                    .run(&self.writer)
                    .await
                    .map_err(StoreError::Migrate)?;
            }
        }
        Ok(())
    }
}

/// Every connection waits for other processes, checks foreign keys and syncs at each commit.
fn sqlite_pool(connections: u32, mode: &'static str) -> AnyPoolOptions {
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                connection.execute("pragma busy_timeout = 30000").await?;
                connection.execute(mode).await?;
                connection.execute("pragma synchronous = full").await?;
                connection.execute("pragma foreign_keys = on").await?;
                Ok(())
            })
        })
}
