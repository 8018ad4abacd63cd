//! `clipkeep bench http`: requests with photographs against a server that runs.

mod load;
mod plot;
mod stages;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use clap::Args;
use reqwest::{Client, Url};
use serde::Serialize;
use uuid::Uuid;

use super::photographs::photographs;
use super::timing::{milliseconds, quantile};
use crate::cli::output;
use load::{Answers, Body, Pace, Target};
use stages::Stages;

/// Send photographs to a server that runs, and measure its answers.
///
/// With --clients each client sends its next request when the last one is answered; with --rate requests are sent at a fixed
/// rate, and latencies count from when a request was due. Any server that takes an image by POST can be measured;
/// of clipkeep the time of each stage is told, too. Prints a table and, last, everything as one JSON object.
///
/// Example: clipkeep bench http 'http://127.0.0.1:8080/v1/models/default/classify?labels=cat,dog' --images photos --clients 64
#[derive(Debug, Clone, Args)]
pub(super) struct Http {
    /// Where to post to; several by turns.
    #[arg(required = true, value_name = "URL")]
    urls: Vec<Url>,
    /// Photographs, or directories of them.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    images: Vec<PathBuf>,
    /// Clients, of which each waits for its answer: 1 unless given.
    #[arg(long, conflicts_with = "rate")]
    clients: Option<NonZeroUsize>,
    /// Requests a second, whether or not earlier ones are answered.
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// For how long to send requests, in seconds.
    #[arg(long, default_value_t = 10.0, value_parser = positive)]
    seconds: f64,
    /// For how long to send requests before those that count, in seconds.
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    warm_up: f64,
    /// Send images as they are, again and again. Otherwise no image is like another to a cache.
    #[arg(long)]
    repeat: bool,
    /// Send an image in this field of a form, and not as the whole body.
    #[arg(long, value_name = "FIELD")]
    form: Option<String>,
    /// Send an image as base64 in the place of the first {} in this JSON, and not as the whole body.
    #[arg(long, value_name = "JSON", conflicts_with = "form", value_parser = envelope)]
    envelope: Option<String>,
    /// A task to be taught meanwhile, as a zip or tar: posted to the first URL's `…/tasks` as the measurement begins.
    #[arg(long, value_name = "ARCHIVE")]
    teach: Option<PathBuf>,
    /// Draw the latencies by percentile, as an SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print the JSON object alone.
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    (value.is_finite() && value > 0.0)
        .then_some(value)
        .ok_or_else(|| "it must be above 0".to_owned())
}

fn envelope(text: &str) -> Result<String, String> {
    if !text.contains("{}") {
        return Err("it has no {} for the image".to_owned());
    }
    let filled: Result<serde_json::Value, _> = serde_json::from_str(&text.replacen("{}", "QUJD", 1));
    match filled {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("with an image in it, it is no JSON: {error}")),
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    urls: Vec<String>,
    clients: Option<usize>,
    rate: Option<f64>,
    answers: usize,
    /// Answers that were none, by what was wrong.
    failures: BTreeMap<String, usize>,
    images_per_second: f64,
    milliseconds: Latencies,
    /// The mean time of each of the server's stages, in milliseconds, where it tells.
    stages: BTreeMap<String, f64>,
    /// Of the task that was taught meanwhile: its job's end, and how long it took in seconds.
    job: Option<(String, f64)>,
}

