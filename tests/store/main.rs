//! The store's contract, the same on both databases.
//!
//! Every test runs on a SQLite file of its own and, where `CLIPKEEP_TEST_POSTGRES` holds the URL of a role that may
//! create databases, on a PostgreSQL database of its own. Without it the PostgreSQL half says that it was skipped.

mod activating;
mod connecting;
mod crashing;
mod encoding;
mod enqueueing;
mod importing;
mod leasing;
mod models;
mod publishing;
mod reading;
mod scene;
mod setup;
mod unlearning;
mod unlearning_classes;
mod working;
