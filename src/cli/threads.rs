//! How many threads tensors are computed on.
//!
//! candle looks the number of threads for a product up before every product: in an environment variable or, where that is not
//! set, in the machine's topology, file by file, which takes longer than many a product. And it hands large tensors' steps
//! between products to threads of its own, which wait for one another without sleeping: beside any other work they take longer
//! than one alone, so there is to be one. The environment of a running process is not safe to change, so the program starts
//! itself over with the variables set, once, before anything else has begun.

use crate::config::BackboneArgs;

/// Where candle and rayon look.
const VARIABLE: &str = "RAYON_NUM_THREADS";
/// Where candle looks for the threads of steps between products.
const STEPS_VARIABLE: &str = "CANDLE_NUM_THREADS";

/// Goes on in a program whose environment holds the number of threads, the same that the towers have. Returns where it does
/// so already, or cannot be made to: then all works as well, only slower.
#[cfg(unix)]
pub(super) fn settle(backbone: &BackboneArgs) {
    use std::os::unix::process::CommandExt as _;

    let threads = backbone.threads().to_string();
    let steps = std::env::var_os(STEPS_VARIABLE);
    if std::env::var(VARIABLE).is_ok_and(|held| held == threads) && steps.is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let mut arguments = std::env::args_os();
    let name = arguments
        .next()
        .unwrap_or_else(|| program.clone().into_os_string());
    let error = std::process::Command::new(program)
        .arg0(name)
        .args(arguments)
        .env(VARIABLE, threads)
        .env(STEPS_VARIABLE, steps.unwrap_or_else(|| "1".into()))
        .exec();
    eprintln!(
        "clipkeep: {VARIABLE} and {STEPS_VARIABLE} cannot be set by starting the program over: {error}"
    );
}

/// There is no way to go on as another program in the same process.
#[cfg(not(unix))]
pub(super) fn settle(_backbone: &BackboneArgs) {}
