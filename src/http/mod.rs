//! The HTTP interface: one file per resource, each with its bodies, handlers and `router()`.
//!
//! A handler extracts, makes one call and shapes the answer; nothing here computes. [`router`] assembles the
//! resources and the layers every request passes:
//!
//! ```text
//! request id ─▶ trace and metrics ─▶ problem documents ─▶ panics ─▶ origin ─▶ admission ─▶ body limit ─▶ handler
//! ```

mod accuracy;
mod activations;
mod admission;
mod body;
mod capped;
mod classify;
mod connections;
mod disposition;
mod embed;
mod extract;
mod form;
mod health;
mod images;
mod inference;
mod jobs;
mod models;
mod observe;
pub mod openapi;
mod origin;
mod page;
mod pages;
mod patience;
mod prefer;
mod problem;
mod tasks;
mod teach;
mod unlearn;
mod upload;
mod versions;
mod weights;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef};
use axum::middleware;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::domain::{Model, ModelName, VersionNumber};
use crate::engine::Engine;
use crate::learner::{Learner, UploadLimits};
use crate::registry::{Registry, RegistryError};
use crate::store::Store;
use problem::Problem;

pub use connections::{ConnectionLimits, serve};

/// Most bytes of a text: far more than any backbone looks at.
pub const TEXT_BYTES: usize = 4096;

/// Bounds on what a caller may ask for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most bytes in a body, uploads of tasks and versions aside.
    pub body_bytes: usize,
    /// Most images in a request.
    pub images: usize,
    /// Most pixels of one image.
    pub pixels: u64,
    /// Most ad-hoc labels or texts in a request.
    pub labels: usize,
    /// Most bytes of one text.
    pub text_bytes: usize,
    /// Most bytes in the body of a task.
    pub upload_bytes: usize,
    /// Most bytes in the file of a version that is imported.
    pub weights_bytes: usize,
    /// Bounds on a task's examples.
    pub upload: UploadLimits,
    /// Requests that are worked on at a time.
    pub requests: usize,
    /// Images that may wait for the device.
    pub queue: usize,
    /// How long a request may take, uploads and event streams aside; and how long an upload may send nothing.
    pub deadline: Duration,
}

impl Limits {
    /// Uploads of tasks, and versions on their way in or out, at a time: each keeps a disk and the store's writer busy or
    /// is held in memory, so they are fewer than the requests.
    pub fn uploads(&self) -> usize {
        (self.requests / 8).max(1)
    }

    /// Event streams and waits for jobs at a time: as many as requests, for they cost next to nothing.
    pub fn watches(&self) -> usize {
        self.requests
    }
}

/// What the handlers work with.
#[derive(Clone)]
pub struct Api {
    /// Images in, features and probabilities out.
    pub engine: Engine,
    /// Which version answers.
    pub registry: Arc<Registry>,
    /// Accepts tasks.
    pub learner: Arc<Learner>,
    /// History, read only here.
    pub store: Store,
    /// Bounds on requests.
    pub limits: Arc<Limits>,
    /// The metrics' text form.
    pub metrics: PrometheusHandle,
    /// Where uploads are spooled.
    pub spool: Arc<PathBuf>,
    /// Cancelled when the server begins to shut down: it is not ready any more.
    pub stopping: CancellationToken,
    /// Cancelled when it accepts no more connections: whoever waits or watches is let go.
    pub closing: CancellationToken,
}

impl FromRef<Api> for Limits {
    fn from_ref(api: &Api) -> Self {
        Self::clone(&api.limits)
    }
}

impl Api {
    /// A model, or 404.
    async fn model(&self, name: &ModelName) -> Result<Model, Problem> {
        let model = self.store.model(name).await?;
        model.ok_or_else(|| RegistryError::UnknownModel(name.clone()).into())
    }

    /// The last version of the line whose history is asked for: the given one, or the active one if there is any.
    async fn line(
        &self,
        name: &ModelName,
        asked: Option<VersionNumber>,
    ) -> Result<Option<VersionNumber>, Problem> {
        let active = self.model(name).await?.active;
        let Some(version) = asked else {
            return Ok(active);
        };
        match self.store.version(name, version).await? {
            Some(_) => Ok(asked),
            None => Err(RegistryError::UnknownVersion {
                model: name.clone(),
                version,
            }
            .into()),
        }
    }
}

/// Every resource and its description.
fn resources(upload_bytes: usize) -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(openapi::Description::openapi())
        .merge(classify::router())
        .merge(embed::router())
        .merge(teach::router(upload_bytes))
        .merge(tasks::router())
        .merge(unlearn::router())
        .merge(jobs::router())
        .merge(accuracy::router())
        .merge(versions::router())
        .merge(weights::router())
        .merge(activations::router())
        .merge(models::router())
        .merge(health::router())
}

/// The whole service.
pub fn router(api: Api) -> Router {
    let limits = Arc::clone(&api.limits);
    let (resources, description) = resources(limits.upload_bytes).split_for_parts();
    let layers = ServiceBuilder::new()
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(middleware::from_fn(observe::observe))
        .layer(middleware::from_fn(problem::finish))
        .layer(CatchPanicLayer::custom(problem::from_panic))
        .layer(middleware::from_fn(origin::admit))
        .layer(middleware::from_fn_with_state(
            admission::Admission::new(&limits),
            admission::admit,
        ))
        .layer(DefaultBodyLimit::max(limits.body_bytes));
    resources
        .with_state(api)
        .merge(pages::router())
        .merge(SwaggerUi::new("/docs").url("/openapi.json", description))
        .method_not_allowed_fallback(pages::method_not_allowed)
        .layer(layers)
}
