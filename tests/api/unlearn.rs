//! `DELETE /v1/models/{model}/tasks/{task}` and `…/classes/{class}`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::{Database, on_both};
use crate::pictures::{FLORA, SKIES, folders, png};
use crate::scene::{CLASSIFY, TASKS, with_both, with_flora};
use crate::test_app::TestApp;

on_both!(
    a_task_is_unlearned_as_a_job,
    a_class_is_unlearned_as_a_job,
    refuses_what_cannot_be_unlearned,
    refuses_classes_that_cannot_be_unlearned,
);

async fn unlearn(app: &TestApp, task: &str) -> Answer {
    let request = app.request(Method::DELETE, &format!("{TASKS}/{task}"));
    Answer::to(request.header("prefer", "wait=240")).await
}

async fn unlearn_class(app: &TestApp, class: &str) -> Answer {
    let request = app.request(Method::DELETE, &format!("/v1/models/default/classes/{class}"));
    Answer::to(request.header("prefer", "wait=240")).await
}

async fn a_task_is_unlearned_as_a_job(database: Database) {
    let app = with_both(&database).await;
    let answer = unlearn(&app, "flora").await;
    let accepted = answer.json(202);
    assert_eq!(
        (&accepted["task"], &accepted["state"]),
        (&json!("flora"), &json!("succeeded")),
        "waited for"
    );
    assert_eq!(answer.headers["retry-after"], "1");
    let location = answer.headers["location"].to_str().expect("text");
    let job = app.get(location).await;
    assert_eq!((&job["kind"], &job["version"]), (&json!("unlearn"), &json!(3)));
    assert_eq!(
        job["report"]["exact"], false,
        "an ensemble has trained adapters: {job}"
    );
    assert_eq!(job["report"]["unlearned"]["classes"], json!(["poppy", "meadow"]));
    let events = Answer::to(app.request(Method::GET, &format!("{location}/events"))).await;
    assert!(events.text.contains("\"state\":\"succeeded\""), "{}", events.text);
    let cancel = Answer::to(app.post(&format!("{location}/cancel"))).await;
    cancel.problem(409, "job_ended");

    let known = app.get(TASKS).await;
    let names: Vec<&Value> = known["tasks"]
        .as_array()
        .expect("tasks")
        .iter()
        .map(|task| &task["name"])
        .collect();
    assert_eq!(names, ["skies"]);
    let answer = app.classify(CLASSIFY, png("rainbow", 60)).await;
    assert_eq!(answer["version"], 3);
    let classes = answer["predictions"][0]["classes"].as_array().expect("classes");
    assert_eq!(classes.len(), 2, "{answer}");

    let version = app.get("/v1/models/default/versions/3").await;
    assert_eq!(
        (&version["kind"], &version["parent"]),
        (&json!("unlearn"), &json!(2))
    );
    assert_eq!(version["classes"].as_array().map(Vec::len), Some(2));
    let accuracy = app.get("/v1/models/default/accuracy").await;
    assert_eq!(accuracy["tasks"], json!(["skies"]));
    assert_eq!(accuracy["versions"], json!([1, 2, 3]));
    let shape: Vec<Vec<bool>> = accuracy["matrix"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| row.as_array().expect("a row").iter().map(Value::is_f64).collect())
        .collect();
    assert_eq!(shape, [[false], [true], [true]], "{accuracy}");
    let listed = app.get("/v1/models/default/versions").await;
    assert!(listed["versions"][0]["metrics"]["accuracy"]["value"].is_f64());

    let answer = Answer::to(app.request(Method::GET, &format!("{TASKS}/flora"))).await;
    answer.problem(404, "unknown_task");
    let before = app.get(&format!("{TASKS}?version=2")).await;
    assert_eq!(before["tasks"].as_array().map(Vec::len), Some(2));
}

