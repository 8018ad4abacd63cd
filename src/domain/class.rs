//! Classes: what a model can answer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{ClassId, Label, TaskName};

/// A class that a task brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewClass {
    /// How answers name it; unique among the classes of a version.
    pub label: Label,
    /// A description to use instead of the label in the prompt templates.
    pub prompt: Option<String>,
}

/// A class of a version. Its place in the version's list is its column in every score.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Class {
    /// Stable through all versions that know the class.
    pub id: ClassId,
    /// How answers name it.
    pub label: Label,
    /// A description used instead of the label in the prompt templates.
    pub prompt: Option<String>,
    /// The task that brought it.
    pub task: TaskName,
}
