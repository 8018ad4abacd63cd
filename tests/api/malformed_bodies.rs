//! Bodies that are no pictures.

use image::ImageFormat;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::database::Database;
use crate::pictures::{encoded, picture, png};
use crate::refusals::{assert_refused, png_of};
use crate::scene::{CLASSIFY, with_flora};

/// Limits that small bodies reach.
const LIMITS: [&str; 4] = ["--max-body-mib", "1", "--max-images", "3"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_no_pictures() {
    let (app, _) = with_flora(&Database::sqlite(), &LIMITS).await;
    let send = |kind: &str, body: &[u8]| {
        app.post(CLASSIFY)
            .header("content-type", kind)
            .body(body.to_vec())
    };
    let poppy = png("poppy", 1);
    let jpeg = encoded(&picture("poppy", 1), ImageFormat::Jpeg);
    let gif = encoded(&picture("poppy", 1), ImageFormat::Gif);
    let svg = b"<svg xmlns='http://www.w3.org/2000/svg'/>";
    let undecodable = vec![
        ("a JPEG's head", send("image/jpeg", &jpeg[..100])),
        ("half a JPEG", send("image/jpeg", &jpeg[..jpeg.len() / 2])),
        ("half a PNG", send("image/png", &poppy[..poppy.len() / 2])),
        ("a GIF's head", send("image/gif", &gif[..10])),
        ("no pixels", send("image/png", &png_of(0, 10))),
        ("pixels left out", send("image/png", &png_of(10, 10))),
    ];
    let unsupported = vec![
        ("text", send("image/png", b"a heron")),
        ("text without a type", app.post(CLASSIFY).body("a heron")),
        ("SVG", send("image/svg+xml", svg)),
        ("zeros", send("image/png", &[0; 1000])),
    ];
    let nothing = vec![
        ("nothing", app.post(CLASSIFY)),
        ("an empty picture", send("image/png", b"")),
    ];
    let typed = vec![
        ("a wrong type", send("text/plain", &poppy)),
        ("a broken type", send("image", &poppy)),
    ];
    let large = vec![("a byte too many", send("image/png", &vec![0; (1 << 20) + 1]))];
    let wide = vec![
        ("2.5 gigapixels", send("image/png", &png_of(50_000, 50_000))),
        (
            "4 exapixels",
            send("image/png", &png_of(0x7fff_ffff, 0x7fff_ffff)),
        ),
    ];
    let groups = vec![
        (422, "undecodable_image", undecodable),
        (422, "unsupported_image", unsupported),
        (400, "no_image", nothing),
        (415, "unsupported_media_type", typed),
        (413, "body_too_large", large),
        (413, "too_many_pixels", wide),
    ];
    assert_refused(&app, groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_that_holds_no_pictures() {
    let (app, _) = with_flora(&Database::sqlite(), &LIMITS).await;
    let send = |body: &[u8]| {
        let request = app.post(CLASSIFY).header("content-type", "application/json");
        request.body(body.to_vec())
    };
    let deep = "[".repeat(100_000);
    let four = json!({"images": vec![json!({"data": ""}); 4]}).to_string();
    let broken = vec![
        ("a bracket too many", send(b"{\"images\": [}")),
        ("cut off", send(b"{\"images\": [")),
        ("nothing", send(b"")),
        ("not UTF-8", send(b"{\"images\": [\"\xff\"]}")),
    ];
    let shaped = vec![
        ("another field", send(b"{\"pictures\": []}")),
        ("a field too many", send(b"{\"images\": [], \"k\": 1}")),
        ("a list", send(b"[1, 2]")),
        ("nested deeply", send(deep.as_bytes())),
        ("a number as data", send(b"{\"images\": [{\"data\": 1}]}")),
    ];
    let coded = vec![("base64", send(b"{\"images\": [{\"data\": \"%%%\"}]}"))];
    let groups = vec![
        (400, "invalid_json", broken),
        (422, "unprocessable", shaped),
        (400, "invalid_base64", coded),
        (400, "no_image", vec![("no images", send(b"{\"images\": []}"))]),
        (413, "too_many_images", vec![("four", send(four.as_bytes()))]),
    ];
    assert_refused(&app, groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_that_are_too_long() {
    let (app, _) = with_flora(&Database::sqlite(), &LIMITS).await;
    let send = |body: Value| app.post("/v1/embed").json(&body);
    let texts = |bytes: usize| json!({"texts": ["short", "a".repeat(bytes)]});
    let mut templated = texts(4096);
    templated["template"] = true.into();
    let long = vec![
        ("a byte too many", send(texts(4097))),
        ("half a megabyte", send(texts(500_000))),
        ("a byte too many with its template", send(templated)),
    ];
    assert_refused(&app, vec![(422, "text_too_long", long)]).await;
    let answer = send(texts(4096)).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_that_hold_no_pictures() {
    let (app, _) = with_flora(&Database::sqlite(), &LIMITS).await;
    let send = |form: Form| app.post(CLASSIFY).multipart(form);
    let raw = |kind: &str, body: &[u8]| {
        app.post(CLASSIFY)
            .header("content-type", kind)
            .body(body.to_vec())
    };
    let image = || Part::bytes(png("poppy", 1));
    let four = (0..4).fold(Form::new(), |form, _| form.part("image", image()));
    let large = Form::new().part("image", Part::bytes(vec![0; 1 << 20]));
    let bounded = "multipart/form-data; boundary=x";
    let cut = b"--x\r\ncontent-disposition: form-data; name=\"image\"\r\n\r\nabc";
    let broken = vec![
        ("no boundary", raw("multipart/form-data", b"x")),
        ("another boundary", raw(bounded, b"--y\r\n\r\n")),
        ("cut off", raw(bounded, cut)),
        ("no parts", send(Form::new())),
    ];
    let unknown = Form::new().part("photo", image());
    let groups = vec![
        (400, "invalid_multipart", broken),
        (413, "too_many_images", vec![("four", send(four))]),
        (413, "body_too_large", vec![("a large part", send(large))]),
        (422, "unknown_part", vec![("a photo", send(unknown))]),
    ];
    assert_refused(&app, groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_may_be_as_large_as_allowed() {
    let (app, _) = with_flora(&Database::sqlite(), &LIMITS).await;
    // Bytes behind a picture's end are no part of it.
    let mut padded = png("poppy", 1);
    padded.resize(1 << 20, 0);
    let answer: Value = app.classify(CLASSIFY, padded).await;
    assert_eq!(answer["predictions"].as_array().map(Vec::len), Some(1));
}
