//! Models.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::config::ModelConfig;
use super::ids::{Digest, ModelName, VersionNumber};

/// A named classifier over the backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Its name.
    pub name: ModelName,
    /// How it learns.
    pub config: ModelConfig,
    /// The backbone that it learns on; `None` until its first task is accepted.
    pub backbone: Option<Digest>,
    /// The version that answers; `None` until the first task is learned.
    pub active: Option<VersionNumber>,
    /// When it was created.
    pub created_at: Timestamp,
}
