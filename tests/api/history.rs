//! What was taught and how well it is known: the tasks and the accuracy matrix.

use reqwest::Method;
use serde_json::{Value, json};

use crate::caller::Answer;
use crate::database::{Database, on_both};
use crate::pictures::{FLORA, SKIES};
use crate::scene::{TASKS, texts, with_both};
use crate::test_app::TestApp;

on_both!(tasks_tell_what_was_taught, the_accuracy_matrix_has_its_shape);

/// Checks an accuracy with its interval, and gives its value.
fn accuracy(shown: &Value, images: u64) -> f64 {
    assert_eq!(shown["n"], images, "{shown}");
    let value = shown["value"].as_f64().expect("a number");
    let bound = |side: usize| shown["interval"][side].as_f64().expect("a number");
    assert!(0.0 <= bound(0) && bound(0) <= value, "{shown}");
    assert!(value <= bound(1) && bound(1) <= 1.0, "{shown}");
    value
}

async fn tasks_tell_what_was_taught(database: Database) {
    let app = with_both(&database).await;
    let list = app.get(TASKS).await;
    assert_eq!(list["next"], Value::Null);
    let tasks = list["tasks"].as_array().expect("tasks");
    let names: Vec<&Value> = tasks.iter().map(|task| &task["name"]).collect();
    assert_eq!(names, ["flora", "skies"], "oldest first");
    for (task, (classes, version)) in tasks.iter().zip([(FLORA, 1), (SKIES, 2)]) {
        assert_eq!(texts(&task["classes"]), classes);
        assert_eq!(task["examples"], json!({"train": 8, "held_out": 2}));
        assert_eq!(task["version"], version);
        assert!(
            task["learned_at"].as_str().is_some_and(|at| at.ends_with('Z')),
            "{task}"
        );
        let then = accuracy(&task["accuracy"]["at_learning"], 2);
        let now = accuracy(&task["accuracy"]["now"], 2);
        let forgetting = task["forgetting"].as_f64().expect("a number");
        assert!((forgetting - (then - now)).abs() < 1e-9, "{task}");
        let name = task["name"].as_str().expect("a name");
        assert_eq!(&app.get(&format!("{TASKS}/{name}")).await, task);
    }
    let unknown = app.request(Method::GET, &format!("{TASKS}/nobody"));
    Answer::to(unknown).await.problem(404, "unknown_task");
}

async fn the_accuracy_matrix_has_its_shape(database: Database) {
    let app = with_both(&database).await;
    let shown = app.get("/v1/models/default/accuracy").await;
    assert_eq!(shown["tasks"], json!(["flora", "skies"]));
    assert_eq!(shown["versions"], json!([1, 2]));
    assert_eq!(shown["n"], json!([2, 2]));
    let cell = |i: usize, j: usize| shown["matrix"][i][j].as_f64();
    assert_eq!(shown["matrix"].as_array().expect("rows").len(), 2);
    for i in 0..2 {
        assert_eq!(shown["matrix"][i].as_array().expect("a row").len(), 2);
        for j in 0..2 {
            if j <= i {
                assert_eq!(cell(i, j), Some(accuracy(&shown["cells"][i][j], 2)));
            } else {
                assert_eq!(cell(i, j), None, "version {} did not know task {}", i + 1, j + 1);
                assert_eq!(shown["cells"][i][j], Value::Null);
            }
        }
    }
    let number = |name: &str| shown[name].as_f64().expect(name);
    let known = |i: usize, j: usize| cell(i, j).expect("known");
    let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
    let overall: Vec<f64> = shown["overall"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|value| value.as_f64().expect("a number"))
        .collect();
    assert!(close(overall[0], known(0, 0)), "{shown}");
    assert!(
        close(overall[1], f64::midpoint(known(1, 0), known(1, 1))),
        "{shown}"
    );
    assert!(
        close(number("average"), f64::midpoint(overall[0], overall[1])),
        "{shown}"
    );
    assert!(close(number("last"), overall[1]), "{shown}");
    assert!(close(number("forgetting"), known(0, 0) - known(1, 0)), "{shown}");
    assert!(
        close(number("backward_transfer"), known(1, 0) - known(0, 0)),
        "{shown}"
    );
    let zero_shot = shown["zero_shot"].as_array().expect("a list");
    assert!(
        zero_shot.len() == 2 && zero_shot.iter().all(Value::is_f64),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_tasks_has_an_empty_history() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    assert_eq!(app.get(TASKS).await, json!({"tasks": [], "next": null}));
    let shown = app.get("/v1/models/default/accuracy").await;
    assert_eq!((&shown["tasks"], &shown["matrix"]), (&json!([]), &json!([])));
    for name in ["average", "last", "forgetting", "backward_transfer"] {
        assert_eq!(shown.get(name), Some(&Value::Null), "{shown}");
    }
    let versions = app.get("/v1/models/default/versions").await;
    assert_eq!(versions, json!({"active": null, "versions": [], "next": null}));
    for tail in ["tasks", "accuracy", "versions", "activations"] {
        let asked = app.request(Method::GET, &format!("/v1/models/nobody/{tail}"));
        Answer::to(asked).await.problem(404, "unknown_model");
    }
}
