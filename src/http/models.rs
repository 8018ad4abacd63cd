//! `/v1/models`: named classifiers over the server's one backbone.

use axum::extract::{OriginalUri, State};
use axum::http::{StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Json, Path, Query};
use super::problem::Problem;
use super::{Api, page};
use crate::domain::{Digest, Label, Model, ModelConfig, ModelName, VersionNumber};
use crate::store::CreateModelError;

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(one))
}

/// A model to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateModel {
    /// Letters, digits, `-`, `_` and `.`; at most 64.
    name: ModelName,
    /// How it learns; what is left out is as in the model `default`.
    #[serde(default)]
    config: ModelConfig,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
struct ModelSummary {
    name: ModelName,
    /// The version that answers; null until the first task is learned.
    active: Option<VersionNumber>,
    /// Digest of the backbone that it learns on; null until its first task is accepted.
    backbone: Option<Digest>,
    /// How it learns.
    config: ModelConfig,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// A model in full.
#[derive(Debug, Serialize, ToSchema)]
struct ModelResponse {
    #[serde(flatten)]
    summary: ModelSummary,
    /// The classes that the active version knows, in column order.
    classes: Vec<Label>,
}

/// How a page of models is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ModelsQuery {
    /// Most entries in a page. 50 unless given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// Continue after this model: the `next` of the page before.
    cursor: Option<ModelName>,
}

/// The models, by name.
#[derive(Debug, Serialize, ToSchema)]
struct ModelsResponse {
    /// The models.
    models: Vec<ModelSummary>,
    /// The cursor of the next page; null on the last.
    next: Option<ModelName>,
}

impl From<Model> for ModelSummary {
    fn from(model: Model) -> Self {
        let Model {
            name,
            config,
            backbone,
            active,
            created_at,
        } = model;
        Self {
            name,
            active,
            backbone,
            config,
            created_at,
        }
    }
}

/// Create a model
#[utoipa::path(
    post, path = "/v1/models", tag = "models", operation_id = "create_model",
    request_body = CreateModel,
    responses((status = 201, description = "Created", body = ModelSummary), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn create(State(api): State<Api>, Json(body): Json<CreateModel>) -> Result<impl IntoResponse, Problem> {
    body.config.validate()?;
    for template in &body.config.templates {
        api.engine.check_template(template)?;
    }
    let model = api
        .registry
        .create(&body.name, &body.config, Timestamp::now())
        .await
        .map_err(|error| {
            let detail = error.to_string();
            match error {
                CreateModelError::Exists(_) => Problem::new(StatusCode::CONFLICT, "model_exists", detail),
                CreateModelError::Store(error) => error.into(),
            }
        })?;
    let location = format!("/v1/models/{}", model.name);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(ModelSummary::from(model)),
    ))
}

/// List the models
#[utoipa::path(
    get, path = "/v1/models", tag = "models", operation_id = "models",
    params(ModelsQuery),
    responses((status = 200, description = "The models", body = ModelsResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn list(
    State(api): State<Api>,
    Query(query): Query<ModelsQuery>,
    OriginalUri(uri): OriginalUri,
) -> Result<impl IntoResponse, Problem> {
    let limit = page::limit(query.limit)?;
    let found = api.store.models(query.cursor.as_ref(), limit + 1).await?;
    let (models, next) = page::cut(found, limit, |model| model.name.clone());
    let link = page::link(&uri, next.as_ref());
    let models = models.into_iter().map(ModelSummary::from).collect();
    Ok((AppendHeaders(link), Json(ModelsResponse { models, next })))
}

/// Describe a model
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "models", operation_id = "model",
    params(("model" = String, Path, description = "The model's name")),
    responses((status = 200, description = "The model", body = ModelResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn one(State(api): State<Api>, Path(model): Path<ModelName>) -> Result<Json<ModelResponse>, Problem> {
    let model = api.model(&model).await?;
    let classes = match model.active {
        Some(active) => {
            let tasks = api.store.tasks(&model.name, active).await?;
            tasks
                .into_iter()
                .flat_map(|task| task.classes)
                .map(|class| class.label)
                .collect()
        }
        None => Vec::new(),
    };
    Ok(Json(ModelResponse {
        summary: model.into(),
        classes,
    }))
}
