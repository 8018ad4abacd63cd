//! Reading bodies, and why that failed.

use std::error::Error;

use axum::body::Body;
use axum::extract::{FromRequest as _, Request};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;

use super::form::HeadTooLong;
use super::patience::Stalled;
use super::problem::Problem;

/// The forms of body that a request may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyForm {
    /// One file and nothing else.
    Raw,
    /// `multipart/form-data`.
    Multipart,
    /// `application/json`.
    Json,
}

impl BodyForm {
    /// The form that the content type announces; `None` for one that is not accepted.
    ///
    /// Raw bodies are told apart by their content, so a missing type, `application/octet-stream` and
    /// `application/x-www-form-urlencoded` (what curl sends for `--data-binary`) are taken as raw.
    pub(super) fn of(headers: &HeaderMap, is_raw_type: impl Fn(&str) -> bool) -> Option<Self> {
        let Some(value) = headers.get(header::CONTENT_TYPE) else {
            return Some(Self::Raw);
        };
        let value = value.to_str().ok()?.to_ascii_lowercase();
        match value.split(';').next().unwrap_or_default().trim() {
            "multipart/form-data" => Some(Self::Multipart),
            "application/json" => Some(Self::Json),
            "" | "application/octet-stream" | "application/x-www-form-urlencoded" => Some(Self::Raw),
            other => is_raw_type(other).then_some(Self::Raw),
        }
    }
}

/// The whole body, within the limit of its route.
pub(super) async fn bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|rejection| {
        let status = rejection.status();
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            too_large()
        } else {
            failure(&rejection)
        }
    })
}

/// The body, which fails once it is larger than `bytes`.
pub(super) fn limited(request: Request, bytes: usize) -> Body {
    Body::new(http_body_util::Limited::new(request.into_body(), bytes))
}

/// Why a body could not be read to its end.
pub(super) fn failure(error: &(dyn Error + 'static)) -> Problem {
    known_failure(error)
        .unwrap_or_else(|| Problem::new(StatusCode::BAD_REQUEST, "broken_body", "the body ended early"))
}

/// Why a body could not be read, where it was this server that gave up on it: the first such reason among the causes.
pub(super) fn known_failure(error: &(dyn Error + 'static)) -> Option<Problem> {
    let mut source = Some(error);
    while let Some(cause) = source {
        if cause.is::<http_body_util::LengthLimitError>() {
            return Some(too_large());
        }
        if let Some(stalled) = cause.downcast_ref::<Stalled>() {
            let detail = stalled.to_string();
            return Some(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "upload_stalled",
                detail,
            ));
        }
        if cause.is::<HeadTooLong>() {
            let detail = cause.to_string();
            return Some(Problem::new(StatusCode::BAD_REQUEST, "invalid_multipart", detail));
        }
        source = cause.source();
    }
    None
}

/// 413 for the whole body.
pub(super) fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        "the body is larger than allowed; /info says how much is",
    )
}
