//! What a clipkeep server tells of itself: the time of its stages, and of a job.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::{Client, Url};
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// The sums and counts of a server's histograms, by stage: of what somebody waits for, and not a job, which asks no head about images
/// that are known.
#[derive(Debug, Default)]
pub(super) struct Stages(BTreeMap<String, (f64, f64)>);

/// The histograms whose means are told, with their labels, each with the stage it is of.
const HISTOGRAMS: [(&str, &str, &str); 7] = [
    (
        "clipkeep_decode_wait_seconds",
        INTERACTIVE,
        "wait for decoding, an image",
    ),
    ("clipkeep_decode_seconds", INTERACTIVE, "decode, an image"),
    ("clipkeep_queue_wait_seconds", INTERACTIVE, "queue, an image"),
    ("clipkeep_encode_seconds", INTERACTIVE, "encode, a batch"),
    ("clipkeep_head_seconds", INTERACTIVE, "heads, a batch"),
    (
        "clipkeep_known_head_wait_seconds",
        "",
        "wait for the head of known images, a request",
    ),
    (
        "clipkeep_known_head_seconds",
        "",
        "heads of known images, a product",
    ),
];

const INTERACTIVE: &str = r#"{priority="interactive"}"#;

impl Stages {
    /// Of the server at `url`; of one that does not tell, none.
    pub(super) async fn read(http: &Client, url: &Url) -> Self {
        let Ok(url) = url.join("/metrics") else {
            return Self::default();
        };
        let text = match http.get(url).send().await {
            Ok(answer) if answer.status().is_success() => answer.text().await.unwrap_or_default(),
            _ => String::new(),
        };
        Self::parse(&text)
    }

    /// From Prometheus' text format.
    fn parse(text: &str) -> Self {
        let value = |name: &str| {
            let lines = text.lines().filter_map(|line| line.split_once(' '));
            let mut values = lines.filter(|(found, _)| *found == name);
            values.next().and_then(|(_, value)| value.parse::<f64>().ok())
        };
        let of = |(name, labels, stage): &(&str, &str, &str)| {
            let sum = value(&format!("{name}_sum{labels}"))?;
            let count = value(&format!("{name}_count{labels}"))?;
            Some(((*stage).to_owned(), (sum, count)))
        };
        Self(HISTOGRAMS.iter().filter_map(of).collect())
    }

    /// The mean of each stage in milliseconds since an earlier reading.
    pub(super) fn since(&self, before: &Self) -> BTreeMap<String, f64> {
        let mean = |(stage, (sum, count)): (&String, &(f64, f64))| {
            let (sum_before, count_before) = before.0.get(stage).copied().unwrap_or_default();
            let count = count - count_before;
            (count > 0.0).then(|| (stage.clone(), 1e3 * (sum - sum_before) / count))
        };
        self.0.iter().filter_map(mean).collect()
    }
}

/// A job that was started.
pub(super) struct Teaching {
    url: Url,
    started: Instant,
}

/// Posts a task beside a model's `…/classify`.
pub(super) async fn teach(http: &Client, url: &Url, archive: &Path) -> anyhow::Result<Teaching> {
    let mut tasks = url.join("tasks")?;
    let name = format!("bench-{}", jiff::Timestamp::now().as_millisecond());
    tasks.query_pairs_mut().append_pair("name", &name);
    let bytes = std::fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let started = Instant::now();
    let answer = http.post(tasks).body(bytes).send().await?;
    let status = answer.status();
    let body: Value = answer.json().await.context("the server took no task")?;
    anyhow::ensure!(status.is_success(), "the task was refused: {body}");
    let job = body["job"].as_str().context("the server named no job")?;
    Ok(Teaching {
        url: url.join(&format!("/v1/jobs/{job}"))?,
        started,
    })
}

/// How a job ended and after how many seconds; waits for it.
pub(super) async fn outcome(http: &Client, teaching: Teaching) -> anyhow::Result<(String, f64)> {
    loop {
        let job: Value = http.get(teaching.url.clone()).send().await?.json().await?;
        let state = job["state"].as_str().unwrap_or("vanished");
        if !matches!(state, "queued" | "running") {
            let moment = |field: &str| {
                job[field]
                    .as_str()
                    .and_then(|text| text.parse::<jiff::Timestamp>().ok())
            };
            let seconds = match (moment("created_at"), moment("updated_at")) {
                (Some(from), Some(to)) => (to - from).as_secs_f64(),
                _ => teaching.started.elapsed().as_secs_f64(),
            };
            return Ok((state.to_owned(), seconds));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_means_of_what_came_in_between() {
        let text = |sum: f64, count: u32| {
            format!(
                "# TYPE clipkeep_decode_seconds histogram\nclipkeep_decode_seconds_sum{{priority=\"background\"}} 9\n\
                 clipkeep_decode_seconds_sum{INTERACTIVE} {sum}\nclipkeep_decode_seconds_count{INTERACTIVE} {count}\n\
                 clipkeep_known_head_seconds_sum {sum}\nclipkeep_known_head_seconds_count {count}\n"
            )
        };
        let (before, after) = (Stages::parse(&text(1.0, 10)), Stages::parse(&text(1.5, 20)));
        let means = after.since(&before);
        let stages = ["decode, an image", "heads of known images, a product"];
        assert_eq!(means.keys().collect::<Vec<_>>(), stages);
        assert!(means.values().all(|mean| (mean - 50.0).abs() < 1e-9), "{means:?}");
        assert!(before.since(&before).is_empty(), "nothing came in between");
    }
}
