//! Jobs and their state machine.
//!
//! ```text
//! queued ──▶ running ──▶ succeeded
//!   ▲ │         │  ├───▶ held        (learned, but not activated)
//!   │ │         │  ├───▶ failed
//!   │ └─────────┼──┴───▶ cancelled
//!   └───────────┘ requeued: the server stopped, or its lease ran out
//! ```

use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{JobId, ModelName, TaskName, VersionNumber};

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Learn a task.
    Learn,
    /// Make a version that does without a task, or without one of its classes.
    Unlearn,
    /// Take in a version that was learned elsewhere. Never queued: it has succeeded when it is written.
    Import,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a worker.
    Queued,
    /// A worker holds its lease.
    Running,
    /// Its version is published.
    Succeeded,
    /// Its version exists but was not activated.
    Held,
    /// It ended with an error; nothing was published.
    Failed,
    /// Somebody stopped it; nothing was published.
    Cancelled,
}

impl JobState {
    /// Whether the state never changes again.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// What a running job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Images become features.
    Encode,
    /// The adapter is trained.
    Fit,
    /// The new adapter is scored on the held-out features of every task.
    Evaluate,
    /// The version is written in one transaction.
    Commit,
}

macro_rules! stored_name {
    ($type:ty, $($variant:ident = $name:literal),+ $(,)?) => {
        impl $type {
            /// The name in the store and in answers.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    other => Err(format!("unknown {}: {other:?}", stringify!($type))),
                }
            }
        }
    };
}

stored_name!(JobKind, Learn = "learn", Unlearn = "unlearn", Import = "import",);
stored_name!(
    JobState,
    Queued = "queued",
    Running = "running",
    Succeeded = "succeeded",
    Held = "held",
    Failed = "failed",
    Cancelled = "cancelled",
);
stored_name!(
    Phase,
    Encode = "encode",
    Fit = "fit",
    Evaluate = "evaluate",
    Commit = "commit"
);

/// Why a job failed: a stable code and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobError {
    /// A stable, machine-readable name of the failure.
    pub code: String,
    /// What happened, for a person.
    pub detail: String,
}

/// One execution that learns or unlearns a task, or takes in a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The model it works on.
    pub model: ModelName,
    /// The task it learns or unlearns, or that holds the classes it took in.
    pub task: TaskName,
    /// Where it stands.
    pub state: JobState,
    /// What it is doing; `None` before it first ran.
    pub phase: Option<Phase>,
    /// Share of the work done, 0 to 1.
    pub progress: f64,
    /// How often a worker took it up.
    pub attempts: u32,
    /// The version it published.
    pub version: Option<VersionNumber>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// What it found out: steps, losses, times, accuracies. `Null` until there is something to say.
    #[schema(value_type = Object)]
    pub report: serde_json::Value,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When its state, phase or progress last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [JobState; 6] = [
        JobState::Queued,
        JobState::Running,
        JobState::Succeeded,
        JobState::Held,
        JobState::Failed,
        JobState::Cancelled,
    ];

    #[test]
    fn every_state_has_a_name_of_its_own() {
        for state in STATES {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert!("done".parse::<JobState>().is_err());
    }
}
