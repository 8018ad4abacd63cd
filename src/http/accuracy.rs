//! `GET /v1/models/{model}/accuracy`: the task × version accuracy matrix and its summary.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::extract::{Json, Path, Query};
use super::problem::Problem;
use crate::domain::{ModelName, Tally, TaskName, VersionNumber};

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(matrix))
}

/// An accuracy with what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(super) struct Accuracy {
    /// Share of right answers.
    value: f64,
    /// Held-out images it was measured on.
    n: u32,
    /// Its 95 % Wilson interval.
    interval: [f64; 2],
}

impl Accuracy {
    /// Of a tally; `None` when nothing was held out.
    pub(super) fn of(tally: Tally) -> Option<Self> {
        Some(Self {
            value: tally.accuracy()?,
            n: tally.total,
            interval: tally.interval()?,
        })
    }
}

/// Which history is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AccuracyQuery {
    /// The history of the line that ends in this version, instead of the active one. After a rollback, that of a
    /// newer version still tells what was learned since.
    version: Option<VersionNumber>,
}

/// The accuracy of every version of a line on every task it knew, as fractions.
#[derive(Debug, Serialize, ToSchema)]
struct AccuracyResponse {
    /// The tasks that the last version knows, oldest first.
    tasks: Vec<TaskName>,
    /// The versions from the first to the last of the line. While none unlearned a task, version i learned task i.
    versions: Vec<VersionNumber>,
    /// `matrix[i][j]` is the accuracy of version i on task j's held-out images among all classes the version knew;
    /// null where it did not know the task or nothing was held out.
    matrix: Vec<Vec<Option<f64>>>,
    /// The same cells with their interval and the number of images.
    cells: Vec<Vec<Option<Accuracy>>>,
    /// Each version's accuracy over all those of its tasks that the last one knows.
    overall: Vec<Option<f64>>,
    /// What the bare backbone reaches on the same images among the same classes.
    zero_shot: Vec<Option<f64>>,
    /// Held-out images of each task.
    n: Vec<u32>,
    /// Mean of `overall`; null while nothing was held out.
    average: Option<f64>,
    /// The last of `overall`; null where that is.
    last: Option<f64>,
    /// Mean loss of the older tasks against their best. 0 without older tasks, null where nothing was held out of those.
    forgetting: Option<f64>,
    /// Mean change of the older tasks since they were learned. 0 and null likewise.
    backward_transfer: Option<f64>,
}

/// Read the accuracy matrix
///
/// Of the line of versions that ends in the active one, unless another is asked for.
#[utoipa::path(
    get, path = "/v1/models/{model}/accuracy", tag = "history", operation_id = "accuracy",
    params(("model" = String, Path, description = "The model's name"), AccuracyQuery),
    responses((status = 200, description = "The matrix", body = AccuracyResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn matrix(
    State(api): State<Api>,
    Path(model): Path<ModelName>,
    Query(query): Query<AccuracyQuery>,
) -> Result<Json<AccuracyResponse>, Problem> {
    let (tasks, history) = match api.line(&model, query.version).await? {
        Some(version) => (
            api.store.tasks(&model, version).await?,
            api.store.accuracy(&model, version).await?,
        ),
        None => Default::default(),
    };
    let rows = history.matrix.rows();
    let cells: Vec<Vec<Option<Accuracy>>> = rows
        .iter()
        .map(|row| {
            (0..tasks.len())
                .map(|j| row.get(j).copied().and_then(Accuracy::of))
                .collect()
        })
        .collect();
    let values =
        |row: &Vec<Option<Accuracy>>| row.iter().map(|cell| cell.as_ref().map(|a| a.value)).collect();
    let summary = history.matrix.summary();
    Ok(Json(AccuracyResponse {
        tasks: tasks.iter().map(|task| task.name.clone()).collect(),
        versions: history.versions.clone(),
        matrix: cells.iter().map(values).collect(),
        overall: history.matrix.overall().map(Tally::accuracy).collect(),
        zero_shot: history.zero_shot.overall().map(Tally::accuracy).collect(),
        n: rows
            .last()
            .map(|row| row.iter().map(|tally| tally.total).collect())
            .unwrap_or_default(),
        cells,
        average: summary.map(|s| s.average),
        last: summary.and_then(|s| s.last),
        forgetting: summary.and_then(|s| s.forgetting),
        backward_transfer: summary.and_then(|s| s.backward_transfer),
    }))
}
