//! `/v1/jobs/{id}`.

use futures::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};

use crate::archive::zip;
use crate::caller::Answer;
use crate::database::{Database, on_both};
use crate::pictures::{FLORA, folders};
use crate::process::Process;
use crate::scene::{endless_job, with_flora};
use crate::test_app::TestApp;

on_both!(a_job_tells_its_story, events_follow_a_job_to_its_end);

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    id: u64,
    name: String,
    data: Value,
}

fn events(stream: &str) -> Vec<Event> {
    let field = |event: &str, name: &str| {
        let line = event.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in {event:?}"))
            .trim()
            .to_owned()
    };
    stream
        .split("\n\n")
        .filter(|event| event.starts_with("id:"))
        .map(|event| Event {
            id: field(event, "id:").parse().expect("a number"),
            name: field(event, "event:"),
            data: serde_json::from_str(&field(event, "data:")).expect("JSON"),
        })
        .collect()
}

async fn a_job_tells_its_story(database: Database) {
    let (app, job) = with_flora(&database, &[]).await;
    assert_eq!(job["kind"], "learn");
    assert_eq!(
        (&job["model"], &job["task"]),
        (&json!("default"), &json!("flora"))
    );
    assert_eq!((&job["version"], &job["error"]), (&json!(1), &Value::Null));
    assert_eq!((&job["progress"], &job["attempts"]), (&json!(1.0), &json!(1)));
    assert!(job["created_at"].as_str().expect("text") <= job["updated_at"].as_str().expect("text"));
    assert_eq!(job["remaining_seconds"], Value::Null);
    let examples = &job["report"]["examples"];
    assert_eq!(
        (&examples["train"], &examples["held_out"]),
        (&json!(8), &json!(2))
    );
    assert_eq!(examples["discarded"], json!([]));
    assert!(
        job["report"]["fit"]["adapter"]["steps"]
            .as_u64()
            .is_some_and(|steps| steps > 0)
    );
    let id = job["id"].as_str().expect("an id");
    assert_eq!(app.get(&format!("/v1/jobs/{id}")).await, job);

    for id in ["01890000-0000-7000-8000-000000000000", "not-an-id"] {
        for tail in ["", "/events"] {
            let asked = app.request(Method::GET, &format!("/v1/jobs/{id}{tail}"));
            let answer = Answer::to(asked).await;
            match id {
                "not-an-id" => answer.problem(400, "invalid_path"),
                _ => answer.problem(404, "unknown_job"),
            };
        }
    }
}

