//! `/v1/models/{model}/versions`: the immutable snapshots.

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
use crate::blocking;
use crate::domain::{
    AccuracyMatrix, Class, Digest, JobId, JobKind, ModelConfig, ModelName, Strategy, TaskName, Version,
    VersionNumber,
};
use crate::registry::RegistryError;
use crate::store::Histories;

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(one))
}

/// How a page of versions is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct VersionsQuery {
    /// Most entries in a page. 50 unless given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// Continue below this version: the `next` of the page before.
    cursor: Option<VersionNumber>,
}

/// A model's versions, newest first.
#[derive(Debug, Serialize, ToSchema)]
struct VersionsResponse {
    /// The version that answers; null until the first task is learned.
    active: Option<VersionNumber>,
    /// The versions.
    versions: Vec<VersionSummary>,
    /// The cursor of the next page; null on the last.
    next: Option<VersionNumber>,
}

/// A version's entry in its model's history.
#[derive(Debug, Serialize, ToSchema)]
struct VersionSummary {
    number: VersionNumber,
    /// The version it was made on top of; null for the first and for imported ones.
    parent: Option<VersionNumber>,
    /// How it came about.
    kind: JobKind,
    /// The task it learned, unlearned or unlearned a class of, or that holds the classes it was imported with.
    task: TaskName,
    /// The job that made it.
    job: JobId,
    /// Of the snapshot.
    digest: Digest,
    /// Size of the snapshot.
    bytes: u64,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    strategy: Strategy,
    metrics: VersionMetrics,
}

/// What a version reached when it was published.
#[derive(Debug, Serialize, ToSchema)]
struct VersionMetrics {
    /// On the held-out images of all its tasks; null where nothing was held out.
    accuracy: Option<Accuracy>,
    /// Mean over versions up to it.
    average: Option<f64>,
    /// Of its older tasks.
    forgetting: Option<f64>,
}

/// A version in full.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionResponse {
    #[serde(flatten)]
    summary: VersionSummary,
    /// Whether it answers now.
    active: bool,
    /// The configuration it was learned with.
    config: ModelConfig,
    /// What its job reported.
    #[schema(value_type = Object)]
    report: serde_json::Value,
    /// Its classes in column order.
    classes: Vec<Class>,
}

/// List the versions
#[utoipa::path(
    get, path = "/v1/models/{model}/versions", tag = "history", operation_id = "versions",
    params(("model" = String, Path, description = "The model's name"), VersionsQuery),
    responses((status = 200, description = "The versions, newest first", body = VersionsResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn list(
    State(api): State<Api>,
    Path(model): Path<ModelName>,
    Query(query): Query<VersionsQuery>,
    OriginalUri(uri): OriginalUri,
) -> Result<impl IntoResponse, Problem> {
    let limit = page::limit(query.limit)?;
    let active = api.model(&model).await?.active;
    let (found, next) = page::cut(
        api.store.versions(&model, query.cursor, limit + 1).await?,
        limit,
        |v| v.number,
    );
    let histories = match found.first() {
        Some(newest) => api.store.histories(&model, newest.number).await?,
        None => Histories::default(),
    };
    // Of many tasks it takes a while.
    let versions = blocking::run(move || {
        let summary = |version: Version| {
            let matrix = histories.of(version.number).matrix;
            VersionSummary::of(version, &matrix)
        };
        found.into_iter().map(summary).collect()
    });
    let versions = versions.await;
    let link = page::link(&uri, next);
    Ok((
        AppendHeaders(link),
        Json(VersionsResponse {
            active,
            versions,
            next,
        }),
    ))
}

/// Describe a version
#[utoipa::path(
    get, path = "/v1/models/{model}/versions/{number}", tag = "history", operation_id = "version",
    params(("model" = String, Path, description = "The model's name"), ("number" = u32, Path, description = "The version's number")),
    responses((status = 200, description = "The version", body = VersionResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn one(
    State(api): State<Api>,
    Path((model, number)): Path<(ModelName, VersionNumber)>,
) -> Result<Json<VersionResponse>, Problem> {
    described(&api, &model, number).await.map(Json)
}

/// A version in full.
pub(super) async fn described(
    api: &Api,
    model: &ModelName,
    number: VersionNumber,
) -> Result<VersionResponse, Problem> {
    let active = api.model(model).await?.active;
    let version = api.store.version(model, number).await?;
    let version = version
        .ok_or_else(|| RegistryError::UnknownVersion {
            model: model.clone(),
            version: number,
        })
        .map_err(Problem::from)?;
    let history = api.store.accuracy(model, number).await?;
    let classes = api
        .store
        .tasks(model, number)
        .await?
        .into_iter()
        .flat_map(|task| task.classes)
        .collect();
    Ok(VersionResponse {
        active: active == Some(number),
        config: version.config.clone(),
        report: version.report.clone(),
        classes,
        summary: VersionSummary::of(version, &history.matrix),
    })
}

impl VersionSummary {
    fn of(version: Version, matrix: &AccuracyMatrix) -> Self {
        let summary = matrix.summary();
        Self {
            number: version.number,
            parent: version.parent,
            kind: version.kind,
            task: version.task,
            job: version.job,
            digest: version.digest,
            bytes: version.bytes,
            created_at: version.created_at,
            strategy: version.config.strategy,
            metrics: VersionMetrics {
                accuracy: matrix.overall().last().and_then(Accuracy::of),
                average: summary.map(|s| s.average),
                forgetting: summary.and_then(|s| s.forgetting),
            },
        }
    }
}
