//! The queue: which job runs when, how far it is, and how it ends.

use clipkeep::domain::{Digest, JobError, JobId, JobState, ModelConfig, ModelName, Phase};
use clipkeep::store::{Attempt, CancelError, EnqueueError, Lease, NewJob, Progress};
use serde_json::{Value, json};

use crate::scene::{LEASE, a_job, an_example, an_owner, at, claim, enqueue, with_model};
use crate::setup::{Database, on_both};

on_both!(
    runs_the_jobs_of_a_model_in_order,
    runs_models_side_by_side,
    runs_jobs_on_their_own_backbone,
    replays_what_happened,
    fails_for_good,
    cancels,
);

pub(crate) fn failure() -> JobError {
    JobError {
        code: "undecodable".to_owned(),
        detail: "Bild 3 \u{0} ist kaputt: \"日本\"".to_owned(),
    }
}

async fn runs_the_jobs_of_a_model_in_order(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let owner = an_owner();
    assert_eq!(claim(&store, &owner, 0).await, None);
    let mut jobs = Vec::new();
    for (task, second) in [("second", 7), ("third", 9), ("first", 5)] {
        let new = NewJob {
            now: at(second),
            ..a_job(task, &[task])
        };
        jobs.push(enqueue(&store, new).await.expect("accepted"));
    }
    for task in ["first", "second", "third"] {
        let job = claim(&store, &owner, 10).await.expect("a job");
        assert_eq!(job.task.as_str(), task);
        assert_eq!(
            (job.state, job.attempts, job.updated_at),
            (JobState::Running, 1, at(10))
        );
        assert_eq!(claim(&store, &an_owner(), 11).await, None, "one at a time");
        assert_eq!(
            store
                .fail_job(job.id, &owner, &failure(), at(12))
                .await
                .expect("failed"),
            Lease::Held
        );
    }
    assert_eq!(claim(&store, &owner, 13).await, None);
}

async fn runs_models_side_by_side(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let other: ModelName = "other".parse().expect("a name");
    store
        .create_model(&other, &ModelConfig::default(), at(0))
        .await
        .expect("created");
    enqueue(&store, a_job("one", &["a"])).await.expect("accepted");
    enqueue(&store, a_job("two", &["b"])).await.expect("accepted");
    let mut elsewhere = a_job("one", &["a"]);
    elsewhere.model = other.clone();
    enqueue(&store, elsewhere).await.expect("accepted");
    let owner = an_owner();
    assert_eq!(
        claim(&store, &owner, 10).await.expect("a job").model.as_str(),
        "default"
    );
    assert_eq!(claim(&store, &owner, 10).await.expect("a job").model, other);
    assert_eq!(claim(&store, &owner, 10).await, None);
}

async fn runs_jobs_on_their_own_backbone(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let other = Digest::of(b"another backbone");
    let owner = an_owner();
    let job = enqueue(&store, a_job("one", &["a"])).await.expect("accepted");
    let claimed = store.claim_job(&owner, other, at(2), LEASE).await;
    assert_eq!(claimed.expect("answers"), None, "its features would be others");

    let on_other = |task| NewJob {
        backbone: other,
        ..a_job(task, &[task])
    };
    let refused = enqueue(&store, on_other("two")).await;
    assert!(
        matches!(refused, Err(EnqueueError::OtherBackbone(_))),
        "{refused:?}"
    );

    // Nothing came of the only job, so the model may begin anew.
    claim(&store, &owner, 3).await.expect("a job");
    let failed = store.fail_job(job.id, &owner, &failure(), at(4)).await;
    assert_eq!(failed.expect("answers"), Lease::Held);
    enqueue(&store, on_other("two")).await.expect("accepted");
    assert_eq!(claim(&store, &owner, 5).await, None);
    let claimed = store.claim_job(&owner, other, at(5), LEASE).await;
    assert!(claimed.expect("answers").is_some());
}

