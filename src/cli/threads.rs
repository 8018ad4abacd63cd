//! How many threads tensors are multiplied on.
//!
//! candle looks the number up before every product: in an environment variable or, where that is not set, in the machine's
//! topology, file by file, which takes longer than many a product. The environment of a running process is not safe to
//! change, so the program starts itself over with the variable set, once, before anything else has begun.

use std::num::NonZeroUsize;

use crate::config::BackboneArgs;

/// Where candle and rayon look.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Goes on in a program whose environment holds the number of threads: that of the command line, or else what the
/// environment holds already, or else one for each core. Returns where it does so already, or cannot be made to: then all
/// works as well, only slower.
#[cfg(unix)]
pub(super) fn settle(backbone: &BackboneArgs) {
    use std::os::unix::process::CommandExt as _;

    let held = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
    if held.is_some_and(|held: NonZeroUsize| backbone.threads.is_none_or(|wanted| wanted == held)) {
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
        .env(VARIABLE, backbone.threads().to_string())
        .exec();
    eprintln!("clipkeep: {VARIABLE} cannot be set by starting the program over: {error}");
}

/// There is no way to go on as another program in the same process.
#[cfg(not(unix))]
pub(super) fn settle(_backbone: &BackboneArgs) {}
