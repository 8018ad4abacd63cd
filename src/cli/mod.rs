//! The command line: one file a subcommand.

mod demo;
mod openapi;
mod serve;

use clap::{Parser, Subcommand};

use crate::config::LogFormat;
use serve::Serve;

/// Classifies images with CLIP, learns new classes while it serves, and keeps what it knew.
///
/// Without a subcommand it serves: `clipkeep` is `clipkeep serve`.
#[derive(Debug, Parser)]
#[command(name = "clipkeep", version, args_conflicts_with_subcommands = true)]
struct Cli {
    /// How the log is written, to standard error.
    #[arg(long, env = "CLIPKEEP_LOG_FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(Box<Serve>),
    Demo(demo::Demo),
    /// Print the interface's description (OpenAPI, YAML).
    Openapi,
}

/// Parses the command line and runs what it says.
///
/// # Errors
/// Whatever went wrong, in words for a person.
pub async fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    crate::telemetry::install(cli.log_format).map_err(|error| anyhow::anyhow!(error))?;
    match cli.command {
        None => cli.serve.run().await,
        Some(Command::Serve(serve)) => serve.run().await,
        Some(Command::Demo(demo)) => demo.run().await,
        Some(Command::Openapi) => openapi::run(),
    }
}
