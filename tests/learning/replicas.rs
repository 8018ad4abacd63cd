//! Two servers on one PostgreSQL database answer alike.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::caller::{Answer, Caller};
use crate::database::{Database, on_postgres};
use crate::lessons::{CLASSIFY, PUPIL, enrol, lesson, of_pupil, submitted, taught};
use crate::pictures::{FLORA, SKIES, png};
use crate::records::record;
use crate::test_app::TestApp;

/// How soon another server answers with what was activated: twice the interval at which it asks at the latest.
const BOUND: Duration = Duration::from_secs(10);

/// Waits until a server answers with a version; fails when it takes too long.
async fn answers_with(caller: &Caller, version: u64) -> Duration {
    let started = Instant::now();
    loop {
        let answer = Answer::to(caller.post(CLASSIFY).body(png("poppy", 500))).await;
        if answer.status == 200 && answer.json(200)["version"] == version {
            return started.elapsed();
        }
        assert!(started.elapsed() < BOUND, "{}: {}", answer.status, answer.text);
    }
}

async fn share_what_they_learn(database: Database) {
    let one = TestApp::start_named("one", &database, &[]).await;
    let two = TestApp::start_named("two", &database, &[]).await;
    enrol(&one).await;
    taught(&one, "flora", lesson(&FLORA)).await;
    let took = answers_with(&two, 1).await;
    println!("the first version was there after {took:?}");
    assert_eq!(record(&one, None).await, record(&two, None).await);

    // Whoever takes up a job, it runs once, and each tells of it.
    let job = submitted(&two, "skies", lesson(&SKIES)).await;
    let ended = one.end_of(&job).await;
    assert_eq!(
        (&ended["state"], &ended["version"], &ended["attempts"]),
        (&json!("succeeded"), &json!(2), &json!(1)),
        "{ended}"
    );
    answers_with(&one, 2).await;
    answers_with(&two, 2).await;
    assert_eq!(record(&one, None).await, record(&two, None).await);

    for (at, other, version) in [(&two, &one, 1), (&one, &two, 2)] {
        let request = at.post(&format!("/v1/models/{PUPIL}/rollback"));
        Answer::to(request.json(&json!({"version": version})))
            .await
            .json(200);
        answers_with(at, version).await;
        let took = answers_with(other, version).await;
        println!("version {version} was there after {took:?}");
    }
    assert_eq!(of_pupil(&one, "accuracy").await, of_pupil(&two, "accuracy").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_share_what_they_learn() {
    on_postgres(|database| Box::pin(share_what_they_learn(database))).await;
}
