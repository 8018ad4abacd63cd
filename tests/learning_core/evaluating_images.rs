//! `clipkeep evaluate` on images, as its user runs it: on pictures that are drawn here, and on photographs from outside the
//! project. Without those, the test says that it was skipped.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use serde_json::Value;
use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

use crate::evaluating::{evaluate, number, rows};

const CLASSES: [(&str, [u8; 3]); 4] = [
    ("blue", [30, 60, 220]),
    ("green", [40, 190, 60]),
    ("red", [220, 40, 30]),
    ("yellow", [230, 220, 50]),
];

/// A square of roughly one colour, no two alike, as PNG.
fn picture(colour: [u8; 3], number: u32) -> Vec<u8> {
    let image = RgbImage::from_fn(24, 24, |x, y| {
        let noise = (x * 7 + y * 13 + number * 29 + x * y * (number + 3)) % 60;
        Rgb(colour.map(|value| value.saturating_add(noise as u8).saturating_sub(30)))
    });
    let mut png = std::io::Cursor::new(Vec::new());
    image
        .write_to(&mut png, image::ImageFormat::Png)
        .expect("encoded");
    png.into_inner()
}

/// `train/<class>/…` and `test/<class>/…` in a folder.
fn drawn(folder: &Path) {
    for (class, colour) in CLASSES {
        for (part, numbers) in [("train", 0..6), ("test", 6..10)] {
            let class = folder.join(part).join(class);
            fs::create_dir_all(&class).expect("a folder");
            for number in numbers {
                fs::write(class.join(format!("{number}.png")), picture(colour, number)).expect("written");
            }
        }
    }
}

