//! What a model knows, or is about to know, cannot be taught again.

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::{Database, on_both};
use crate::pictures::{FLORA, SKIES, folders};
use crate::scene::with_flora;
use crate::test_app::TestApp;

on_both!(known_names_are_refused, names_in_flight_are_refused);

async fn known_names_are_refused(database: Database) {
    let (app, _) = with_flora(&database, &[]).await;
    let same_task = app.submit("default", "flora", zip(&folders(&SKIES, 0..2)));
    Answer::to(same_task).await.problem(409, "task_exists");
    let same_label = app.submit("default", "more", zip(&folders(&["poppy", "rainbow"], 0..2)));
    let problem = Answer::to(same_label).await.problem(409, "label_exists");
    assert!(
        problem["detail"].as_str().expect("text").contains("poppy"),
        "{problem}"
    );
    let skies = app.teach("default", "skies", zip(&folders(&SKIES, 0..2))).await;
    assert_eq!(
        skies["version"], 2,
        "a refusal leaves nothing in the way: {skies}"
    );
}

async fn names_in_flight_are_refused(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    // Enough pictures to be still under way while the others ask.
    let first = app.submit("default", "flora", zip(&folders(&FLORA, 0..40)));
    let first = Answer::to(first).await.json(202);
    let same_task = app.submit("default", "flora", zip(&folders(&SKIES, 0..2)));
    let same_label = app.submit("default", "skies", zip(&folders(&["rainbow", "meadow"], 0..2)));
    let (same_task, same_label) = tokio::join!(Answer::to(same_task), Answer::to(same_label));
    same_task.problem(409, "task_in_flight");
    same_label.problem(409, "label_in_flight");
    let job = app.end_of(first["job"].as_str().expect("an id")).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(app.get("/v1/models/default/versions").await["active"], 1);
}
