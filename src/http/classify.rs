//! `POST /v1/models/{model}/classify`: images in, the most probable classes out.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::Api;
use super::extract::{Json, Path, Query};
use super::images::{Images, JsonImages};
use super::inference;
use super::problem::Problem;
use crate::adapter::Head;
use crate::domain::{Digest, Label, ModelName, TaskName, VersionNumber};
use crate::engine::{Asked, Priority};
use crate::registry::Serving;

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(classify))
}

/// How a classification is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ClassifyQuery {
    /// How many classes to answer with, most probable first. 5 unless given.
    #[param(minimum = 1, maximum = 1000)]
    top_k: Option<usize>,
    /// Answer with this version instead of the active one.
    version: Option<VersionNumber>,
    /// Comma-separated labels to choose among, zero-shot, instead of the model's classes.
    labels: Option<String>,
}

/// The answer to a classification. Everything in it comes from one version.
#[derive(Debug, Serialize, ToSchema)]
struct ClassifyResponse {
    /// The model that answered.
    model: ModelName,
    /// The version that answered; null for ad-hoc labels, which no version knows.
    version: Option<VersionNumber>,
    /// Digest of the version's snapshot; of the backbone for ad-hoc labels.
    digest: Digest,
    /// One prediction an image, in order.
    predictions: Vec<Prediction>,
}

/// What one image was taken for, or why it could not be classified.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Prediction {
    /// The image was classified.
    Classified {
        /// Id of this prediction.
        id: Uuid,
        /// The most probable classes, best first.
        classes: Vec<ScoredClass>,
        /// Whether the model declined to decide.
        rejected: bool,
    },
    /// The image could not be used.
    Failed {
        /// What is wrong with it.
        error: Problem,
    },
}

/// A class and its probability.
#[derive(Debug, Serialize, ToSchema)]
struct ScoredClass {
    /// The class.
    label: Label,
    /// Its probability among all classes of the version, or among the ad-hoc labels.
    probability: f32,
    /// The task that brought it; absent for ad-hoc labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<TaskName>,
}

/// What the images are scored against.
enum Answerer {
    Version(Arc<Serving>),
    Labels { labels: Vec<Label>, head: Arc<Head> },
}

/// Classify images
///
/// The body is one image (JPEG, PNG, WebP, GIF, BMP or TIFF), `multipart/form-data` with `image` parts, or JSON with
/// base64. An image that cannot be used fails its own item; when no image can be used, the request fails.
#[utoipa::path(
    post, path = "/v1/models/{model}/classify", tag = "classify", operation_id = "classify",
    params(("model" = String, Path, description = "The model's name"), ClassifyQuery),
    request_body(content((super::openapi::BinaryFile = "image/*"), (super::openapi::BinaryFile = "application/octet-stream"), (super::openapi::ImageParts = "multipart/form-data"), (JsonImages = "application/json"))),
    responses((status = 200, description = "One prediction an image", body = ClassifyResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn classify(
    State(api): State<Api>,
    Path(model): Path<ModelName>,
    Query(query): Query<ClassifyQuery>,
    images: Images,
) -> Result<impl IntoResponse, Problem> {
    let top_k = query.top_k.unwrap_or(5);
    if !(1..=1000).contains(&top_k) {
        return Err(Problem::invalid(
            "invalid_top_k",
            "top_k must be between 1 and 1000",
        ));
    }
    let answerer = Answerer::choose(&api, &model, &query).await?;
    let scored = inference::encode(&api.engine, images, Asked::Probabilities(answerer.head())).await?;
    let predictions = scored
        .outputs
        .into_iter()
        .map(|output| match output {
            Ok(output) => Prediction::Classified {
                id: Uuid::now_v7(),
                classes: answerer.best(&output.values, top_k),
                rejected: false,
            },
            Err(error) => Prediction::Failed { error },
        })
        .collect();
    let (version, digest) = match &answerer {
        Answerer::Version(serving) => (Some(serving.number), serving.digest),
        Answerer::Labels { .. } => (None, api.engine.info().digest),
    };
    Ok((
        scored.times.server_timing(),
        Json(ClassifyResponse {
            model,
            version,
            digest,
            predictions,
        }),
    ))
}

impl Answerer {
    async fn choose(api: &Api, model: &ModelName, query: &ClassifyQuery) -> Result<Self, Problem> {
        match (&query.labels, query.version) {
            (Some(_), Some(_)) => Err(Problem::invalid(
                "labels_and_version",
                "labels and version exclude each other",
            )),
            (Some(labels), None) => Self::from_labels(api, model, labels).await,
            (None, Some(version)) => Ok(Self::Version(api.registry.version(model, version).await?)),
            (None, None) => match api.registry.active(model)? {
                Some(serving) => Ok(Self::Version(serving)),
                None => Err(Problem::new(
                    StatusCode::CONFLICT,
                    "no_classes",
                    format!(
                        "model {model} has learned no class yet: learn a task, or choose among ?labels=a,b,c"
                    ),
                )),
            },
        }
    }

    async fn from_labels(api: &Api, model: &ModelName, labels: &str) -> Result<Self, Problem> {
        let labels: Vec<Label> = labels.split(',').map(str::parse).collect::<Result<_, _>>()?;
        if labels.len() > api.limits.labels {
            return Err(Problem::invalid(
                "too_many_labels",
                format!("at most {} labels", api.limits.labels),
            ));
        }
        let mut seen = HashSet::with_capacity(labels.len());
        if let Some(label) = labels.iter().find(|label| !seen.insert(*label)) {
            return Err(Problem::invalid(
                "duplicate_label",
                format!("label {label} is given twice"),
            ));
        }
        let config = api.registry.config(model).await?;
        let words: Vec<String> = labels.iter().map(Label::words).collect();
        let head = api
            .engine
            .zero_shot(words, config.templates.clone(), Priority::Interactive)
            .await?;
        Ok(Self::Labels { labels, head })
    }

    fn head(&self) -> Arc<Head> {
        match self {
            Self::Version(serving) => Arc::clone(&serving.head),
            Self::Labels { head, .. } => Arc::clone(head),
        }
    }

    /// The `top_k` most probable classes; among equals the older class first.
    fn best(&self, probabilities: &[f32], top_k: usize) -> Vec<ScoredClass> {
        let by_rank = |a: &usize, b: &usize| (probabilities[*b].total_cmp(&probabilities[*a])).then(a.cmp(b));
        let mut best: Vec<usize> = (0..probabilities.len()).collect();
        if top_k < best.len() {
            best.select_nth_unstable_by(top_k, by_rank);
            best.truncate(top_k);
        }
        best.sort_unstable_by(by_rank);
        let scored = |column: usize| {
            let (label, task) = match self {
                Self::Version(serving) => {
                    let class = &serving.snapshot.classes()[column];
                    (class.label.clone(), Some(class.task.clone()))
                }
                Self::Labels { labels, .. } => (labels[column].clone(), None),
            };
            ScoredClass {
                label,
                probability: probabilities[column],
                task,
            }
        };
        best.into_iter().map(scored).collect()
    }
}
