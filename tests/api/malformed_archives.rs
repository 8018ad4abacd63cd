//! Archives that are no tasks: each is refused as a whole, and nothing of it stays.

use serde_json::json;

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::Database;
use crate::pictures::{FLORA, folders, png};
use crate::refusals::{assert_refused, png_of};
use crate::scene::TASKS;
use crate::test_app::TestApp;

/// Limits that small archives reach.
const LIMITS: [&str; 8] = [
    "--max-body-mib",
    "1",
    "--max-upload-mib",
    "2",
    "--max-unpacked-mib",
    "3",
    "--max-examples",
    "20",
];

/// A small good archive with these files added.
fn with(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all = folders(&FLORA, 0..2);
    all.extend(
        files
            .iter()
            .map(|(name, content)| ((*name).to_owned(), content.to_vec())),
    );
    zip(&all)
}

/// A small good archive with a picture of this name added.
fn with_picture(name: &str) -> Vec<u8> {
    with(&[(name, &png("poppy", 9))])
}

/// A picture followed by zeros, which compress to almost nothing.
fn padded(bytes: usize) -> Vec<u8> {
    let mut picture = png("poppy", 1);
    picture.resize(bytes, 0);
    picture
}

/// A tar whose only entries are not files.
fn tar_of(kind: tar::EntryType) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..3 {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        archive
            .append_link(&mut header, format!("poppy/{number}.png"), "/etc/passwd")
            .expect("an entry is added");
    }
    archive.into_inner().expect("the archive is whole")
}

/// A tar with a picture of a name that the builder would refuse to write.
fn tar_with_picture(name: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let content = png("poppy", 1);
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().expect("GNU").name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(content.len() as u64);
    header.set_cksum();
    archive
        .append(&header, content.as_slice())
        .expect("an entry is added");
    archive.into_inner().expect("the archive is whole")
}

