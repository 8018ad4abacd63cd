//! `POST /v1/embed`.

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::caller::Answer;
use crate::database::Database;
use crate::pictures::png;
use crate::test_app::TestApp;

/// The embeddings of an answer, each of unit length.
fn embeddings(answer: &Value) -> Vec<Vec<f64>> {
    let dim = answer["dim"].as_u64().expect("a number") as usize;
    let entries = answer["embeddings"].as_array().expect("embeddings");
    let read = |entry: &Value| {
        let values: Vec<f64> = entry["values"]
            .as_array()
            .expect("values")
            .iter()
            .map(|value| value.as_f64().expect("a number"))
            .collect();
        assert_eq!(values.len(), dim);
        let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        assert!((norm - 1.0).abs() < 1e-4, "unit length: {norm}");
        values
    };
    entries.iter().map(read).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_become_unit_vectors() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let info = app.get("/info").await;
    let raw = Answer::to(app.post("/v1/embed").body(png("poppy", 1)))
        .await
        .json(200);
    assert_eq!(raw["digest"], info["backbone"]["digest"]);
    assert_eq!(raw["dim"], info["backbone"]["dim"]);
    let single = embeddings(&raw).remove(0);

    let form = Form::new()
        .part("image", Part::bytes(png("rainbow", 1)))
        .part("image", Part::bytes(png("poppy", 1)));
    let batch = embeddings(&Answer::to(app.post("/v1/embed").multipart(form)).await.json(200));
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart(&batch[1], &single) < 1e-5, "the neighbours do not matter");
    assert!(apart(&batch[0], &single) > 1e-3, "another picture is elsewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_become_unit_vectors_with_and_without_the_template() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let embed =
        async |body: Value| embeddings(&Answer::to(app.post("/v1/embed").json(&body)).await.json(200));
    let plain = embed(json!({"texts": ["heron", "a good photo of a heron.", "heron"]})).await;
    assert_eq!(plain[0], plain[2]);
    assert_ne!(plain[0], plain[1]);
    let templated = embed(json!({"texts": ["heron"], "template": true})).await;
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(
        apart(&templated[0], &plain[1]) < 1e-5,
        "the template is what it says"
    );
    assert_eq!(
        embed(json!({"texts": ["heron"], "template": false})).await[0],
        plain[0]
    );
    let long = "heron ".repeat(500);
    assert_eq!(
        embed(json!({"texts": [long]})).await.len(),
        1,
        "what is too long is cut"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_embedded_is_refused() {
    let app = TestApp::start(&Database::sqlite(), &["--max-labels", "2"]).await;
    let refused = async |body: Value, code: &str| {
        Answer::to(app.post("/v1/embed").json(&body))
            .await
            .problem(422, code);
    };
    refused(json!({"texts": []}), "invalid_texts").await;
    refused(json!({"texts": ["a", "b", "c"]}), "invalid_texts").await;
    refused(json!({"texts": "heron"}), "unprocessable").await;
    refused(json!({"texts": ["a"], "templates": true}), "unprocessable").await;
    refused(json!({"nothing": 1}), "unprocessable").await;
    refused(json!(["heron"]), "unprocessable").await;
    refused(json!({}), "unprocessable").await;
    refused(json!({"texts": ["a"], "images": []}), "unprocessable").await;
    refused(json!({"images": [], "template": true}), "unprocessable").await;
    let longest = "x".repeat(4096);
    let problem = Answer::to(
        app.post("/v1/embed")
            .json(&json!({"texts": [longest, longest + "x"]})),
    )
    .await
    .problem(422, "text_too_long");
    assert_eq!(problem["errors"][0]["item"], "texts[1]", "{problem}");
    assert_eq!(problem["errors"].as_array().map(Vec::len), Some(1));
    let typed = app
        .post("/v1/embed")
        .header("content-type", "Application/JSON")
        .body(json!({"texts": ["heron"]}).to_string());
    Answer::to(typed).await.json(200);
    let request = app.post("/v1/embed").body("no picture");
    Answer::to(request).await.problem(422, "unsupported_image");
    let form = Form::new()
        .part("image", Part::bytes(png("poppy", 1)))
        .part("image", Part::bytes(b"no picture"));
    let answer = Answer::to(app.post("/v1/embed").multipart(form)).await.json(200);
    assert!(answer["embeddings"][0]["values"].is_array());
    assert_eq!(answer["embeddings"][1]["error"]["code"], "unsupported_image");
}