async fn events_follow_a_job_to_its_end(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    let accepted = app.submit("default", "flora", zip(&folders(&FLORA, 0..12)));
    let accepted = Answer::to(accepted).await.json(202);
    let path = format!("/v1/jobs/{}/events", accepted["job"].as_str().expect("an id"));

    let live = Answer::to(app.request(Method::GET, &path)).await;
    assert_eq!(live.status, 200);
    assert_eq!(live.headers["content-type"], "text/event-stream");
    let told = events(&live.text);
    assert!(
        told.iter().map(|event| event.id).eq(1..=told.len() as u64),
        "{told:?}"
    );
    let states: Vec<&Value> = told
        .iter()
        .filter(|event| event.name == "state")
        .map(|event| &event.data["state"])
        .collect();
    assert_eq!(states, ["queued", "running", "succeeded"]);
    let progress: Vec<f64> = told
        .iter()
        .filter(|event| event.name == "progress")
        .map(|event| event.data["progress"].as_f64().expect("a number"))
        .collect();
    assert!(!progress.is_empty() && progress.is_sorted(), "{progress:?}");
    assert_eq!(told.last().expect("events").data["version"], 1);
    assert_eq!(told[0].data["remaining_seconds"], Value::Null);

    let replayed = async |seen: usize| {
        let request = app
            .request(Method::GET, &path)
            .header("last-event-id", seen.to_string());
        events(&Answer::to(request).await.text)
    };
    assert_eq!(replayed(0).await, told, "from the start");
    assert_eq!(replayed(2).await, told[2..], "from where the caller left off");
    let seen = told.len().to_string();
    let request = app.request(Method::GET, &path).header("last-event-id", seen);
    let nothing = Answer::to(request).await;
    assert_eq!(
        (nothing.status, nothing.text.as_str()),
        (204, ""),
        "nothing is left"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_of_steps_and_of_the_time_that_is_left() {
    let database = Database::sqlite();
    let app = Process::start(&database, &[]);
    let job = endless_job(&app).await;
    let stream = app.request(Method::GET, &format!("{job}/events"));
    let mut stream = stream.send().await.expect("an answer").bytes_stream();
    let mut told = String::new();
    let step = loop {
        let chunk = stream.next().await.expect("the job runs on").expect("bytes");
        told.push_str(str::from_utf8(&chunk).expect("text"));
        let whole = &told[..told.rfind("\n\n").map_or(0, |end| end + 2)];
        if let Some(event) = events(whole)
            .into_iter()
            .find(|event| event.data["step"].is_u64())
        {
            break event.data;
        }
    };
    assert_eq!(
        (&step["phase"], &step["state"]),
        (&json!("fit"), &json!("running"))
    );
    assert!(step["steps"].as_u64() > step["step"].as_u64(), "{step}");
    assert!(
        step["loss"].is_f64() && step["remaining_seconds"].is_f64(),
        "{step}"
    );
    assert!(app.get(&job).await["remaining_seconds"].is_f64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_can_be_cancelled_once() {
    let database = Database::sqlite();
    let server = Process::start(&database, &[]);
    let job = endless_job(&server).await;
    let cancel = async |job: &str| Answer::to(server.post(&format!("{job}/cancel"))).await;
    let cancelled = cancel(&job).await.json(200);
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    cancel(&job).await.problem(409, "job_ended");
    let metrics = Answer::to(server.request(Method::GET, "/metrics")).await.text;
    let counted = "clipkeep_jobs_total{outcome=\"cancelled\"} 1\n";
    assert!(metrics.contains(counted), "{metrics}");
    cancel("/v1/jobs/0199f3c0-0000-7000-8000-000000000000")
        .await
        .problem(404, "unknown_job");
    // Its labels are free again, and the worker goes on.
    let taught = server
        .teach("default", "flora", zip(&folders(&FLORA, 0..4)))
        .await;
    assert_eq!(taught["state"], "succeeded", "{taught}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_a_job_has_encoded_is_known_to_those_who_come_after() {
    let database = Database::sqlite();
    let server = Process::start(&database, &[]);
    let pictures = folders(&FLORA, 0..4);
    let counted = async |series: &str| {
        let metrics = Answer::to(server.request(Method::GET, "/metrics")).await.text;
        let mut lines = metrics.lines().filter_map(|line| line.rsplit_once(' '));
        let count = lines.find_map(|(found, count)| (found == series).then_some(count));
        count.map_or(0, |count| count.parse::<usize>().expect("a count"))
    };
    let hits = async |priority: &str| {
        let labels = format!("priority=\"{priority}\",outcome=\"hit\"");
        counted(&format!("clipkeep_feature_cache_requests_total{{{labels}}}")).await
    };
    let taught = server.teach("default", "flora", zip(&pictures)).await;
    assert_eq!(
        (&taught["state"], hits("background").await),
        (&json!("succeeded"), 0)
    );
    let (_, image) = pictures[0].clone();
    let first = server.classify("/v1/models/default/classify", image).await;
    assert_eq!(hits("interactive").await, 1);
    assert_eq!(counted("clipkeep_known_head_seconds_count").await, 1);

    Answer::to(server.post("/v1/models").json(&json!({"name": "other"})))
        .await
        .json(201);
    let taught = server.teach("other", "flora", zip(&pictures)).await;
    assert_eq!(taught["state"], "succeeded", "{taught}");
    assert_eq!(hits("background").await, pictures.len());
    let (_, image) = pictures[0].clone();
    let other = server.classify("/v1/models/other/classify", image).await;
    assert_eq!(
        first["predictions"][0]["classes"],
        other["predictions"][0]["classes"]
    );
}
