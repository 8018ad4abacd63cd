//! How long something takes that is done again and again.

use std::time::{Duration, Instant};

/// Times of `work`, the shortest first: as often as goes into so many seconds, or five times if that takes less than five times as
/// long. Before those, `warm_up` times that do not count, or as many as go into the same seconds after the first of them.
pub(super) fn times(
    seconds: f64,
    warm_up: usize,
    mut work: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Duration>> {
    const ENOUGH: usize = 5;
    let since = |started: Instant| started.elapsed().as_secs_f64();
    let mut first = None;
    for _ in 0..warm_up {
        if first.is_some_and(|first| since(first) > seconds) {
            break;
        }
        work()?;
        first.get_or_insert_with(Instant::now);
    }
    let (mut times, started) = (Vec::new(), Instant::now());
    while since(started) < seconds
        || times.is_empty()
        || times.len() < ENOUGH && since(started) < ENOUGH as f64 * seconds
    {
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

/// The smallest of values in order, of which there are some, that so large a share of all does not exceed.
pub(super) fn quantile<T: Copy>(values: &[T], share: f64) -> T {
    let place = (share * values.len() as f64).ceil() as usize;
    values[place.clamp(1, values.len()) - 1]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_no_time_runs_once_and_what_warms_up_does_not_count() -> anyhow::Result<()> {
        for warm_up in 0..2 {
            let mut runs = 0;
            let times = times(0.0, warm_up, || {
                runs += 1;
                Ok(())
            })?;
            assert_eq!((times.len(), runs), (1, 1 + warm_up));
        }
        Ok(())
    }
}
