//! `POST /v1/models/{model}/tasks`: teach a task.

use axum::Extension;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admission::{Admission, Place};
use super::extract::{Json, Path, Query};
use super::problem::Problem;
use super::{Api, jobs, prefer, upload};
use crate::domain::{Job, JobId, JobState, ModelName, TaskName};
use crate::learner::NewTask;

pub(super) fn router(upload_bytes: usize) -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(teach))
        .layer(DefaultBodyLimit::max(upload_bytes))
}

/// How a task is taught.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TeachQuery {
    /// The task's name; a multipart body may say it in a `name` field instead.
    name: Option<String>,
}

/// A task was accepted, to be learned or unlearned.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobAccepted {
    /// The job that does it.
    job: JobId,
    /// The task's name.
    task: TaskName,
    /// Where the job stands.
    state: JobState,
}

/// Teach a task
///
/// Examples come as multipart parts named after their class, as archives of class folders in parts named `archive`,
/// `train` or `test`, or as one zip or tar archive. Folders `train/` and `test/` above the classes choose the split;
/// without one, a share of each class is held out. The optional parts `name` and `classes` (a JSON list of
/// `{"label", "prompt"}`) say the task's name and which words describe a class. With `Prefer: wait=N` the answer
/// waits up to N seconds for the job to end.
#[utoipa::path(
    post, path = "/v1/models/{model}/tasks", tag = "learn", operation_id = "teach",
    params(
        ("model" = String, Path, description = "The model's name"), TeachQuery,
        ("prefer" = Option<String>, Header, description = "`wait=N`: answer once the job has ended, or after N seconds, at most 600", example = "wait=30")
    ),
    request_body(content((super::openapi::BinaryFile = "application/zip"), (super::openapi::BinaryFile = "application/x-tar"), (super::openapi::TaskParts = "multipart/form-data"))),
    responses((status = 202, description = "Accepted; the Location is the job", body = JobAccepted), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn teach(
    State(api): State<Api>,
    Path(model): Path<ModelName>,
    Query(query): Query<TeachQuery>,
    Extension(place): Extension<Place>,
    Extension(admission): Extension<Admission>,
    request: Request,
) -> Result<Response, Problem> {
    let wait = prefer::wait(request.headers());
    // What can be refused without reading the body is refused first.
    let name = query.name.as_deref().map(str::parse::<TaskName>).transpose()?;
    api.model(&model).await?;
    let received = upload::receive(&api, request).await?;
    let name = name.or(received.name).ok_or_else(|| {
        Problem::invalid(
            "missing_name",
            "name the task: ?name=… or a multipart field `name`",
        )
    })?;
    let task = NewTask {
        model,
        name,
        upload: received.upload,
    };
    let mut job = api.learner.submit(task, Timestamp::now()).await?;
    // Whoever waits for the job must not keep others from uploading.
    drop(place);
    if let (Some(seconds), Some(_watch)) = (wait, admission.watch()) {
        job = jobs::wait_for_end(&api, job, seconds).await;
    }
    Ok(accepted(job))
}

/// 202 and where to ask for the job.
pub(super) fn accepted(job: Job) -> Response {
    let location = format!("/v1/jobs/{}", job.id);
    let headers = [
        (header::LOCATION, location),
        (header::RETRY_AFTER, "1".to_owned()),
    ];
    let body = JobAccepted {
        job: job.id,
        task: job.task,
        state: job.state,
    };
    (StatusCode::ACCEPTED, headers, Json(body)).into_response()
}
