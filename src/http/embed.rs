//! `POST /v1/embed`: images or texts in, unit-length backbone embeddings out.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::extract::parse_json;
use super::images::Images;
use super::inference;
use super::problem::{ItemError, Problem};
use crate::domain::{Digest, ModelConfig};
use crate::engine::Priority;

pub(super) fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(embed))
}

/// Texts to embed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct EmbedTexts {
    /// The texts, in the order of the answers.
    texts: Vec<String>,
    /// Whether to put each text into the default prompt template first.
    #[serde(default)]
    template: bool,
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
        error: ItemError,
    },
}

/// Embed images or texts
///
/// Images come as in a classification; texts as JSON. The embeddings of an image and of a text that describes it
/// point the same way.
#[utoipa::path(
    post, path = "/v1/embed", tag = "classify", operation_id = "embed",
    request_body(content((Vec<u8> = "image/*"), (super::openapi::ImageParts = "multipart/form-data"), (super::openapi::EmbedBody = "application/json"))),
    responses((status = 200, description = "One embedding an input", body = EmbedResponse), (status = "default", response = super::openapi::ProblemResponse))
)]
async fn embed(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let is_json = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/json"));
    if !is_json {
        return embed_images(&api, Images::from_request(request, &api).await?).await;
    }
    let (parts, body) = request.into_parts();
    let body = Bytes::from_request(Request::from_parts(parts.clone(), body), &api)
        .await
        .map_err(|_| super::body::too_large())?;
    let fields: serde_json::Map<String, serde_json::Value> = parse_json(&body)?;
    if fields.contains_key("texts") {
        return embed_texts(&api, parse_json(&body)?).await;
    }
    let images = Images::from_request(Request::from_parts(parts, body.into()), &api).await?;
    embed_images(&api, images).await
}

async fn embed_images(api: &Api, images: Images) -> Result<Response, Problem> {
    let encoded = inference::encode(&api.engine, images, None).await?;
    let embeddings = encoded
        .outputs
        .into_iter()
        .map(|output| match output {
            Ok(output) => Embedding::Embedded {
                values: crate::engine::normalised(output.features),
            },
            Err(error) => Embedding::Failed { error },
        })
        .collect();
    Ok((encoded.times.server_timing(), Json(response(api, embeddings))).into_response())
}

async fn embed_texts(api: &Api, body: EmbedTexts) -> Result<Response, Problem> {
    let limit = api.limits.labels;
    if body.texts.is_empty() || body.texts.len() > limit {
        return Err(Problem::invalid(
            "invalid_texts",
            format!("send between 1 and {limit} texts"),
        ));
    }
    let embeddings: Vec<Vec<f32>> = if body.template {
        api.engine
            .anchors(
                &body.texts,
                &ModelConfig::default().templates,
                Priority::Interactive,
            )
            .await?
    } else {
        let rows = api.engine.embed_texts(&body.texts, Priority::Interactive).await?;
        rows.iter().map(|row| row.to_vec()).collect()
    };
    let embeddings = embeddings
        .into_iter()
        .map(|values| Embedding::Embedded { values })
        .collect();
    Ok(Json(response(api, embeddings)).into_response())
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
