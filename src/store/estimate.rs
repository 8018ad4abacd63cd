//! How long a running job will still take, as far as its progress since it was last taken up tells.

use jiff::Timestamp;
use serde_json::Value;
use sqlx::AnyConnection;

use super::Store;
use super::codec::{from_json, timestamp};
use super::error::StoreError;
use crate::domain::{Job, JobState};

impl Store {
    /// The seconds until a job probably ends; `None` unless it runs and has made progress.
    pub async fn remaining_seconds(&self, job: &Job, now: Timestamp) -> Result<Option<f64>, StoreError> {
        let mut connection = self.reader.acquire().await?;
        remaining_seconds(&mut connection, job, now).await
    }
}

/// [`Store::remaining_seconds`] within a transaction.
pub(super) async fn remaining_seconds(
    connection: &mut AnyConnection,
    job: &Job,
    now: Timestamp,
) -> Result<Option<f64>, StoreError> {
    if job.state != JobState::Running {
        return Ok(None);
    }
    let row: Option<(i64, String)> = sqlx::query_as(
        "select at, data from job_event where job = $1 and name = 'state' order by sequence desc limit 1",
    )
    .bind(job.id.to_string())
    .fetch_optional(connection)
    .await?;
    let Some((at, data)) = row else {
        return Ok(None);
    };
    let began: Value = from_json("event", &data)?;
    let elapsed = now.duration_since(timestamp(at)?).as_secs_f64();
    Ok(estimate(
        began["progress"].as_f64().unwrap_or(0.0),
        job.progress,
        elapsed,
    ))
}

/// The seconds that the rest takes at the pace of `elapsed` seconds for the progress from `began` to `progress`, to a
/// tenth.
fn estimate(began: f64, progress: f64, elapsed: f64) -> Option<f64> {
    let made = progress - began;
    let remaining = elapsed / made * (1.0 - progress);
    (made > 0.0 && remaining >= 0.0).then(|| (remaining * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_the_pace_says() {
        assert_eq!(estimate(0.0, 0.25, 10.0), Some(30.0));
        assert_eq!(estimate(0.5, 0.75, 10.0), Some(10.0), "taken up half-way");
        assert_eq!(estimate(0.0, 1.0, 10.0), Some(0.0));
        assert_eq!(estimate(0.0, 0.0, 10.0), None, "nothing is known yet");
        assert_eq!(estimate(0.5, 0.5, 10.0), None);
        assert_eq!(estimate(0.0, 0.5, -1.0), None, "the clock went back");
    }
}
