//! A server that is told to stop puts its job back, and the next one finishes it; one whose database goes away finishes it itself.

use std::time::Duration;

use image::{ImageFormat, imageops};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::{Database, on_both, on_postgres};
use crate::lessons::{CLASSIFY, enrol, lesson, of_pupil, submitted, watched};
use crate::pictures::{FLORA, encoded, picture, png};
use crate::process::Process;
use crate::test_app::TestApp;

on_both!(
    a_job_that_is_too_large_for_the_next_server_fails,
    a_stop_between_two_savings_waits_for_none,
    a_stop_while_encoding_loses_nothing,
    a_stop_while_fitting_loses_nothing
);

async fn a_stop_while_encoding_loses_nothing(database: Database) {
    stopped_in("encode", database).await;
}

async fn a_stop_while_fitting_loses_nothing(database: Database) {
    stopped_in("fit", database).await;
}

async fn stopped_in(phase: &str, database: Database) {
    let app = TestApp::start(&database, &[]).await;
    enrol(&app).await;
    let job = submitted(&app, "flora", lesson(&FLORA)).await;
    watched(&app, &job, |job| job["phase"] == phase).await;
    let app = app.restart().await;
    let ended = app.end_of(&job).await;
    assert_eq!(
        (&ended["state"], &ended["version"]),
        (&json!("succeeded"), &json!(1)),
        "{ended}"
    );
    assert_eq!(
        ended["attempts"], 1,
        "being told to stop costs no attempt: {ended}"
    );
    let versions = of_pupil(&app, "versions").await;
    assert_eq!(versions["versions"].as_array().map(Vec::len), Some(1));
    assert_eq!(app.classify(CLASSIFY, png("poppy", 40)).await["version"], 1);
}

/// Pictures so large that they are saved together, and not soon.
fn large() -> Vec<u8> {
    let large = |class: &str, number| {
        let picture = picture(class, number);
        let picture = imageops::resize(&picture, 2400, 1800, imageops::FilterType::Nearest);
        encoded(&picture, ImageFormat::Png)
    };
    let files = FLORA
        .iter()
        .flat_map(|class| (0..3).map(move |number| (format!("{class}/{number}.png"), large(class, number))));
    zip(&files.collect::<Vec<_>>())
}

async fn a_stop_between_two_savings_waits_for_none(database: Database) {
    let mut server = Process::start(&database, &["--decode-threads", "1"]);
    enrol(&server).await;
    let job = submitted(&server, "flora", large()).await;
    watched(&server, &job, |job| job["phase"] == "encode").await;
    kill_process(Pid::from_child(&server.child), Signal::TERM).expect("it runs");
    assert!(server.child.wait().expect("it ends").success());

    let server = Process::start(&database, &[]);
    let ended = server.end_of(&job).await;
    assert_eq!(
        (&ended["state"], &ended["attempts"]),
        (&json!("succeeded"), &json!(1)),
        "{ended}"
    );
    let events = Answer::to(server.request(Method::GET, &format!("/v1/jobs/{job}/events"))).await;
    let events = events.text.lines().filter_map(|line| line.strip_prefix("data:"));
    let events: Vec<Value> = events
        .map(|data| serde_json::from_str(data).expect("JSON"))
        .collect();
    let waits = |event: &Value| event["state"] == "queued";
    let stopped = events.iter().rposition(waits).expect("it was accepted");
    assert!(stopped > 0, "it was put back: {events:?}");
    // Behind that it is taken up, and then tells how much of it is encoded.
    assert_eq!(
        events
            .get(stopped + 2)
            .map(|told| (&told["phase"], &told["progress"])),
        Some((&json!("encode"), &json!(0.0))),
        "nothing was saved before the stop: {events:?}"
    );
}

async fn a_job_that_is_too_large_for_the_next_server_fails(database: Database) {
    let app = TestApp::start(&database, &["--linger-seconds", "5"]).await;
    enrol(&app).await;
    app.signal();
    // Its worker has stopped: the job waits for the next server.
    let job = submitted(&app, "flora", lesson(&FLORA)).await;
    let app = app.restart_with(|config| config.limits.max_fit_mib = 0).await;
    let ended = app.end_of(&job).await;
    assert_eq!(
        (&ended["state"], &ended["error"]["code"]),
        (&json!("failed"), &json!("too_many_examples")),
        "{ended}"
    );
}

async fn a_database_that_goes_away_costs_no_attempt(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    enrol(&app).await;
    let job = submitted(&app, "flora", lesson(&FLORA)).await;
    watched(&app, &job, |job| job["phase"] == "encode").await;
    let mut other = PgConnection::connect(database.url()).await.expect("a connection");
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity
               where datname = current_database() and pid <> pg_backend_pid()";
    for _ in 0..40 {
        sqlx::query(cut).execute(&mut other).await.expect("cut");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ended = app.end_of(&job).await;
    assert_eq!(
        (&ended["state"], &ended["attempts"]),
        (&json!("succeeded"), &json!(1)),
        "{ended}"
    );
    let queued =
        "select count(*) from job_event where job = $1 and name = 'state' and data like '%\"queued\"%'";
    let (times,): (i64,) = sqlx::query_as(queued)
        .bind(&job)
        .fetch_one(&mut other)
        .await
        .expect("counted");
    println!("it was put back {} times", times - 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_not_blamed_for_its_database() {
    on_postgres(|database| Box::pin(a_database_that_goes_away_costs_no_attempt(database))).await;
}
