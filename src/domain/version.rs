//! Versions and activations: what exists and what answered when.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::config::ModelConfig;
use super::ids::{Digest, JobId, ModelName, TaskName, VersionNumber};
use super::job::JobKind;

/// An immutable snapshot's entry in its model's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Its number in the model.
    pub number: VersionNumber,
    /// The version it was learned on top of; `None` for one learned on the bare backbone or imported.
    pub parent: Option<VersionNumber>,
    /// How it came about.
    pub kind: JobKind,
    /// The task it learned, or unlearned, or that holds the classes it was imported with.
    pub task: TaskName,
    /// The job that made it.
    pub job: JobId,
    /// Of the snapshot's bytes.
    pub digest: Digest,
    /// The snapshot's size in bytes.
    pub bytes: u64,
    /// When it was published.
    pub created_at: Timestamp,
    /// The configuration it was learned with.
    pub config: ModelConfig,
    /// What its job reported: steps, losses, seconds.
    pub report: serde_json::Value,
}

/// One entry of the activation log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activation {
    /// The model.
    pub model: ModelName,
    /// The version that answers from then on.
    pub version: VersionNumber,
    /// The one that answered before.
    pub previous: Option<VersionNumber>,
    /// Who did it: `job:<id>` or `http`.
    pub actor: String,
    /// Why, in the caller's words.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}
