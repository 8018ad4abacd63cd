//! `POST /v1/models/{model}/rollback` and the log of activations.

use reqwest::Method;
use serde_json::{Value, json};

use crate::caller::Answer;
use crate::database::{Database, on_both};
use crate::pictures::png;
use crate::scene::{CLASSIFY, with_both};
use crate::test_app::TestApp;

on_both!(rolls_back_and_forward, refuses_what_it_cannot_serve);

async fn roll_back(app: &TestApp, body: &Value) -> Answer {
    Answer::to(app.post("/v1/models/default/rollback").json(body)).await
}

async fn rolls_back_and_forward(database: Database) {
    let app = with_both(&database).await;
    let before = app.classify(CLASSIFY, png("poppy", 60)).await;
    let back = roll_back(&app, &json!({"version": 1, "reason": "skies are wrong 🌩"}))
        .await
        .json(200);
    assert_eq!((&back["model"], &back["version"]), (&json!("default"), &json!(1)));
    assert_eq!(back["previous"], 2);
    let at = back["at"].as_str().expect("a time");
    assert_eq!(app.classify(CLASSIFY, png("poppy", 60)).await["version"], 1);
    assert_eq!(app.get("/v1/models/default/versions").await["active"], 1);
    let known = app.get("/v1/models/default/tasks").await;
    assert_eq!(known["tasks"].as_array().expect("tasks").len(), 1);
    // What was learned since is still told when asked for by its version.
    let known = app.get("/v1/models/default/tasks?version=2").await;
    assert_eq!(known["tasks"].as_array().expect("tasks").len(), 2);
    let accuracy = async |query: &str| app.get(&format!("/v1/models/default/accuracy{query}")).await;
    assert_eq!(accuracy("").await["versions"], json!([1]));
    assert_eq!(accuracy("?version=1").await, accuracy("").await);
    assert_eq!(accuracy("?version=2").await["versions"], json!([1, 2]));
    for path in ["tasks", "accuracy"] {
        let asked = app.request(Method::GET, &format!("/v1/models/default/{path}?version=3"));
        Answer::to(asked).await.problem(404, "unknown_version");
        let asked = app.request(Method::GET, &format!("/v1/models/default/{path}?versions=1"));
        Answer::to(asked).await.problem(400, "invalid_query");
    }

    let if_active = async |tag: &str| {
        let request = app.post("/v1/models/default/rollback").header("if-match", tag);
        Answer::to(request.json(&json!({"version": 2}))).await
    };
    if_active("\"2\"").await.problem(412, "active_moved");
    if_active("two").await.problem(400, "invalid_if_match");
    if_active("\"1\"").await.json(200);
    let after = app.classify(CLASSIFY, png("poppy", 60)).await;
    assert_eq!(
        after["predictions"][0]["classes"],
        before["predictions"][0]["classes"]
    );
    assert_eq!(after["digest"], before["digest"]);

    let log = app.get("/v1/models/default/activations").await;
    let entries = log["activations"].as_array().expect("entries");
    let steps: Vec<(&Value, &Value)> = entries
        .iter()
        .map(|entry| (&entry["version"], &entry["previous"]))
        .collect();
    let (one, two) = (json!(1), json!(2));
    assert_eq!(
        steps,
        [(&two, &one), (&one, &two), (&two, &one), (&one, &Value::Null)],
        "newest first"
    );
    assert_eq!(entries[1]["reason"], "skies are wrong 🌩");
    assert_eq!(entries[1]["at"], at);
    assert_eq!(
        (&entries[0]["actor"], &entries[0]["reason"]),
        (&json!("http"), &Value::Null)
    );
    assert!(
        entries[2]["actor"]
            .as_str()
            .is_some_and(|actor| actor.starts_with("job:")),
        "{log}"
    );
}

async fn refuses_what_it_cannot_serve(database: Database) {
    let app = with_both(&database).await;
    let refusals = [
        (json!({"version": 3}), 404, "unknown_version"),
        (json!({"version": 0}), 404, "unknown_version"),
        (json!({"version": -1}), 422, "unprocessable"),
        (json!({"version": "1"}), 422, "unprocessable"),
        (json!({"version": 1, "because": "x"}), 422, "unprocessable"),
        (json!({"reason": "x"}), 422, "unprocessable"),
        (
            json!({"version": 1, "reason": "x".repeat(1001)}),
            422,
            "unprocessable",
        ),
    ];
    for (body, status, code) in refusals {
        roll_back(&app, &body).await.problem(status, code);
    }
    let path = "/v1/models/default/rollback";
    let request = app
        .post(path)
        .header("content-type", "application/json")
        .body("{");
    Answer::to(request).await.problem(400, "invalid_json");
    let request = app.post(path).body("{\"version\": 1}");
    Answer::to(request).await.problem(415, "unsupported_media_type");
    let request = app
        .post("/v1/models/nobody/rollback")
        .json(&json!({"version": 1}));
    Answer::to(request).await.problem(404, "unknown_model");
    let versions = app.get("/v1/models/default/versions").await;
    assert_eq!(versions["active"], 2, "nothing has moved");
    let log = app.get("/v1/models/default/activations").await;
    assert_eq!(log["activations"].as_array().expect("entries").len(), 2);
}
