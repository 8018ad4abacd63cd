//! `/v1/models/{model}/tasks`: read what was taught. How a task is taught stands in `teach`.

use axum::extract::{OriginalUri, State};
use axum::response::{AppendHeaders, IntoResponse};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::accuracy::Accuracy;
use super::extract::{Json, Path, Query};
use super::problem::Problem;
use super::{Api, page};
use crate::domain::{AccuracyMatrix, JobId, Label, ModelName, Task, TaskName, VersionNumber};

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(one))
}

/// Which tasks are asked for, and how a page of them.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TasksQuery {
    /// What this version knows, instead of the active one.
    version: Option<VersionNumber>,
    /// Most entries in a page. 50 unless given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// Continue after the task that this version learned: the `next` of the page before.
    cursor: Option<VersionNumber>,
}

/// The tasks that a version knows, oldest first.
#[derive(Debug, Serialize, ToSchema)]
struct TasksResponse {
    /// The tasks.
    tasks: Vec<TaskSummary>,
    /// The cursor of the next page; null on the last.
    next: Option<VersionNumber>,
}

/// What was taught, and how well it is known.
#[derive(Debug, Serialize, ToSchema)]
struct TaskSummary {
    name: TaskName,
    /// Its classes, in column order.
    classes: Vec<Label>,
    examples: ExampleCount,
    /// The version that learned it.
    version: VersionNumber,
    /// The job that learned it.
    job: JobId,
    /// When that version was published.
    #[schema(value_type = String, format = DateTime)]
    learned_at: Timestamp,
    accuracy: TaskAccuracy,
    /// The best accuracy it ever had, or had since a class of it was unlearned, less the one now; null where nothing was held
    /// out, 0 for the newest task.
    forgetting: Option<f64>,
}

/// How many examples a task was taught with, of classes that were unlearned since, too.
#[derive(Debug, Serialize, ToSchema)]
struct ExampleCount {
    /// Fitted on.
    train: u32,
    /// Held out.
    held_out: u32,
}

/// A task's accuracy among all classes, then and now; null where nothing was held out.
#[derive(Debug, Serialize, ToSchema)]
struct TaskAccuracy {
    /// By the version that learned it; null where a class of it was unlearned since.
    at_learning: Option<Accuracy>,
    /// By the active version, or the one asked for.
    now: Option<Accuracy>,
}

/// List the tasks
///
/// The tasks that the active version knows, or another one, oldest first.
#[utoipa::path(
    get, path = "/v1/models/{model}/tasks", tag = "history", operation_id = "tasks",
    params(("model" = String, Path, description = "The model's name"), TasksQuery),
    responses((status = 200, description = "The tasks", body = TasksResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn list(
    State(api): State<Api>,
    Path(model): Path<ModelName>,
    Query(query): Query<TasksQuery>,
    OriginalUri(uri): OriginalUri,
) -> Result<impl IntoResponse, Problem> {
    let limit = page::limit(query.limit)?;
    let known = summaries(&api, &model, query.version).await?;
    let is_after = |task: &TaskSummary| query.cursor.is_none_or(|seen| task.version > seen);
    let found = known
        .into_iter()
        .filter(is_after)
        .take(limit as usize + 1)
        .collect();
    let (tasks, next) = page::cut(found, limit, |task: &TaskSummary| task.version);
    Ok((
        AppendHeaders(page::link(&uri, next)),
        Json(TasksResponse { tasks, next }),
    ))
}

/// Describe a task
#[utoipa::path(
    get, path = "/v1/models/{model}/tasks/{task}", tag = "history", operation_id = "task",
    params(("model" = String, Path, description = "The model's name"), ("task" = String, Path, description = "The task's name")),
    responses((status = 200, description = "The task", body = TaskSummary), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn one(
    State(api): State<Api>,
    Path((model, task)): Path<(ModelName, TaskName)>,
) -> Result<Json<TaskSummary>, Problem> {
    let known = summaries(&api, &model, None)
        .await?
        .into_iter()
        .find(|known| known.name == task);
    known.map(Json).ok_or_else(|| {
        Problem::unknown(
            "unknown_task",
            format!("the active version of model {model} knows no task {task}"),
        )
    })
}

/// The task that brought a class which the active version knows.
pub(super) async fn of_class(api: &Api, model: &ModelName, class: &Label) -> Result<TaskName, Problem> {
    let tasks = match api.line(model, None).await? {
        Some(active) => api.store.tasks(model, active).await?,
        None => Vec::new(),
    };
    let brings = |task: &Task| task.classes.iter().any(|known| known.label == *class);
    tasks
        .into_iter()
        .find(brings)
        .map(|task| task.name)
        .ok_or_else(|| {
            Problem::unknown(
                "unknown_class",
                format!("the active version of model {model} knows no class {class}"),
            )
        })
}

async fn summaries(
    api: &Api,
    model: &ModelName,
    version: Option<VersionNumber>,
) -> Result<Vec<TaskSummary>, Problem> {
    let Some(version) = api.line(model, version).await? else {
        return Ok(Vec::new());
    };
    let tasks = api.store.tasks(model, version).await?;
    let history = api.store.accuracy(model, version).await?;
    let matrix = history.matrix;
    Ok(tasks
        .into_iter()
        .enumerate()
        .map(|(j, task)| TaskSummary::new(task, j, &matrix))
        .collect())
}

impl TaskSummary {
    fn new(task: Task, j: usize, matrix: &AccuracyMatrix) -> Self {
        let newest = matrix.rows().last().and_then(|row| row.get(j));
        let now = newest.copied().and_then(Accuracy::of);
        Self {
            name: task.name,
            classes: task.classes.into_iter().map(|class| class.label).collect(),
            examples: ExampleCount {
                train: task.train,
                held_out: task.held_out,
            },
            version: task.version,
            job: task.job,
            learned_at: task.learned_at,
            forgetting: if matrix.is_newest(j) {
                now.as_ref().map(|_| 0.0)
            } else {
                matrix.forgetting_of(j)
            },
            accuracy: TaskAccuracy {
                at_learning: matrix.at_learning(j).and_then(Accuracy::of),
                now,
            },
        }
    }
}
