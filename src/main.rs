//! The binary: parses the command line and does what it says.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match clipkeep::cli::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("clipkeep: {error:#}");
            ExitCode::FAILURE
        }
    }
}
