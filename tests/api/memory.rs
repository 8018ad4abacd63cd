//! What a caller sends does not decide how much memory the server takes.

use std::fs;

use image::{ImageFormat, RgbImage};
use reqwest::multipart::{Form, Part};
use serde_json::json;

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::Database;
use crate::hostile_archives::{empty_folders, tar_extended};
use crate::pictures::{encoded, png};
use crate::process::Process;
use crate::refusals::png_of;
use crate::scene::CLASSIFY;

/// What the server may take on top of what serving one picture takes. Its limits below allow a picture of 16 MB
/// decoded, which decoding and resizing hold a few times over, and bodies of 1 MiB.
const GROWTH_KIB: u64 = 160 << 10;

const LIMITS: [&str; 8] = [
    "--max-body-mib",
    "1",
    "--max-upload-mib",
    "16",
    "--max-unpacked-mib",
    "64",
    "--max-megapixels",
    "4",
];

/// The most memory that the process ever held, in KiB.
fn peak_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("a Linux process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
async fn bombs_do_not_swell_the_server() {
    let database = Database::sqlite();
    let server = Process::start(&database, &LIMITS);
    let post = |body: Vec<u8>| server.post(CLASSIFY).query(&[("labels", "a,b")]).body(body);
    Answer::to(post(png("poppy", 1))).await.json(200);
    let before = peak_kib(server.child.id());

    let send = |files: &[(String, Vec<u8>)]| server.submit("default", "bomb", zip(files));
    let zeros = |bytes: usize| [png("poppy", 1), vec![0; bytes]].concat();
    let bombs = [
        ("gigapixels", post(png_of(50_000, 50_000)), 413),
        (
            "as many pixels as there are numbers",
            post(png_of(u32::MAX >> 1, u32::MAX >> 1)),
            413,
        ),
        (
            "a little over the limit",
            post(encoded(&RgbImage::new(2001, 2000), ImageFormat::Png)),
            413,
        ),
        (
            "half a gigabyte in a zip",
            send(&[("poppy/1.png".to_owned(), zeros(512 << 20))]),
            413,
        ),
        (
            "two hundred megabytes in parts",
            send(
                &(0..200)
                    .map(|n| (format!("poppy/{n}.png"), zeros(1_000_000)))
                    .collect::<Vec<_>>(),
            ),
            413,
        ),
        (
            "many folders in a zip",
            server.submit("default", "bomb", empty_folders(60_000)),
            413,
        ),
        (
            "a long name in a tar",
            server.submit(
                "default",
                "bomb",
                tar_extended(tar::EntryType::GNULongName, 15 << 20),
            ),
            413,
        ),
        (
            "deep JSON",
            server
                .post("/v1/embed")
                .json(&json!({"texts": "[".repeat(1 << 19)})),
            422,
        ),
    ];
    for (name, request, status) in bombs {
        let answer = Answer::to(request).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.text);
        let grown = peak_kib(server.child.id()) - before;
        assert!(grown < GROWTH_KIB, "{name}: {grown} KiB more");
    }

    // The server hangs up on a body that goes on; who is still sending then may miss the answer.
    if let Ok(answer) = post(vec![0; 64 << 20]).send().await {
        assert_eq!(answer.status(), 413, "a body over the limit");
    }

    // As much as the limits allow, many times in one request.
    let largest = encoded(&RgbImage::new(2000, 2000), ImageFormat::Png);
    let form = (0..8).fold(Form::new(), |form, _| {
        form.part("image", Part::bytes(largest.clone()))
    });
    let request = server.post(CLASSIFY).query(&[("labels", "a,b")]).multipart(form);
    Answer::to(request).await.json(200);
    let grown = peak_kib(server.child.id()) - before;
    assert!(grown < GROWTH_KIB, "pictures at the limit: {grown} KiB more");
    Answer::to(post(png("poppy", 1))).await.json(200);
    println!("the server grew by {grown} KiB");
}
