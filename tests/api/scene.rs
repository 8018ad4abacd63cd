//! Servers that know something already.

use serde_json::{Value, json};

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::Database;
use crate::pictures::{FLORA, SKIES, folders};
use crate::process::Process;
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

/// Teaches a task that is learned for longer than any of these tests takes, and gives its job's path. The server must
/// be a process, which need not wait for it in the end.
pub(crate) async fn endless_job(app: &Process) -> String {
    let config = json!({"epochs": 1000, "max_steps": 1_000_000, "batch_size": 1});
    let model = app
        .post("/v1/models")
        .json(&json!({"name": "slow", "config": config}));
    Answer::to(model).await.json(201);
    let accepted = app.submit("slow", "flora", zip(&folders(&FLORA, 0..20)));
    let accepted = Answer::to(accepted).await.json(202);
    format!("/v1/jobs/{}", accepted["job"].as_str().expect("an id"))
}

/// The entries of a list of JSON texts.
pub(crate) fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list");
    list.iter().map(|entry| entry.as_str().expect("a text")).collect()
}
