//! Paths, queries and methods that lead nowhere.

use reqwest::Method;
use serde_json::json;

use crate::caller::Answer;
use crate::database::Database;
use crate::pictures::png;
use crate::refusals::assert_refused;
use crate::scene::{CLASSIFY, with_flora};
use crate::test_app::TestApp;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_that_make_no_sense() {
    let (app, _) = with_flora(&Database::sqlite(), &[]).await;
    let ask = |query: &str| app.post(&format!("{CLASSIFY}?{query}")).body(png("poppy", 1));
    let long = format!("labels={}", "x".repeat(257));
    let many = (0..257).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let counts = vec![
        ("top_k of 0", ask("top_k=0")),
        ("top_k of 1001", ask("top_k=1001")),
    ];
    let unread = vec![
        ("top_k below 0", ask("top_k=-1")),
        ("top_k in words", ask("top_k=five")),
        ("top_k twice", ask("top_k=1&top_k=2")),
        ("an unknown parameter", ask("topk=1")),
        ("a version in words", ask("version=latest")),
        ("a version below 0", ask("version=-1")),
        ("a version beyond all", ask("version=4294967296")),
    ];
    let versions = vec![
        ("an unknown version", ask("version=99")),
        ("version 0", ask("version=0")),
    ];
    let labels = vec![
        ("a label with a bell", ask("labels=a,b%07")),
        ("a label that is too long", ask(&long)),
        ("a label of nothing", ask("labels=a,%20,b")),
    ];
    let groups = vec![
        (422, "invalid_top_k", counts),
        (400, "invalid_query", unread),
        (404, "unknown_version", versions),
        (422, "invalid_name", labels),
        (
            422,
            "too_many_labels",
            vec![("257", ask(&format!("labels={many}")))],
        ),
        (422, "duplicate_label", vec![("twice", ask("labels=a,a"))]),
        (
            422,
            "labels_and_version",
            vec![("both", ask("labels=a,b&version=1"))],
        ),
    ];
    assert_refused(&app, groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_lead_nowhere() {
    let (app, _) = with_flora(&Database::sqlite(), &[]).await;
    let classify = |model: &str| {
        app.post(&format!("/v1/models/{model}/classify"))
            .body(png("poppy", 1))
    };
    let get = |path: &str| app.request(Method::GET, path);
    let own = Method::from_bytes(b"TEACH").expect("a method");
    let names = vec![
        ("no model's name", classify("no%20body")),
        ("a name that is not UTF-8", classify("%ff")),
        ("a name that climbs", classify("..%2f..%2fetc")),
        ("a name with a zero", classify("a%00b")),
        ("a name that is too long", classify(&"x".repeat(65))),
    ];
    let paths = vec![
        ("an unknown path", get("/v1/nothing")),
        ("a slash too many", get("/v1/models/default/")),
        ("another release", get("/v2/models/default")),
    ];
    let methods = vec![
        ("GET where POST is meant", get(CLASSIFY)),
        ("DELETE of the probes", app.request(Method::DELETE, "/healthz")),
        ("a method of its own", app.request(own, CLASSIFY)),
    ];
    let groups = vec![
        (400, "invalid_path", names),
        (404, "unknown_model", vec![("nobody", classify("nobody"))]),
        (404, "not_found", paths),
        (405, "method_not_allowed", methods),
    ];
    assert_refused(&app, groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_method_is_told_the_right_ones() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let answer = Answer::to(app.request(Method::PUT, CLASSIFY)).await;
    answer.problem(405, "method_not_allowed");
    assert_eq!(answer.headers["allow"], "POST");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_wrong_is_named() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let create = |body: String| {
        let request = app.post("/v1/models").body(body);
        request.header("content-type", "Application/JSON; charset=utf-8")
    };
    let nested = json!({"name": "birds", "config": {"epochs": "many"}}).to_string();
    let unknown = json!({"name": "birds", "x".repeat(100_000): 1}).to_string();
    let query = app.post(&format!("{CLASSIFY}?top_k=five"));
    let path = app.request(Method::GET, "/v1/models/default/versions/two");
    for (request, status, code, field) in [
        (create(nested), 422, "unprocessable", "config.epochs"),
        (query, 400, "invalid_query", "top_k"),
        (path, 400, "invalid_path", "number"),
    ] {
        let problem = Answer::to(request).await.problem(status, code);
        assert_eq!(problem["errors"][0]["item"], field, "{problem}");
        assert_eq!(problem["errors"][0]["code"], code);
    }
    // What a caller sent is repeated in part.
    let refused = Answer::to(create(unknown)).await;
    refused.problem(422, "unprocessable");
    assert!(refused.text.len() < 2000, "{} bytes", refused.text.len());
    let cut = create("{\"name\": ".to_owned());
    Answer::to(cut).await.problem(400, "invalid_json");
    let typed = app
        .post("/v1/models")
        .header("content-type", "text/plain")
        .body("{}");
    Answer::to(typed).await.problem(415, "unsupported_media_type");
    let large = create(format!("\"{}\"", "x".repeat(33 << 20)));
    if let Ok(answer) = large.send().await {
        assert_eq!(answer.status(), 413, "the server may also have hung up");
    }
}
