//! Probes, metrics, facts about the server, and its description.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::{Database, on_both};
use crate::pictures::{FLORA, folders, png};
use crate::process::Process;
use crate::scene::{CLASSIFY, with_flora};
use crate::test_app::TestApp;

on_both!(tells_how_it_is);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
async fn tensors_have_the_threads_that_were_asked_for() {
    let database = Database::sqlite();
    for (flags, expected) in [
        (&["--threads", "3"][..], "3".to_owned()),
        (
            &[],
            std::thread::available_parallelism().expect("cores").to_string(),
        ),
    ] {
        let server = Process::start(&database, flags);
        assert_eq!(server.get("/healthz").await, json!({"status": "ok"}));
        let environment = format!("/proc/{}/environ", server.child.id());
        let environment = std::fs::read(environment).expect("the server runs");
        let found = environment
            .split(|byte| *byte == 0)
            .find_map(|variable| variable.strip_prefix(b"RAYON_NUM_THREADS="));
        assert_eq!(found, Some(expected.as_bytes()));
    }
}

#[test]
fn a_reader_who_has_seen_enough_is_no_failure() {
    for command in [
        &["openapi"][..],
        &["bench", "encode", "--batch", "1", "--seconds", "0.1"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_clipkeep"))
            .args(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        drop(child.stdout.take());
        let ended = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(
            ended.status.success() && !said.contains("pipe"),
            "{command:?}: {said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_says_so_before_it_goes() {
    let app = TestApp::start(&Database::sqlite(), &["--linger-seconds", "3600"]).await;
    app.signal();
    Answer::to(app.request(Method::GET, "/readyz"))
        .await
        .problem(503, "stopping");
    let labels = &[("labels", "poppy,fern")];
    let answer = Answer::to(app.post(CLASSIFY).query(labels).body(png("poppy", 1))).await;
    assert_eq!(answer.status, 200, "it answers those who have not seen it yet");
    let accepted = Answer::to(app.submit("default", "flora", zip(&folders(&FLORA, 0..5))))
        .await
        .json(202);
    let path = format!("/v1/jobs/{}", accepted["job"].as_str().expect("an id"));
    let asked = Instant::now();
    let waited = app.request(Method::GET, &path).header("prefer", "wait=1");
    assert_eq!(
        Answer::to(waited).await.json(200)["state"],
        "queued",
        "another server takes it"
    );
    assert!(
        asked.elapsed() >= Duration::from_secs(1),
        "who waits is not let go yet"
    );
}

async fn tells_how_it_is(database: Database) {
    let kind = if database.url().starts_with("sqlite") {
        "sqlite"
    } else {
        "postgres"
    };
    let app = TestApp::start(&database, &["--max-images", "7", "--max-body-mib", "3"]).await;
    assert_eq!(app.get("/healthz").await, json!({"status": "ok"}));
    assert_eq!(app.get("/readyz").await, json!({"status": "ready"}));
    let info = app.get("/info").await;
    assert_eq!(
        (&info["name"], &info["store"]),
        (&json!("clipkeep"), &json!(kind))
    );
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["backbone"]["device"], "cpu");
    for fact in ["dim", "image_size", "context_length"] {
        assert!(
            info["backbone"][fact].as_u64().is_some_and(|value| value > 0),
            "{info}"
        );
    }
    assert_eq!(
        (&info["limits"]["images"], &info["limits"]["body_bytes"]),
        (&json!(7), &json!(3 << 20))
    );
    for limit in [
        "pixels",
        "labels",
        "text_bytes",
        "queue",
        "requests",
        "uploads",
        "watches",
        "upload_bytes",
        "weights_bytes",
        "examples",
        "example_bytes",
        "examples_bytes",
        "fit_bytes",
    ] {
        assert!(
            info["limits"][limit].as_u64().is_some_and(|value| value > 0),
            "{limit} of {info}"
        );
    }
    assert!(info["limits"]["deadline_seconds"].is_f64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_name_what_happened() {
    let (app, _) = with_flora(&Database::sqlite(), &[]).await;
    app.classify(CLASSIFY, png("poppy", 1)).await;
    Answer::to(app.request(Method::GET, "/nowhere/at/all"))
        .await
        .problem(404, "not_found");
    let answer = Answer::to(app.request(Method::GET, "/metrics")).await;
    assert_eq!(answer.status, 200);
    let kind = answer.headers["content-type"].to_str().expect("text");
    assert!(kind.starts_with("text/plain"), "{kind}");
    for expected in [
        "http_route=\"/v1/models/{model}/classify\"",
        "clipkeep_queue_depth{priority=\"interactive\"}",
        "clipkeep_batch_size_bucket",
        "clipkeep_jobs_total{outcome=\"succeeded\"}",
        "clipkeep_active_version{model=\"default\"}",
        "clipkeep_connections ",
        "http_route=\"unmatched\"",
    ] {
        assert!(answer.text.contains(expected), "{expected} in {}", answer.text);
    }
    assert!(
        !answer.text.contains("/nowhere/at/all"),
        "callers choose no labels"
    );
    let sample = |line: &&str| !line.starts_with('#') && !line.is_empty();
    for line in answer.text.lines().filter(sample) {
        let value = line.rsplit(' ').next().expect("a value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_description_names_every_call() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let yaml = Answer::to(app.request(Method::GET, "/openapi.yaml")).await;
    assert_eq!(
        (yaml.status, &yaml.headers["content-type"]),
        (200, &"application/yaml".parse().expect("valid"))
    );
    for call in [
        "/v1/models/{model}/classify:",
        "/v1/embed:",
        "/v1/models/{model}/tasks:",
        "/v1/models/{model}/tasks/{task}:",
        "/v1/models/{model}/accuracy:",
        "/v1/models/{model}/versions:",
        "/v1/models/{model}/versions/{number}:",
        "/v1/models/{model}/rollback:",
        "/v1/models/{model}/activations:",
        "/v1/jobs/{id}:",
        "/v1/jobs/{id}/events:",
        "/v1/models:",
        "/v1/models/{model}:",
        "/healthz:",
        "/readyz:",
        "/metrics:",
        "/info:",
        "application/problem+json",
    ] {
        assert!(yaml.text.contains(call), "{call} is described");
    }
    let redirect = Answer::to(app.request(Method::GET, "/docs")).await;
    assert_eq!(
        (redirect.status, &redirect.headers["location"]),
        (303, &"/docs/".parse().expect("valid"))
    );
    let page = Answer::to(app.request(Method::GET, "/docs/")).await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("<html"), "{}", page.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_description_says_what_is_sent() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let description = app.get("/openapi.json").await;
    let calls = description["paths"].as_object().expect("paths").iter();
    let calls = calls.flat_map(|(path, calls)| {
        let calls = calls.as_object().expect("methods").iter();
        calls.map(move |(method, call)| (format!("{method} {path}"), call))
    });
    let mut files = 0;
    for (call, said) in calls {
        let Some(content) = said["requestBody"]["content"].as_object() else {
            continue;
        };
        for (kind, body) in content {
            let schema = match body["schema"]["$ref"].as_str() {
                Some(name) => description.pointer(&name[1..]).expect("a known schema"),
                None => &body["schema"],
            };
            assert_ne!(schema["items"]["type"], "integer", "{call} with {kind}: {schema}");
            if schema["format"] == "binary" {
                assert_eq!(schema["type"], "string");
                files += 1;
            }
        }
    }
    assert_eq!(
        files, 6,
        "images twice for one call and once for another, two kinds of archive, and a version"
    );
    for call in [
        "/paths/~1v1~1jobs~1{id}/get",
        "/paths/~1v1~1models~1{model}~1tasks/post",
        "/paths/~1v1~1models~1{model}~1tasks~1{task}/delete",
    ] {
        let parameters = description.pointer(call).expect("a call")["parameters"].as_array();
        let names: Vec<_> = parameters.expect("a list").iter().map(|p| &p["name"]).collect();
        assert!(names.contains(&&json!("prefer")), "{call}: {names:?}");
    }
}
