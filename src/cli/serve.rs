//! `clipkeep serve`: the server, until a signal ends it.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::output;
use crate::app::App;
use crate::config::{BackboneArgs, ServeConfig};
use crate::metrics;

/// Run the server.
///
/// Example: clipkeep serve --listen 127.0.0.1:8080 --data-dir ./clipkeep-data
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Serve {
    #[command(flatten)]
    config: ServeConfig,
}

impl Serve {
    pub(super) fn backbone(&self) -> &BackboneArgs {
        &self.config.engine.backbone
    }

    pub(super) async fn run(self) -> anyhow::Result<()> {
        let app = App::build(&self.config, metrics::install()?).await?;
        let addr = app.addr();
        tracing::info!(%addr, docs = format!("http://{addr}/docs"), "listening");
        output::line(format_args!("clipkeep listens on http://{addr}"))?;
        tokio::spawn(cancel_on_signal(app.stopping()));
        app.run_until_stopped().await
    }
}

/// The first SIGTERM or SIGINT stops in order; a second one ends the process at once.
async fn cancel_on_signal(stopping: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be caught; only killing will stop this server");
        return;
    };
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    next().await;
    tracing::info!("stopping; a second signal ends the process at once");
    stopping.cancel();
    next().await;
    std::process::exit(130);
}
