//! `/v1/jobs/{id}`: poll a job, follow its events, or cancel it.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::admission::Place;
use super::extract::{Json, Path};
use super::problem::Problem;
use super::{Api, prefer};
use crate::domain::{Job, JobId, JobState, ModelName};
use crate::store::{CancelError, JobEvent, StoreError};

/// How often the store is asked about a job that somebody watches.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);
/// Events read from the store at a time.
const PAGE: u32 = 64;

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(one))
        .routes(routes!(events))
        .routes(routes!(cancel))
}

/// A job, and how long it will still take.
#[derive(Debug, Serialize, ToSchema)]
struct JobResponse {
    #[serde(flatten)]
    job: Job,
    /// The seconds until it probably ends; null unless it runs and has made progress.
    remaining_seconds: Option<f64>,
}

/// Describe a job
///
/// With `Prefer: wait=N` the answer waits up to N seconds for the job to end, and then shows it as it stands. When too
/// many wait already, the answer comes at once.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "learn", operation_id = "job",
    params(
        ("id" = Uuid, Path, description = "The job's id"),
        ("prefer" = Option<String>, Header, description = "`wait=N`: answer once the job has ended, or after N seconds, at most 600", example = "wait=30")
    ),
    responses((status = 200, description = "The job", body = JobResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn one(
    State(api): State<Api>,
    Path(id): Path<Uuid>,
    place: Option<Extension<Place>>,
    headers: HeaderMap,
) -> Result<Json<JobResponse>, Problem> {
    let mut job = existing(&api, JobId(id)).await?;
    if let (Some(seconds), Some(_place)) = (prefer::wait(&headers), place) {
        job = wait_for_end(&api, job, seconds).await;
    }
    let estimate = api.store.remaining_seconds(&job, Timestamp::now()).await;
    let remaining_seconds = estimate.unwrap_or_else(|error| {
        // The job itself is known; a wait must not end in an error for want of a guess.
        tracing::warn!(error = &error as &dyn std::error::Error, "no estimate for a job");
        None
    });
    Ok(Json(JobResponse {
        job,
        remaining_seconds,
    }))
}

/// Follow a job
///
/// Server-sent events `state` and `progress`, from the first or from the one after `Last-Event-ID`. The stream ends
/// with the job; whoever asks again then, as browsers do, is answered 204, which tells them to stop.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/events", tag = "learn", operation_id = "job_events",
    params(
        ("id" = Uuid, Path, description = "The job's id"),
        ("last-event-id" = Option<u64>, Header, description = "The last event that was seen")
    ),
    responses((status = 200, description = "The events", body = String, content_type = "text/event-stream"), (status = 204, description = "The job has ended and nothing is left to tell"), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn events(
    State(api): State<Api>,
    Path(id): Path<Uuid>,
    Extension(place): Extension<Place>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let job = existing(&api, JobId(id)).await?;
    let seen = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok())
        .unwrap_or(0);
    if job.state.is_final() && api.store.job_events(job.id, seen, 1).await?.is_empty() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let closing = api.closing.clone();
    let follower = Follower {
        api,
        job: job.id,
        model: job.model,
        seen,
        _place: place,
    };
    let stream = stream::unfold(follower, Follower::next)
        .flat_map(stream::iter)
        .take_until(closing.cancelled_owned());
    let events = Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(10)));
    Ok(events.into_response())
}

/// Cancel a job
///
/// Nothing of it is published and its examples are deleted. A job that has ended cannot be cancelled any more.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", tag = "learn", operation_id = "cancel_job",
    params(("id" = Uuid, Path, description = "The job's id")),
    responses((status = 200, description = "The job, cancelled", body = Job), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn cancel(State(api): State<Api>, Path(id): Path<Uuid>) -> Result<Json<Job>, Problem> {
    let id = JobId(id);
    let cancelled = api.learner.cancel(id, Timestamp::now()).await;
    let cancelled = cancelled.map_err(|error| match error {
        CancelError::Final(_) => Problem::new(StatusCode::CONFLICT, "job_ended", error.to_string()),
        CancelError::Store(error) => error.into(),
    })?;
    cancelled.map(Json).ok_or_else(|| unknown(id))
}

/// Somebody who follows a job, and up to which event.
struct Follower {
    api: Api,
    job: JobId,
    model: ModelName,
    seen: u64,
    /// Held for as long as the stream lives.
    _place: Place,
}

impl Follower {
    /// The next events of the job, waiting for them where there are none yet; `None` after the last.
    async fn next(mut self) -> Option<(Vec<Result<Event, Infallible>>, Self)> {
        loop {
            match self.unseen().await {
                Ok((_, events)) if !events.is_empty() => {
                    self.seen = events.last().map_or(self.seen, |event| event.sequence);
                    let is_success = |event: &JobEvent| event.data["state"] == JobState::Succeeded.as_str();
                    if events.iter().any(is_success) {
                        let_serve(&self.api, &self.model).await;
                    }
                    return Some((events.into_iter().map(|event| Ok(shown(event))).collect(), self));
                }
                Ok((true, _)) => return None,
                Ok((false, _)) => tokio::time::sleep(WATCH_INTERVAL).await,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "an event stream ended early"
                    );
                    return None;
                }
            }
        }
    }

    /// Whether the job has ended, and what is new. The state is read before the events: what a final state wrote is
    /// then among them.
    async fn unseen(&self) -> Result<(bool, Vec<JobEvent>), StoreError> {
        let store = &self.api.store;
        let ended = store.job(self.job).await?.is_none_or(|job| job.state.is_final());
        Ok((ended, store.job_events(self.job, self.seen, PAGE).await?))
    }
}

fn shown(event: JobEvent) -> Event {
    Event::default()
        .id(event.sequence.to_string())
        .event(event.name)
        .data(event.data.to_string())
}

fn unknown(id: JobId) -> Problem {
    Problem::unknown("unknown_job", format!("there is no job {id}"))
}

async fn existing(api: &Api, id: JobId) -> Result<Job, Problem> {
    let job = api.store.job(id).await?;
    let job = job.ok_or_else(|| unknown(id))?;
    if job.state == JobState::Succeeded {
        let_serve(api, &job.model).await;
    }
    Ok(job)
}

/// Whoever is told that a job has succeeded may ask at once for what it learned, also on another server than the one
/// that ran it, and between the commit and the publication there.
async fn let_serve(api: &Api, model: &ModelName) {
    if let Err(error) = api.registry.follow(model).await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the new version does not serve yet"
        );
    }
}

/// The job once it has ended, or as it is after `seconds`. There is always a job to show: when the store fails to say
/// more, the one that was seen last.
pub(super) async fn wait_for_end(api: &Api, mut job: Job, seconds: u64) -> Job {
    let until = Instant::now() + Duration::from_secs(seconds);
    while !job.state.is_final() && Instant::now() < until && !api.closing.is_cancelled() {
        tokio::time::sleep(WATCH_INTERVAL).await;
        match existing(api, job.id).await {
            Ok(seen) => job = seen,
            Err(problem) => tracing::warn!(detail = problem.detail, "a wait cannot see its job"),
        }
    }
    job
}
