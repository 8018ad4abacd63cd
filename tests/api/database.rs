//! A database for each test, and the directories of the servers that share it.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _};
use tempfile::TempDir;

/// An empty database of one test.
#[derive(Clone)]
pub(crate) struct Database {
    directory: Arc<TempDir>,
    url: String,
}

impl Database {
    /// A SQLite file.
    pub(crate) fn sqlite() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite:{}", directory.path().join("clipkeep.db").display());
        Self {
            directory: Arc::new(directory),
            url,
        }
    }

    /// What `DATABASE_URL` says.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The data directory of the server of this name.
    pub(crate) fn data_dir(&self, server: &str) -> PathBuf {
        self.directory.path().join(server)
    }
}

type Test = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs the test on a PostgreSQL database of its own, or says that it was skipped.
pub(crate) async fn on_postgres(test: impl FnOnce(Database) -> Test) {
    let Ok(admin) = std::env::var("CLIPKEEP_TEST_POSTGRES") else {
        eprintln!("skipped: CLIPKEEP_TEST_POSTGRES names no PostgreSQL server");
        return;
    };
    let admin: PgConnectOptions = admin.parse().expect("a PostgreSQL URL");
    let name = format!("clipkeep_test_{}", uuid::Uuid::now_v7().simple());
    let mut connection = admin.connect().await.expect("the server answers");
    connection
        .execute(AssertSqlSafe(format!("create database {name}")))
        .await
        .expect("created");
    let database = Database {
        directory: Arc::new(tempfile::tempdir().expect("a directory")),
        url: admin.clone().database(&name).to_url_lossy().to_string(),
    };
    let outcome = tokio::spawn(test(database)).await;
    connection
        .execute(AssertSqlSafe(format!("drop database {name} with (force)")))
        .await
        .expect("dropped");
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure.into_panic());
    }
}

/// Makes two tests of each function: one on SQLite, one on PostgreSQL.
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::database::Database::sqlite()).await;
            })+
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                crate::database::on_postgres(|database| Box::pin(super::$test(database))).await;
            })+
        }
    };
}
pub(crate) use on_both;
