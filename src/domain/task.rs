//! Tasks: named sets of classes that were learned together.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::class::Class;
use super::ids::{JobId, TaskName, VersionNumber};

/// A task as a version's history knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its name, unique along one line of versions.
    pub name: TaskName,
    /// The version that learned it.
    pub version: VersionNumber,
    /// The job that learned it.
    pub job: JobId,
    /// Its classes, in column order.
    pub classes: Vec<Class>,
    /// Examples fitted on.
    pub train: u32,
    /// Examples held out.
    pub held_out: u32,
    /// When its version was published.
    pub learned_at: Timestamp,
}
