//! Errors as RFC 9457 problem documents: one type, one place that turns every module's errors into it.
//!
//! A handler returns a [`Problem`]; [`finish`] is the outermost layer and writes the body, so that the framework's
//! own rejections (unknown route, wrong method, bad JSON, body too large, a panic) leave in the same form.

use std::borrow::Cow;

use axum::body::{Body, to_bytes};
use axum::extract::{OriginalUri, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::clip::ImageError;
use crate::domain::{ConfigError, NameError};
use crate::engine::EngineError;
use crate::learner::{SubmitError, UploadError};
use crate::registry::RegistryError;
use crate::store::{EnqueueError, StoreError};

/// Most characters of an explanation, which may repeat what a caller sent.
const LONGEST_DETAIL: usize = 500;

/// An error, as RFC 9457 describes it (`application/problem+json`).
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Problem {
    /// A URI that names the kind of problem: `urn:clipkeep:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status in words.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// A stable, machine-readable name of the problem.
    pub code: &'static str,
    /// What is wrong with this request, for a person.
    pub detail: String,
    /// The path of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The id under which the server logged the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The item at fault, where the problem is a part of an answer: its position, such as `images[2]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// The fields or items at fault, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ItemError>,
    #[serde(skip)]
    retry_after: Option<u32>,
}

/// One field or item at fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct ItemError {
    /// The field or item: a name, or a position such as `images[2]`.
    pub item: String,
    /// A stable, machine-readable name of the problem.
    pub code: &'static str,
    /// What is wrong with it.
    pub detail: String,
}

impl Problem {
    /// A problem with this status, code and explanation.
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:clipkeep:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code,
            detail: shortened_to(LONGEST_DETAIL, &detail.into()).into_owned(),
            instance: None,
            request_id: None,
            item: None,
            errors: Vec::new(),
            retry_after: None,
        }
    }

    /// 422: understood, but not acceptable.
    pub(super) fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// 404.
    pub(super) fn unknown(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 503 with `Retry-After`.
    pub(super) fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
        }
    }

    /// 500 whose cause is logged here and kept from the caller.
    pub(super) fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(cause, "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the server failed; the log says why",
        )
    }

    /// With the items at fault.
    #[must_use]
    pub(super) fn with_errors(self, errors: Vec<ItemError>) -> Self {
        Self { errors, ..self }
    }

    /// As the problem of one item of a larger answer.
    #[must_use]
    pub(super) fn of_item(self, item: String) -> Self {
        Self {
            item: Some(item),
            ..self
        }
    }

    /// As an entry of a larger problem.
    pub(super) fn into_item(self, item: String) -> ItemError {
        ItemError {
            item,
            code: self.code,
            detail: self.detail,
        }
    }
}

/// What a caller said, as far as an error repeats it.
pub(super) fn shortened(text: &str) -> Cow<'_, str> {
    shortened_to(200, text)
}

fn shortened_to(most: usize, text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The outermost layer: gives every error response its problem document.
pub(super) async fn finish(OriginalUri(uri): OriginalUri, request: Request, next: Next) -> Response {
    let request_id = request
        .extensions()
        .get::<tower_http::request_id::RequestId>()
        .and_then(|id| id.header_value().to_str().ok())
        .map(str::to_owned);
    let mut response = next.run(request).await;
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        None => from_framework(&mut response).await,
    };
    let problem = Problem {
        instance: Some(uri.path().to_owned()),
        request_id,
        ..problem
    };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    if let Some(seconds) = problem.retry_after {
        parts
            .headers
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    // A struct of strings and numbers always serialises.
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    Response::from_parts(parts, Body::from(body))
}

/// A panic in a handler: logged here, opaque to the caller.
#[expect(clippy::needless_pass_by_value, reason = "the signature that the layer wants")]
pub(super) fn from_panic(panic: Box<dyn std::any::Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(message, "a handler panicked");
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "the server failed; the log says why",
    )
    .into_response()
}

/// What axum or tower rejected, in our words: its status, and its short text as the detail.
async fn from_framework(response: &mut Response) -> Problem {
    const LONGEST_DETAIL: usize = 4096;
    let status = response.status();
    if status.is_server_error() {
        tracing::error!(status = status.as_u16(), "the framework failed");
    }
    let body = std::mem::take(response.body_mut());
    let text = to_bytes(body, LONGEST_DETAIL).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let (code, otherwise) = match status {
        StatusCode::BAD_REQUEST => ("bad_request", "the request is malformed"),
        StatusCode::NOT_FOUND => ("not_found", "there is nothing at this path"),
        StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", "this path does not take this method"),
        StatusCode::PAYLOAD_TOO_LARGE => ("body_too_large", "the body is larger than allowed"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            ("unsupported_media_type", "this content type is not accepted here")
        }
        StatusCode::UNPROCESSABLE_ENTITY => ("unprocessable", "the body does not have the expected form"),
        _ if status.is_client_error() => ("bad_request", "the request was refused"),
        _ => ("internal", "the server failed; the log says why"),
    };
    // What a failing server says about itself is for the log.
    let detail = if text.is_empty() || status.is_server_error() {
        otherwise.to_owned()
    } else {
        text
    };
    Problem::new(status, code, detail)
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the store is unavailable"
                );
                Self::unavailable("store_unavailable", "the database does not answer")
            }
            error => Self::internal(&error),
        }
    }
}

