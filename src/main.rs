//! The binary: parses the command line and does what it says.

use std::process::ExitCode;

fn main() -> ExitCode {
    match clipkeep::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("clipkeep: {error:#}");
            ExitCode::FAILURE
        }
    }
}