/// A zip with one byte of one file's content changed.
fn wrong_sum() -> Vec<u8> {
    let mut archive = zip(&folders(&FLORA, 0..2));
    let name = b"poppy/0.png";
    let entry = archive.windows(name.len()).position(|window| window == name);
    archive[entry.expect("the entry") + name.len() + 60] ^= 0xff;
    archive
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_laid_out_otherwise() {
    let app = TestApp::start(&Database::sqlite(), &LIMITS).await;
    let send = |archive: Vec<u8>| app.submit("default", "birds", archive);
    let file = |name: &str| send(with_picture(name));
    let layout = vec![
        ("a path that climbs", file("../poppy/9.png")),
        ("a path that climbs inside", file("poppy/../../9.png")),
        ("an absolute path", file("/etc/cron.d/9.png")),
        ("a drive", file("C:\\poppy\\9.png")),
        ("a tar that climbs", send(tar_with_picture("../poppy/9.png"))),
        ("a tar from the root", send(tar_with_picture("/poppy/9.png"))),
        ("a file outside a class", file("9.png")),
        ("folders too deep", file("poppy/a/b/9.png")),
        ("a label with a bell", file("pop\u{7}py/9.png")),
        (
            "a label that is too long",
            file(&format!("{}/1.png", "x".repeat(257))),
        ),
        ("a label of spaces", file("  /9.png")),
    ];
    let without = vec![
        ("symbolic links", send(tar_of(tar::EntryType::Symlink))),
        ("hard links", send(tar_of(tar::EntryType::Link))),
        ("devices", send(tar_of(tar::EntryType::Char))),
        ("pipes", send(tar_of(tar::EntryType::Fifo))),
        ("an empty class", send(with(&[("tulip/", b"")]))),
        ("held-out pictures only", file("test/tulip/1.png")),
        ("an empty zip", send(zip(&[]))),
    ];
    let groups = vec![
        (422, "archive_layout", layout),
        (422, "class_without_examples", without),
    ];
    assert_refused(&app, groups).await;
    // Nothing of all this stays in the way.
    let job = app.teach("default", "birds", zip(&folders(&FLORA, 0..2))).await;
    assert_eq!(
        (&job["state"], &job["version"]),
        (&json!("succeeded"), &json!(1)),
        "{job}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_that_are_damaged_or_too_large() {
    let app = TestApp::start(&Database::sqlite(), &LIMITS).await;
    let send = |archive: Vec<u8>| app.submit("default", "birds", archive);
    let typed = |kind: &str| send(b"x".to_vec()).header("content-type", kind);
    let good = zip(&folders(&FLORA, 0..2));
    let many: Vec<_> = (0..21)
        .map(|n| (format!("poppy/{n}.png"), png("poppy", n)))
        .collect();
    let large: Vec<_> = (0..4)
        .map(|n| (format!("poppy/{n}.png"), padded(1_000_000)))
        .collect();
    let mut long = vec![0_u8; (2 << 20) + 1];
    long[..4].copy_from_slice(b"PK\x03\x04");
    let none = vec![
        ("nothing", send(Vec::new())),
        ("text", send(b"herons".to_vec())),
        ("a picture", send(png("poppy", 1))),
    ];
    let damaged = vec![
        ("a cut zip", send(good[..good.len() / 2].to_vec())),
        ("a zip's mark alone", send(b"PK\x03\x04".to_vec())),
        ("a wrong sum", send(wrong_sum())),
    ];
    let bomb = with(&[("poppy/9.png", &padded(64 << 20))]);
    let groups = vec![
        (422, "not_an_archive", none),
        (422, "damaged_archive", damaged),
        (413, "too_many_examples", vec![("21", send(zip(&many)))]),
        (413, "image_too_large", vec![("64 MiB unpacked", send(bomb))]),
        (
            413,
            "upload_too_large",
            vec![("4 MB unpacked", send(zip(&large)))],
        ),
        (413, "body_too_large", vec![("a long body", send(long))]),
        (415, "unsupported_media_type", vec![("text", typed("text/plain"))]),
        (
            415,
            "unsupported_media_type",
            vec![("JSON", typed("application/json"))],
        ),
    ];
    assert_refused(&app, groups).await;
    assert_eq!(app.get(TASKS).await["tasks"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_unusable_picture_is_named() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let bad = with(&[
        ("poppy/a.png", b"no picture"),
        ("meadow/b.png", &png_of(50_000, 50_000)),
    ]);
    let problem = Answer::to(app.submit("default", "birds", bad))
        .await
        .problem(422, "unusable_images");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let named: Vec<(String, String)> = problem["errors"]
        .as_array()
        .expect("items")
        .iter()
        .map(|error| (text(&error["item"]), text(&error["code"])))
        .collect();
    let expected = [
        ("poppy/a.png", "unsupported_image"),
        ("meadow/b.png", "too_many_pixels"),
    ];
    assert_eq!(
        named,
        expected.map(|(item, code)| (item.to_owned(), code.to_owned()))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_tokens_no_fit_may_hold() {
    let app = TestApp::start(&Database::sqlite(), &["--max-fit-mib", "1"]).await;
    let reads_tokens = json!({"name": "tokens", "config": {"strategy": "self_attention"}});
    Answer::to(app.post("/v1/models").json(&reads_tokens))
        .await
        .json(201);
    // 37 tokens of 192 values in f32 are 28,416 bytes.
    let of = |count: u64| {
        zip(&(0..count)
            .map(|n| (format!("poppy/{n}.png"), png("poppy", n)))
            .collect::<Vec<_>>())
    };
    let refused = Answer::to(app.submit("tokens", "flora", of(37))).await;
    let problem = refused.problem(413, "too_many_examples");
    let detail = problem["detail"].as_str().expect("words");
    assert!(detail.contains("36 examples"), "{detail}");
    Answer::to(app.submit("tokens", "flora", of(36))).await.json(202);
    // Features of as many are far smaller.
    Answer::to(app.submit("default", "flora", of(37))).await.json(202);
}
