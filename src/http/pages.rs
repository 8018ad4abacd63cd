//! What is there for a person or for nobody: the interface's description, and the way to say "not here".

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::openapi;
use super::problem::Problem;

pub(super) fn router() -> Router {
    Router::new()
        .route("/openapi.yaml", get(description))
        .fallback(not_found)
}

async fn description() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/yaml")], openapi::yaml())
}

async fn not_found() -> Problem {
    Problem::unknown(
        "not_found",
        "there is nothing at this path; /docs describes what there is",
    )
}

pub(super) async fn method_not_allowed() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take this method",
    )
}
