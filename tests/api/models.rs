//! `/v1/models`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::{Database, on_both};
use crate::pictures::{FLORA, SKIES, folders, png};
use crate::scene::{CLASSIFY, texts};
use crate::test_app::TestApp;

on_both!(models_live_side_by_side);

async fn create(app: &TestApp, body: &Value) -> Answer {
    Answer::to(app.post("/v1/models").json(body)).await
}

async fn models_live_side_by_side(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    let created = create(
        &app,
        &json!({"name": "birds.v-2_x", "config": {"epochs": 3, "seed": 7}}),
    )
    .await;
    assert_eq!(created.headers["location"], "/v1/models/birds.v-2_x");
    let created = created.json(201);
    assert_eq!(
        (&created["name"], &created["active"]),
        (&json!("birds.v-2_x"), &Value::Null)
    );
    assert_eq!(created["config"]["epochs"], 3);
    let default = app.get("/v1/models/default").await;
    assert_eq!(
        created["config"]["learning_rate"],
        default["config"]["learning_rate"]
    );
    assert_eq!(default["classes"], json!([]));
    create(&app, &json!({"name": "birds.v-2_x"}))
        .await
        .problem(409, "model_exists");

    let (ours, theirs) = tokio::join!(
        app.teach("default", "one", zip(&folders(&FLORA, 0..3))),
        app.teach("birds.v-2_x", "one", zip(&folders(&SKIES, 0..3))),
    );
    assert_eq!((&ours["version"], &theirs["version"]), (&json!(1), &json!(1)));
    let birds = app.get("/v1/models/birds.v-2_x").await;
    assert_eq!(texts(&birds["classes"]), ["night sky", "rainbow"]);
    assert_eq!(birds["active"], 1);
    let answer = app
        .classify("/v1/models/birds.v-2_x/classify", png("rainbow", 70))
        .await;
    assert_eq!(answer["model"], "birds.v-2_x");
    assert_eq!(answer["predictions"][0]["classes"][0]["task"], "one");
    let ours = app.classify(CLASSIFY, png("rainbow", 70)).await;
    assert_ne!(answer["digest"], ours["digest"]);
    let version = app.get("/v1/models/birds.v-2_x/versions/1").await;
    assert_eq!(
        (&version["config"]["epochs"], &version["config"]["seed"]),
        (&json!(3), &json!(7))
    );

    let first = Answer::to(app.request(Method::GET, "/v1/models?limit=1")).await;
    assert!(
        first.headers["link"]
            .to_str()
            .expect("text")
            .contains("limit=1&cursor=birds.v-2_x")
    );
    let names = |list: &Value| -> Vec<String> {
        let models = list["models"].as_array().expect("models").iter();
        models
            .map(|model| model["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    assert_eq!(names(&first.json(200)), ["birds.v-2_x"]);
    assert_eq!(names(&app.get("/v1/models").await), ["birds.v-2_x", "default"]);
    let app = app.restart().await;
    let restored = app
        .classify("/v1/models/birds.v-2_x/classify", png("rainbow", 70))
        .await;
    assert_eq!(restored["digest"], answer["digest"]);
    assert_eq!(
        restored["predictions"][0]["classes"],
        answer["predictions"][0]["classes"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_no_model() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    for (name, code) in [
        (json!(""), "unprocessable"),
        (json!("a/b"), "unprocessable"),
        (json!("größe"), "unprocessable"),
        (json!("x".repeat(65)), "unprocessable"),
        (json!(7), "unprocessable"),
    ] {
        create(&app, &json!({"name": name})).await.problem(422, code);
    }
    // Words before the name that take all of the embedded backbone's 32 tokens.
    let crowded = format!("{} {{}}", "owl ".repeat(40));
    let birds = json!({"name": "birds", "config": {"templates": ["a {}", crowded]}});
    let refused = create(&app, &birds).await;
    let problem = refused.problem(422, "invalid_template");
    assert!(
        problem["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("no room")),
        "{problem}"
    );
    for (config, field) in [
        (json!({"learning_rate": 0}), "learning_rate"),
        (json!({"learning_rate": -1.0}), "learning_rate"),
        (json!({"epochs": 0}), "epochs"),
        (json!({"epochs": 1_000_000}), "epochs"),
        (json!({"batch_size": 0}), "batch_size"),
        (json!({"held_out": 0.9}), "held_out"),
        (json!({"templates": []}), "templates"),
        (json!({"templates": ["no place for the class"]}), "templates"),
        (
            json!({"retention": {"kind": "importance", "ratio": 0}}),
            "retention.ratio",
        ),
        (
            json!({"rehearsal": {"kind": "gaussian", "rank": 0, "per_example": 1}}),
            "rehearsal.rank",
        ),
    ] {
        let refused = create(&app, &json!({"name": "birds", "config": config})).await;
        let problem = refused.problem(422, "invalid_configuration");
        assert_eq!(problem["errors"][0]["item"], field, "{problem}");
        assert_eq!(problem["errors"][0]["code"], "out_of_range");
    }
    for config in [
        json!({"epoch": 3}),
        json!({"strategy": "magic"}),
        json!({"retention": {"kind": "elephant"}}),
        json!({"seed": -1}),
        json!("default"),
    ] {
        let refused = create(&app, &json!({"name": "birds", "config": config})).await;
        refused.problem(422, "unprocessable");
    }
    let unknown = app.request(Method::GET, "/v1/models/birds");
    Answer::to(unknown).await.problem(404, "unknown_model");
}
