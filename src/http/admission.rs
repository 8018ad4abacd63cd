//! How many requests are worked on at a time, and for how long.
//!
//! Each kind of request has places of its own, so that none of them can crowd out another:
//!
//! | kind | places | time |
//! |---|---|---|
//! | requests | [`Limits::requests`]; their bodies are held in memory, so this bounds it | the deadline |
//! | uploads of tasks, versions on their way in and out | [`Limits::uploads`]; what comes in is spooled to disk | as long as the body goes on |
//! | event streams, and waits for a job's end | [`Limits::watches`]; they do next to nothing | their own |
//!
//! The probes, the metrics and the pages are always let in: an overloaded server must still be able to say so.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;
use super::{Limits, patience, prefer};
use crate::metrics;

const TEACH: &str = "/v1/models/{model}/tasks";
const TASK: &str = "/v1/models/{model}/tasks/{task}";
const CLASS: &str = "/v1/models/{model}/classes/{class}";
const VERSIONS: &str = "/v1/models/{model}/versions";
const WEIGHTS: &str = "/v1/models/{model}/versions/{number}/weights";
const JOB: &str = "/v1/jobs/{id}";
const JOB_EVENTS: &str = "/v1/jobs/{id}/events";

/// The places of every kind; clones share them.
#[derive(Clone)]
pub(super) struct Admission {
    requests: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    deadline: Duration,
}

/// A place that is free again once every clone is dropped. Handlers find theirs among the request's extensions.
#[derive(Clone)]
pub(super) struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

/// What a request asks of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open,
    Request,
    Upload,
    Stream,
    Wait,
}

impl Admission {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(limits.requests)),
            uploads: Arc::new(Semaphore::new(limits.uploads())),
            watches: Arc::new(Semaphore::new(limits.watches())),
            deadline: limits.deadline,
        }
    }

    /// A place to wait in; `None` when too many wait already.
    pub(super) fn watch(&self) -> Option<Place> {
        Place::of(&self.watches)
    }
}

impl Place {
    fn of(places: &Arc<Semaphore>) -> Option<Self> {
        let permit = Arc::clone(places).try_acquire_owned().ok()?;
        Some(Self {
            _permit: Arc::new(permit),
        })
    }
}

impl Kind {
    fn of(request: &Request) -> Self {
        // A path that leads nowhere is refused at no cost.
        let Some(path) = request.extensions().get::<MatchedPath>() else {
            return Self::Open;
        };
        match (request.method(), path.as_str()) {
            (&Method::POST, TEACH | VERSIONS) | (_, WEIGHTS) => Self::Upload,
            (_, JOB_EVENTS) => Self::Stream,
            (_, JOB) | (&Method::DELETE, TASK | CLASS) if prefer::wait(request.headers()).is_some() => {
                Self::Wait
            }
            (_, path) if path.starts_with("/v1/") => Self::Request,
            _ => Self::Open,
        }
    }
}

pub(super) async fn admit(State(admission): State<Admission>, mut request: Request, next: Next) -> Response {
    let kind = Kind::of(&request);
    let places = match kind {
        Kind::Open => return next.run(request).await,
        Kind::Request => return in_time(&admission, request, next).await,
        Kind::Upload => &admission.uploads,
        Kind::Stream | Kind::Wait => &admission.watches,
    };
    match (Place::of(places), kind) {
        (Some(place), _) => {
            request.extensions_mut().insert(place);
            request.extensions_mut().insert(admission.clone());
        }
        // To wait is only a preference: without a place, the answer comes at once.
        (None, Kind::Wait) => return in_time(&admission, request, next).await,
        (None, _) => return shed(),
    }
    if kind == Kind::Upload {
        request = request.map(|body| patience::with_patience(body, admission.deadline));
    }
    next.run(request).await
}

/// Runs a request in one of the places for requests, until the deadline.
async fn in_time(admission: &Admission, request: Request, next: Next) -> Response {
    let Some(_place) = Place::of(&admission.requests) else {
        return shed();
    };
    match tokio::time::timeout(admission.deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            metrics::request_shed();
            let seconds = admission.deadline.as_secs_f64();
            Problem::unavailable("deadline_exceeded", format!("no answer within {seconds} s")).into_response()
        }
    }
}

fn shed() -> Response {
    metrics::request_shed();
    Problem::unavailable("overloaded", "too many requests at a time; try again later").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routes_that_are_told_apart_exist() {
        let description = crate::http::resources(0).into_openapi();
        for path in [TEACH, TASK, CLASS, VERSIONS, WEIGHTS, JOB, JOB_EVENTS] {
            assert!(description.paths.paths.contains_key(path), "{path}");
        }
    }
}
