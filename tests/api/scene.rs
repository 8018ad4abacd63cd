//! Servers that know something already.

use serde_json::Value;

use crate::archive::zip;
use crate::database::Database;
use crate::pictures::{FLORA, SKIES, folders};
use crate::test_app::TestApp;

/// Where the default model classifies.
pub(crate) const CLASSIFY: &str = "/v1/models/default/classify";
/// Where the default model's tasks are.
pub(crate) const TASKS: &str = "/v1/models/default/tasks";

/// A server whose default model learned the task `flora`, and the job.
pub(crate) async fn with_flora(database: &Database, flags: &[&str]) -> (TestApp, Value) {
    let app = TestApp::start(database, flags).await;
    let job = app.teach("default", "flora", zip(&folders(&FLORA, 0..5))).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    (app, job)
}

/// A server whose default model learned `flora` and then `skies`.
pub(crate) async fn with_both(database: &Database) -> TestApp {
    let (app, _) = with_flora(database, &[]).await;
    let job = app.teach("default", "skies", zip(&folders(&SKIES, 0..5))).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    app
}

/// The entries of a list of JSON texts.
pub(crate) fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list");
    list.iter().map(|entry| entry.as_str().expect("a text")).collect()
}
