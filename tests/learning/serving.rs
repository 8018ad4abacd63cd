//! Classification goes on while versions come and go, and no answer mixes two of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::caller::{Answer, Caller};
use crate::database::{Database, on_both};
use crate::lessons::{CLASSIFY, FIELDS, PUPIL, enrol, lesson, taught};
use crate::pictures::{FLORA, SKIES, png};
use crate::records::{batch, classes, labels, provenance};
use crate::test_app::TestApp;

on_both!(
    answers_hold_while_tasks_are_learned,
    answers_hold_while_versions_change
);

/// What each version answered: its digest, and the classes it gave for the same two pictures.
type Answers = BTreeMap<u64, (String, Vec<Value>)>;

/// Someone who classifies the same two pictures without a pause.
struct Visitor {
    stop: Arc<AtomicBool>,
    visit: JoinHandle<Visit>,
}

/// What a visitor saw.
struct Visit {
    answers: Answers,
    /// How long each request took.
    times: Vec<Duration>,
}

impl Visit {
    /// The times that half and 99 in 100 requests stayed under.
    fn percentiles(&self) -> [Duration; 2] {
        let mut times = self.times.clone();
        times.sort_unstable();
        [50, 99].map(|percent| times[(times.len() * percent).div_ceil(100) - 1])
    }
}

impl Visitor {
    fn come(caller: &Caller) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (caller, told) = (caller.clone(), Arc::clone(&stop));
        let visit = tokio::spawn(async move {
            let pictures = [png("poppy", 300), png("rainbow", 300)];
            let (mut times, mut answers) = (Vec::new(), Answers::new());
            while !told.load(Ordering::Relaxed) || times.is_empty() {
                let asked = Instant::now();
                let answer = batch(&caller, CLASSIFY, &pictures).await;
                times.push(asked.elapsed());
                let (version, digest) = provenance(&answer);
                let given = (digest, classes(&answer));
                assert_eq!(given.1.len(), 2, "{answer}");
                let before = answers.entry(version).or_insert_with(|| given.clone());
                assert_eq!(*before, given, "version {version} answers as before");
            }
            Visit { answers, times }
        });
        Self { stop, visit }
    }

    async fn leave(self) -> Visit {
        self.stop.store(true, Ordering::Relaxed);
        self.visit.await.expect("every answer holds")
    }
}

/// Fails unless each version's answers carry its digest and exactly its labels.
async fn assert_true_to_versions(caller: &Caller, answers: &Answers) {
    for (number, (digest, classes)) in answers {
        let version = caller.get(&format!("/v1/models/{PUPIL}/versions/{number}")).await;
        assert_eq!(version["digest"], *digest);
        for given in classes {
            assert_eq!(labels(given), labels(&version["classes"]));
        }
    }
}

async fn answers_hold_while_tasks_are_learned(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    enrol(&app).await;
    taught(&app, "flora", lesson(&FLORA)).await;
    let visitor = Visitor::come(&app);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let [half, most] = visitor.leave().await.percentiles();
    println!("without a job: p50 {half:.1?}, p99 {most:.1?}");

    let visitors = [Visitor::come(&app), Visitor::come(&app)];
    taught(&app, "skies", lesson(&SKIES)).await;
    taught(&app, "fields", lesson(&FIELDS)).await;
    // The newest version answers already when its job says that it succeeded.
    let now = app.classify(CLASSIFY, png("poppy", 300)).await;
    assert_eq!(now["version"], 3);
    for visitor in visitors {
        let visit = visitor.leave().await;
        let [half, most] = visit.percentiles();
        let count = visit.times.len();
        println!("two at a time, with jobs: p50 {half:.1?}, p99 {most:.1?} of {count}");
        assert!(count >= 3, "classification goes on: {count}");
        assert_true_to_versions(&app, &visit.answers).await;
    }
}

async fn answers_hold_while_versions_change(database: Database) {
    const TURNS: u64 = 20;
    let app = TestApp::start(&database, &[]).await;
    enrol(&app).await;
    taught(&app, "flora", lesson(&FLORA)).await;
    taught(&app, "skies", lesson(&SKIES)).await;
    let visitors = [Visitor::come(&app), Visitor::come(&app)];
    for turn in 0..TURNS {
        let version = 1 + turn % 2;
        let request = app.post(&format!("/v1/models/{PUPIL}/rollback"));
        Answer::to(request.json(&json!({"version": version})))
            .await
            .json(200);
        let now = app.classify(CLASSIFY, png("poppy", 300)).await;
        assert_eq!(now["version"], version, "what was rolled back to answers at once");
    }
    for visitor in visitors {
        let visit = visitor.leave().await;
        assert_true_to_versions(&app, &visit.answers).await;
    }
}
