//! The interface's description, generated from the handlers.

use std::sync::LazyLock;

use utoipa::{OpenApi, ToResponse, ToSchema};

use super::problem::Problem;

/// What the generated description says besides the resources.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "clipkeep",
        description = "Classifies images with CLIP, learns new classes while it serves, keeps the old ones, \
            versions every snapshot and rolls back.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(Problem), responses(ProblemResponse)),
    tags(
        (name = "classify", description = "Images in, classes or embeddings out"),
        (name = "learn", description = "Teach tasks and watch the jobs that learn them"),
        (name = "history", description = "Accuracy, versions and what was live when"),
        (name = "models", description = "Named classifiers over the server's one backbone"),
        (name = "operate", description = "Probes, metrics and facts about the server")
    )
)]
pub(super) struct Description;

/// Any error: an RFC 9457 problem document with a stable `code`.
#[derive(ToResponse)]
#[response(description = "A problem document", content_type = "application/problem+json")]
#[expect(dead_code, reason = "describes the responses of the problem layer")]
pub(super) struct ProblemResponse(Problem);

/// A file as it is.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes a body that is read as bytes")]
pub(super) struct BinaryFile(Vec<u8>);

/// A multipart body with images.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that is read part by part")]
pub(super) struct ImageParts {
    /// One part an image, all of this name.
    #[schema(format = Binary, content_media_type = "image/*")]
    image: Vec<String>,
}

/// A multipart body with a task.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that is read part by part")]
pub(super) struct TaskParts {
    /// The task's name, unless the query says it.
    name: Option<String>,
    /// JSON list of `{"label", "prompt"}`: which words stand for a class in prompts.
    classes: Option<String>,
    /// Zip or tar of class folders; also `train` and `test` for one split each.
    #[schema(format = Binary, content_media_type = "application/zip")]
    archive: Option<String>,
    /// Any other part is an image of the class it is named after.
    #[schema(format = Binary, content_media_type = "image/*")]
    label: Vec<String>,
}

/// The description as YAML; the same text as `openapi.yaml` in the repository.
pub fn yaml() -> &'static str {
    static YAML: LazyLock<String> = LazyLock::new(|| {
        let description = super::resources(0).into_openapi();
        description
            .to_yaml()
            .unwrap_or_else(|error| format!("# not available: {error}\n"))
    });
    &YAML
}
