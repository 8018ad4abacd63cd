//! `POST /v1/embed`: images or texts in, unit-length backbone embeddings out.

use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::BodyForm;
use super::capped::Capped;
use super::extract::{Json, parse_large_json};
use super::images::{Images, JsonImage};
use super::problem::Problem;
use super::{Api, Limits, body, inference};
use crate::domain::{Digest, ModelConfig, Reads};
use crate::engine::{Asked, Priority};

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(embed))
}

/// A JSON body to embed: either images or texts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct EmbedBody {
    /// Image files in base64, in the order of the answers.
    #[schema(value_type = Option<Vec<JsonImage>>)]
    images: Option<Capped<JsonImage>>,
    /// Texts of at most 4,096 bytes, in the order of the answers.
    #[schema(value_type = Option<Vec<String>>)]
    texts: Option<Capped<String>>,
    /// Whether to put each text into the default prompt template first.
    template: Option<bool>,
}

/// What a JSON body holds.
enum Inputs {
    Images(Images),
    Texts { texts: Vec<String>, template: bool },
}

/// Embeddings, one an input, in order.
#[derive(Debug, Serialize, ToSchema)]
struct EmbedResponse {
    /// The backbone's name.
    backbone: String,
    /// Digest of the backbone's files.
    digest: Digest,
    /// D, the length of an embedding.
    dim: usize,
    /// The embeddings.
    embeddings: Vec<Embedding>,
}

/// One input's embedding, or why there is none.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Embedding {
    /// The input was embedded.
    Embedded {
        /// D values of unit length together.
        values: Vec<f32>,
    },
    /// The input could not be used.
    Failed {
        /// What is wrong with it.
        error: Problem,
    },
}

/// Embed images or texts
///
/// Images come as in a classification; texts as JSON. The embeddings of an image and of a text that describes it
/// point the same way.
#[utoipa::path(
    post, path = "/v1/embed", tag = "classify", operation_id = "embed",
    request_body(content((super::openapi::BinaryFile = "image/*"), (super::openapi::ImageParts = "multipart/form-data"), (EmbedBody = "application/json"))),
    responses((status = 200, description = "One embedding an input", body = EmbedResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn embed(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    if BodyForm::of(request.headers(), |_| false) != Some(BodyForm::Json) {
        return embed_images(&api, Images::from_request(request, &api).await?).await;
    }
    let (body, limit) = (body::bytes(request, &api).await?, api.limits.images);
    match parse_large_json(body, move |body: EmbedBody| body.inputs(limit)).await? {
        Inputs::Images(images) => embed_images(&api, images).await,
        Inputs::Texts { texts, template } => embed_texts(&api, texts, template).await,
    }
}

impl EmbedBody {
    /// Images, of which there may be `limit`, or texts.
    fn inputs(self, limit: usize) -> Result<Inputs, Problem> {
        match (self.images, self.texts, self.template) {
            (Some(images), None, None) => Images::from_json(images, limit).map(Inputs::Images),
            (None, Some(Capped(texts)), template) => Ok(Inputs::Texts {
                texts,
                template: template.unwrap_or_default(),
            }),
            _ => Err(Problem::invalid(
                "unprocessable",
                "send either images, or texts and perhaps template",
            )),
        }
    }
}

async fn embed_images(api: &Api, images: Images) -> Result<Response, Problem> {
    let encoded = inference::encode(&api.engine, images, Asked::Row(Reads::Features)).await?;
    let embeddings = encoded
        .outputs
        .into_iter()
        .map(|output| match output {
            Ok(output) => Embedding::Embedded {
                values: crate::engine::normalised(output.values),
            },
            Err(error) => Embedding::Failed { error },
        })
        .collect();
    Ok((encoded.times.server_timing(), Json(response(api, embeddings))).into_response())
}

async fn embed_texts(api: &Api, texts: Vec<String>, template: bool) -> Result<Response, Problem> {
    check_texts(&texts, &api.limits)?;
    let embeddings: Vec<Vec<f32>> = if template {
        let templates = &ModelConfig::default().templates;
        api.engine
            .anchors(&texts, templates, Priority::Interactive)
            .await?
    } else {
        let rows = api.engine.embed_texts(&texts, Priority::Interactive).await?;
        rows.iter().map(|row| row.to_vec()).collect()
    };
    let embeddings = embeddings
        .into_iter()
        .map(|values| Embedding::Embedded { values })
        .collect();
    Ok(Json(response(api, embeddings)).into_response())
}

/// The texts are tokenised whole before they are cut, which takes time with their length.
fn check_texts(texts: &[String], limits: &Limits) -> Result<(), Problem> {
    if texts.is_empty() || texts.len() > limits.labels {
        return Err(Problem::invalid(
            "invalid_texts",
            format!("send between 1 and {} texts", limits.labels),
        ));
    }
    let problem = |place: usize| {
        let detail = format!("texts[{place}] has more than {} bytes", limits.text_bytes);
        Problem::invalid("text_too_long", detail)
    };
    let too_long = |(_, text): &(usize, &String)| text.len() > limits.text_bytes;
    let too_long: Vec<usize> = texts
        .iter()
        .enumerate()
        .filter(too_long)
        .map(|(place, _)| place)
        .collect();
    let Some(&first) = too_long.first() else {
        return Ok(());
    };
    let items = too_long
        .into_iter()
        .map(|place| problem(place).into_item(format!("texts[{place}]")));
    Err(problem(first).with_errors(items.collect()))
}

fn response(api: &Api, embeddings: Vec<Embedding>) -> EmbedResponse {
    let info = api.engine.info();
    EmbedResponse {
        backbone: info.name.clone(),
        digest: info.digest,
        dim: info.dim,
        embeddings,
    }
}
