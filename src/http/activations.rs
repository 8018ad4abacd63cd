//! Rollback, and the log of what was live when.

use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Json, Path, Query};
use super::problem::Problem;
use super::{Api, page};
use crate::domain::{Activation, ModelName, Reason, VersionNumber};
use crate::store::Activate;

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(rollback))
        .routes(routes!(log))
}

/// The version to serve.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RollbackRequest {
    /// Any version of the model, older or newer than the active one.
    version: VersionNumber,
    /// Why, for the log; at most 1,000 characters.
    reason: Option<Reason>,
}

/// What answers now.
#[derive(Debug, Serialize, ToSchema)]
struct RollbackResponse {
    model: ModelName,
    /// The version that answers from now on.
    version: VersionNumber,
    /// The one that answered before.
    previous: Option<VersionNumber>,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

/// How a page of the log is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LogQuery {
    /// Most entries in a page. 50 unless given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// Continue below this entry: the `next` of the page before.
    cursor: Option<i64>,
}

/// The activation log, newest first.
#[derive(Debug, Serialize, ToSchema)]
struct LogResponse {
    /// The entries.
    activations: Vec<LogEntry>,
    /// The cursor of the next page; null on the last.
    next: Option<i64>,
}

/// One change of the version that answers.
#[derive(Debug, Serialize, ToSchema)]
struct LogEntry {
    /// The version that answered from then on.
    version: VersionNumber,
    /// The one that answered before.
    previous: Option<VersionNumber>,
    /// Who did it: `job:<id>` or `http`.
    actor: String,
    /// Why, in the caller's words.
    reason: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

/// Roll back
///
/// Serves a version from now on, exactly as it was. What was learned after it stays stored and can be served again;
/// what is learned from now on continues from it.
#[utoipa::path(
    post, path = "/v1/models/{model}/rollback", tag = "history", operation_id = "rollback",
    params(
        ("model" = String, Path, description = "The model's name"),
        ("if-match" = Option<String>, Header, description = "The version that must be active, in quotes; 412 when another one is", example = "\"2\"")
    ),
    request_body = RollbackRequest,
    responses((status = 200, description = "The version answers", body = RollbackResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn rollback(
    State(api): State<Api>,
    Path(model): Path<ModelName>,
    headers: HeaderMap,
    Json(body): Json<RollbackRequest>,
) -> Result<Json<RollbackResponse>, Problem> {
    let wish = Activate {
        model,
        version: body.version,
        expected: expected(&headers)?,
        actor: "http".to_owned(),
        reason: body.reason.map(String::from),
        now: Timestamp::now(),
    };
    let Activation {
        model,
        version,
        previous,
        at,
        ..
    } = api.registry.activate(wish).await?;
    Ok(Json(RollbackResponse {
        model,
        version,
        previous,
        at,
    }))
}

/// The version in `If-Match`, if it names one. `*` holds for any.
fn expected(headers: &HeaderMap) -> Result<Option<VersionNumber>, Problem> {
    let malformed = |detail| Problem::new(StatusCode::BAD_REQUEST, "invalid_if_match", detail);
    let Some(tag) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    match tag.to_str().map(str::trim) {
        Ok("*") => Ok(None),
        Ok(tag) => {
            let number = tag
                .strip_prefix('"')
                .and_then(|tag| tag.strip_suffix('"')?.parse().ok());
            number
                .map(VersionNumber)
                .map(Some)
                .ok_or_else(|| malformed("If-Match must be a version's number in quotes"))
        }
        Err(_) => Err(malformed("If-Match must be text")),
    }
}

/// Read the activation log
#[utoipa::path(
    get, path = "/v1/models/{model}/activations", tag = "history", operation_id = "activations",
    params(("model" = String, Path, description = "The model's name"), LogQuery),
    responses((status = 200, description = "The log, newest first", body = LogResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn log(
    State(api): State<Api>,
    Path(model): Path<ModelName>,
    Query(query): Query<LogQuery>,
    OriginalUri(uri): OriginalUri,
) -> Result<impl IntoResponse, Problem> {
    let limit = page::limit(query.limit)?;
    api.model(&model).await?;
    let (found, next) = page::cut(
        api.store.activations(&model, query.cursor, limit + 1).await?,
        limit,
        |e| e.id,
    );
    let activations = found
        .into_iter()
        .map(|entry| {
            let Activation {
                version,
                previous,
                actor,
                reason,
                at,
                ..
            } = entry.activation;
            LogEntry {
                version,
                previous,
                actor,
                reason,
                at,
            }
        })
        .collect();
    Ok((
        AppendHeaders(page::link(&uri, next)),
        Json(LogResponse { activations, next }),
    ))
}
