//! `DELETE /v1/models/{model}/tasks/{task}` and `…/classes/{class}`: unlearn a task, or one class.

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
use super::{Api, jobs, prefer, tasks};
use crate::domain::{Job, Label, ModelName, TaskName};

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(unlearn))
        .routes(routes!(unlearn_class))
}

/// Unlearn a task
///
/// A job makes a version that does without the task's classes, on top of the active one. Older versions know the task as
/// ever and can be served again; its name and labels are free to be taught. Strategies in closed form whose configuration
/// keeps `all` are then what they would be had the task never been taught; a trained adapter keeps its weights, and `exact`
/// in the job's report says whether anything of the task stays. The only task of a model cannot be unlearned. With `Prefer: wait=N` the answer waits up to N
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
    let job = api.learner.unlearn(model, task, None, Timestamp::now()).await?;
    Ok(accepted(&api, job, place, &headers).await)
}

/// Unlearn a class
///
/// A job makes a version that does without the class, on top of the active one; the other classes of its task stay. Older
/// versions know the class as ever, and its label is free to be taught. Strategies in closed form whose configuration keeps
/// `all` are then what they would be had the class never been taught; otherwise something of it stays in what is trained or
/// summed up, and `exact` in the job's report says so. The last class of a task takes the task along; the only class of a
/// model cannot be unlearned. With `Prefer: wait=N` the answer waits up to N seconds for the job to end.
#[utoipa::path(
    delete, path = "/v1/models/{model}/classes/{class}", tag = "learn", operation_id = "unlearn_class",
    params(
        ("model" = String, Path, description = "The model's name"), ("class" = String, Path, description = "The class's label"),
        ("prefer" = Option<String>, Header, description = "`wait=N`: answer once the job has ended, or after N seconds, at most 600", example = "wait=30")
    ),
    responses((status = 202, description = "Accepted; the Location is the job", body = JobAccepted), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn unlearn_class(
    State(api): State<Api>,
    Path((model, class)): Path<(ModelName, Label)>,
    place: Option<Extension<Place>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let task = tasks::of_class(&api, &model, &class).await?;
    let job = api.learner.unlearn(model, task, Some(class), Timestamp::now());
    Ok(accepted(&api, job.await?, place, &headers).await)
}

/// The answer of a job, once it has ended where the caller likes to wait.
async fn accepted(api: &Api, mut job: Job, place: Option<Extension<Place>>, headers: &HeaderMap) -> Response {
    if let (Some(seconds), Some(_place)) = (prefer::wait(headers), place) {
        job = jobs::wait_for_end(api, job, seconds).await;
    }
    teach::accepted(job)
}
