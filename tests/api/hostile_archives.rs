//! Archives made to take more time or memory than their size allows: each is refused before it can.

use reqwest::multipart::{Form, Part};

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::Database;
use crate::pictures::{FLORA, folders, png};
use crate::refusals::assert_refused;
use crate::scene::TASKS;
use crate::test_app::TestApp;

/// With as many examples, an archive may have 1,064 entries.
const LIMITS: [&str; 4] = ["--max-upload-mib", "8", "--max-examples", "20"];

/// A zip of this many empty folders.
pub(crate) fn empty_folders(count: usize) -> Vec<u8> {
    let folder = |number| (format!("{number}/"), Vec::new());
    zip(&(0..count).map(folder).collect::<Vec<_>>())
}

/// A tar whose first entry has a header of this kind and length in front of it.
pub(crate) fn tar_extended(kind: tar::EntryType, bytes: usize) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut extension = tar::Header::new_gnu();
    extension.set_entry_type(kind);
    extension.set_path("extension").expect("a short path");
    extension.set_size(bytes as u64);
    extension.set_cksum();
    let content = vec![b'x'; bytes];
    archive
        .append(&extension, content.as_slice())
        .expect("an extension is added");
    let picture = png("poppy", 1);
    let mut header = tar::Header::new_gnu();
    header.set_size(picture.len() as u64);
    archive
        .append_data(&mut header, "poppy/1.png", picture.as_slice())
        .expect("a picture is added");
    archive.into_inner().expect("the archive is whole")
}

/// A small good zip with these bytes written at a distance from the record of its end.
fn patched(distance: usize, bytes: &[u8]) -> Vec<u8> {
    let mut archive = zip(&folders(&FLORA, 0..2));
    let at = archive.len() - 22 + distance;
    archive[at..at + bytes.len()].copy_from_slice(bytes);
    archive
}

/// A zip whose first file is said to begin beyond the archive's end.
fn elsewhere() -> Vec<u8> {
    let mut archive = zip(&folders(&FLORA, 0..2));
    let entry = archive.windows(4).position(|window| window == b"PK\x01\x02");
    let offset = entry.expect("a directory") + 42;
    archive[offset..offset + 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    archive
}

fn tar_of_links(count: usize) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..count {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive
            .append_link(&mut header, format!("poppy/{number}"), "x")
            .expect("a link is added");
    }
    archive.into_inner().expect("the archive is whole")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_that_have_too_much_to_say() {
    let app = TestApp::start(&Database::sqlite(), &LIMITS).await;
    let send = |archive: Vec<u8>| app.submit("default", "birds", archive);
    let long_names: Vec<_> = (0..40)
        .map(|n| (format!("poppy/{n}{}", "x".repeat(60_000)), Vec::new()))
        .collect();
    let long_path = (format!("poppy/{}.png", "x".repeat(3000)), png("poppy", 9));
    let mut cut = tar_extended(tar::EntryType::XGlobalHeader, 11);
    cut.truncate(1536 + 512 + 100);
    let parts = (0..9).fold(Form::new().text("name", "birds"), |form, n| {
        let archive = zip(&folders(&["poppy"], n..n + 1));
        form.part("archive", Part::bytes(archive).file_name("a.zip"))
    });
    let entries = vec![
        ("folders", send(empty_folders(1100))),
        ("links", send(tar_of_links(1100))),
        ("a claim", send(patched(8, &[0xff; 4]))),
    ];
    let headers = vec![
        ("long names in a zip", send(zip(&long_names))),
        (
            "a long name",
            send(tar_extended(tar::EntryType::GNULongName, 100_000)),
        ),
        (
            "a long link",
            send(tar_extended(tar::EntryType::GNULongLink, 100_000)),
        ),
        ("extensions", send(tar_extended(tar::EntryType::XHeader, 100_000))),
    ];
    let damaged = vec![
        ("a file beyond the end", send(elsewhere())),
        ("a picture that is cut off", send(cut)),
    ];
    let groups = vec![
        (413, "too_many_examples", entries),
        (
            413,
            "too_many_classes",
            vec![("folders", send(empty_folders(21)))],
        ),
        (413, "archive_headers_too_large", headers),
        (
            422,
            "archive_layout",
            vec![("a long path", send(zip(&[long_path])))],
        ),
        (422, "damaged_archive", damaged),
        (
            413,
            "too_many_archives",
            vec![("nine", app.post(TASKS).multipart(parts))],
        ),
    ];
    assert_refused(&app, groups).await;
    // As many classes as there may be examples, and headers of a usual length.
    let twenty = (0..20)
        .map(|n| (format!("{n}/x.png"), png("poppy", n)))
        .collect::<Vec<_>>();
    Answer::to(send(zip(&twenty))).await.json(202);
}
