//! Requests on a schedule, and how long their answers took.
//!
//! In a closed loop each client sends its next request when the last one is answered. In an open loop requests are due at a
//! fixed rate, whoever is still waiting; a latency counts from when a request was due, so that a server that stalls does not
//! hide those that could not be sent meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Client, Url};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

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
    pub(super) url: Url,
    pub(super) images: Vec<Bytes>,
    /// Whether an image may be sent twice as it is.
    pub(super) repeat: bool,
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
    let number = Arc::new(AtomicUsize::new(0));
    let mut senders = JoinSet::new();
    let mut answers = Answers::default();
    match pace {
        Pace::Closed(clients) => {
            for _ in 0..clients {
                let (target, number) = (Arc::clone(target), Arc::clone(&number));
                senders.spawn(async move {
                    let mut answers = Answers::default();
                    while Instant::now() < end {
                        let due = Instant::now();
                        let outcome = target.send(number.fetch_add(1, Ordering::Relaxed)).await;
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
                let (target, number) = (Arc::clone(target), number.fetch_add(1, Ordering::Relaxed));
                senders.spawn(async move {
                    let mut answers = Answers::default();
                    let outcome = target.send(number).await;
                    answers.take(due, outcome);
                    answers
                });
                // What is answered already need not be kept as a task.
                while let Some(done) = senders.try_join_next() {
                    answers.merge(done.unwrap_or_default());
                }
            }
        }
    }
    while let Some(done) = senders.join_next().await {
        answers.merge(done.unwrap_or_default());
    }
    answers.took = started.elapsed();
    answers
}

impl Target {
    /// Sends request `number` and reads the whole answer.
    async fn send(&self, number: usize) -> Result<(), String> {
        let image = &self.images[number % self.images.len()];
        let body = if self.repeat {
            image.clone()
        } else {
            // Behind its end a picture may carry anything: no cache has seen it, and it looks the same.
            Bytes::from([image.as_ref(), number.to_le_bytes().as_slice()].concat())
        };
        let request = self
            .http
            .post(self.url.clone())
            .header("content-type", "application/octet-stream")
            .body(body);
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

    fn merge(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
    }
}
