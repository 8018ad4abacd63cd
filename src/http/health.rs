//! Probes, metrics and facts about the server.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::problem::Problem;
use crate::domain::Digest;
use crate::engine::Priority;
use crate::metrics;

/// How old the backbone's last good forward may be before readiness asks for another.
const FORWARD_MAX_AGE: Duration = Duration::from_secs(15);

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(info))
        .routes(routes!(prometheus))
}

/// The server's state in a word.
#[derive(Debug, Serialize, ToSchema)]
struct Status {
    status: &'static str,
}

/// What this server is and what it allows.
#[derive(Debug, Serialize, ToSchema)]
struct Info {
    /// The program's name.
    name: &'static str,
    /// The program's version.
    version: &'static str,
    backbone: BackboneFacts,
    /// `sqlite` or `postgres`.
    store: &'static str,
    limits: LimitFacts,
}

/// The backbone that all models share.
#[derive(Debug, Serialize, ToSchema)]
struct BackboneFacts {
    name: String,
    /// Over its files.
    digest: Digest,
    /// D, the length of a feature row.
    dim: usize,
    /// Side of the square input in pixels.
    image_size: usize,
    /// Most tokens in a text.
    context_length: usize,
    /// `cpu` or `cuda:N`.
    device: String,
}

/// Bounds on requests.
#[derive(Debug, Serialize, ToSchema)]
struct LimitFacts {
    /// Most bytes in a body, uploads of tasks and versions aside.
    body_bytes: usize,
    /// Most images in a request.
    images: usize,
    /// Most pixels of one image.
    pixels: u64,
    /// Most ad-hoc labels or texts in a request.
    labels: usize,
    /// Most bytes of one text.
    text_bytes: usize,
    /// Images that may wait for the device; more are refused.
    queue: usize,
    /// Requests that are worked on at a time, uploads and watches aside.
    requests: usize,
    /// Uploads of tasks, and versions on their way in or out, at a time.
    uploads: usize,
    /// Event streams and waits for jobs at a time. A wait beyond is answered at once.
    watches: usize,
    /// Most bytes in the body of a task.
    upload_bytes: usize,
    /// Most bytes in the file of a version that is imported.
    weights_bytes: usize,
    /// Most examples in a task.
    examples: usize,
    /// Most bytes of one example.
    example_bytes: u64,
    /// Most bytes of all examples of a task, unpacked.
    examples_bytes: u64,
    /// Most bytes that a fit reads of a task's examples: features or tokens, as the model's strategy does, in f32.
    fit_bytes: u64,
    /// How long a request may take, uploads and watches aside; and how long an upload may send nothing.
    deadline_seconds: f64,
}

/// Liveness
///
/// The process answers.
#[utoipa::path(get, path = "/healthz", tag = "operate", operation_id = "healthz",
    responses((status = 200, description = "Alive", body = Status)))]
async fn healthz() -> Json<Status> {
    Json(Status { status: "ok" })
}

/// Readiness
///
/// The store answers, the backbone's last forward is recent and finite, and the server is not shutting down.
#[utoipa::path(get, path = "/readyz", tag = "operate", operation_id = "readyz",
    responses((status = 200, description = "Ready", body = Status), (status = "default", response = super::openapi::ProblemResponse)))]
async fn readyz(State(api): State<Api>) -> Result<Json<Status>, Problem> {
    if api.stopping.is_cancelled() {
        return Err(Problem::unavailable("stopping", "the server is shutting down"));
    }
    api.store.ping().await?;
    api.engine.check(FORWARD_MAX_AGE).await.map_err(|error| {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "the backbone is not ready"
        );
        Problem::unavailable("backbone_unavailable", error.to_string())
    })?;
    Ok(Json(Status { status: "ready" }))
}

/// About this server
#[utoipa::path(get, path = "/info", tag = "operate", operation_id = "info",
    responses((status = 200, description = "Build, backbone and limits", body = Info)))]
async fn info(State(api): State<Api>) -> Json<Info> {
    let backbone = api.engine.info();
    let limits = &api.limits;
    Json(Info {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        backbone: BackboneFacts {
            name: backbone.name.clone(),
            digest: backbone.digest,
            dim: backbone.dim,
            image_size: backbone.image_size,
            context_length: backbone.context_length,
            device: backbone.device.clone(),
        },
        store: api.store.kind(),
        limits: LimitFacts {
            body_bytes: limits.body_bytes,
            images: limits.images,
            pixels: limits.pixels,
            labels: limits.labels,
            text_bytes: limits.text_bytes,
            queue: limits.queue,
            requests: limits.requests,
            uploads: limits.uploads(),
            watches: limits.watches(),
            upload_bytes: limits.upload_bytes,
            weights_bytes: limits.weights_bytes,
            examples: limits.upload.examples,
            example_bytes: limits.upload.image_bytes,
            examples_bytes: limits.upload.total_bytes,
            fit_bytes: api.learner.fit_bytes(),
            deadline_seconds: limits.deadline.as_secs_f64(),
        },
    })
}

/// Metrics
///
/// In Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "operate", operation_id = "metrics",
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain")))]
async fn prometheus(State(api): State<Api>) -> impl IntoResponse {
    let (interactive, background) = api.engine.queue_depth();
    metrics::queue_depth(Priority::Interactive.as_str(), interactive);
    metrics::queue_depth(Priority::Background.as_str(), background);
    (
        StatusCode::OK,
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        api.metrics.render(),
    )
}
