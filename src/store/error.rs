//! What can go wrong in the store.

use std::error::Error;

use sqlx::migrate::MigrateError;

use crate::domain::{ClassId, JobState, Label, ModelName, TaskName, VersionNumber};

/// A failure of the store itself.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached or is busy for too long. Trying again later may help.
    #[error("the database does not answer")]
    Unavailable(#[source] sqlx::Error),
    /// The database refused a statement. It will refuse it again.
    #[error("the database refused a statement")]
    Refused(#[source] sqlx::Error),
    /// The database holds something that this program did not write that way.
    #[error("the store's {what} is damaged")]
    Corrupt {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The schema cannot be brought up to date: a migration failed, or a newer program has been here.
    #[error("the database's schema cannot be brought up to date")]
    Migrate(#[source] MigrateError),
    /// Not the location of a database.
    #[error("not the location of a database: {0}")]
    Location(&'static str),
}

impl StoreError {
    pub(super) fn corrupt(what: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Corrupt {
            what,
            source: source.into(),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => Self::corrupt("row", error),
            sqlx::Error::Database(ref refusal) if !passes(refusal.code().as_deref()) => Self::Refused(error),
            sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => Self::Refused(error),
            other => Self::Unavailable(other),
        }
    }
}

/// Whether what a database complains about may be over by the next try, by its code: on PostgreSQL a lost connection,
/// a rolled back transaction, too few resources, a shutdown, or a lock that was not to be had (the two characters of
/// the class, <https://www.postgresql.org/docs/current/errcodes-appendix.html>), or that it has become a standby, which takes no
/// writes; on SQLite a lock, memory, the disk or the file
/// (the lowest byte of the number, <https://www.sqlite.org/rescode.html>).
fn passes(code: Option<&str>) -> bool {
    const POSTGRES_CLASSES: [&str; 6] = ["08", "40", "53", "55", "57", "58"];
    const READ_ONLY: &str = "25006";
    const SQLITE_CODES: [u32; 6] = [5, 6, 7, 10, 13, 14];
    match code {
        None => true,
        Some(code) if code.len() == 5 => code == READ_ONLY || POSTGRES_CLASSES.contains(&&code[..2]),
        Some(code) => code
            .parse::<u32>()
            .is_ok_and(|code| SQLITE_CODES.contains(&(code & 0xff))),
    }
}

/// Why a model was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateModelError {
    /// The name is taken.
    #[error("the model {0} exists already")]
    Exists(ModelName),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a job was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// There is no such model.
    #[error("there is no model {0}")]
    UnknownModel(ModelName),
    /// The model learns on another backbone than the one that would encode the job's examples.
    #[error("the model {0} learns on another backbone than the one that is loaded")]
    OtherBackbone(ModelName),
    /// The job itself brings a label twice.
    #[error("the label {0} occurs twice")]
    LabelTwice(Label),
    /// The active version knows a task of that name.
    #[error("the model knows a task {0} already")]
    TaskExists(TaskName),
    /// The active version knows the label.
    #[error("the model knows the label {0} already")]
    LabelExists(Label),
    /// The active version knows no task of that name that could be unlearned.
    #[error("the model knows no task {0}")]
    UnknownTask(TaskName),
    /// The active version knows no class of that label that could be unlearned.
    #[error("the model knows no class {0}")]
    UnknownClass(Label),
    /// The active version knows no other task: without it nothing would be left.
    #[error("the model knows no task but {0}")]
    OnlyTask(TaskName),
    /// Another job of the model that is queued or running learns or unlearns a task of that name.
    #[error("the task {0} is being learned or unlearned")]
    TaskInFlight(TaskName),
    /// Another job of the model that is queued or running brings the label, or does without it.
    #[error("the label {0} is being learned or unlearned")]
    LabelInFlight(Label),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a job was not cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// It has ended already.
    #[error("the job has ended already: {}", .0.as_str())]
    Final(JobState),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a version was not published. Nothing of it is left in the store.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The job is no longer this owner's: its lease ran out and another took it up, or it was cancelled.
    #[error("the job's lease is lost")]
    LeaseLost,
    /// Another version became active since the work began.
    #[error("the model's active version has changed")]
    BaseMoved {
        /// The one that is active now.
        active: Option<VersionNumber>,
    },
    /// The base knows a task of that name.
    #[error("the base knows a task {0} already")]
    TaskExists(TaskName),
    /// The base knows the label.
    #[error("the base knows the label {0} already")]
    LabelExists(Label),
    /// The base knows no task of that name that could be unlearned.
    #[error("the base knows no task {0}")]
    UnknownTask(TaskName),
    /// The base's task has no class of that label that could be unlearned.
    #[error("the base knows no class {0}")]
    UnknownClass(Label),
    /// The base knows no other task: without it nothing would be left.
    #[error("the base knows no task but {0}")]
    OnlyTask(TaskName),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a version was not taken in. Nothing of it is left in the store.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is no such model.
    #[error("there is no model {0}")]
    UnknownModel(ModelName),
    /// The model learns on another backbone than the one that the version is for.
    #[error("the model {0} learns on another backbone than the one that is loaded")]
    OtherBackbone(ModelName),
    /// The database has a class of this id. The version may come back with ids of its own.
    #[error("the class {0} is in the database already")]
    ClassTaken(ClassId),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a version was not activated.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// There is no such model.
    #[error("there is no model {0}")]
    UnknownModel(ModelName),
    /// The model has no such version.
    #[error("the model has no version {0}")]
    UnknownVersion(VersionNumber),
    /// Another version is active than the caller expected.
    #[error("the model's active version is not the expected one")]
    ActiveMoved {
        /// The one that is active.
        active: Option<VersionNumber>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

macro_rules! from_sqlx {
    ($($error:ident),+) => {
        $(impl From<sqlx::Error> for $error {
            fn from(error: sqlx::Error) -> Self {
                Self::Store(error.into())
            }
        })+
    };
}

from_sqlx!(
    CreateModelError,
    EnqueueError,
    CancelError,
    PublishError,
    ImportError,
    ActivateError
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_database_complains_about_passes_or_stays() {
        // Of PostgreSQL: shut down, out of disk, a standby now; of SQLite: busy, full.
        for code in ["57P01", "53100", "25006", "5", "13", "261"] {
            assert!(passes(Some(code)), "{code}");
        }
        // A constraint, a syntax error, a transaction that was given up; a constraint.
        for code in ["23505", "42601", "25P02", "19"] {
            assert!(!passes(Some(code)), "{code}");
        }
        let encoding = StoreError::from(sqlx::Error::Encode("too long".into()));
        assert!(matches!(encoding, StoreError::Refused(_)));
        assert!(matches!(
            StoreError::from(sqlx::Error::PoolTimedOut),
            StoreError::Unavailable(_)
        ));
    }
}
