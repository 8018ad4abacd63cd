//! Plain types of the field: names, models, tasks, jobs, versions, accuracy.
//!
//! Nothing here does I/O, touches a tensor or knows SQL. Text from a caller becomes one of these types at the
//! edge or is rejected there; everything further in trusts them.

pub mod accuracy;
pub mod class;
pub mod config;
pub mod content;
pub mod example;
pub mod ids;
pub mod job;
pub mod model;
pub mod rules;
pub mod strategy;
pub mod task;
pub mod version;

pub use accuracy::{AccuracyMatrix, Summary, Tally, forward_transfer};
pub use class::{Class, NewClass};
pub use config::ModelConfig;
pub use content::Content;
pub use example::{Features, Split};
pub use ids::{ClassId, Digest, JobId, Label, ModelName, NameError, Prompt, Reason, TaskName, VersionNumber};
pub use job::{Job, JobError, JobKind, JobState, Phase};
pub use model::Model;
pub use rules::ConfigError;
pub use strategy::{
    Anchors, Choice, EnsembleWeights, Hinge, Initialisation, Keep, Reads, Rehearsal, Retention, Strategy,
};
pub use task::Task;
pub use version::{Activation, Version};
