//! `clipkeep bench`, run as a user runs it.

use std::process::{Command, Output};

use reqwest::Method;
use serde_json::Value;

use crate::caller::Answer;
use crate::database::Database;
use crate::pictures::{SKIES, folders, png};
use crate::process::Process;
use crate::scene::{CLASSIFY, with_flora};

async fn bench(arguments: Vec<String>) -> Output {
    let run = move || {
        Command::new(env!("CARGO_BIN_EXE_clipkeep"))
            .arg("bench")
            .args(arguments)
            .output()
            .expect("the program starts")
    };
    tokio::task::spawn_blocking(run).await.expect("no panic")
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// The JSON object in the last line of what a good run printed.
fn told(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let last = said.lines().last().expect("a line");
    serde_json::from_str(last).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encode_tells_images_a_second() {
    let output = bench(words(
        "encode --backbone embedded --batch 3 --seconds 0 --threads 2 --device cpu",
    ))
    .await;
    let told = told(&output);
    assert_eq!(
        (&told["batch"], &told["batches"]),
        (&3.into(), &1.into()),
        "{told}"
    );
    let rate = told["images_per_second"].as_f64().expect("a number");
    let milliseconds = told["milliseconds"].as_f64().expect("a number");
    assert!((rate * milliseconds - 3000.0).abs() < 1e-6, "{told}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("clipkeep/mini-clip: "));
    let folder = tempfile::tempdir().expect("a folder");
    for (number, class) in [(0, "poppy"), (1, "snow")] {
        std::fs::write(folder.path().join(format!("{number}.png")), png(class, number)).expect("written");
    }
    for (dtype, least) in [("f32", 0.999), ("bf16", 0.999), ("int16", 0.999), ("int8", 0.995)] {
        let flags = format!("encode --batch 3 --seconds 0 --device cpu --json --cosine --dtype {dtype}");
        let images = ["--images".to_owned(), folder.path().display().to_string()];
        let told = self::told(&bench([words(&flags), images.to_vec()].concat()).await);
        let instructions = told["instructions"].as_str().expect("words");
        assert!(instructions.ends_with(dtype), "{told}");
        let cosine = told["cosine"].as_f64().expect("a number");
        assert!((least..1.0 + 1e-6).contains(&cosine), "{told}");
    }

    let refused = bench(words("encode --shape vit-h-14")).await;
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && complaint.contains("vit-b-32"),
        "{complaint}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preprocess_tells_milliseconds_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("poppy.png");
    std::fs::write(&file, png("poppy", 1)).expect("written");
    let arguments = ["preprocess", "--device", "cpu", "--seconds", "0"].map(str::to_owned);
    let output = bench([arguments.to_vec(), vec![file.display().to_string()]].concat()).await;
    let told = told(&output);
    assert_eq!(told["file"], file.display().to_string());
    assert!(
        told["milliseconds"].as_f64().is_some_and(|time| time > 0.0),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_tells_latencies_and_stages_of_a_server() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in folders(&["poppy"], 0..3) {
        let name = name.replace('/', "-");
        std::fs::write(folder.path().join(name), bytes).expect("written");
    }
    let server = Process::start(&Database::sqlite(), &[]);
    let images = folder.path().display().to_string();
    let run = async |path: &str, flags: &str| {
        let mut arguments = vec!["http".to_owned(), format!("{}{path}", server.origin)];
        arguments.extend(["--images".to_owned(), images.clone()]);
        arguments.extend(words(&format!("{flags} --seconds 0.5 --warm-up 0.1 --json")));
        bench(arguments).await
    };
    let path = format!("{CLASSIFY}?labels=owl,fox");
    for flags in ["--clients 2", "--rate 20", "--form image"] {
        let told = told(&run(&path, flags).await);
        let answers = told["answers"].as_u64().expect("a number");
        assert!(answers > 0 && told["failures"] == serde_json::json!({}), "{told}");
        let of = |name: &str| told["milliseconds"][name].as_f64().expect("a number");
        assert!(
            0.0 < of("p50") && of("p50") <= of("p99") && of("p99") <= of("max"),
            "{told}"
        );
        let encode = told["stages"]["encode, a batch"].as_f64();
        assert!(encode.is_some_and(|time| time > 0.0), "{told}");
    }
    let metrics = Answer::to(server.request(Method::GET, "/metrics")).await.text;
    assert!(
        metrics.contains("clipkeep_feature_cache_requests_total{priority=\"interactive\",outcome=\"miss\"}")
    );
    assert!(
        !metrics.contains("outcome=\"hit\""),
        "no image is like another to a cache: {metrics}"
    );
    let pictures = tempfile::tempdir().expect("a folder");
    let picture = pictures.path().join("latencies.svg");
    let repeated = told(&run(&path, &format!("--repeat --plot {}", picture.display())).await);
    let drawn = std::fs::read_to_string(&picture).expect("a picture");
    let answers = format!("{} answers at", repeated["answers"]);
    assert!(drawn.starts_with("<svg") && drawn.contains(&answers), "{drawn}");
    assert!(repeated["answers"].as_u64().is_some_and(|answers| answers > 3));
    let metrics = Answer::to(server.request(Method::GET, "/metrics")).await.text;
    assert!(metrics.contains("outcome=\"hit\""), "{metrics}");
    let missing = run("/v1/models/nobody/classify", "--clients 1").await;
    let complaint = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(
        !missing.status.success() && complaint.contains("404"),
        "{complaint}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_teaches_a_task_meanwhile() {
    let folder = tempfile::tempdir().expect("a folder");
    let (image, archive) = (folder.path().join("a.png"), folder.path().join("task.zip"));
    std::fs::write(&image, png("poppy", 9)).expect("written");
    std::fs::write(&archive, crate::archive::zip(&folders(&SKIES, 0..10))).expect("written");
    let (app, _) = with_flora(&Database::sqlite(), &[]).await;
    let mut arguments = vec!["http".to_owned(), format!("{}{CLASSIFY}", app.origin)];
    arguments.extend(["--images", &image.display().to_string()].map(str::to_owned));
    arguments.extend(["--teach", &archive.display().to_string()].map(str::to_owned));
    arguments.extend(words("--seconds 0.5 --warm-up 0.1 --json"));
    let told = told(&bench(arguments).await);
    assert_eq!(told["job"][0], "succeeded", "{told}");
    assert!(
        told["job"][1].as_f64().is_some_and(|seconds| seconds > 0.0),
        "{told}"
    );
}
