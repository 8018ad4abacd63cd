//! A database for each test, on both sides of the contract.

use std::pin::Pin;

use clipkeep::store::{Location, Store};
use sqlx::any::AnyPoolOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AnyPool, AssertSqlSafe, ConnectOptions as _, Executor as _};

/// An empty database of one test.
#[derive(Clone)]
pub(crate) struct Database {
    location: Location,
    url: String,
}

impl Database {
    pub(crate) fn location(&self) -> Location {
        self.location.clone()
    }

    pub(crate) async fn open(&self) -> Store {
        Store::connect(self.location(), 4).await.expect("the store opens")
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        matches!(self.location, Location::Sqlite(_))
    }

    /// The text that [`Location::from_url`] makes the location of.
    pub(crate) fn address(&self) -> String {
        match &self.location {
            Location::Sqlite(path) => format!("sqlite:{}", path.display()),
            Location::Postgres(_) => self.url.clone(),
        }
    }

    /// A way around the store.
    async fn raw(&self) -> AnyPool {
        sqlx::any::install_default_drivers();
        AnyPoolOptions::new()
            .max_connections(1)
            .connect(&self.url)
            .await
            .expect("the database opens")
    }

    /// Runs a statement behind the store's back.
    pub(crate) async fn tamper(&self, statement: &'static str) {
        let pool = self.raw().await;
        let changed = sqlx::query(statement)
            .execute(&pool)
            .await
            .expect("the statement runs")
            .rows_affected();
        assert!(changed > 0, "{statement} changed nothing");
        pool.close().await;
    }

    /// The one number that a statement reads behind the store's back.
    pub(crate) async fn count(&self, statement: &'static str) -> i64 {
        let pool = self.raw().await;
        let (count,): (i64,) = sqlx::query_as(statement)
            .fetch_one(&pool)
            .await
            .expect("the statement runs");
        pool.close().await;
        count
    }
}

type Test = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) async fn on_sqlite(test: impl FnOnce(Database) -> Test) {
    let directory = tempfile::tempdir().expect("a directory");
    // A name that a URL must quote.
    let location = Location::file(&directory.path().join("clip keep #1.db")).expect("a location");
    let url = format!("sqlite://{}/clip%20keep%20%231.db", directory.path().display());
    test(Database { location, url }).await;
}

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
    let url = admin.clone().database(&name).to_url_lossy().to_string();
    let location = Location::from_url(&url).expect("a location");
    let outcome = tokio::spawn(test(Database { location, url })).await;
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
                crate::setup::on_sqlite(|database| Box::pin(super::$test(database))).await;
            })+
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                crate::setup::on_postgres(|database| Box::pin(super::$test(database))).await;
            })+
        }
    };
}
pub(crate) use on_both;
