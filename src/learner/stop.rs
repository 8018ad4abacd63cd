//! Why a job came to no version.

use crate::engine::EngineError;
use crate::registry::RegistryError;
use crate::store::{Lease, StoreError};

/// Why a job did not publish a version.
#[derive(Debug)]
pub(super) enum Stop {
    /// It cannot succeed.
    Failed { code: &'static str, detail: String },
    /// The worker was told to stop.
    Told,
    /// The job belongs to another worker now, or was cancelled.
    LeaseLost,
    /// What is wrong is not the job: it is tried again later.
    Later { code: &'static str, detail: String },
    /// The store failed; nobody knows the job's state better than it.
    Store(StoreError),
}

/// An error and what caused it, in one line.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Stop {
    pub(super) fn failed(code: &'static str, error: &dyn std::error::Error) -> Self {
        let detail = causes(error);
        Self::Failed { code, detail }
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Store(error),
            error => Self::failed("store", &error),
        }
    }
}

impl From<RegistryError> for Stop {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Store(error) => error.into(),
            error => Self::failed("base_unusable", &error),
        }
    }
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Stopped => Self::Told,
            EngineError::Template { .. } => Self::failed("invalid_template", &error),
            EngineError::TextTooLong { .. } => Self::failed("text_too_long", &error),
            // A device that fails or is overrun says nothing about the examples.
            error => Self::Later {
                code: "backbone",
                detail: causes(&error),
            },
        }
    }
}

/// Goes on only while the job is this worker's.
pub(super) fn held(lease: Lease) -> Result<(), Stop> {
    match lease {
        Lease::Held => Ok(()),
        Lease::Lost => Err(Stop::LeaseLost),
    }
}
