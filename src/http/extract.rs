//! Extractors whose rejections are problems of their own: the framework's say the same in other words, and do not name
//! the field.

use std::error::Error;

use axum::extract::path::ErrorKind;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::body::{self, BodyForm};
use super::problem::{ItemError, Problem, shortened};
use crate::blocking;

/// A JSON body, coming or going.
pub(super) struct Json<T>(pub(super) T);

/// The query.
pub(super) struct Query<T>(pub(super) T);

/// The parameters of the path.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if BodyForm::of(request.headers(), |_| false) != Some(BodyForm::Json) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "send application/json",
            ));
        }
        parse_json(&body::bytes(request, state).await?).map(Self)
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(query_problem(&rejection)),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(path)) => Ok(Self(path)),
            Err(rejection) => {
                let names = RawPathParams::from_request_parts(parts, state).await;
                let names = names.iter().flatten().map(|(name, _)| name).collect::<Vec<_>>();
                Err(path_problem(&rejection, &names))
            }
        }
    }
}

/// Parses a JSON body: 400 when it is no JSON, 422 when it has another form than expected.
pub(super) fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let broken =
        |error: &serde_json::Error| Problem::new(StatusCode::BAD_REQUEST, "invalid_json", error.to_string());
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        match error.into_inner() {
            error if error.is_data() => {
                at_field(Problem::invalid("unprocessable", error.to_string()), &field)
            }
            error => broken(&error),
        }
    })?;
    reader.end().map_err(|error| broken(&error))?;
    Ok(value)
}

/// Bytes of a body that are parsed in no time.
const LITTLE: usize = 64 << 10;

/// Larger bodies that are parsed at a time; the others wait, and those whose callers leave are forgotten.
static PARSING: Semaphore = Semaphore::const_new(4);

/// Parses a JSON body that may hold images, and makes something of it: a large one on a thread where that holds up nobody.
pub(super) async fn parse_large_json<T, R>(
    body: Bytes,
    make: impl FnOnce(T) -> Result<R, Problem> + Send + 'static,
) -> Result<R, Problem>
where
    T: DeserializeOwned,
    R: Send + 'static,
{
    if body.len() <= LITTLE {
        return parse_json(&body).and_then(make);
    }
    let turn = PARSING.acquire().await.expect("nobody closes it");
    blocking::run(move || {
        let _turn = turn;
        parse_json(&body).and_then(make)
    })
    .await
}

fn query_problem(rejection: &QueryRejection) -> Problem {
    type Located = serde_path_to_error::Error<serde::de::value::Error>;
    let invalid = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "invalid_query", detail);
    let mut source: Option<&(dyn Error + 'static)> = Some(rejection);
    while let Some(cause) = source {
        if let Some(located) = cause.downcast_ref::<Located>() {
            return at_field(invalid(located.to_string()), &located.path().to_string());
        }
        source = cause.source();
    }
    invalid(rejection.body_text())
}

fn path_problem(rejection: &PathRejection, names: &[&str]) -> Problem {
    let invalid = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "invalid_path", detail);
    let PathRejection::FailedToDeserializePathParams(failed) = rejection else {
        return Problem::internal(rejection);
    };
    if failed.status().is_server_error() {
        return Problem::internal(rejection);
    }
    match failed.kind() {
        ErrorKind::ParseErrorAtKey {
            key, expected_type, ..
        } => at_field(invalid(format!("{key} is no {expected_type}")), key),
        ErrorKind::ParseErrorAtIndex {
            index, expected_type, ..
        } => {
            let name = names.get(*index).copied().unwrap_or_default();
            at_field(invalid(format!("{name} is no {expected_type}")), name)
        }
        ErrorKind::DeserializeError { key, message, .. } => {
            at_field(invalid(format!("{key}: {message}")), key)
        }
        ErrorKind::InvalidUtf8InPathParam { key } => at_field(invalid(format!("{key} is not UTF-8")), key),
        other => invalid(other.to_string()),
    }
}

/// The problem with the field at fault, where it is known: the root of a body has no name.
fn at_field(problem: Problem, field: &str) -> Problem {
    if matches!(field, "" | "." | "?") {
        return problem;
    }
    let item = ItemError {
        item: shortened(field).into_owned(),
        code: problem.code,
        detail: problem.detail.clone(),
    };
    problem.with_errors(vec![item])
}
