//! `/v1/models/{model}/versions/{number}/weights` and `POST …/versions`: versions as files, out and in.

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use jiff::Timestamp;
use serde::Deserialize;
use tokio_util::io::ReaderStream;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admission::Place;
use super::body::{self, BodyForm};
use super::extract::{Json, Path, Query};
use super::problem::Problem;
use super::versions::VersionResponse;
use super::{Api, upload, versions};
use crate::domain::{ModelName, TaskName, VersionNumber};
use crate::learner::{ExportError, Exported, ImportError, NewVersion, RecallError};
use crate::registry::RegistryError;
use crate::store::{Arrival, ImportError as Refused};

/// The task that holds the classes of an imported version, unless the query names it.
const TASK: &str = "imported";

/// Bytes of a file that are read at a time.
const PIECE: usize = 1 << 16;

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(export))
        .routes(routes!(import))
}

/// How a version is taken in.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ImportQuery {
    /// The task that is to hold its classes. `imported` unless given.
    task: Option<String>,
    /// Whether it answers from now on. It does unless told otherwise.
    activate: Option<bool>,
}

/// Export a version
///
/// One safetensors file with the snapshot's tensors, the statistics that later tasks are learned and unlearned with
/// (`statistics/…`; where the configuration keeps `all`, the features of all examples among them) and the headers of both
/// as metadata. The same version always gives the same file; the `ETag` is
/// its snapshot's digest.
#[utoipa::path(
    get, path = "/v1/models/{model}/versions/{number}/weights", tag = "history", operation_id = "export_version",
    params(
        ("model" = String, Path, description = "The model's name"), ("number" = u32, Path, description = "The version's number"),
        ("if-none-match" = Option<String>, Header, description = "Digests in quotes, of versions that are at hand; 304 when this is one of them", example = "\"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"")
    ),
    responses(
        (status = 200, description = "The version", body = super::openapi::BinaryFile, content_type = "application/octet-stream",
            headers(("etag" = String, description = "The snapshot's digest, in quotes"))),
        (status = 304, description = "The version is at hand"),
        (status = "default", response = super::openapi::ProblemResponse)
    )
)]
async fn export(
    State(api): State<Api>,
    Path((model, number)): Path<(ModelName, VersionNumber)>,
    Extension(place): Extension<Place>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    api.model(&model).await?;
    let unknown = || RegistryError::UnknownVersion {
        model: model.clone(),
        version: number,
    };
    let version = api.store.version(&model, number).await?.ok_or_else(unknown)?;
    let tag = format!("\"{}\"", version.digest);
    if is_at_hand(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let spool = upload::temporary(&api.spool).await?.into_std().await;
    let exported = api.learner.export(&model, number, spool).await?;
    let exported = exported.ok_or_else(unknown)?;
    let headers = [
        (header::ETAG, tag),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, exported.length.to_string()),
        (
            header::CONTENT_DISPOSITION,
            // A model's name needs no quoting.
            format!("attachment; filename=\"{model}-{number}.safetensors\""),
        ),
    ];
    Ok((headers, sent(exported, place)).into_response())
}

/// The file as a body that keeps its place until it is sent: it is on the disk for as long.
fn sent(exported: Exported, place: Place) -> Body {
    let file = tokio::fs::File::from_std(exported.file);
    let pieces = ReaderStream::with_capacity(file, PIECE).map(move |piece| {
        let _held = &place;
        piece
    });
    Body::from_stream(pieces)
}

/// Whether `If-None-Match` names the tag (RFC 9110, section 13.1.2: a weak tag is as good).
fn is_at_hand(headers: &HeaderMap, tag: &str) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.trim_start_matches("W/") == tag)
}

/// Import a version
///
/// Takes in the file of an exported version: the model answers with it at once, and what is learned next builds on it. The
/// version must have been learned on the loaded backbone by the model's strategy. It has no parent, and all its classes are
/// one task here. They keep their ids unless the server knows one of them, so the digest may be another one; the
/// report has the original.
#[utoipa::path(
    post, path = "/v1/models/{model}/versions", tag = "history", operation_id = "import_version",
    params(("model" = String, Path, description = "The model's name"), ImportQuery),
    request_body(content((super::openapi::BinaryFile = "application/octet-stream"))),
    responses((status = 201, description = "Taken in; the Location is the version", body = VersionResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn import(
    State(api): State<Api>,
    Path(model): Path<ModelName>,
    Query(query): Query<ImportQuery>,
    Extension(place): Extension<Place>,
    request: Request,
) -> Result<Response, Problem> {
    // What can be refused without reading the body is refused first.
    let task: TaskName = query.task.as_deref().unwrap_or(TASK).parse()?;
    api.model(&model).await?;
    if BodyForm::of(request.headers(), |_| false) != Some(BodyForm::Raw) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send the exported file as application/octet-stream",
        ));
    }
    let body = body::limited(request, api.limits.weights_bytes);
    let new = NewVersion {
        model: model.clone(),
        task,
        arrival: match query.activate {
            None | Some(true) => Arrival::Active,
            Some(false) => Arrival::Kept,
        },
        file: upload::spool(&api, body).await?,
        most_classes: api.limits.upload.examples,
    };
    let version = api.learner.import(new, Timestamp::now()).await?;
    drop(place);
    let location = format!("/v1/models/{model}/versions/{}", version.number);
    let described = versions::described(&api, &model, version.number).await?;
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(described),
    )
        .into_response())
}

impl From<ExportError> for Problem {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Store(error) | ExportError::Recall(RecallError::Store(error)) => error.into(),
            error => Self::internal(&error),
        }
    }
}

impl From<ImportError> for Problem {
    fn from(error: ImportError) -> Self {
        let detail = causes(&error);
        let conflict = |code| Self::new(StatusCode::CONFLICT, code, detail.clone());
        match error {
            ImportError::Store(Refused::UnknownModel(_)) => Self::unknown("unknown_model", detail),
            ImportError::OtherBackbone(_) | ImportError::Store(Refused::OtherBackbone(_)) => {
                conflict("other_backbone")
            }
            ImportError::Unreadable(_) | ImportError::Unsound(_) => Self::invalid("invalid_weights", detail),
            ImportError::LabelTwice(_) => Self::invalid("duplicate_label", detail),
            ImportError::OtherStrategy(_) => Self::invalid("strategy_mismatch", detail),
            ImportError::StatisticsMissing(_) => Self::invalid("statistics_missing", detail),
            ImportError::TooManyClasses(_) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_classes", detail)
            }
            ImportError::Store(Refused::Store(error)) => error.into(),
            ImportError::Io(_) | ImportError::Encode(_) | ImportError::Store(Refused::ClassTaken(_)) => {
                Self::internal(&error)
            }
        }
    }
}

/// An error and what caused it, in one line.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
