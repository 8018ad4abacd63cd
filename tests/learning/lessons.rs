//! What is taught, and to whom.

use std::ops::Range;

use serde_json::{Value, json};

use crate::archive::zip;
use crate::caller::{Answer, Caller};
use crate::pictures::png;

/// The model that learns.
pub(crate) const PUPIL: &str = "pupil";
/// Where it classifies.
pub(crate) const CLASSIFY: &str = "/v1/models/pupil/classify";

/// The classes of a third task, beside those of [`crate::pictures`].
pub(crate) const FIELDS: [&str; 2] = ["snow", "lavender"];

/// Pictures of each class that lessons show, and others that they hold out.
const SHOWN: Range<u64> = 0..8;
const HELD_OUT: Range<u64> = 8..12;

/// Creates the model. It takes more steps than the default one, so that a few pictures suffice, and random weights.
pub(crate) async fn enrol(caller: &Caller) {
    let config = json!({"epochs": 60, "batch_size": 16});
    let body = json!({"name": PUPIL, "config": config});
    Answer::to(caller.post("/v1/models").json(&body)).await.json(201);
}

/// An archive that teaches these classes and brings its own held-out pictures.
pub(crate) fn lesson(classes: &[&str]) -> Vec<u8> {
    let named: Vec<(&str, &str)> = classes.iter().map(|class| (*class, *class)).collect();
    lesson_named(&named)
}

/// An archive that teaches labels with the pictures of classes.
pub(crate) fn lesson_named(classes: &[(&str, &str)]) -> Vec<u8> {
    let mut files = Vec::new();
    for (label, class) in classes {
        for (split, numbers) in [("train", SHOWN), ("test", HELD_OUT)] {
            files.extend(numbers.map(|n| (format!("{split}/{label}/{n}.png"), png(class, n))));
        }
    }
    zip(&files)
}

/// Teaches the pupil a task that it must learn; gives the job.
pub(crate) async fn taught(caller: &Caller, task: &str, archive: Vec<u8>) -> Value {
    let job = caller.teach(PUPIL, task, archive).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    job
}

/// What the pupil's page `tail` says.
pub(crate) async fn of_pupil(caller: &Caller, tail: &str) -> Value {
    caller.get(&format!("/v1/models/{PUPIL}/{tail}")).await
}

/// The id of the job that an archive was accepted as.
pub(crate) async fn submitted(caller: &Caller, task: &str, archive: Vec<u8>) -> String {
    let accepted = Answer::to(caller.submit(PUPIL, task, archive)).await.json(202);
    accepted["job"].as_str().expect("an id").to_owned()
}

/// Polls a job until it is as wished or has ended, and gives what it was then.
pub(crate) async fn watched(caller: &Caller, job: &str, wish: impl Fn(&Value) -> bool) -> Value {
    loop {
        let seen = caller.get(&format!("/v1/jobs/{job}")).await;
        let ended = !matches!(seen["state"].as_str(), Some("queued" | "running"));
        if ended || wish(&seen) {
            return seen;
        }
    }
}
