//! A task or class that was unlearned is gone, everything else stays, and nothing of it is lost to a rollback.

use reqwest::Method;
use serde_json::{Value, json};

use crate::caller::{Answer, Caller};
use crate::database::{Database, on_both};
use crate::lessons::{FIELDS, PUPIL, enrol, lesson, of_pupil, taught};
use crate::pictures::{FLORA, SKIES};
use crate::process::Process;
use crate::records::record;
use crate::test_app::TestApp;

on_both!(
    a_task_goes_and_can_come_back,
    a_discriminant_forgets_without_a_trace,
    a_regression_forgets_without_a_trace,
    a_regression_forgets_a_class_without_a_trace,
    a_killed_server_unlearns_after_all,
);

/// Asks for a task to be unlearned; gives the id of the job.
async fn asked(caller: &Caller, task: &str) -> String {
    let request = caller.request(Method::DELETE, &format!("/v1/models/{PUPIL}/tasks/{task}"));
    let accepted = Answer::to(request).await.json(202);
    accepted["job"].as_str().expect("an id").to_owned()
}

async fn unlearned(caller: &Caller, task: &str) -> Value {
    let job = caller.end_of(&asked(caller, task).await).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    job
}

async fn roll_back(caller: &Caller, version: u64) {
    let request = caller.post(&format!("/v1/models/{PUPIL}/rollback"));
    Answer::to(request.json(&json!({"version": version})))
        .await
        .json(200);
}

async fn three_tasks(caller: &Caller) {
    taught(caller, "flora", lesson(&FLORA)).await;
    taught(caller, "skies", lesson(&SKIES)).await;
    taught(caller, "fields", lesson(&FIELDS)).await;
}

async fn a_task_goes_and_can_come_back(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    enrol(&app).await;
    three_tasks(&app).await;
    let before = record(&app, None).await;
    let job = unlearned(&app, "skies").await;
    assert_eq!(
        (&job["version"], &job["report"]["exact"]),
        (&json!(4), &json!(false))
    );
    let after = record(&app, None).await;
    after.assert_neighbours_do_not_matter();
    assert!(SKIES.iter().all(|class| !after.labels().contains(*class)));
    assert_eq!(after.labels().len(), 4);
    let accuracy = of_pupil(&app, "accuracy").await;
    assert_eq!(accuracy["tasks"], json!(["flora", "fields"]));
    assert_eq!(accuracy["versions"], json!([1, 2, 3, 4]));
    assert_eq!(accuracy["n"], json!([8, 8]));
    assert!(
        accuracy["last"].as_f64() >= Some(0.75),
        "what stays is still known: {accuracy}"
    );

    roll_back(&app, 3).await;
    assert_eq!(record(&app, None).await, before, "as it was, to the bit");
    roll_back(&app, 4).await;
    assert_eq!(record(&app, None).await, after);

    let job = taught(&app, "skies", lesson(&SKIES)).await;
    assert_eq!(job["version"], 5);
    assert_eq!(record(&app, None).await.labels(), before.labels());
    let accuracy = of_pupil(&app, "accuracy").await;
    assert_eq!(accuracy["tasks"], json!(["flora", "fields", "skies"]));
    let app = app.restart().await;
    assert_eq!(of_pupil(&app, "accuracy").await, accuracy);
    assert_eq!(record(&app, Some(4)).await, after);
}

async fn a_discriminant_forgets_without_a_trace(database: Database) {
    forgets_without_a_trace(database, json!({"strategy": "gda"})).await;
}

async fn a_regression_forgets_without_a_trace(database: Database) {
    forgets_without_a_trace(database, json!({"strategy": "ridge", "random_features": 128})).await;
}

async fn forgets_without_a_trace(database: Database, config: Value) {
    let app = TestApp::start(&database, &[]).await;
    let model = json!({"name": PUPIL, "config": config});
    Answer::to(app.post("/v1/models").json(&model)).await.json(201);
    three_tasks(&app).await;
    assert_eq!(unlearned(&app, "skies").await["report"]["exact"], true);
    let without = record(&app, None).await;

    roll_back(&app, 1).await;
    taught(&app, "fields", lesson(&FIELDS)).await;
    let never = record(&app, None).await;
    assert_eq!((without.version, never.version), (4, 5));
    without.assert_near(&never);
    let known = of_pupil(&app, "versions/4").await;
    let order: Vec<&Value> = known["classes"]
        .as_array()
        .expect("classes")
        .iter()
        .map(|class| &class["label"])
        .collect();
    assert_eq!(order, [FLORA, FIELDS].concat(), "in the order of learning");
}

async fn a_regression_forgets_a_class_without_a_trace(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    let config = json!({"strategy": "ridge", "random_features": 256});
    let model = json!({"name": PUPIL, "config": config});
    Answer::to(app.post("/v1/models").json(&model)).await.json(201);
    three_tasks(&app).await;
    let path = format!("/v1/models/{PUPIL}/classes/{}", SKIES[0]);
    let accepted = Answer::to(app.request(Method::DELETE, &path)).await.json(202);
    let job = app.end_of(accepted["job"].as_str().expect("an id")).await;
    assert_eq!(
        (&job["version"], &job["report"]["exact"]),
        (&json!(4), &json!(true))
    );
    let without = record(&app, None).await;
    assert!(!without.labels().contains(SKIES[0]));

    roll_back(&app, 1).await;
    taught(&app, "skies", lesson(&SKIES[1..])).await;
    taught(&app, "fields", lesson(&FIELDS)).await;
    let never = record(&app, None).await;
    assert_eq!((without.version, never.version), (4, 6));
    without.assert_same_probabilities(&never);

    // What is kept of the other classes is learned on top of.
    roll_back(&app, 4).await;
    assert_eq!(taught(&app, "again", lesson(&SKIES[..1])).await["version"], 7);
    assert_eq!(record(&app, None).await.labels().len(), 6);
}

async fn a_killed_server_unlearns_after_all(database: Database) {
    let server = Process::start(&database, &[]);
    enrol(&server).await;
    three_tasks(&server).await;
    let job = asked(&server, "flora").await;
    drop(server);

    let server = Process::start(&database, &[]);
    let ended = server.end_of(&job).await;
    assert_eq!(
        (&ended["state"], &ended["version"]),
        (&json!("succeeded"), &json!(4))
    );
    let tasks = of_pupil(&server, "tasks").await;
    assert_eq!(tasks["tasks"].as_array().map(Vec::len), Some(2));
    assert_eq!(record(&server, None).await.version, 4);
    let log = of_pupil(&server, "activations").await;
    assert_eq!(
        log["activations"].as_array().map(Vec::len),
        Some(4),
        "once: {log}"
    );
}