async fn a_class_is_unlearned_as_a_job(database: Database) {
    let app = with_both(&database).await;
    let answer = unlearn_class(&app, "poppy").await;
    let accepted = answer.json(202);
    assert_eq!(
        (&accepted["task"], &accepted["state"]),
        (&json!("flora"), &json!("succeeded")),
        "waited for: {accepted}"
    );
    let job = app.get(answer.headers["location"].to_str().expect("text")).await;
    assert_eq!((&job["kind"], &job["version"]), (&json!("unlearn"), &json!(3)));
    assert_eq!(job["report"]["exact"], false, "an ensemble has trained adapters");
    assert_eq!(job["report"]["unlearned"]["classes"], json!(["poppy"]));

    let known = app.get(&format!("{TASKS}/flora")).await;
    assert_eq!(known["classes"], json!(["meadow"]));
    assert!(known["accuracy"]["now"]["value"].is_f64(), "{known}");
    let before = app.get(&format!("{TASKS}?version=2")).await;
    assert_eq!(before["tasks"][0]["classes"], json!(["poppy", "meadow"]));
    let answer = app.classify(CLASSIFY, png("poppy", 60)).await;
    let classes = answer["predictions"][0]["classes"].as_array().expect("classes");
    assert_eq!(classes.len(), 3, "{answer}");
    assert!(classes.iter().all(|class| class["label"] != "poppy"));
    unlearn_class(&app, "poppy").await.problem(404, "unknown_class");

    // The last class takes its task along, and its label is free again.
    assert_eq!(
        unlearn_class(&app, "meadow").await.json(202)["state"],
        "succeeded"
    );
    let gone = Answer::to(app.request(Method::GET, &format!("{TASKS}/flora"))).await;
    gone.problem(404, "unknown_task");
    let again = app.submit("default", "flora", zip(&folders(&FLORA, 0..6)));
    let again = Answer::to(again).await.json(202);
    let job = app.end_of(again["job"].as_str().expect("an id")).await;
    assert_eq!((&job["state"], &job["version"]), (&json!("succeeded"), &json!(5)));
}

async fn refuses_classes_that_cannot_be_unlearned(database: Database) {
    let (app, _) = with_flora(&database, &[]).await;
    unlearn_class(&app, "rainbow").await.problem(404, "unknown_class");
    unlearn_class(&app, "%00").await.problem(400, "invalid_path");
    let elsewhere = app.request(Method::DELETE, "/v1/models/nobody/classes/poppy");
    Answer::to(elsewhere).await.problem(404, "unknown_model");
    assert_eq!(unlearn_class(&app, "poppy").await.json(202)["state"], "succeeded");
    unlearn_class(&app, "meadow").await.problem(409, "only_task");
    assert_eq!(
        app.get(&format!("{TASKS}/flora")).await["classes"],
        json!(["meadow"])
    );
}

async fn refuses_what_cannot_be_unlearned(database: Database) {
    let (app, _) = with_flora(&database, &[]).await;
    unlearn(&app, "skies").await.problem(404, "unknown_task");
    unlearn(&app, "flora").await.problem(409, "only_task");
    let elsewhere = app.request(Method::DELETE, "/v1/models/nobody/tasks/flora");
    Answer::to(elsewhere).await.problem(404, "unknown_model");
    let odd = app.request(Method::DELETE, &format!("{TASKS}/%00"));
    Answer::to(odd).await.problem(400, "invalid_path");

    // Enough pictures to be still under way while the task is asked to go.
    let skies = app.submit("default", "skies", zip(&folders(&SKIES, 0..40)));
    let skies = Answer::to(skies).await.json(202);
    unlearn(&app, "skies").await.problem(409, "task_in_flight");
    let first = Answer::to(app.request(Method::DELETE, &format!("{TASKS}/flora"))).await;
    first.problem(409, "only_task");
    app.end_of(skies["job"].as_str().expect("an id")).await;
    let (one, other) = tokio::join!(unlearn(&app, "flora"), unlearn(&app, "skies"));
    let states = [&one, &other].map(|answer| match answer.status {
        202 => answer.json(202)["state"].as_str().expect("a state").to_owned(),
        409 => answer.json(409)["code"].as_str().expect("a code").to_owned(),
        _ => panic!("{}", answer.text),
    });
    assert_eq!(
        states.iter().filter(|state| *state == "succeeded").count(),
        1,
        "one of them is the last: {states:?}"
    );
    assert_eq!(app.get(TASKS).await["tasks"].as_array().map(Vec::len), Some(1));
}