/// All files of a folder in a zip, in an order that is not theirs.
fn zipped(folder: &Path, archive: &Path) {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort_by(|one, other| other.cmp(one));
    let mut zip = ZipWriter::new(File::create(archive).expect("a file"));
    for path in files {
        let name = path.strip_prefix(folder).expect("in the folder");
        zip.start_file(name.to_str().expect("UTF-8"), SimpleFileOptions::default())
            .expect("an entry");
        zip.write_all(&fs::read(&path).expect("a file")).expect("written");
    }
    zip.finish().expect("whole");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// What a run says of a strategy, but for the time it took.
fn figures(row: &Value) -> Value {
    let mut row = row.clone();
    row.as_object_mut().expect("an object").remove("seconds_per_task");
    row
}

fn complaint(arguments: &[&str]) -> String {
    let output = evaluate(arguments);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn every_strategy_is_compared_on_images() {
    let directory = tempfile::tempdir().expect("a directory");
    let folder = directory.path().join("pictures");
    drawn(&folder);
    let strategies = [
        "zero_shot",
        "linear:min_steps=20",
        "gda",
        "ridge:random_features=64",
        "prompt:min_steps=4:epochs=1",
        "self_attention:min_steps=4:epochs=1",
        "default:min_steps=20",
    ];
    let images = ["--images", text(&folder), "--tasks", "2"];
    let of = |strategies: &[&str]| {
        let strategies = strategies.join(",");
        let arguments = [&images[..], &["--strategies", &strategies]].concat();
        rows(&arguments, directory.path())
    };
    let all = of(&strategies);
    let names: Vec<&str> = all.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(names, strategies);
    for row in &all {
        for share in ["average", "last"] {
            assert!((0.0..=1.0).contains(&number(row, share)), "{row}");
        }
        for figure in ["forgetting", "backward_transfer", "seconds_per_task", "bytes"] {
            assert!(row[figure].is_number(), "{row}");
        }
        // What is known by its words alone is known beforehand.
        let name = row["name"].as_str().expect("a name");
        let knows_words = ["zero_shot", "linear", "self_attention"]
            .iter()
            .any(|strategy| name.starts_with(strategy));
        assert_eq!(row["forward_transfer"].is_number(), knows_words, "{row}");
    }
    assert_eq!(all[0]["forward_transfer"], 0.0);
    for learned in [2, 6] {
        assert!(number(&all[learned], "last") > 0.7, "{}", all[learned]);
    }
    // Features are the same bits whether somebody reads tokens or not.
    let alone = of(&["zero_shot", "gda"]);
    assert_eq!(figures(&alone[0]), figures(&all[0]));
    assert_eq!(figures(&alone[1]), figures(&all[2]));
}

#[test]
fn folders_and_archives_in_any_order_and_either_form_are_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let folder = directory.path().join("pictures");
    drawn(&folder);
    let archive = directory.path().join("pictures.zip");
    zipped(&folder, &archive);
    let (train, test) = (folder.join("train"), folder.join("test"));
    let found = [
        &["--images", text(&folder)][..],
        &["--images", text(&archive)],
        &["--train", text(&train), "--test", text(&test)],
    ]
    .map(|images| {
        let rest = [
            "--tasks",
            "2",
            "--order",
            "given",
            "--anchors",
            "blend",
            "--strategies",
            "zero_shot,linear:min_steps=5",
        ];
        let rows = rows(&[images, &rest].concat(), directory.path());
        rows.iter().map(figures).collect::<Vec<_>>()
    });
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0], found[2]);
    assert!(found[0][0]["forward_transfer"].is_null(), "anchors are examples");

    // Tasks as archives of their own: the classes come in the order of the paths.
    let task = |part: &str, classes: [&str; 2]| {
        let path = directory.path().join(format!("{part}-{}.zip", classes[0]));
        let only = directory.path().join(format!("{part}-{}", classes[0]));
        for class in classes {
            let class_folder = only.join(class);
            fs::create_dir_all(&class_folder).expect("a folder");
            for entry in fs::read_dir(folder.join(part).join(class)).expect("a folder") {
                let from = entry.expect("a file");
                fs::copy(from.path(), class_folder.join(from.file_name())).expect("copied");
            }
        }
        zipped(&only, &path);
        path
    };
    let last_first = [["red", "yellow"], ["blue", "green"]];
    let trains = last_first.map(|classes| task("train", classes));
    let tests = last_first.map(|classes| task("test", classes));
    let arguments = [
        "--train",
        text(&trains[0]),
        text(&trains[1]),
        "--test",
        text(&tests[1]),
        text(&tests[0]),
        "--tasks",
        "2",
        "--order",
        "given",
        "--anchors",
        "examples",
        "--template",
        "a picture that is {}",
        "--strategies",
        "zero_shot",
    ];
    let by_task = rows(&arguments, directory.path());
    assert!(number(&by_task[0], "last") > 0.7, "{}", by_task[0]);
}

#[test]
fn an_image_that_cannot_be_used_is_left_out_and_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let folder = directory.path().join("pictures");
    drawn(&folder);
    fs::write(folder.join("train/red/broken.png"), "no picture").expect("written");
    fs::write(folder.join("test/red/broken.png"), "no picture").expect("written");
    let arguments = ["--images", text(&folder), "--tasks", "2", "--strategies", "gda"];
    let output = evaluate(
        &[
            &arguments[..],
            &["--json", text(&directory.path().join("table.json"))],
        ]
        .concat(),
    );
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(
        output.status.success() && said.contains("2 images could not be used:"),
        "{said}"
    );
    let table = fs::read(directory.path().join("table.json")).expect("written");
    let table: Value = serde_json::from_slice(&table).expect("JSON");
    let left_out = table["left_out"].as_array().expect("a list");
    assert_eq!(left_out.len(), 2);
    let first = left_out[0].as_str().expect("text");
    assert!(first.starts_with("train/red/broken.png in "), "{first}");

    for number in 0..6 {
        fs::write(folder.join(format!("train/green/{number}.png")), "no picture").expect("written");
    }
    let said = complaint(&arguments);
    assert!(
        said.contains("no image of class green can be used; of train/green/0.png"),
        "{said}"
    );
}

