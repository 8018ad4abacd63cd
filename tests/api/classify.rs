//! `POST /v1/models/{model}/classify`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::ImageFormat;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::caller::Answer;
use crate::database::Database;
use crate::pictures::{FLORA, encoded, picture, png};
use crate::scene::{CLASSIFY, texts, with_both, with_flora};
use crate::test_app::TestApp;

/// The one prediction of an answer, checked.
fn only(answer: &Value) -> Vec<(String, f64)> {
    let predictions = answer["predictions"].as_array().expect("predictions");
    assert_eq!(predictions.len(), 1, "{answer}");
    scored(&predictions[0])
}

/// Labels and probabilities, best first.
fn scored(prediction: &Value) -> Vec<(String, f64)> {
    assert_eq!(prediction["rejected"], false, "{prediction}");
    assert!(
        prediction["id"].as_str().is_some_and(|id| id.len() == 36),
        "{prediction}"
    );
    let classes = prediction["classes"].as_array().expect("classes");
    let scored: Vec<(String, f64)> = classes
        .iter()
        .map(|class| {
            let label = class["label"].as_str().expect("a label").to_owned();
            (label, class["probability"].as_f64().expect("a number"))
        })
        .collect();
    assert!(scored.is_sorted_by(|a, b| a.1 >= b.1), "best first: {prediction}");
    scored
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_image_in_every_form_gets_the_same_answer() {
    let (app, _) = with_flora(&Database::sqlite(), &[]).await;
    let image = png("poppy", 50);
    let raw = Answer::to(
        app.post(CLASSIFY)
            .header("content-type", "image/png")
            .body(image.clone()),
    )
    .await;
    assert!(raw.headers.contains_key("server-timing"), "{:?}", raw.headers);
    assert!(raw.headers.contains_key("x-request-id"), "{:?}", raw.headers);
    let raw = raw.json(200);
    assert_eq!((&raw["model"], &raw["version"]), (&json!("default"), &json!(1)));
    assert!(
        raw["digest"].as_str().expect("text").starts_with("sha256:"),
        "{raw}"
    );
    assert_eq!(raw["predictions"][0]["classes"][0]["task"], "flora");
    let expected = only(&raw);
    let sum: f64 = expected.iter().map(|(_, probability)| probability).sum();
    assert!((sum - 1.0).abs() < 1e-4, "probabilities sum to one: {raw}");

    let curl = app
        .post(CLASSIFY)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(image.clone());
    let untyped = app.post(CLASSIFY).body(image.clone());
    let parts = app
        .post(CLASSIFY)
        .multipart(Form::new().part("image", Part::bytes(image.clone()).file_name("a.png")));
    let base64 = app
        .post(CLASSIFY)
        .json(&json!({"images": [{"data": STANDARD.encode(&image)}]}));
    for request in [curl, untyped, parts, base64] {
        assert_eq!(only(&Answer::to(request).await.json(200)), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_format_is_understood_whatever_it_is_called() {
    let (app, _) = with_flora(&Database::sqlite(), &[]).await;
    let poppy = picture("poppy", 51);
    let formats = [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::WebP,
        ImageFormat::Gif,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
    ];
    for format in formats {
        let request = app
            .post(CLASSIFY)
            .header("content-type", "image/jpeg")
            .body(encoded(&poppy, format));
        assert_eq!(only(&Answer::to(request).await.json(200)).len(), 2, "{format:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_k_and_version_choose_what_is_answered() {
    let app = with_both(&Database::sqlite()).await;
    let ask = async |query: &str| {
        let request = app.post(&format!("{CLASSIFY}?{query}")).body(png("meadow", 50));
        Answer::to(request).await.json(200)
    };
    let all = ask("").await;
    assert_eq!(all["version"], 2);
    assert_eq!(only(&all).len(), 4, "5 is the default and there are 4");
    let best = ask("top_k=1").await;
    assert_eq!(only(&best)[..], only(&all)[..1]);
    assert_eq!(only(&ask("top_k=1000").await), only(&all));

    let pinned = ask("version=1&top_k=3").await;
    assert_eq!(pinned["version"], 1);
    assert_ne!(pinned["digest"], all["digest"]);
    let mut labels: Vec<String> = only(&pinned).into_iter().map(|(label, _)| label).collect();
    labels.sort();
    let mut known = FLORA;
    known.sort_unstable();
    assert_eq!(labels, known, "version 1 knows its own classes only");
    assert_eq!(ask("version=2").await["digest"], all["digest"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ad_hoc_labels_need_no_task() {
    let app = TestApp::start(&Database::sqlite(), &["--max-labels", "3"]).await;
    let ask = async |query: &[(&str, &str)]| {
        Answer::to(app.post(CLASSIFY).query(query).body(png("poppy", 1))).await
    };
    let answer = ask(&[("labels", "a poppy, night sky ,Reiher 鷺")])
        .await
        .json(200);
    assert_eq!(answer["version"], Value::Null);
    let mut labels: Vec<String> = only(&answer).into_iter().map(|(label, _)| label).collect();
    labels.sort();
    assert_eq!(labels, ["Reiher 鷺", "a poppy", "night sky"]);
    assert_eq!(answer["predictions"][0]["classes"][0].get("task"), None);
    let info = app.get("/info").await;
    assert_eq!(answer["digest"], info["backbone"]["digest"]);

    ask(&[("labels", "a,b,a")]).await.problem(422, "duplicate_label");
    ask(&[("labels", "a,,b")]).await.problem(422, "invalid_name");
    ask(&[("labels", "")]).await.problem(422, "invalid_name");
    ask(&[("labels", "a,b,c,d")])
        .await
        .problem(422, "too_many_labels");
    ask(&[]).await.problem(409, "no_classes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_image_fails_its_item_and_not_its_neighbours() {
    let (app, _) = with_flora(&Database::sqlite(), &[]).await;
    let single = only(&app.classify(CLASSIFY, png("poppy", 52)).await);
    let mut cut = png("poppy", 53);
    cut.truncate(cut.len() / 2);
    let items = [
        png("poppy", 52),
        b"no picture".to_vec(),
        png("meadow", 52),
        cut,
        Vec::new(),
    ];
    let form = items.iter().fold(Form::new(), |form, item| {
        form.part("image", Part::bytes(item.clone()))
    });
    let answer = Answer::to(app.post(CLASSIFY).multipart(form)).await.json(200);
    let predictions = answer["predictions"].as_array().expect("predictions");
    assert_eq!(predictions.len(), 5);
    let near = |(a, b): (&(String, f64), &(String, f64))| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5;
    assert!(scored(&predictions[0]).iter().zip(&single).all(near), "{answer}");
    assert_eq!(scored(&predictions[2]).len(), 2);
    for (place, code) in [
        (1, "unsupported_image"),
        (3, "undecodable_image"),
        (4, "unsupported_image"),
    ] {
        let error = &predictions[place]["error"];
        assert_eq!(error["code"], code, "{answer}");
        assert_eq!(error["item"], format!("images[{place}]"));
        assert_eq!(error["type"], format!("urn:clipkeep:problem:{code}"));
        assert_eq!(
            (&error["status"], &error["title"]),
            (&json!(422), &json!("Unprocessable Entity"))
        );
        assert!(error["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        assert_eq!(predictions[place].get("classes"), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_base64_fails_its_item_and_not_its_neighbours() {
    let (app, _) = with_flora(&Database::sqlite(), &[]).await;
    let good = json!({"data": STANDARD.encode(png("poppy", 52))});
    for (path, answers, answer) in [
        (CLASSIFY, "predictions", "classes"),
        ("/v1/embed", "embeddings", "values"),
    ] {
        let images = json!({"images": [good, {"data": "%%%"}, good]});
        let told = Answer::to(app.post(path).json(&images)).await.json(200);
        assert!(told[answers][0][answer].is_array(), "{told}");
        let error = &told[answers][1]["error"];
        assert_eq!(
            (&error["code"], &error["status"]),
            (&json!("invalid_base64"), &json!(400))
        );
        assert_eq!(error["item"], "images[1]");
        assert_eq!(told[answers][2], {
            let mut first = told[answers][0].clone();
            if let Some(id) = told[answers][2].get("id") {
                first["id"] = id.clone();
            }
            first
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_bad_images_is_refused_with_every_item() {
    let (app, _) = with_flora(&Database::sqlite(), &[]).await;
    let data = |bytes: &[u8]| json!({"data": STANDARD.encode(bytes)});
    let mut cut = png("poppy", 53);
    cut.truncate(60);
    let request = app
        .post(CLASSIFY)
        .json(&json!({"images": [data(b"no picture"), data(&cut)]}));
    let problem = Answer::to(request).await.problem(422, "unsupported_image");
    let errors = problem["errors"].as_array().expect("items");
    let items: Vec<&Value> = errors.iter().map(|error| &error["item"]).collect();
    assert_eq!(items, ["images[0]", "images[1]"]);
    assert_eq!(errors[1]["code"], "undecodable_image");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_request_id_is_kept() {
    let (app, _) = with_flora(&Database::sqlite(), &[]).await;
    let request = app
        .post(CLASSIFY)
        .header("x-request-id", "from-the-caller")
        .body(png("poppy", 1));
    assert_eq!(
        Answer::to(request).await.headers["x-request-id"],
        "from-the-caller"
    );
    let request = app.post("/v1/nowhere").header("x-request-id", "another");
    let problem = Answer::to(request).await.problem(404, "not_found");
    assert_eq!(problem["request_id"], "another");
    assert_eq!(problem["instance"], "/v1/nowhere");
    assert_eq!(texts(&app.get("/v1/models/default").await["classes"]), FLORA);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_sent_again_is_not_encoded_again() {
    let (app, _) = with_flora(&Database::sqlite(), &["--feature-cache-mib", "1"]).await;
    let ask_at = async |app: &TestApp, path: &str, image: Vec<u8>| {
        let answer = Answer::to(app.post(path).body(image)).await;
        let timing = answer.headers["server-timing"].to_str().expect("text").to_owned();
        let was_encoded = !timing.contains("encode;dur=0.000");
        (only(&answer.json(200)), was_encoded)
    };
    let ask = async |app: &TestApp, image: Vec<u8>| ask_at(app, CLASSIFY, image).await;
    let (first, was_encoded) = ask(&app, png("poppy", 60)).await;
    assert!(was_encoded);
    assert_eq!(
        ask(&app, png("poppy", 60)).await,
        (first.clone(), false),
        "the same bits"
    );
    // Bytes are what counts, not what they show.
    let longer = [png("poppy", 60), b"more".to_vec()].concat();
    assert_eq!(ask(&app, longer).await, (first.clone(), true));
    // Another head answers from the same features: its classes, not those of the first.
    let path = format!("{CLASSIFY}?labels=owl,fox");
    let (texts, was_encoded) = ask_at(&app, &path, png("poppy", 60)).await;
    assert!(!was_encoded);
    let mut labels: Vec<String> = texts.into_iter().map(|(label, _)| label).collect();
    labels.sort();
    assert_eq!(labels, ["fox", "owl"]);
    // In one request, known images and others keep their places.
    let parts = [60, 61, 60].into_iter().fold(Form::new(), |form, number| {
        form.part("image", Part::bytes(png("poppy", number)).file_name("a.png"))
    });
    let both = Answer::to(app.post(CLASSIFY).multipart(parts)).await.json(200);
    let of = |place: usize| scored(&both["predictions"][place]);
    assert_eq!((of(0), of(2)), (first.clone(), first.clone()));
    assert_eq!(ask(&app, png("poppy", 61)).await, (of(1), false));

    let (forgetful, _) = with_flora(&Database::sqlite(), &["--feature-cache-mib", "0"]).await;
    let first = ask(&forgetful, png("poppy", 60)).await;
    assert!(first.1);
    assert_eq!(ask(&forgetful, png("poppy", 60)).await, first, "encoded anew");
}
