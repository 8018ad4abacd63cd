//! Rollback and restart change nothing: every version answers as it always did, to the bit.

use serde_json::{Value, json};

use crate::caller::{Answer, Caller};
use crate::database::{Database, on_both};
use crate::lessons::{FIELDS, PUPIL, enrol, lesson, of_pupil, taught};
use crate::pictures::{FLORA, SKIES};
use crate::records::{Record, record};
use crate::test_app::TestApp;

on_both!(versions_answer_as_they_always_did, a_restart_changes_nothing);

async fn roll_back(caller: &Caller, version: u64) {
    let request = caller.post(&format!("/v1/models/{PUPIL}/rollback"));
    Answer::to(request.json(&json!({"version": version})))
        .await
        .json(200);
}

/// What versions 1 and 2 answer while each is active.
async fn two_versions(caller: &Caller) -> [Record; 2] {
    enrol(caller).await;
    taught(caller, "flora", lesson(&FLORA)).await;
    let first = record(caller, None).await;
    taught(caller, "skies", lesson(&SKIES)).await;
    [first, record(caller, None).await]
}

async fn versions_answer_as_they_always_did(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    let [first, second] = two_versions(&app).await;
    assert_eq!((first.version, second.version), (1, 2));
    assert_ne!(first.digest, second.digest);
    first.assert_neighbours_do_not_matter();
    second.assert_neighbours_do_not_matter();
    assert_eq!(record(&app, Some(1)).await, first, "pinned");

    roll_back(&app, 1).await;
    assert_eq!(record(&app, None).await, first, "rolled back");
    assert!(SKIES.iter().all(|class| !first.labels().contains(*class)));
    assert_eq!(record(&app, Some(2)).await, second, "still there");
    roll_back(&app, 2).await;
    assert_eq!(record(&app, None).await, second, "rolled forward");

    // What is learned now branches off.
    roll_back(&app, 1).await;
    let job = taught(&app, "fields", lesson(&FIELDS)).await;
    assert_eq!(job["version"], 3);
    let third = record(&app, None).await;
    let classes: Vec<&str> = third.labels().iter().map(|label| as_known(label)).collect();
    assert_eq!(classes, ["lavender", "meadow", "poppy", "snow"]);
    let versions = of_pupil(&app, "versions").await;
    let parents: Vec<(&Value, &Value)> = versions["versions"]
        .as_array()
        .expect("versions")
        .iter()
        .map(|version| (&version["number"], &version["parent"]))
        .collect();
    let [one, two, three] = [json!(1), json!(2), json!(3)];
    assert_eq!(parents, [(&three, &one), (&two, &one), (&one, &Value::Null)]);
    let accuracy = of_pupil(&app, "accuracy").await;
    assert_eq!(accuracy["tasks"], json!(["flora", "fields"]));
    assert_eq!(accuracy["versions"], json!([1, 3]));
    assert_eq!(record(&app, Some(2)).await, second, "nothing is lost");

    // The label is free on this branch, and the name too.
    taught(&app, "skies", lesson(&SKIES)).await;
    assert_eq!(of_pupil(&app, "accuracy").await["versions"], json!([1, 3, 4]));
}

fn as_known(label: &str) -> &'static str {
    let known = [FLORA, SKIES, FIELDS].concat();
    known
        .into_iter()
        .find(|class| *class == label)
        .expect("a known class")
}

async fn a_restart_changes_nothing(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    let [first, second] = two_versions(&app).await;
    let app = app.restart().await;
    assert_eq!(record(&app, None).await, second);
    assert_eq!(record(&app, Some(1)).await, first);
    roll_back(&app, 1).await;
    let accuracy = of_pupil(&app, "accuracy").await;
    let log = of_pupil(&app, "activations").await;
    let app = app.restart().await;
    assert_eq!(record(&app, None).await, first, "the rollback holds");
    assert_eq!(of_pupil(&app, "accuracy").await, accuracy);
    assert_eq!(
        of_pupil(&app, "activations").await,
        log,
        "a restart activates nothing"
    );
}
