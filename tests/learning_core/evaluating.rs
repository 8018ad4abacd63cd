//! `clipkeep evaluate` on features, as its user runs it.
//!
//! On features that are made here, and on real CLIP features from outside the project: without those, these tests say
//! that they were skipped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use npyz::WriterBuilder as _;
use serde_json::Value;

pub(crate) fn evaluate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_clipkeep"))
        .arg("evaluate")
        .args(arguments)
        .output()
        .expect("the program runs")
}

/// What the program wrote with `--json`.
pub(crate) fn rows(arguments: &[&str], directory: &Path) -> Vec<Value> {
    let json = directory.join("table.json");
    let json = json.to_str().expect("a path in UTF-8");
    let output = evaluate(&[arguments, &["--json", json]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let report: Value = serde_json::from_slice(&std::fs::read(json).expect("written")).expect("JSON");
    report["rows"].as_array().expect("rows").clone()
}

pub(crate) fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("{name} of {row}"))
}

fn write<T: npyz::AutoSerialize + Copy>(path: &Path, values: &[T], shape: &[u64]) {
    write_in(npyz::Order::C, path, values, shape);
}

fn write_in<T: npyz::AutoSerialize + Copy>(order: npyz::Order, path: &Path, values: &[T], shape: &[u64]) {
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .order(order)
        .shape(shape)
        .writer(File::create(path).expect("a file"))
        .begin_nd()
        .expect("a header");
    writer.extend(values.iter().copied()).expect("written");
    writer.finish().expect("finished");
}

/// Features of 12 classes, each around a direction of its own, and texts that point somewhere near.
fn made_up(directory: &Path) {
    const CLASSES: i64 = 12;
    const DIM: i64 = 16;
    let value = |class: i64, number: i64, place: i64| -> f32 {
        let centre = ((class * 7 + place * 13) as f32).sin();
        centre + 0.4 * ((class * 31 + number * 17 + place * 5 + number * place) as f32).cos()
    };
    for (part, numbers) in [("train", 0..6), ("test", 6..10)] {
        let labels: Vec<i64> = (0..CLASSES)
            .flat_map(|class| numbers.clone().map(move |_| class))
            .collect();
        let each = numbers.clone();
        let features: Vec<f32> = (0..CLASSES)
            .flat_map(|class| each.clone().map(move |number| (class, number)))
            .flat_map(|(class, number)| (0..DIM).map(move |place| value(class, number, place)))
            .collect();
        let count = labels.len() as u64;
        write(
            &directory.join(format!("{part}_features.npy")),
            &features,
            &[count, DIM as u64],
        );
        write(&directory.join(format!("{part}_labels.npy")), &labels, &[count]);
    }
    let texts: Vec<f32> = (0..CLASSES)
        .flat_map(|class| {
            (0..DIM).map(move |place| value(class, 0, place) + 0.8 * (place as f32 / 3.0).sin())
        })
        .collect();
    write(
        &directory.join("text_embeddings.npy"),
        &texts,
        &[CLASSES as u64, DIM as u64],
    );
}

#[test]
fn a_table_files_and_pictures_come_of_features() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    made_up(directory.path());
    let (features, csv, plots) = (place(""), place("table.csv"), place("plots"));
    let arguments = [
        "--features",
        &features,
        "--tasks",
        "3",
        "--seeds",
        "2",
        "--logit-scale",
        "20",
        "--strategies",
        "zero_shot,linear,linear:joint,gda,default",
        "--csv",
        &csv,
        "--plots",
        &plots,
    ];
    let rows = rows(&arguments, directory.path());
    let names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["zero_shot", "linear", "linear:joint", "gda", "default"]);
    for row in &rows {
        for share in ["average", "last"] {
            assert!((0.0..=1.0).contains(&number(row, share)), "{row}");
        }
        assert!(number(row, "seconds_per_task") >= 0.0 && number(row, "bytes") > 0.0);
    }
    assert!(
        number(&rows[4], "last") > number(&rows[0], "last"),
        "learning pays"
    );
    let joint = &rows[2];
    assert_eq!(joint["average"], joint["last"], "one version");
    let csv = std::fs::read_to_string(csv).expect("written");
    assert_eq!(csv.lines().count(), 6, "{csv}");
    let pictures: Vec<_> = std::fs::read_dir(plots).expect("a directory").collect();
    assert_eq!(pictures.len(), 1 + 5 * 2);
    for picture in pictures {
        let text = std::fs::read_to_string(picture.expect("a file").path()).expect("text");
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
    }
}

