//! `POST /v1/models/{model}/tasks`: every form a task may come in.

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::Database;
use crate::pictures::{FLORA, SKIES, folders, png};
use crate::scene::{TASKS, texts};
use crate::test_app::TestApp;

/// The task as the server tells of it once its job has succeeded.
async fn learned(app: &TestApp, accepted: &Answer) -> Value {
    let body = accepted.json(202);
    let job = body["job"].as_str().expect("a job's id");
    assert_eq!(accepted.headers["location"], format!("/v1/jobs/{job}"));
    assert!(accepted.headers.contains_key("retry-after"));
    let ended = app.end_of(job).await;
    assert_eq!(ended["state"], "succeeded", "{ended}");
    let name = body["task"].as_str().expect("a name");
    app.get(&format!("{TASKS}/{name}")).await
}

fn counts(task: &Value) -> (u64, u64) {
    let count = |side: &str| task["examples"][side].as_u64().expect("a number");
    (count("train"), count("held_out"))
}

fn under(folder: &str, files: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let moved = |(name, content)| (format!("{folder}/{name}"), content);
    files.into_iter().map(moved).collect()
}

/// A tar of these files.
fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive
            .append_data(&mut header, name, content.as_slice())
            .expect("a file is added");
    }
    archive.into_inner().expect("the archive is whole")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_named_after_their_classes() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let mut form = Form::new().text("name", "flora");
    for number in 0..5 {
        for class in FLORA {
            let image = Part::bytes(png(class, number)).file_name(format!("{number}.png"));
            form = form.part(class, image);
        }
    }
    let accepted = Answer::to(app.post(TASKS).multipart(form)).await;
    assert_eq!(accepted.json(202)["task"], "flora");
    let task = learned(&app, &accepted).await;
    assert_eq!(texts(&task["classes"]), FLORA);
    assert_eq!(counts(&task), (8, 2), "a fifth is held out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_of_class_folders() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let typed = |name: &str, kind: &str, archive: Vec<u8>| {
        app.submit("default", name, archive).header("content-type", kind)
    };
    let flora = Answer::to(typed("flora", "application/zip", zip(&folders(&FLORA, 0..5)))).await;
    assert_eq!(counts(&learned(&app, &flora).await), (8, 2));

    let mut wrapped = under("skies", folders(&SKIES, 0..5));
    wrapped.push(("skies/rainbow/.DS_Store".into(), b"litter".to_vec()));
    wrapped.push(("__MACOSX/skies/rainbow/._0.png".into(), b"litter".to_vec()));
    let skies = Answer::to(typed("skies", "application/x-tar", tar(&wrapped))).await;
    let task = learned(&app, &skies).await;
    assert_eq!(texts(&task["classes"]), ["night sky", "rainbow"]);
    assert_eq!(counts(&task), (8, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_own_split_stands() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let mut files = under("train", folders(&FLORA, 0..3));
    files.extend(under("test", folders(&FLORA, 3..7)));
    let one = Answer::to(app.submit("default", "flora", zip(&files))).await;
    assert_eq!(counts(&learned(&app, &one).await), (6, 8));

    let form = Form::new()
        .text("name", "skies")
        .part(
            "train",
            Part::bytes(zip(&folders(&SKIES, 0..3))).file_name("train.zip"),
        )
        .part(
            "test",
            Part::bytes(tar(&folders(&SKIES, 3..5))).file_name("test.tar"),
        );
    let two = Answer::to(app.post(TASKS).multipart(form)).await;
    assert_eq!(counts(&learned(&app, &two).await), (6, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_describe_classes() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let prompts = json!([
        {"label": "meadow", "prompt": "green grass in stripes"},
        {"label": "poppy", "description": "red flower"},
    ]);
    let form = Form::new()
        .text("name", "flora")
        .text("classes", prompts.to_string())
        .part("archive", Part::bytes(zip(&folders(&FLORA, 0..4))));
    let accepted = Answer::to(app.post(TASKS).multipart(form)).await;
    let task = learned(&app, &accepted).await;
    assert_eq!(
        texts(&task["classes"]),
        ["meadow", "poppy"],
        "in the order of the descriptions"
    );
    let version = app.get("/v1/models/default/versions/1").await;
    assert_eq!(version["classes"][0]["prompt"], "green grass in stripes");
    assert_eq!(version["classes"][1]["prompt"], "red flower");

    // The description may also come after the examples.
    let skies = SKIES
        .iter()
        .flat_map(|class| (0..2).map(move |number| (*class, png(class, number))));
    let form = skies.fold(Form::new().text("name", "skies"), |form, (class, image)| {
        form.part(class, Part::bytes(image).file_name("x.png"))
    });
    let prompts = json!([{"label": "rainbow", "prompt": "colours in the sky"}]);
    let accepted = Answer::to(
        app.post(TASKS)
            .multipart(form.text("classes", prompts.to_string())),
    )
    .await;
    learned(&app, &accepted).await;
    let version = app.get("/v1/models/default/versions/2").await;
    assert_eq!(version["classes"][3]["prompt"], "colours in the sky");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_may_wait_for_the_end() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let request = app
        .submit("default", "flora", zip(&folders(&FLORA, 0..3)))
        .header("prefer", "respond-async, wait=200");
    let answer = Answer::to(request).await.json(202);
    assert_eq!(
        (&answer["task"], &answer["state"]),
        (&json!("flora"), &json!("succeeded"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_all_the_world_come_back_as_they_were() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    // As browsers and curl do: UTF-8 as it stands. Others encode it, `name*=utf-8''…`.
    for (task, form) in [
        ("Vögel – ёж 🐦", Form::new().percent_encode_noop()),
        ("encoded", Form::new()),
    ] {
        let model = json!({"name": format!("model-{}", task.is_ascii())});
        Answer::to(app.post("/v1/models").json(&model)).await.json(201);
        teach_names(&app, model["name"].as_str().expect("a name"), task, form).await;
    }
}

async fn teach_names(app: &TestApp, model: &str, name: &str, mut form: Form) {
    let tasks = format!("/v1/models/{model}/tasks");
    for (label, class) in [("Graureiher 鷺", "poppy"), ("name", "meadow")] {
        for number in 0..3 {
            let image = Part::bytes(png(class, number)).file_name("鷺.png");
            form = form.part(label, image);
        }
    }
    let request = app.post(&tasks).query(&[("name", name)]).multipart(form);
    let accepted = Answer::to(request).await.json(202);
    assert_eq!(accepted["task"], name);
    let ended = app.end_of(accepted["job"].as_str().expect("a job's id")).await;
    assert_eq!(ended["state"], "succeeded", "{ended}");
    let known = app.get(&tasks).await;
    assert_eq!(texts(&known["tasks"][0]["classes"]), ["Graureiher 鷺", "name"]);
    assert_eq!(known["tasks"][0]["name"], name);
    let problem = Answer::to(app.request(reqwest::Method::GET, &format!("{tasks}/unheard"))).await;
    problem.problem(404, "unknown_task");
}
