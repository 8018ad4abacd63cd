//! Requests on a schedule, and how long their answers took.
//!
//! In a closed loop each client sends its next request when the last one is answered. In an open loop requests are due at a
//! fixed rate, whoever is still waiting; a latency counts from when a request was due, so that a server that stalls does not
//! hide those that could not be sent meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Url};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// How requests follow one another.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// So many clients, one request each at a time.
    Closed(usize),
    /// So many requests a second.
    Open(f64),
}

/// What is sent.
pub(super) struct Target {
    pub(super) http: Client,
    pub(super) urls: Vec<Url>,
    pub(super) images: Vec<Bytes>,
    /// Whether an image may be sent twice as it is.
    pub(super) repeat: bool,
    /// Requests that were sent; and what no other run has.
    pub(super) number: AtomicU64,
    pub(super) run: Uuid,
    pub(super) body: Body,
}

/// How an image is sent.
#[derive(Debug, Clone)]
pub(super) enum Body {
    /// As it is.
    Plain,
    /// In this field of a form.
    Form(String),
    /// As base64 in the place of {} in this JSON.
    Envelope(String),
}

/// What came back.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Of good answers, in no order.
    pub(super) latencies: Vec<Duration>,
    /// Of others, by what was wrong.
    pub(super) failures: BTreeMap<String, usize>,
    /// Until the last answer.
    pub(super) took: Duration,
}

/// Sends requests for as long as `time`, and waits for their answers.
pub(super) async fn run(target: &Arc<Target>, pace: Pace, time: Duration) -> Answers {
    let started = Instant::now();
    let end = started + time;
    let mut senders = JoinSet::new();
    let mut answers = Answers::default();
    match pace {
        Pace::Closed(clients) => {
            for _ in 0..clients {
                let target = Arc::clone(target);
                senders.spawn(async move {
                    let mut answers = Answers::default();
                    while Instant::now() < end {
                        let due = Instant::now();
                        let outcome = target.send().await;
                        answers.take(due, outcome);
                    }
                    answers
                });
            }
        }
        Pace::Open(rate) => {
            for index in 0.. {
                let due = started + Duration::from_secs_f64(f64::from(index) / rate);
                if due >= end {
                    break;
                }
                sleep_until(due).await;
                let target = Arc::clone(target);
                senders.spawn(async move {
                    let mut answers = Answers::default();
                    let outcome = target.send().await;
                    answers.take(due, outcome);
                    answers
                });
                // What is answered already need not be kept as a task.
                while let Some(done) = senders.try_join_next() {
                    answers.merge(done);
                }
            }
        }
    }
    while let Some(done) = senders.join_next().await {
        answers.merge(done);
    }
    answers.took = started.elapsed();
    answers
}

impl Target {
    /// Sends the next image and reads the whole answer.
    async fn send(&self) -> Result<(), String> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let image = &self.images[number as usize % self.images.len()];
        let image = if self.repeat {
            image.clone()
        } else {
            // Behind its end a picture may carry anything: no cache has seen it, and it looks the same.
            let unique = [self.run.as_bytes().as_slice(), &number.to_le_bytes()].concat();
            Bytes::from([image.as_ref(), &unique].concat())
        };
        // By turns, and with as many photographs as there are URLs not always the same one.
        let turn = number as usize + number as usize / self.urls.len();
        let request = self.http.post(self.urls[turn % self.urls.len()].clone());
        let request = match &self.body {
            Body::Plain => request
                .header("content-type", "application/octet-stream")
                .body(image),
            Body::Form(field) => {
                let length = image.len() as u64;
                let part = Part::stream_with_length(image, length).file_name("image");
                request.multipart(Form::new().part(field.clone(), part))
            }
            Body::Envelope(json) => request
                .header("content-type", "application/json")
                .body(json.replacen("{}", &STANDARD.encode(&image), 1)),
        };
        let answer = request.send().await.map_err(|error| reason(&error))?;
        let status = answer.status();
        answer.bytes().await.map_err(|error| reason(&error))?;
        if status.is_success() {
            Ok(())
        } else {
            Err(status.to_string())
        }
    }
}

fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        "no answer in time".to_owned()
    } else if error.is_connect() {
        "no connection".to_owned()
    } else {
        "the connection broke".to_owned()
    }
}

impl Answers {
    fn take(&mut self, due: Instant, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.latencies.push(due.elapsed()),
            Err(reason) => *self.failures.entry(reason).or_default() += 1,
        }
    }

    fn merge(&mut self, other: Result<Self, JoinError>) {
        let other = other.unwrap_or_else(|error| Self {
            failures: BTreeMap::from([(error.to_string(), 1)]),
            ..Self::default()
        });
        self.latencies.extend(other.latencies);
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
    }
}
