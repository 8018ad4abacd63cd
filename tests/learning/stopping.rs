//! A server that is told to stop puts its job back, and the next one finishes it; one whose database goes away finishes it itself.

use std::time::Duration;

use serde_json::json;
use sqlx::{Connection as _, PgConnection};

use crate::database::{Database, on_both, on_postgres};
use crate::lessons::{CLASSIFY, enrol, lesson, of_pupil, submitted, watched};
use crate::pictures::{FLORA, png};
use crate::test_app::TestApp;

on_both!(
    a_job_that_is_too_large_for_the_next_server_fails,
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
