//! The whole server inside the test's process, on a port of its own.

use std::ops::Deref;
use std::sync::OnceLock;

use clap::Parser;
use clipkeep::app::App;
use clipkeep::config::ServeConfig;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::caller::Caller;
use crate::database::Database;

/// A running server.
pub(crate) struct TestApp {
    caller: Caller,
    config: ServeConfig,
    database: Database,
    stopping: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

/// The command line of `serve`.
#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    config: ServeConfig,
}

impl TestApp {
    /// Starts a server on the database, told what `flags` say.
    pub(crate) async fn start(database: &Database, flags: &[&str]) -> Self {
        Self::start_named("server", database, flags).await
    }

    /// Starts the server of this name: each has a data directory of its own.
    pub(crate) async fn start_named(name: &str, database: &Database, flags: &[&str]) -> Self {
        let data_dir = database.data_dir(name);
        let mut line = vec![
            "clipkeep",
            "--listen",
            "127.0.0.1:0",
            "--device",
            "cpu",
            "--data-dir",
        ];
        line.push(data_dir.to_str().expect("a path in UTF-8"));
        line.extend(["--database-url", database.url()]);
        line.extend(flags);
        let config = CommandLine::parse_from(line).config;
        Self::run(config, database.clone()).await
    }

    /// What a signal to stop does.
    pub(crate) fn signal(&self) {
        self.stopping.cancel();
    }

    /// Stops the server as a signal would and starts it again on the same directory and database.
    pub(crate) async fn restart(self) -> Self {
        self.restart_with(|_| {}).await
    }

    /// The same, with another configuration.
    pub(crate) async fn restart_with(mut self, change: impl FnOnce(&mut ServeConfig)) -> Self {
        change(&mut self.config);
        self.signal();
        self.running
            .await
            .expect("no panic")
            .expect("the server stops in order");
        Self::run(self.config, self.database).await
    }

    async fn run(config: ServeConfig, database: Database) -> Self {
        let app = App::build(&config, recorder()).await.expect("the server starts");
        Self {
            caller: Caller::new(format!("http://{}", app.addr())),
            config,
            database,
            stopping: app.stopping(),
            running: tokio::spawn(app.run_until_stopped()),
        }
    }
}

impl Deref for TestApp {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// The recorder of this process; there can be only one.
fn recorder() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER
        .get_or_init(|| clipkeep::metrics::install().expect("no other recorder"))
        .clone()
}
