//! A server that is killed at any moment: its job is done by the next one, once, and nothing is half there.

use std::time::Duration;

use serde_json::{Value, json};

use crate::caller::Caller;
use crate::database::{Database, on_both};
use crate::lessons::{CLASSIFY, enrol, lesson, lesson_named, of_pupil, submitted, taught, watched};
use crate::pictures::{FLORA, png};
use crate::process::Process;

on_both!(a_killed_server_leaves_whole_steps_behind);

/// When the server is killed: this long after the job was first seen so far.
const MOMENTS: [(&str, f64, u64); 8] = [
    ("encode", 0.0, 0),
    ("encode", 0.2, 0),
    ("fit", 0.6, 0),
    ("fit", 0.6, 150),
    ("fit", 0.8, 0),
    ("fit", 0.8, 60),
    ("evaluate", 0.9, 0),
    ("commit", 0.9, 5),
];

async fn a_killed_server_leaves_whole_steps_behind(database: Database) {
    let mut server = Process::start(&database, &[]);
    enrol(&server).await;
    taught(&server, "flora", lesson(&FLORA)).await;
    let mut interrupted = 0;
    for (round, (phase, progress, wait)) in MOMENTS.into_iter().enumerate() {
        let labels = [format!("night {round}"), format!("rainbow {round}")];
        let lesson = lesson_named(&[(&labels[0], "night sky"), (&labels[1], "rainbow")]);
        let job = submitted(&server, &format!("round {round}"), lesson).await;
        let seen = watched(&server, &job, |job| {
            job["phase"] == phase || job["progress"].as_f64() >= Some(progress.max(0.01))
        })
        .await;
        // The moment of the kill is what is tested, so this is no waiting for anything.
        tokio::time::sleep(Duration::from_millis(wait)).await;
        drop(server);

        server = Process::start(&database, &[]);
        let ended = server.end_of(&job).await;
        assert_eq!(
            ended["state"], "succeeded",
            "killed at {}: {ended}",
            seen["phase"]
        );
        assert_eq!(ended["version"], round + 2, "the numbers leave no gap: {ended}");
        assert_whole(&server, round + 2).await;
        let answer = server.classify(CLASSIFY, png("rainbow", 400)).await;
        assert_eq!(answer["version"], round + 2);
        println!(
            "killed in {}, ended after {} attempts",
            seen["phase"], ended["attempts"]
        );
        interrupted += usize::from(ended["attempts"] == 2);
    }
    assert!(
        2 * interrupted >= MOMENTS.len(),
        "most kills hit a running job: {interrupted}"
    );
}

/// Fails unless there are `count` versions, each with its job, its classes and its row of accuracies.
async fn assert_whole(caller: &Caller, count: usize) {
    let list = of_pupil(caller, "versions").await;
    let versions = list["versions"].as_array().expect("versions");
    let numbers: Vec<&Value> = versions.iter().map(|version| &version["number"]).collect();
    assert!(
        numbers
            .iter()
            .rev()
            .zip(1..)
            .all(|(number, n)| **number == json!(n))
    );
    assert_eq!(numbers.len(), count, "{list}");
    assert_eq!(list["active"], count);
    for (version, number) in versions.iter().rev().zip(1_usize..) {
        let job = version["job"].as_str().expect("an id");
        let job = caller.get(&format!("/v1/jobs/{job}")).await;
        assert_eq!(
            (&job["state"], &job["version"]),
            (&json!("succeeded"), &json!(number))
        );
        let full = of_pupil(caller, &format!("versions/{number}")).await;
        assert_eq!(
            full["classes"].as_array().map(Vec::len),
            Some(2 * number),
            "{full}"
        );
    }
    let accuracy = of_pupil(caller, "accuracy").await;
    for (i, row) in accuracy["matrix"].as_array().expect("rows").iter().enumerate() {
        let known = row.as_array().expect("a row").iter().map(Value::is_f64);
        assert!(known.eq((0..count).map(|j| j <= i)), "complete: {accuracy}");
    }
    let log = of_pupil(caller, "activations").await;
    let activations = log["activations"].as_array().expect("entries");
    assert_eq!(activations.len(), count, "each was activated once: {log}");
}
