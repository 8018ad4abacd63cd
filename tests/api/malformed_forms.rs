//! Forms that are no tasks.

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::Database;
use crate::pictures::{FLORA, folders, png};
use crate::refusals::assert_refused;
use crate::scene::{CLASSIFY, TASKS};
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
        (400, "invalid_query", vec![("a title", at("title=birds"))]),
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_that_never_end() {
    let app = TestApp::start(&Database::sqlite(), &["--max-body-mib", "1"]).await;
    let raw = |path: &str, body: String| {
        let request = app.post(path).query(&[("labels", "a,b")]).body(body);
        request.header("content-type", "multipart/form-data; boundary=x")
    };
    let teach = |body: String| {
        let request = app.post(TASKS).body(body);
        request.header("content-type", "multipart/form-data; boundary=x")
    };
    let long = "x".repeat(100_000);
    let head = format!("--x\r\ncontent-disposition: form-data; name=\"image\"\r\nx: {long}");
    let whole = format!("{head}\r\n\r\nabc\r\n--x--\r\n");
    let second = format!(
        "--x\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\n{long}\r\n{whole}"
    );
    let encoded = "--x\r\ncontent-disposition: form-data; name*=latin1''%E9\r\n\r\nabc\r\n--x--\r\n";
    let nul = "--x\r\ncontent-disposition: form-data; name=\"a\"; filename*=utf-8''a%00.png\r\n\r\nabc\r\n--x--\r\n";
    let field = |name: &'static str, bytes: usize| form().text(name, "x".repeat(bytes));
    let send = |form: Form| app.post(TASKS).multipart(form);
    let heads = vec![
        ("a head without an end", teach(head.clone())),
        ("a head that is too long", teach(whole.clone())),
        ("a second head that is too long", teach(second.clone())),
        ("no first boundary", teach(long.clone())),
        ("an image's head without an end", raw(CLASSIFY, head)),
        ("an image's head that is too long", raw(CLASSIFY, whole)),
        ("a second image's head that is too long", raw(CLASSIFY, second)),
    ];
    let fields = vec![
        ("a name", send(field("name", 1025))),
        ("classes", send(field("classes", (1 << 20) + 1))),
    ];
    let groups = vec![
        (400, "invalid_multipart", heads),
        (413, "field_too_large", fields),
        (
            400,
            "invalid_part_name",
            vec![
                ("latin1", teach(encoded.to_owned())),
                ("a NUL", teach(nul.to_owned())),
                ("an image's NUL", raw(CLASSIFY, nul.to_owned())),
            ],
        ),
    ];
    assert_refused(&app, groups).await;
    // A head may be long within reason.
    let head = format!(
        "--x\r\ncontent-disposition: form-data; name=\"image\"\r\nx: {}",
        &long[..10_000]
    );
    let answer = raw(CLASSIFY, format!("{head}\r\n\r\nabc\r\n--x--\r\n"));
    Answer::to(answer).await.problem(422, "unsupported_image");
}
