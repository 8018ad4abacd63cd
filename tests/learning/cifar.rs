//! Real photographs: CIFAR-100 classes that no backbone here was trained on, learned in four tasks.
//!
//! A fifth of the pictures unless `CLIPKEEP_CIFAR=full` asks for all: in a release build that takes a minute.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use zip::ZipArchive;

use crate::archive;
use crate::caller::{Answer, Caller};
use crate::database::Database;
use crate::test_app::TestApp;

const TASKS: usize = 4;
/// Pictures of each class that are fitted on, and held out.
const SAMPLE: [usize; 2] = [40, 25];
const FULL: [usize; 2] = [200, 100];

type Pictures = BTreeMap<String, Vec<Vec<u8>>>;

/// One task's pictures by class.
struct Task {
    train: Pictures,
    test: Pictures,
}

/// The folder of archives: in `$CLIPKEEP_SHARED`, or in `shared` beside the project.
fn folder() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let shared = std::env::var_os("CLIPKEEP_SHARED").map_or_else(beside, PathBuf::from);
    shared.join("data/cifar100")
}

/// The first `count` pictures of each class of an archive.
fn pictures(path: &Path, count: usize) -> Pictures {
    let mut archive = ZipArchive::new(File::open(path).expect("an archive")).expect("a zip");
    let mut found = Pictures::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).expect("an entry");
        let name = entry.name().expect("a name").into_owned();
        let Some((class, _)) = name.split_once('/').filter(|_| entry.is_file()) else {
            continue;
        };
        let class = found.entry(class.to_owned()).or_default();
        if class.len() < count {
            let mut picture = Vec::new();
            entry.read_to_end(&mut picture).expect("a picture");
            class.push(picture);
        }
    }
    found
}

fn lesson<'a>(tasks: impl IntoIterator<Item = &'a Task>) -> Vec<u8> {
    let mut files = Vec::new();
    for task in tasks {
        for (split, pictures) in [("train", &task.train), ("test", &task.test)] {
            for (class, pictures) in pictures {
                let named = pictures.iter().enumerate();
                files.extend(named.map(|(n, picture)| (format!("{split}/{class}/{n}.png"), picture.clone())));
            }
        }
    }
    archive::zip(&files)
}

/// The share of held-out pictures that the bare backbone takes for what they are, among the classes of all tasks.
async fn zero_shot(caller: &Caller, tasks: &[Task]) -> f64 {
    let classes: Vec<&str> = tasks
        .iter()
        .flat_map(|task| task.test.keys().map(String::as_str))
        .collect();
    let (mut right, mut asked) = (0, 0);
    for (class, pictures) in tasks.iter().flat_map(|task| &task.test) {
        let form = pictures.iter().fold(Form::new(), |form, picture| {
            form.part("image", Part::bytes(picture.clone()))
        });
        let request = caller
            .post("/v1/models/default/classify")
            .query(&[("labels", classes.join(",").as_str()), ("top_k", "1")])
            .multipart(form);
        let answer = Answer::to(request).await.json(200);
        for prediction in answer["predictions"].as_array().expect("predictions") {
            asked += 1;
            right += u32::from(prediction["classes"][0]["label"] == *class);
        }
    }
    f64::from(right) / f64::from(asked)
}

/// Creates a model and teaches it lessons in order; gives its accuracies.
async fn learned(caller: &Caller, name: &str, config: Value, lessons: Vec<Vec<u8>>) -> Value {
    let body = json!({"name": name, "config": config});
    Answer::to(caller.post("/v1/models").json(&body)).await.json(201);
    for (place, archive) in lessons.into_iter().enumerate() {
        let job = caller.teach(name, &format!("task {place}"), archive).await;
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    let accuracy = caller.get(&format!("/v1/models/{name}/accuracy")).await;
    println!("{name}: {accuracy}");
    accuracy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_in_order_come_close_to_joint_learning_and_forget_little() {
    let folder = folder();
    if !folder.is_dir() {
        println!("skipped: no CIFAR-100 pictures in {}", folder.display());
        return;
    }
    let is_full = std::env::var("CLIPKEEP_CIFAR").is_ok_and(|size| size == "full");
    let [train, test] = if is_full { FULL } else { SAMPLE };
    let part = |task: usize, split: &str, count: usize| {
        pictures(&folder.join(format!("novel-task{task}-{split}.zip")), count)
    };
    let tasks: Vec<Task> = (1..=TASKS)
        .map(|task| Task {
            train: part(task, "train", train),
            test: part(task, "test", test),
        })
        .collect();
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let bare = zero_shot(&app, &tasks).await;
    let chance = 1.0 / (5 * TASKS) as f64;
    if bare < 2.0 * chance {
        println!("skipped: the backbone is not trained, zero-shot {bare:.3} and chance {chance:.3}");
        return;
    }
    let in_order = || tasks.iter().map(|task| lesson([task])).collect::<Vec<_>>();
    let careless = json!({"retention": {"kind": "none"}, "rehearsal": {"kind": "none"}});
    let kept = learned(&app, "kept", json!({}), in_order()).await;
    let joint = learned(&app, "joint", json!({}), vec![lesson(&tasks)]).await;
    let forgetful = learned(&app, "forgetful", careless, in_order()).await;

    let number = |accuracy: &Value, name: &str| accuracy[name].as_f64().expect("a number");
    let last = [&kept, &joint, &forgetful].map(|accuracy| number(accuracy, "last"));
    let forgetting = [&kept, &forgetful].map(|accuracy| number(accuracy, "forgetting"));
    println!(
        "20 classes: zero-shot {bare:.4}, four tasks {:.4}, one task {:.4}, careless {:.4}; \
         forgetting {:.4}, careless {:.4}",
        last[0], last[1], last[2], forgetting[0], forgetting[1]
    );
    let [kept, joint, careless] = last;
    assert!(kept >= bare + 0.2, "learning pays");
    // 500 held-out pictures leave a standard error of two points.
    let margin = if is_full { 0.03 } else { 0.06 };
    assert!(kept >= joint - margin, "nearly as good as learning all at once");
    assert!(kept >= careless + 0.15, "care pays");
    assert!(
        forgetting[0] <= 0.1 && forgetting[1] >= 0.4,
        "little is forgotten, without care most"
    );
}
