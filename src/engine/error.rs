//! What can go wrong between an input and its answer.

use std::error::Error;

use crate::clip::ImageError;

/// Why the engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The image could not be used.
    #[error("the image cannot be used")]
    Image(#[from] ImageError),
    /// The queue or the decode pool is full; try again later.
    #[error("the server is overloaded")]
    Overloaded,
    /// The engine is shutting down or its device thread ended.
    #[error("the inference engine is not running")]
    Stopped,
    /// A text is longer than any context; nothing was encoded.
    #[error("a text has at most {limit} bytes")]
    TextTooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// A template leaves no room for a name, or cannot be read as tokens.
    #[error("the template {template:?} cannot be used: {reason}")]
    Template {
        /// The template.
        template: String,
        /// Why not.
        reason: String,
    },
    /// The backbone failed on this input.
    #[error("the backbone failed: {0}")]
    Backbone(String),
    /// The backbone gave a value that is not a finite number.
    #[error("the backbone gave a value that is not a finite number")]
    NotFinite,
}

/// An error and what caused it, in one line. Answers go to every caller of a batch, and errors of the tensor library
/// cannot be cloned.
pub(super) fn because(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |error: &&dyn Error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