impl From<NameError> for Problem {
    fn from(error: NameError) -> Self {
        Self::invalid("invalid_name", error.to_string())
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        let item = ItemError {
            item: error.field.to_owned(),
            code: "out_of_range",
            detail: format!("must be {}", error.expected),
        };
        Self::invalid("invalid_configuration", error.to_string()).with_errors(vec![item])
    }
}

impl From<ImageError> for Problem {
    fn from(error: ImageError) -> Self {
        match &error {
            ImageError::TooManyPixels { .. } => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_many_pixels",
                error.to_string(),
            ),
            // A header that claims more pixels than can be counted is refused for the memory that they would take.
            ImageError::Undecodable(image::ImageError::Limits(_)) => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_many_pixels",
                "decoding the image would take more memory than its pixels may",
            ),
            ImageError::Unsupported => Self::invalid("unsupported_image", error.to_string()),
            _ => Self::invalid("undecodable_image", error.to_string()),
        }
    }
}

impl From<EngineError> for Problem {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Image(error) => error.into(),
            EngineError::Overloaded => {
                crate::metrics::request_shed();
                Self::unavailable("overloaded", "too many images wait already; try again later")
            }
            EngineError::TextTooLong { .. } => Self::invalid("text_too_long", error.to_string()),
            EngineError::Template { .. } => Self::invalid("invalid_template", error.to_string()),
            EngineError::Stopped => Self::unavailable("stopping", "the server is shutting down"),
            EngineError::NotFinite | EngineError::Backbone(_) => Self::internal(&error),
        }
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::UnknownModel(_) => Self::unknown("unknown_model", error.to_string()),
            RegistryError::UnknownVersion { .. } => Self::unknown("unknown_version", error.to_string()),
            RegistryError::OtherBackbone { .. } => {
                Self::new(StatusCode::CONFLICT, "other_backbone", error.to_string())
            }
            RegistryError::ActiveMoved { .. } => {
                Self::new(StatusCode::PRECONDITION_FAILED, "active_moved", error.to_string())
            }
            RegistryError::Store(error) => error.into(),
            RegistryError::Snapshot { .. } => Self::internal(&error),
        }
    }
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        let detail = error.to_string();
        let too_large = |code| Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, detail.clone());
        match error {
            UploadError::Damaged(_) => Self::invalid("damaged_archive", detail),
            UploadError::Layout(_) => Self::invalid("archive_layout", detail),
            UploadError::TooManyExamples(_) => too_large("too_many_examples"),
            UploadError::TooManyClasses(_) => too_large("too_many_classes"),
            UploadError::TooManyArchives(_) => too_large("too_many_archives"),
            UploadError::HeadersTooLarge(_) => too_large("archive_headers_too_large"),
            UploadError::ImageTooLarge { .. } => too_large("image_too_large"),
            UploadError::TooLarge(_) => too_large("upload_too_large"),
            UploadError::EmptyClass(_) | UploadError::NothingToLearn(_) | UploadError::Empty => {
                Self::invalid("class_without_examples", detail)
            }
            UploadError::DescribedTwice(_) => Self::invalid("duplicate_label", detail),
            UploadError::Io(_) => Self::internal(&error),
        }
    }
}

impl From<EnqueueError> for Problem {
    fn from(error: EnqueueError) -> Self {
        let detail = error.to_string();
        let conflict = |code| Self::new(StatusCode::CONFLICT, code, detail.clone());
        match error {
            EnqueueError::UnknownModel(_) => Self::unknown("unknown_model", detail),
            EnqueueError::UnknownTask(_) => Self::unknown("unknown_task", detail),
            EnqueueError::UnknownClass(_) => Self::unknown("unknown_class", detail),
            EnqueueError::OnlyTask(_) => conflict("only_task"),
            EnqueueError::LabelTwice(_) => Self::invalid("duplicate_label", detail),
            EnqueueError::OtherBackbone(_) => conflict("other_backbone"),
            EnqueueError::TaskExists(_) => conflict("task_exists"),
            EnqueueError::LabelExists(_) => conflict("label_exists"),
            EnqueueError::TaskInFlight(_) => conflict("task_in_flight"),
            EnqueueError::LabelInFlight(_) => conflict("label_in_flight"),
            EnqueueError::Store(error) => error.into(),
        }
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        let detail = error.to_string();
        match error {
            SubmitError::Upload(error) => error.into(),
            SubmitError::Enqueue(error) => error.into(),
            SubmitError::Store(error) => error.into(),
            SubmitError::TooManyToFit { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_examples", detail)
            }
            SubmitError::Images(images) => {
                let item = |(name, error): (String, ImageError)| Self::from(error).into_item(name);
                let errors = images.into_iter().map(item).collect();
                Self::invalid("unusable_images", detail).with_errors(errors)
            }
        }
    }
}
