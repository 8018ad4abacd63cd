//! How long something takes that is done again and again.

use std::time::{Duration, Instant};

/// Times of `work`, the shortest first: as often as goes into so many seconds, at least five times, after `warm_up` times that
/// do not count.
pub(super) fn times(
    seconds: f64,
    warm_up: usize,
    mut work: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Duration>> {
    const LEAST: usize = 5;
    for _ in 0..warm_up {
        work()?;
    }
    let (mut times, started) = (Vec::new(), Instant::now());
    while times.len() < LEAST || started.elapsed().as_secs_f64() < seconds {
        let before = Instant::now();
        work()?;
        times.push(before.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// The middle one of times that are in order.
pub(super) fn median(times: &[Duration]) -> Duration {
    times[times.len() / 2]
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

/// A number of seconds from the command line.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err(format!("{text:?} is no number of seconds")),
    }
}