#[test]
fn images_that_cannot_be_evaluated_on_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = |name: &str| directory.path().join(name);
    let folder = place("pictures");
    drawn(&folder);
    let (train, test) = (folder.join("train"), folder.join("test"));
    let red = place("red");
    fs::create_dir_all(red.join("red")).expect("a folder");
    fs::copy(train.join("red/0.png"), red.join("red/0.png")).expect("copied");
    let empty_class = place("empty class");
    fs::create_dir_all(empty_class.join("red")).expect("a folder");
    let empty = place("empty");
    fs::create_dir_all(&empty).expect("a folder");
    let note = place("note.txt");
    fs::write(&note, "no archive").expect("written");
    let (pictures, train, test) = (text(&folder), text(&train), text(&test));
    let [red, empty_class, empty, note] = [&red, &empty_class, &empty, &note].map(|path| text(path));
    for (arguments, expected) in [
        (&["--tasks", "2"][..], "--features <DIR>"),
        (&["--train", train], "--test <PATH>"),
        (&["--test", test], "--train <PATH>"),
        (
            &["--images", pictures, "--train", train, "--test", test],
            "cannot be used with",
        ),
        (
            &["--images", pictures, "--logit-scale", "50"],
            "cannot be used with",
        ),
        (&["--images", "nowhere.zip"], "cannot open nowhere.zip"),
        (
            &["--images", note],
            "neither a folder nor a zip or uncompressed tar archive",
        ),
        (&["--images", empty], "has no images in class folders"),
        (&["--images", train], "in neither train/ nor test/"),
        (
            &["--train", pictures, "--test", test],
            "in a folder for the other part",
        ),
        (
            &["--train", empty_class, "--test", test],
            "class red has no examples",
        ),
        (&["--train", red, "--test", red], "one class alone, red,"),
        (
            &["--train", red, "--test", test],
            "class blue has test images and none to learn from",
        ),
        (&["--images", pictures, "--tasks", "5"], "too few"),
        (
            &["--images", pictures, "--tasks", "2", "--backbone", "./nowhere"],
            "cannot load the backbone",
        ),
        (
            &["--images", pictures, "--tasks", "2", "--template", "a photo"],
            "hold {} exactly once",
        ),
        (
            &[
                "--images",
                pictures,
                "--tasks",
                "2",
                "--anchors",
                "examples",
                "--strategies",
                "prompt",
            ],
            "prompts are texts",
        ),
    ] {
        let said = complaint(arguments);
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}

#[test]
fn on_photographs_learning_pays() {
    const TRAIN: usize = 10;
    const TEST: usize = 5;
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let shared = std::env::var_os("CLIPKEEP_SHARED").map_or_else(beside, PathBuf::from);
    let folder = shared.join("data/cifar100");
    if !folder.is_dir() {
        println!("skipped: no CIFAR-100 pictures in {}", folder.display());
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    for (part, count) in [("train", TRAIN), ("test", TEST)] {
        for task in 1..=2 {
            let archive = folder.join(format!("novel-task{task}-{part}.zip"));
            unpacked(&archive, &directory.path().join(part), count);
        }
    }
    let arguments = [
        "--images",
        text(directory.path()),
        "--tasks",
        "2",
        "--strategies",
        "zero_shot,gda",
    ];
    let rows = rows(&arguments, directory.path());
    let last: Vec<f64> = rows.iter().map(|row| number(row, "last")).collect();
    assert!(last[1] > last[0] + 0.1, "{last:?}");
}

/// The first `count` pictures of each class of an archive, in a folder.
fn unpacked(archive: &Path, folder: &Path, count: usize) {
    let mut archive = ZipArchive::new(File::open(archive).expect("an archive")).expect("a zip");
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).expect("an entry");
        let name = entry.name().expect("a name").into_owned();
        let Some((class, file)) = name.split_once('/').filter(|_| entry.is_file()) else {
            continue;
        };
        let class = folder.join(class);
        fs::create_dir_all(&class).expect("a folder");
        if fs::read_dir(&class).expect("a folder").count() < count {
            let mut picture = Vec::new();
            entry.read_to_end(&mut picture).expect("a picture");
            fs::write(class.join(file), picture).expect("written");
        }
    }
}
