//! Learning over HTTP: what was learned is known, what was known stays known, and no crash, restart or rollback
//! changes a bit of it.
//!
//! The stories run on a SQLite file and, where `CLIPKEEP_TEST_POSTGRES` holds the URL of a role that may create
//! databases, again on PostgreSQL; the others say that they were skipped. The pictures are synthetic and so different
//! that even random weights tell them apart; what asks more of the backbone looks whether it is trained first.

#[path = "../api/archive.rs"]
mod archive;
#[path = "../api/caller.rs"]
mod caller;
mod cifar;
mod damage;
#[path = "../api/database.rs"]
mod database;
mod killing;
mod lessons;
mod moving;
#[path = "../api/pictures.rs"]
mod pictures;
#[path = "../api/process.rs"]
mod process;
mod records;
mod replicas;
mod rollback;
mod sequence;
mod serving;
mod stopping;
mod strategies;
#[path = "../api/test_app.rs"]
mod test_app;
mod unlearning;
