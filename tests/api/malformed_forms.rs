//! Forms that are no tasks.

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::archive::zip;
use crate::database::Database;
use crate::pictures::{FLORA, folders, png};
use crate::refusals::assert_refused;
use crate::scene::TASKS;
use crate::test_app::TestApp;

/// A form with pictures and no name.
fn form() -> Form {
    let image = |number| Part::bytes(png("poppy", number)).file_name("x.png");
    Form::new().part("poppy", image(1)).part("poppy", image(2))
}

/// A form that is whole.
fn named() -> Form {
    form().text("name", "birds")
}

/// A form that is whole but for a class of this name.
fn labelled(label: &str) -> Form {
    named().part(label.to_owned(), Part::bytes(png("poppy", 2)).file_name("x.png"))
}

/// A form that is whole but for this picture.
fn with_picture(bytes: &'static [u8]) -> Form {
    named().part("poppy", Part::bytes(bytes).file_name("x.png"))
}

fn described(classes: &Value) -> Form {
    named().text("classes", classes.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_cannot_be() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let send = |form: Form| app.post(TASKS).multipart(form);
    let at = |query: &str| app.post(&format!("{TASKS}?{query}")).multipart(form());
    let elsewhere = app.post("/v1/models/nobody/tasks?name=x").multipart(form());
    let invalid = vec![
        ("an empty name", at("name=")),
        ("a name with a slash", at("name=a/b")),
        ("a name with a bell", send(form().text("name", "a\u{7}"))),
        (
            "a name that is too long",
            at(&format!("name={}", "x".repeat(129))),
        ),
        ("a label with a bell", send(labelled("pop\u{7}py"))),
        ("a label that is too long", send(labelled(&"x".repeat(257)))),
        ("a part without a name", send(labelled(""))),
    ];
    let groups = vec![
        (422, "missing_name", vec![("no name", send(form()))]),
        (422, "invalid_name", invalid),
        (400, "bad_request", vec![("a title", at("title=birds"))]),
        (404, "unknown_model", vec![("nobody", elsewhere)]),
    ];
    assert_refused(&app, groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_that_cannot_be() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let send = |form: Form| app.post(TASKS).multipart(form);
    let typed = |kind: &str| app.post(TASKS).header("content-type", kind).body("x");
    let archive = || Part::bytes(zip(&folders(&FLORA, 0..2))).file_name("a.zip");
    let held_out = Form::new().text("name", "birds").part("test", archive());
    let twice = json!([{"label": "poppy"}, {"label": "poppy"}]);
    let coloured = json!([{"label": "poppy", "colour": "red"}]);
    let long = json!([{"label": "poppy", "prompt": "x".repeat(513)}]);
    let without = vec![
        ("no pictures", send(Form::new().text("name", "birds"))),
        ("held-out pictures only", send(held_out)),
        ("a class alone", send(described(&json!([{"label": "tulip"}])))),
    ];
    let shaped = vec![
        ("classes that are no list", send(described(&json!({"poppy": 1})))),
        ("a class of a colour", send(described(&coloured))),
        ("a prompt that is too long", send(described(&long))),
    ];
    let unusable = vec![
        ("an empty picture", send(with_picture(b""))),
        ("text as a picture", send(with_picture(b"red"))),
    ];
    let broken = vec![
        ("no boundary", typed("multipart/form-data")),
        ("another boundary", typed("multipart/form-data; boundary=y")),
    ];
    let misplaced = named().part("tulips", archive());
    let words = named().text("classes", "poppy");
    let groups = vec![
        (422, "unknown_part", vec![("an archive", send(misplaced))]),
        (422, "duplicate_label", vec![("twice", send(described(&twice)))]),
        (422, "class_without_examples", without),
        (422, "unprocessable", shaped),
        (400, "invalid_json", vec![("words", send(words))]),
        (422, "unusable_images", unusable),
        (400, "invalid_multipart", broken),
    ];
    assert_refused(&app, groups).await;
    assert_eq!(app.get(TASKS).await["tasks"], json!([]));
}
