//! From a request's images to the engine's answers: what classifying and embedding share.

use std::time::Duration;

use axum::http::HeaderName;
use axum::response::AppendHeaders;

use super::images::Images;
use super::problem::Problem;
use crate::engine::{Asked, Engine, EngineError, LookedAll, Output, Priority};

/// What became of a request's images.
pub(super) struct Encoded {
    /// One result an image, in order; at least one is good.
    pub outputs: Vec<Result<Output, Problem>>,
    /// How long the stages took.
    pub times: StageTimes,
}

/// How long a request spent in each stage: the longest of its images.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StageTimes {
    decode: Duration,
    queue: Duration,
    encode: Duration,
    head: Duration,
}

impl StageTimes {
    /// As a `Server-Timing` header, in milliseconds.
    pub(super) fn server_timing(&self) -> AppendHeaders<[(HeaderName, String); 1]> {
        let entry = |name, time: Duration| format!("{name};dur={:.3}", time.as_secs_f64() * 1e3);
        let value = [
            entry("decode", self.decode),
            entry("queue", self.queue),
            entry("encode", self.encode),
            entry("head", self.head),
        ];
        AppendHeaders([(HeaderName::from_static("server-timing"), value.join(", "))])
    }

    fn include(&mut self, output: &Output) {
        self.queue = self.queue.max(output.timing.queue);
        self.encode = self.encode.max(output.timing.encode);
        self.head = self.head.max(output.timing.head);
    }
}

/// Decodes the images and answers what is asked about the good ones.
///
/// # Errors
/// When no image can be used: the first one's problem, with all of them listed unless there was only one. When the
/// server is overloaded, for the request as a whole.
pub(super) async fn encode(engine: &Engine, images: Images, asked: Asked) -> Result<Encoded, Problem> {
    let mut received = Vec::with_capacity(images.items.len());
    let mut failures: Vec<Option<Problem>> = Vec::with_capacity(images.items.len());
    for item in images.items {
        match item {
            Ok(bytes) => {
                received.push(bytes);
                failures.push(None);
            }
            Err(problem) => failures.push(Some(problem)),
        }
    }
    let LookedAll {
        images: looked,
        decode,
    } = engine.look_at_all(received, &asked).await?;
    let mut times = StageTimes {
        decode,
        ..StageTimes::default()
    };

    let mut good = Vec::with_capacity(looked.len());
    let places = failures.iter_mut().filter(|failure| failure.is_none());
    for (place, image) in places.zip(looked) {
        match image {
            Ok(image) => good.push(image),
            Err(error @ EngineError::Image(_)) => *place = Some(error.into()),
            Err(error) => return Err(error.into()),
        }
    }
    if good.is_empty() {
        return Err(all_failed(failures.into_iter().flatten().collect(), images.raw));
    }
    let outputs = engine.encode(good, Priority::Interactive).await?;
    let mut outputs = outputs.into_iter();
    let mut results = Vec::with_capacity(failures.len());
    for (place, failure) in failures.into_iter().enumerate() {
        match failure {
            Some(problem) => results.push(Err(problem.of_item(item(place)))),
            None => results.extend(outputs.next().inspect(|output| times.include(output)).map(Ok)),
        }
    }
    Ok(Encoded {
        outputs: results,
        times,
    })
}

fn all_failed(problems: Vec<Problem>, raw: bool) -> Problem {
    let Some(first) = problems.first().cloned() else {
        return Problem::invalid("no_image", "the request holds no image");
    };
    if raw {
        return first;
    }
    let errors = problems
        .into_iter()
        .enumerate()
        .map(|(place, problem)| problem.into_item(item(place)));
    first.with_errors(errors.collect())
}

fn item(place: usize) -> String {
    format!("images[{place}]")
}
