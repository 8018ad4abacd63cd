//! `DELETE /v1/models/{model}/tasks/{task}`: unlearn a task.

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use jiff::Timestamp;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admission::Place;
use super::extract::Path;
use super::problem::Problem;
use super::teach::{self, JobAccepted};
use super::{Api, jobs, prefer};
use crate::domain::{ModelName, TaskName};

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(unlearn))
}

/// Unlearn a task
///
/// A job makes a version that does without the task's classes, on top of the active one. Older versions know the task as
/// ever and can be served again; its name and labels are free to be taught. What is in closed form is then what it would
/// be had the task never been taught; a trained adapter keeps its weights, and `exact` in the job's report says whether
/// there is one. The only task of a model cannot be unlearned. With `Prefer: wait=N` the answer waits up to N
/// seconds for the job to end.
#[utoipa::path(
    delete, path = "/v1/models/{model}/tasks/{task}", tag = "learn", operation_id = "unlearn",
    params(
        ("model" = String, Path, description = "The model's name"), ("task" = String, Path, description = "The task's name"),
        ("prefer" = Option<String>, Header, description = "`wait=N`: answer once the job has ended, or after N seconds, at most 600", example = "wait=30")
    ),
    responses((status = 202, description = "Accepted; the Location is the job", body = JobAccepted), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn unlearn(
    State(api): State<Api>,
    Path((model, task)): Path<(ModelName, TaskName)>,
    place: Option<Extension<Place>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut job = api.learner.unlearn(model, task, Timestamp::now()).await?;
    if let (Some(seconds), Some(_place)) = (prefer::wait(&headers), place) {
        job = jobs::wait_for_end(&api, job, seconds).await;
    }
    Ok(teach::accepted(job))
}
