//! The command line: one file a subcommand.

mod bench;
mod demo;
mod evaluate;
mod openapi;
mod output;
mod serve;
mod threads;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::config::LogFormat;
use serve::Serve;

/// Classifies images with CLIP, learns new classes while it serves, and keeps what it knew.
///
/// Without a subcommand it serves: `clipkeep` is `clipkeep serve`.
#[derive(Debug, Parser)]
#[command(name = "clipkeep", version)]
struct Cli {
    /// How the log is written, to standard error.
    #[arg(long, env = "CLIPKEEP_LOG_FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<Serve>),
    Demo(demo::Demo),
    Evaluate(Box<evaluate::Evaluate>),
    Bench(Box<bench::Bench>),
    /// Print the interface's description (OpenAPI, YAML).
    ///
    /// Example: clipkeep openapi > openapi.yaml
    Openapi,
}

/// Parses the command line and runs what it says.
///
/// # Errors
/// Whatever went wrong, in words for a person.
pub fn run() -> anyhow::Result<()> {
    let cli = Cli::parse_from(with_subcommand(std::env::args_os().collect()));
    match &cli.command {
        Command::Serve(serve) => threads::settle(serve.backbone()),
        Command::Evaluate(evaluate) => threads::settle(evaluate.backbone()),
        Command::Bench(bench) => bench.backbone().into_iter().for_each(threads::settle),
        Command::Demo(_) | Command::Openapi => {}
    }
    crate::telemetry::install(cli.log_format).map_err(|error| anyhow::anyhow!(error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = match cli.command {
        Command::Serve(serve) => runtime.block_on(serve.run()),
        Command::Demo(demo) => runtime.block_on(demo.run()),
        Command::Evaluate(evaluate) => runtime.block_on(evaluate.run()),
        Command::Bench(bench) => runtime.block_on(bench.run()),
        Command::Openapi => openapi::run(),
    };
    // A fit that did not stop in time must not keep a server that has said that it stops.
    runtime.shutdown_background();
    done
}

/// The arguments with `serve` put in where they name no subcommand. Flags of `serve` are then nobody else's, and what
/// its environment variables hold is looked at by it alone.
fn with_subcommand(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let mut place = 1;
    while let Some(flag) = arguments.get(place).and_then(|argument| argument.to_str()) {
        match flag {
            "--log-format" => place += 2,
            _ if flag.starts_with("--log-format=") => place += 1,
            _ => break,
        }
    }
    let names_itself = arguments.get(place).is_some_and(|argument| {
        let argument = argument.to_string_lossy();
        !argument.starts_with('-') || matches!(&*argument, "-h" | "--help" | "-V" | "--version")
    });
    if !names_itself && place <= arguments.len() {
        arguments.insert(place, "serve".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(line: &str) -> String {
        let words = with_subcommand(line.split(' ').map(OsString::from).collect());
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn to_serve_needs_no_saying() {
        assert_eq!(completed("clipkeep"), "clipkeep serve");
        assert_eq!(
            completed("clipkeep --listen [::1]:0"),
            "clipkeep serve --listen [::1]:0"
        );
        assert_eq!(
            completed("clipkeep --log-format json"),
            "clipkeep --log-format json serve"
        );
        for line in [
            "clipkeep --help",
            "clipkeep serve --help",
            "clipkeep --log-format=json openapi",
            "clipkeep --log-format",
        ] {
            assert_eq!(completed(line), line);
        }
    }
}
