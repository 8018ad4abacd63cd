//! What is trained on top of the frozen backbone, and how it learns without forgetting.
//!
//! Synchronous functions over tensors: no I/O, no clock that decides anything, no database. A *head* scores features
//! against the classes of a version; a *fit* learns a task on top of a head and returns the next one; a *snapshot* is
//! a head with its classes, frozen and ready to be written down.
//!
//! ```text
//! base head ─┐
//! statistics ┤ rehearsal ─┐
//! features ──┴────────────┴→ fit → retention → head → snapshot → bytes
//! ```
//!
//! Every function takes *features*, the backbone's un-normalised output, and works on *embeddings*, their
//! directions. So nothing here depends on how long a backbone's features happen to be.
//!
//! What must not happen: a fit that changes a head it started from. Each optimiser step makes new tensors.

mod affine;
mod calibration;
mod cholesky;
mod closed_forms;
pub mod codec;
pub mod embedding;
pub mod evaluate;
mod exemplars;
pub mod export;
pub mod fit;
mod gram;
pub mod head;
mod host;
pub mod linear;
mod objective;
mod optimiser;
mod penalty;
mod principal;
mod prompt;
mod prototypes;
mod rehearsal;
mod retention;
mod ridge;
mod sample;
mod self_attention;
pub mod snapshot;
pub mod statistics;
mod strategies;
mod towers;
mod trainable;
mod training;
pub mod unlearn;
pub mod vetting;
mod whitening;

pub use affine::Affine;
pub use codec::CodecError;
pub use export::Imported;
pub use fit::{Base, FitError, FitInput, FitProgress, FitReport, Fitted, TrainingReport, fit};
pub use gram::Gram;
pub use head::{Adapter, Head, Scorer, Term};
pub use linear::Linear;
pub use prompt::Prompted;
pub use prototypes::Prototypes;
pub use ridge::Ridge;
pub use sample::Sample;
pub use self_attention::SelfAttention;
pub use snapshot::{Snapshot, SnapshotError};
pub use statistics::{ClassStatistics, Remaining, Statistics};
pub use towers::{Prompts, Readout, Towers};
pub use unlearn::{Unlearned, unlearn};
pub use vetting::{VettingError, Widths};
pub use whitening::Scatter;
