//! The images of a request, in any of the forms a client may send them in.

use axum::extract::{FromRef, FromRequest, Request};
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use utoipa::ToSchema;

use super::body::BodyForm;
use super::capped::Capped;
use super::extract::parse_large_json;
use super::form::Form;
use super::problem::{Problem, shortened};
use super::{Limits, body};

/// Images as they arrived, in order; at least one.
pub(super) struct Images {
    /// The encoded images, or why one could not be read from the body.
    pub items: Vec<Result<Bytes, Problem>>,
    /// Whether the request's body was one image and nothing else.
    pub raw: bool,
}

/// A JSON body with images.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct JsonImages {
    /// The images, in the order of the answers.
    #[schema(value_type = Vec<JsonImage>)]
    images: Capped<JsonImage>,
}

/// One image in a JSON body.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct JsonImage {
    /// The image file in base64 (RFC 4648, padded).
    data: String,
}

impl<S> FromRequest<S> for Images
where
    S: Send + Sync,
    Limits: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let limit = Limits::from_ref(state).images;
        let form = BodyForm::of(request.headers(), |kind| kind.starts_with("image/")).ok_or_else(|| {
            Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "send one image as the body, multipart/form-data with `image` parts, or application/json",
            )
        })?;
        match form {
            BodyForm::Raw => Self::new(vec![Ok(body::bytes(request, state).await?)], true),
            BodyForm::Multipart => Self::new(multipart_images(request, state, limit).await?, false),
            BodyForm::Json => {
                let body = body::bytes(request, state).await?;
                parse_large_json(body, move |body: JsonImages| Self::from_json(body.images, limit)).await
            }
        }
    }
}

impl Images {
    /// Decodes the base64 of at most `limit` images.
    ///
    /// # Errors
    /// When there are more, or none.
    pub(super) fn from_json(images: Capped<JsonImage>, limit: usize) -> Result<Self, Problem> {
        let Capped(images) = images;
        if images.len() > limit {
            return Err(too_many_images(limit));
        }
        let decoded = images.into_iter().map(|image| {
            STANDARD.decode(image.data).map(Bytes::from).map_err(|error| {
                let detail = format!("data is no base64: {error}");
                Problem::new(StatusCode::BAD_REQUEST, "invalid_base64", detail)
            })
        });
        Self::new(decoded.collect(), false)
    }

    fn new(items: Vec<Result<Bytes, Problem>>, raw: bool) -> Result<Self, Problem> {
        let is_nothing = |item: &Result<Bytes, Problem>| item.as_ref().is_ok_and(Bytes::is_empty);
        if items.iter().all(is_nothing) {
            return Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "no_image",
                "the request holds no image",
            ));
        }
        Ok(Self { items, raw })
    }
}

async fn multipart_images<S: Send + Sync>(
    request: Request,
    state: &S,
    limit: usize,
) -> Result<Vec<Result<Bytes, Problem>>, Problem> {
    let mut form = Form::open(request, state).await?;
    let mut images = Vec::new();
    while let Some(part) = form.next().await? {
        if part.name != "image" {
            return Err(Problem::invalid(
                "unknown_part",
                format!(
                    "unknown part {:?}; images go in `image` parts",
                    shortened(&part.name)
                ),
            ));
        }
        if images.len() == limit {
            return Err(too_many_images(limit));
        }
        images.push(Ok(part.bytes().await?));
    }
    Ok(images)
}

fn too_many_images(limit: usize) -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_many_images",
        format!("a request holds at most {limit} images"),
    )
}
