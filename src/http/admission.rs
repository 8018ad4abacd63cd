//! How many requests are worked on at a time, and for how long.
//!
//! Bodies are held in memory while a request is worked on, so their number is what bounds the server's memory. The
//! probes, the metrics and the pages are always let in: an overloaded server must still be able to say so.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::sync::Semaphore;

use super::Limits;
use super::problem::Problem;
use crate::metrics;

#[derive(Clone)]
pub(super) struct Admission {
    places: Arc<Semaphore>,
    deadline: Duration,
}

impl Admission {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.requests)),
            deadline: limits.deadline,
        }
    }
}

pub(super) async fn admit(State(admission): State<Admission>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if !path.starts_with("/v1/") || path.ends_with("/events") {
        return next.run(request).await;
    }
    let Ok(_place) = admission.places.try_acquire() else {
        metrics::request_shed();
        return Problem::unavailable("overloaded", "too many requests at a time; try again later")
            .into_response();
    };
    if path.ends_with("/tasks") {
        // An upload takes as long as the caller's line does.
        return next.run(request).await;
    }
    match tokio::time::timeout(admission.deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            metrics::request_shed();
            let seconds = admission.deadline.as_secs_f64();
            Problem::unavailable("deadline_exceeded", format!("no answer within {seconds} s")).into_response()
        }
    }
}