#[test]
fn how_an_array_is_stored_does_not_matter() {
    let directory = tempfile::tempdir().expect("a directory");
    let features = directory.path().to_str().expect("UTF-8");
    made_up(directory.path());
    let last = || {
        let arguments = ["--features", features, "--tasks", "2", "--strategies", "gda"];
        number(&rows(&arguments, directory.path())[0], "last")
    };
    let before = last();
    let path = directory.path().join("train_features.npy");
    let file = npyz::NpyFile::new(File::open(&path).expect("a file")).expect("an array");
    let values: Vec<f32> = file.into_vec().expect("numbers");
    let by_column: Vec<f32> = (0..16)
        .flat_map(|column| values.iter().copied().skip(column).step_by(16))
        .collect();
    write_in(npyz::Order::Fortran, &path, &by_column, &[72, 16]);
    assert!((last() - before).abs() < 1e-12);
}

#[test]
fn what_cannot_be_evaluated_is_said() {
    let directory = tempfile::tempdir().expect("a directory");
    let features = directory.path().to_str().expect("UTF-8");
    let complaint = |arguments: &[&str]| {
        let output = evaluate(&[&["--features", features], arguments].concat());
        assert!(!output.status.success());
        String::from_utf8(output.stderr).expect("text")
    };
    let said = complaint(&[]);
    assert!(said.contains("train_features.npy"), "{said}");
    made_up(directory.path());
    for (arguments, expected) in [
        (&["--tasks", "13"][..], "too few"),
        (&["--strategies", "telepathy"], "unknown variant `telepathy`"),
        (&["--order", "given", "--seeds", "2"], "given order"),
        (&["--strategies", "zero_shot,prompt"], "prompt needs the backbone"),
        (
            &["--strategies", "self_attention"],
            "give it images, with --images",
        ),
        (&["--images", "pictures"], "cannot be used with"),
        (
            &["--train", "pictures", "--test", "pictures"],
            "cannot be used with",
        ),
        (&["--template", "a {}"], "cannot be used with"),
        (&["--logit-scale", "0"], "above 0"),
    ] {
        let said = complaint(arguments);
        assert!(said.contains(expected), "{said}");
    }
    let strange = [[0_i64; 47].as_slice(), &[12]].concat();
    write(&directory.path().join("test_labels.npy"), &strange, &[48]);
    let said = complaint(&[]);
    assert!(
        said.contains("class 12 has test rows and no training row"),
        "{said}"
    );
    write(&directory.path().join("test_labels.npy"), &[0_i64, 1], &[2]);
    let said = complaint(&[]);
    assert!(said.contains("48 test rows and 2 labels"), "{said}");
    write(
        &directory.path().join("train_features.npy"),
        &[0.5_f64; 4],
        &[2, 2],
    );
    let said = complaint(&[]);
    assert!(said.contains("expected a matrix of float16 or float32"), "{said}");
}

#[test]
fn on_real_features_learning_and_remembering_pay() {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let shared = std::env::var_os("CLIPKEEP_SHARED").map_or_else(beside, PathBuf::from);
    let features = shared.join("data/clip-vitb32/oxford_pets");
    if !features.is_dir() {
        println!("skipped: no features in {}", features.display());
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let arguments = [
        "--features",
        features.to_str().expect("UTF-8"),
        "--anchors",
        "examples",
        "--tasks",
        "4",
        "--strategies",
        "zero_shot,linear:rehearsal=none:retention=none,linear,gda,default",
    ];
    let rows = rows(&arguments, directory.path());
    let last: Vec<f64> = rows.iter().map(|row| number(row, "last")).collect();
    let [zero_shot, careless, linear, gda, default] = last[..] else {
        panic!("five rows: {last:?}")
    };
    assert!(linear > zero_shot + 0.02, "learning pays: {last:?}");
    assert!(linear > careless + 0.02, "remembering pays: {last:?}");
    assert!(default > linear + 0.01 && default > gda - 0.02, "{last:?}");
    assert!(number(&rows[4], "forgetting") < 0.08);
}