#[derive(Debug, Serialize)]
struct Latencies {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Latencies {
    /// Of latencies in order.
    fn of(latencies: &[Duration]) -> Option<Self> {
        let last = *latencies.last()?;
        let at = |share| milliseconds(quantile(latencies, share));
        let sum: Duration = latencies.iter().sum();
        Some(Self {
            mean: milliseconds(sum) / latencies.len() as f64,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: milliseconds(last),
        })
    }
}

impl Http {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let http = Client::builder().timeout(Duration::from_mins(2)).build()?;
        // Its server's stages are told, and its model is taught.
        let first = &self.urls[0];
        let target = Arc::new(Target {
            http: http.clone(),
            urls: self.urls.clone(),
            images: photographs(&self.images)?,
            repeat: self.repeat,
            number: AtomicU64::new(0),
            run: Uuid::now_v7(),
            body: match (self.form.clone(), self.envelope.clone()) {
                (Some(field), _) => Body::Form(field),
                (None, Some(json)) => Body::Envelope(json),
                (None, None) => Body::Plain,
            },
        });
        let clients = self.clients.map_or(1, NonZeroUsize::get);
        let (pace, clients) = match self.rate {
            Some(rate) => (Pace::Open(rate), None),
            None => (Pace::Closed(clients), Some(clients)),
        };
        load::run(&target, pace, Duration::from_secs_f64(self.warm_up)).await;
        let teaching = match &self.teach {
            Some(archive) => Some(stages::teach(&http, first, archive).await?),
            None => None,
        };
        let before = Stages::read(&http, first).await;
        let Answers {
            mut latencies,
            failures,
            took,
        } = load::run(&target, pace, Duration::from_secs_f64(self.seconds)).await;
        let after = Stages::read(&http, first).await;
        let job = match teaching {
            Some(job) => Some(stages::outcome(&http, job).await?),
            None => None,
        };
        let answers = latencies.len();
        latencies.sort_unstable();
        let Some(summary) = Latencies::of(&latencies) else {
            anyhow::bail!("{first} gave no good answer: {failures:?}");
        };
        let measured = Measured {
            urls: self.urls.iter().map(Url::to_string).collect(),
            clients,
            rate: self.rate,
            answers,
            failures,
            images_per_second: answers as f64 / took.as_secs_f64(),
            milliseconds: summary,
            stages: after.since(&before),
            job,
        };
        if let Some(path) = &self.plot {
            let all: Vec<f64> = latencies.into_iter().map(milliseconds).collect();
            let (answers, rate) = (all.len(), measured.images_per_second);
            let caption = format!("{answers} answers at {rate:.1} images a second");
            plot::draw(path, &all, &caption)?;
        }
        if !self.json {
            measured.print()?;
        }
        output::line(serde_json::to_string(&measured)?)?;
        Ok(())
    }
}

impl Measured {
    fn print(&self) -> std::io::Result<()> {
        let latencies = &self.milliseconds;
        output::line(format_args!(
            "{} answers, {:.1} images a second, {} failures",
            self.answers,
            self.images_per_second,
            self.failures.values().sum::<usize>()
        ))?;
        for (reason, count) in &self.failures {
            output::line(format_args!("  {count} × {reason}"))?;
        }
        output::line("latency in ms      p50      p90      p99    p99.9      max")?;
        output::line(format_args!(
            "            {:>10.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1}",
            latencies.p50, latencies.p90, latencies.p99, latencies.p999, latencies.max
        ))?;
        for (stage, time) in &self.stages {
            output::line(format_args!("  {stage}: {time:.2} ms in the mean"))?;
        }
        if let Some((state, seconds)) = &self.job {
            output::line(format_args!("  the job {state} after {seconds:.1} s"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_latencies_that_were_measured() {
        let of = |count: u64| {
            let latencies: Vec<Duration> = (1..=count).map(Duration::from_millis).collect();
            Latencies::of(&latencies)
        };
        let hundred = of(100).expect("some");
        assert_eq!(
            (hundred.p50, hundred.p90, hundred.p99, hundred.p999),
            (50.0, 90.0, 99.0, 100.0)
        );
        assert_eq!((hundred.mean, hundred.max), (50.5, 100.0));
        let one = of(1).expect("one");
        assert_eq!((one.p50, one.p999, one.max), (1.0, 1.0, 1.0));
        assert!(of(0).is_none());
    }

    #[test]
    fn an_envelope_is_json_with_a_place_for_the_image() {
        assert!(envelope(r#"{"input": ["{}"]}"#).is_ok());
        assert!(envelope(r#"{"input": []}"#).is_err());
        assert!(envelope(r#"{"input": "{}"#).is_err());
        assert!(
            envelope(r#"{"other": {}, "input": "{}"}"#).is_err(),
            "an object is no place"
        );
    }
}
