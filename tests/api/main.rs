//! The HTTP interface, resource by resource, against the real server on a port of its own.
//!
//! Every test has a database of its own: a SQLite file, and for the core stories again a PostgreSQL database where
//! `CLIPKEEP_TEST_POSTGRES` holds the URL of a role that may create databases. Without it that half says that it was
//! skipped. Nothing here rests on what the backbone knows: random weights pass as trained ones do.

mod admission;
mod archive;
mod bench;
mod caller;
mod classify;
mod conflicts;
mod database;
mod embed;
mod history;
mod hostile_archives;
mod jobs;
mod malformed_archives;
mod malformed_bodies;
mod malformed_forms;
mod malformed_paths;
mod malformed_wire;
mod memory;
mod models;
mod operate;
mod pictures;
mod problem;
mod process;
mod refusals;
mod rollback;
mod scene;
mod tasks;
mod test_app;
mod unlearn;
mod versions;
mod weights;
