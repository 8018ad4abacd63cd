//! Which requests get a place, and for how long: nobody who uploads or waits keeps others from classifying.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Method, RequestBuilder, Response};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::archive::zip;
use crate::caller::{Answer, PATIENCE};
use crate::database::Database;
use crate::pictures::{SKIES, folders, png};
use crate::process::Process;
use crate::refusals::assert_alive;
use crate::scene::{CLASSIFY, TASKS, endless_job};
use crate::test_app::TestApp;

/// Keeps a body from ending for as long as it lives.
type Sender = mpsc::Sender<std::io::Result<Bytes>>;

/// A body of these bytes that does not end before its sender goes.
fn endless_body(bytes: impl Into<Bytes>) -> (Sender, Body) {
    let (sender, receiver) = mpsc::channel(2);
    sender.try_send(Ok(bytes.into())).expect("there is room");
    let chunks = futures::stream::unfold(receiver, async |mut chunks| Some((chunks.recv().await?, chunks)));
    (sender, Body::wrap_stream(chunks))
}

/// Starts a request that stays, and gives it once it has the place that `probe` wants too, with what that was answered.
/// The probe itself may have had the place when the request came, so this may take several attempts.
async fn holding_the_place<T: Send + 'static>(
    start: impl Fn() -> JoinHandle<T>,
    probe: impl Fn() -> RequestBuilder,
) -> (JoinHandle<T>, Response) {
    let began = Instant::now();
    let mut holds = start();
    loop {
        let response = probe().send().await.expect("an answer");
        if response.status() == 503 {
            // A probe before this one may be what has the place still: then the request is answered without it, and soon.
            tokio::time::sleep(Duration::from_millis(500)).await;
            if !holds.is_finished() {
                return (holds, response);
            }
        }
        drop(response);
        if holds.is_finished() {
            holds = start();
        }
        assert!(began.elapsed() < Duration::from_mins(1), "no place is ever taken");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends the request again until it is answered with this status.
async fn until(status: u16, request: impl Fn() -> RequestBuilder) {
    let began = Instant::now();
    while request().send().await.expect("an answer").status() != status {
        assert!(began.elapsed() < Duration::from_mins(1), "never {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends the request with a body that begins with these bytes and ends when it is told to, or nobody reads it any more.
fn sent_slowly(
    request: RequestBuilder,
    bytes: impl Into<Bytes>,
    stop: &CancellationToken,
) -> JoinHandle<Answer> {
    let (sender, body) = endless_body(bytes);
    let stop = stop.clone();
    tokio::spawn(async move {
        let answer = tokio::spawn(Answer::to(request.body(body)));
        tokio::select! {
            () = stop.cancelled() => drop(sender),
            () = sender.closed() => {}
        }
        answer.await.expect("no panic")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_up_is_counted() {
    let database = Database::sqlite();
    let app = Process::start(&database, &[]);
    let job = endless_job(&app).await;
    let asked = app.request(Method::GET, &job).header("prefer", "wait=60");
    let given_up = asked.timeout(Duration::from_millis(200)).send().await;
    assert!(given_up.is_err_and(|error| error.is_timeout()));
    let began = Instant::now();
    loop {
        let metrics = Answer::to(app.request(Method::GET, "/metrics")).await.text;
        let counted = |line: &str| line.contains("/v1/jobs/{id}") && line.contains("\"499\"");
        if metrics.lines().any(counted) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
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
    let wait = || {
        let waits = app.request(Method::GET, &job).header("prefer", "wait=60");
        tokio::spawn(waits.send())
    };
    let (waits, _) = holding_the_place(wait, events).await;
    assert_alive(&app, "a wait").await;
    waits.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_are_bounded_and_in_nobodys_way() {
    let app = TestApp::start(&Database::sqlite(), &["--max-requests", "8"]).await;
    let stop = CancellationToken::new();
    let upload = || app.post(TASKS).query(&[("name", "slow")]);
    let start = || sent_slowly(upload(), "PK\x03\x04", &stop);
    let (slow, _) = holding_the_place(start, || upload().body("PK\x03\x04")).await;
    assert_alive(&app, "an upload").await;
    stop.cancel();
    slow.await.expect("no panic").problem(422, "damaged_archive");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_a_job_has_left_the_place_for_uploads() {
    let database = Database::sqlite();
    let app = Process::start(&database, &["--max-requests", "1"]);
    endless_job(&app).await;
    let stop = CancellationToken::new();
    let archive = zip(&folders(&SKIES, 0..2));
    let teach = || {
        app.submit("slow", "skies", Vec::new())
            .header("prefer", "wait=60")
    };
    let start = || sent_slowly(teach(), archive.clone(), &stop);
    let probe = || app.submit("slow", "none", b"PK\x03\x04".to_vec());
    let (waits, _) = holding_the_place(start, probe).await;
    stop.cancel();
    until(422, probe).await;
    assert!(!waits.is_finished(), "it waits for the job before it");
    waits.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_stall_are_given_up() {
    let app = TestApp::start(&Database::sqlite(), &["--deadline-seconds", "1"]).await;
    let (_archive, body) = endless_body("PK\x03\x04");
    let archive = app.post(TASKS).query(&[("name", "birds")]).body(body);
    Answer::to(archive).await.problem(408, "upload_stalled");
    let (_picture, body) = endless_body("no picture");
    let form = Form::new().part("poppy", Part::stream(body));
    let form = app.post(TASKS).query(&[("name", "birds")]).multipart(form);
    Answer::to(form).await.problem(408, "upload_stalled");
    assert_alive(&app, "uploads that stalled").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_at_a_time_are_shed() {
    let app = TestApp::start(&Database::sqlite(), &["--max-requests", "1"]).await;
    let stop = CancellationToken::new();
    let classify = || app.post(CLASSIFY).query(&[("labels", "a,b")]);
    let start = || sent_slowly(classify(), "GIF", &stop);
    let (slow, refused) = holding_the_place(start, || classify().body(png("poppy", 1))).await;
    assert!(refused.headers().contains_key("retry-after"));
    Answer::to(classify().body(png("poppy", 1)))
        .await
        .problem(503, "overloaded");
    assert_eq!(app.get("/healthz").await["status"], "ok");
    assert_eq!(
        app.get("/readyz").await["status"],
        "ready",
        "probes are always let in"
    );
    stop.cancel();
    slow.await.expect("no panic").problem(422, "unsupported_image");
    app.get("/v1/models").await;
}
