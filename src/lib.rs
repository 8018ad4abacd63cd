//! clipkeep: a server that classifies images with CLIP, learns new classes while it serves, and keeps what it knew.
//!
//! # Map
//!
//! From the top of the house to its foundation. A module imports only what stands below it; `tests/tidy` holds the
//! whole table.
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | the command line: one file a subcommand |
//! | [`app`] | the composition root: start order, drain, stop |
//! | [`telemetry`], [`config`] | the log; flags and environment |
//! | [`http`] | the interface: one file a resource |
//! | [`evaluation`] | class-incremental protocols on images or features, offline |
//! | [`learner`] | jobs: from labelled examples to a published version |
//! | [`registry`] | which snapshot serves |
//! | [`engine`] | inference: decoding, batching, the device thread |
//! | [`store`] | models, jobs, versions and activations in SQLite or PostgreSQL |
//! | [`adapter`] | what is trained: fitting, retention, snapshots as bytes |
//! | [`clip`] | the backbone: towers, tokenizer, image processor, where weights come from |
//! | [`clipkeep_towers`] | a crate of its own: both towers on the CPU, the image tower on a GPU, and what fits repeat |
//! | `blocking` | threads for what takes a while |
//! | [`metrics`] | every metric's name, one function an event |
//! | [`domain`] | plain types: names, models, tasks, jobs, versions, accuracy |
//!
//! # Data flows one way
//!
//! ```text
//! classify   bytes ─▶ decode (CPU pool) ─▶ bounded queue ─▶ device thread: batch, encode, heads ─▶ reply with version
//!
//! learn      202 and a row in `job` ─▶ worker claims it ─▶ encode, at low priority ─▶ fit ─▶ evaluate
//!            ─▶ one transaction: snapshot, classes, accuracy, activation, job state ─▶ serve
//! ```
//!
//! # Words
//!
//! - **Backbone**: the frozen CLIP. **Features**: its un-normalised image output, a row an image. **Embedding**:
//!   normalised features. **Tokens**: the hidden states of its image tower's last layer, of which it makes features.
//! - **Model**: a named classifier over the backbone. **Task**: a named set of new classes with labelled examples.
//!   **Class**: a label, its prompt and a stable id.
//! - **Job**: one execution that learns a task. **Step**: one update of the optimiser. A tokio task is called a
//!   *worker*, never a task.
//! - **Head**: what scores features against classes. **Snapshot**: a head with its classes, frozen. **Version**: a
//!   snapshot's number in its model. **Active**: the version that answers when none is asked for. **Rollback**:
//!   activating an older version.
//! - Verbs: *classify* and *learn* (in public), *fit* (the inner loop), *publish*, *activate*.
//!
//! # Invariants
//!
//! - The backbone belongs to the device thread alone, with one exception: a fit that trains before the text tower or
//!   behind the image tower holds handles on their weights, the text tower's and those of the image tower's end. It
//!   reads them on its own threads; nobody can change them.
//! - A snapshot never changes, and an answer never mixes two versions.
//! - A crash before the commit publishes nothing; after it, everything.
//! - Every activation is in the log.
//! - The worker's input is the database, not a message.
//! - Nothing in [`http`] computes; nothing outside [`store`] knows SQL.
//! - No work is spawned that is not tracked and drained before the process ends.
//! - Memory is bounded by configuration: queues, caches, batches; uploads are spooled to disk.

pub mod adapter;
pub mod app;
mod blocking;
pub mod cli;
pub mod clip;
pub mod config;
pub mod domain;
pub mod engine;
pub mod evaluation;
pub mod http;
pub mod learner;
pub mod metrics;
pub mod registry;
pub mod store;
pub mod telemetry;
