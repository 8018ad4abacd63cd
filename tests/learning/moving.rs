//! A version that moves to another server answers as it did, and is learned on top of there.

use reqwest::Method;
use serde_json::{Value, json};

use crate::caller::{Answer, Caller};
use crate::database::{Database, on_both};
use crate::lessons::{FIELDS, PUPIL, enrol, lesson, of_pupil, taught};
use crate::pictures::{FLORA, SKIES};
use crate::records::record;
use crate::test_app::TestApp;

on_both!(a_version_moves_and_goes_on_learning);

/// The file of a version of the pupil.
async fn exported(caller: &Caller, number: u64) -> Vec<u8> {
    let path = format!("/v1/models/{PUPIL}/versions/{number}/weights");
    let response = caller.request(Method::GET, &path).send().await;
    let response = response.expect("the server answers");
    assert_eq!(response.status(), 200);
    response.bytes().await.expect("a whole body").to_vec()
}

async fn imported(caller: &Caller, task: &str, file: Vec<u8>) -> Value {
    let request = caller.post(&format!("/v1/models/{PUPIL}/versions"));
    let request = request.query(&[("task", task)]).body(file);
    Answer::to(request).await.json(201)
}

async fn a_version_moves_and_goes_on_learning(database: Database) {
    let home = TestApp::start(&Database::sqlite(), &[]).await;
    enrol(&home).await;
    taught(&home, "flora", lesson(&FLORA)).await;
    let alone = record(&home, None).await;
    taught(&home, "skies", lesson(&SKIES)).await;
    let both = record(&home, None).await;

    // One task that keeps its name: nothing of the snapshot changes.
    let app = TestApp::start(&database, &[]).await;
    enrol(&app).await;
    let file = exported(&home, 1).await;
    let version = imported(&app, "flora", file.clone()).await;
    assert_eq!(version["digest"], alone.digest);
    assert_eq!(record(&app, None).await, alone, "to the bit");
    assert_eq!(exported(&app, 1).await, file, "and out again as it came in");

    // What it remembers came with it: the next task is learned as at home.
    taught(&app, "skies", lesson(&SKIES)).await;
    let learned = record(&app, None).await;
    assert_eq!((learned.version, learned.labels()), (2, both.labels()));
    learned.assert_near(&both);
    let accuracy = of_pupil(&app, "accuracy").await;
    assert_eq!(accuracy["tasks"], json!(["flora", "skies"]));
    assert_eq!(accuracy["n"], json!([0, 8]), "held-out pictures stayed at home");
    assert_eq!(accuracy["forgetting"], Value::Null, "nobody can tell");

    // Both tasks as one, beside what is there.
    let version = imported(&app, "from home", exported(&home, 2).await).await;
    assert_eq!(
        (&version["number"], &version["parent"]),
        (&json!(3), &Value::Null)
    );
    let third = record(&app, None).await;
    third.assert_near(&both);
    let job = taught(&app, "fields", lesson(&FIELDS)).await;
    assert_eq!(job["version"], 4);
    let names = of_pupil(&app, "tasks").await;
    assert_eq!(names["tasks"][0]["name"], "from home");
    assert_eq!(names["tasks"][1]["name"], "fields");
    assert_eq!(record(&app, None).await.labels().len(), 6);

    // Rollback reaches over the import, and forward again.
    for (number, before) in [(2, &learned), (3, &third)] {
        let request = app.post(&format!("/v1/models/{PUPIL}/rollback"));
        Answer::to(request.json(&json!({"version": number})))
            .await
            .json(200);
        assert_eq!(record(&app, None).await, *before);
    }
    let app = app.restart().await;
    assert_eq!(record(&app, None).await, third);
}
