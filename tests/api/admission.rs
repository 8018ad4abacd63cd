//! Which requests get a place, and for how long: nobody who uploads or waits keeps others from classifying.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Method, RequestBuilder};
use tokio::sync::mpsc;

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::Database;
use crate::pictures::{FLORA, SKIES, folders};
use crate::process::Process;
use crate::refusals::assert_alive;
use crate::scene::{TASKS, endless_job};
use crate::test_app::TestApp;

/// A body of these bytes that does not end before its sender goes.
fn endless_body(bytes: &'static [u8]) -> (mpsc::Sender<std::io::Result<&'static [u8]>>, Body) {
    let (sender, receiver) = mpsc::channel(2);
    sender.try_send(Ok(bytes)).expect("there is room");
    let chunks = futures::stream::unfold(receiver, async |mut chunks| Some((chunks.recv().await?, chunks)));
    (sender, Body::wrap_stream(chunks))
}

/// Sends the request again for as long as it is answered otherwise.
async fn until(status: u16, request: impl Fn() -> RequestBuilder) {
    let began = Instant::now();
    loop {
        let response = request().send().await.expect("an answer");
        if response.status() == status {
            return;
        }
        assert!(began.elapsed() < Duration::from_mins(1), "{response:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_may_be_longer_than_the_deadline() {
    let database = Database::sqlite();
    let app = Process::start(&database, &["--deadline-seconds", "1"]);
    let job = endless_job(&app).await;
    let asked = app.request(Method::GET, &job).header("prefer", "Wait=\"2\"");
    let second = app
        .submit("slow", "skies", zip(&folders(&SKIES, 0..2)))
        .header("prefer", "wait=2");
    let began = Instant::now();
    let (waited, accepted) = tokio::join!(Answer::to(asked), Answer::to(second));
    assert!(began.elapsed() >= Duration::from_secs(2));
    let (waited, accepted) = (waited.json(200), accepted.json(202));
    assert_eq!(waited["state"], "running", "the job as it stands: {waited}");
    assert_eq!(accepted["state"], "queued", "{accepted}");
    assert!(waited["remaining_seconds"].is_f64(), "{waited}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_watch_are_bounded_and_in_nobodys_way() {
    let database = Database::sqlite();
    let app = Process::start(&database, &["--max-requests", "1"]);
    let job = endless_job(&app).await;
    let events = || app.request(Method::GET, &format!("{job}/events"));
    let watching = events().send().await.expect("an answer");
    assert_eq!(watching.status(), 200);
    let mut watching = watching.bytes_stream();
    watching.next().await.expect("a first event").expect("bytes");

    let refused = Answer::to(events()).await;
    refused.problem(503, "overloaded");
    assert!(refused.headers.contains_key("retry-after"));
    let began = Instant::now();
    let asked = app.request(Method::GET, &job).header("prefer", "wait=60");
    let told = Answer::to(asked).await.json(200);
    assert_eq!(told["task"], "flora");
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "it is told without a wait"
    );
    assert_alive(&app, "a stream").await;

    drop(watching);
    until(200, events).await;
    let waits = app.request(Method::GET, &job).header("prefer", "wait=60");
    let waits = tokio::spawn(waits.send());
    until(503, events).await;
    assert_alive(&app, "a wait").await;
    waits.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_are_bounded_and_in_nobodys_way() {
    let app = TestApp::start(&Database::sqlite(), &["--max-requests", "8"]).await;
    let (sender, body) = endless_body(b"PK\x03\x04");
    let slow = tokio::spawn(app.post(TASKS).query(&[("name", "slow")]).body(body).send());
    until(503, || app.submit("default", "birds", b"PK\x03\x04".to_vec())).await;
    assert_alive(&app, "an upload").await;
    drop(sender);
    let answer = slow.await.expect("no panic").expect("an answer");
    assert_eq!(answer.status(), 422, "half an archive");
    // Whoever waits for a job has left the place for uploads.
    let job = app
        .submit("default", "flora", zip(&folders(&FLORA, 0..40)))
        .header("prefer", "wait=60");
    let waits = tokio::spawn(job.send());
    until(409, || {
        app.submit("default", "flora", zip(&folders(&FLORA, 0..2)))
    })
    .await;
    waits.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_stall_are_given_up() {
    let app = TestApp::start(&Database::sqlite(), &["--deadline-seconds", "1"]).await;
    let (_archive, body) = endless_body(b"PK\x03\x04");
    let archive = app.post(TASKS).query(&[("name", "birds")]).body(body);
    Answer::to(archive).await.problem(408, "upload_stalled");
    let (_picture, body) = endless_body(b"\x89PNG");
    let form = Form::new().part("poppy", Part::stream(body));
    let form = app.post(TASKS).query(&[("name", "birds")]).multipart(form);
    Answer::to(form).await.problem(408, "upload_stalled");
    assert_alive(&app, "uploads that stalled").await;
}