async fn replays_what_happened(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let job = enqueue(&store, a_job("one", &["a"])).await.expect("accepted").id;
    let owner = an_owner();
    claim(&store, &owner, 2).await.expect("a job");
    for (phase, progress, report) in [
        (Phase::Encode, 0.25, json!({"images": 7, "loss": null})),
        (Phase::Fit, 0.625, json!({"loss": 0.5})),
    ] {
        let Value::Object(report) = report else {
            unreachable!()
        };
        let progress = Progress {
            job,
            owner: &owner,
            phase,
            progress,
            report: Some(report),
            now: at(3),
            lease: LEASE,
        };
        assert_eq!(
            store.record_progress(progress).await.expect("answers"),
            Lease::Held
        );
    }
    let read = store.job(job).await.expect("answers").expect("a job");
    assert_eq!((read.phase, read.updated_at), (Some(Phase::Fit), at(3)));
    assert!((read.progress - 0.625).abs() < f64::EPSILON);
    assert_eq!(
        read.report,
        json!({"images": 7, "loss": 0.5}),
        "later fields add to earlier ones"
    );

    let events = store.job_events(job, 0, 100).await.expect("answers");
    let told: Vec<_> = events
        .iter()
        .map(|e| (e.sequence, e.name.as_str(), e.data["state"].as_str(), e.at))
        .collect();
    assert_eq!(
        told,
        [
            (1, "state", Some("queued"), at(1)),
            (2, "state", Some("running"), at(2)),
            (3, "progress", Some("running"), at(3)),
            (4, "progress", Some("running"), at(3)),
        ]
    );
    assert_eq!(events[2].data["phase"], "encode");
    assert_eq!(events[2].data["progress"], 0.25);
    assert_eq!(store.job_events(job, 2, 1).await.expect("answers"), events[2..3]);
    assert_eq!(store.job_events(job, 4, 9).await.expect("answers"), []);
}

async fn fails_for_good(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let new = a_job("one", &["a"]);
    let mut draft = store.begin_job(new.clone()).await.expect("accepted");
    draft
        .add_image(an_example(0, b"image"), b"image")
        .await
        .expect("added");
    draft.commit().await.expect("queued");
    let owner = an_owner();
    claim(&store, &owner, 2).await.expect("a job");
    assert_eq!(
        store
            .fail_job(new.id, &owner, &failure(), at(3))
            .await
            .expect("answers"),
        Lease::Held
    );
    let job = store.job(new.id).await.expect("answers").expect("a job");
    assert_eq!((job.state, job.error), (JobState::Failed, Some(failure())));
    assert_eq!(
        database.count("select count(*) from job_example").await,
        0,
        "its images are gone"
    );
    let last = store
        .job_events(new.id, 2, 9)
        .await
        .expect("answers")
        .pop()
        .expect("an event");
    assert_eq!(
        (last.name.as_str(), &last.data["error"]["code"]),
        ("state", &json!("undecodable"))
    );
    assert!(matches!(
        store.cancel_job(new.id, at(4)).await,
        Err(CancelError::Final(JobState::Failed))
    ));
}

async fn cancels(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    assert_eq!(
        store.cancel_job(JobId::new(), at(1)).await.expect("answers"),
        None
    );
    let queued = enqueue(&store, a_job("one", &["a"])).await.expect("accepted");
    let cancelled = store
        .cancel_job(queued.id, at(2))
        .await
        .expect("cancelled")
        .expect("a job");
    assert_eq!(cancelled.state, JobState::Cancelled);
    assert_eq!(claim(&store, &an_owner(), 3).await, None);

    let running = enqueue(&store, a_job("one", &["a"])).await.expect("accepted");
    let owner = an_owner();
    claim(&store, &owner, 4).await.expect("a job");
    store
        .cancel_job(running.id, at(5))
        .await
        .expect("cancelled")
        .expect("a job");
    assert_eq!(
        store
            .requeue(running.id, &owner, Attempt::Counts, at(6))
            .await
            .expect("answers"),
        Lease::Lost
    );
    assert_eq!(
        store
            .job(running.id)
            .await
            .expect("answers")
            .expect("a job")
            .state,
        JobState::Cancelled
    );
}
