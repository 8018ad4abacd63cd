//! Pictures whose header is fine and whose body is not: nobody notices before the job decodes them.

use serde_json::json;

use crate::archive::zip;
use crate::database::{Database, on_both};
use crate::lessons::{CLASSIFY, PUPIL, enrol, of_pupil};
use crate::pictures::{FLORA, folders, png};
use crate::test_app::TestApp;

on_both!(
    damaged_pictures_are_left_out,
    a_class_of_damaged_pictures_fails_its_job
);

/// A picture that breaks off.
fn broken(class: &str, number: u64) -> Vec<u8> {
    let mut picture = png(class, number);
    picture.truncate(picture.len() / 2);
    picture
}

async fn damaged_pictures_are_left_out(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    enrol(&app).await;
    let mut files = folders(&FLORA, 0..5);
    files.insert(3, ("poppy/broken.png".into(), broken("poppy", 20)));
    files.push(("meadow/broken.png".into(), broken("meadow", 21)));
    let job = app.teach(PUPIL, "flora", zip(&files)).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    let examples = &job["report"]["examples"];
    assert_eq!(
        (&examples["train"], &examples["held_out"]),
        (&json!(8), &json!(2)),
        "{job}"
    );
    let discarded = examples["discarded"].as_array().expect("a list");
    assert_eq!(discarded.len(), 2, "{job}");
    for (said, name) in discarded.iter().zip(["poppy/broken.png", "meadow/broken.png"]) {
        let said = said.as_str().expect("text");
        assert!(
            said.starts_with(&format!("{name}: the image cannot be decoded: ")),
            "{said}"
        );
    }
    let task = of_pupil(&app, "tasks/flora").await;
    assert_eq!(task["examples"], json!({"train": 8, "held_out": 2}));
}

async fn a_class_of_damaged_pictures_fails_its_job(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    enrol(&app).await;
    let mut files = folders(&["poppy"], 0..4);
    files.extend((0..3).map(|n| (format!("meadow/{n}.png"), broken("meadow", n))));
    let job = app.teach(PUPIL, "flora", zip(&files)).await;
    assert_eq!(job["state"], "failed", "{job}");
    assert_eq!(job["error"]["code"], "class_without_examples", "{job}");
    let detail = job["error"]["detail"].as_str().expect("text");
    assert!(detail.contains("meadow"), "{job}");
    assert_eq!(job["version"], json!(null));
    assert_eq!(
        of_pupil(&app, "versions").await["versions"],
        json!([]),
        "nothing is published"
    );

    // The name and the labels are free again, and the worker goes on.
    let job = app.teach(PUPIL, "flora", zip(&folders(&FLORA, 0..4))).await;
    assert_eq!(
        (&job["state"], &job["version"]),
        (&json!("succeeded"), &json!(1)),
        "{job}"
    );
    assert_eq!(app.classify(CLASSIFY, png("poppy", 30)).await["version"], 1);
}
