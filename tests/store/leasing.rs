//! Leases: a job belongs to one server at a time, and passes on when that one goes silent.

use std::collections::HashSet;
use std::sync::Mutex;

use clipkeep::domain::{JobId, JobState, ModelConfig, ModelName, Phase};
use clipkeep::store::{Attempt, Lease, NewJob, Owner, Progress};
use futures::future::join_all;
use uuid::Uuid;

use crate::scene::{LEASE, a_job, an_owner, at, claim, enqueue, with_model};
use crate::setup::{Database, on_both};
use crate::working::failure;

on_both!(
    hands_over_when_a_lease_runs_out,
    never_claims_twice,
    requeues_what_a_killed_server_ran,
    renews_a_lease_without_a_word,
);

async fn hands_over_when_a_lease_runs_out(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    enqueue(&store, a_job("one", &["a"])).await.expect("accepted");
    enqueue(&store, a_job("two", &["b"])).await.expect("accepted");
    let (slow, quick) = (an_owner(), an_owner());
    let job = claim(&store, &slow, 0).await.expect("a job");
    let progress = |owner, now| Progress {
        job: job.id,
        owner,
        phase: Phase::Encode,
        progress: 0.5,
        report: None,
        now: at(now),
        lease: LEASE,
    };
    assert_eq!(
        store.record_progress(progress(&slow, 30)).await.expect("answers"),
        Lease::Held
    );
    assert_eq!(
        claim(&store, &quick, 89).await,
        None,
        "progress extended the lease"
    );
    let taken = claim(&store, &quick, 90).await.expect("the lease ran out");
    assert_eq!(
        (taken.id, taken.attempts, taken.phase),
        (job.id, 2, Some(Phase::Encode))
    );

    assert_eq!(
        store.record_progress(progress(&slow, 91)).await.expect("answers"),
        Lease::Lost
    );
    assert_eq!(
        store
            .requeue(job.id, &slow, Attempt::Counts, at(91))
            .await
            .expect("answers"),
        Lease::Lost
    );
    assert_eq!(
        store
            .fail_job(job.id, &slow, &failure(), at(91))
            .await
            .expect("answers"),
        Lease::Lost
    );
    assert_eq!(
        store
            .record_progress(progress(&quick, 92))
            .await
            .expect("answers"),
        Lease::Held
    );
}

async fn never_claims_twice(database: Database) {
    const MODELS: usize = 6;
    const TASKS: usize = 4;
    let store = database.open().await;
    for model in 0..MODELS {
        let name: ModelName = format!("model-{model}").parse().expect("a name");
        store
            .create_model(&name, &ModelConfig::default(), at(0))
            .await
            .expect("created");
        for task in 0..TASKS {
            let text = format!("task {task}");
            let new = NewJob {
                model: name.clone(),
                ..a_job(&text, &[&text])
            };
            enqueue(&store, new).await.expect("accepted");
        }
    }
    let finished: Mutex<HashSet<JobId>> = Mutex::default();
    let running: Mutex<HashSet<ModelName>> = Mutex::default();
    // Two stores, as two processes have, and more workers than connections.
    let stores = [store.clone(), database.open().await];
    join_all((0..12).map(|worker| {
        let (store, finished, running) = (&stores[worker % 2], &finished, &running);
        async move {
            let owner = an_owner();
            while finished.lock().expect("sound").len() < MODELS * TASKS {
                let Some(job) = claim(store, &owner, 10).await else {
                    tokio::task::yield_now().await;
                    continue;
                };
                assert!(
                    running.lock().expect("sound").insert(job.model.clone()),
                    "two jobs of {} run",
                    job.model
                );
                assert_eq!(job.attempts, 1);
                tokio::task::yield_now().await;
                assert!(running.lock().expect("sound").remove(&job.model));
                assert_eq!(
                    store
                        .fail_job(job.id, &owner, &failure(), at(11))
                        .await
                        .expect("answers"),
                    Lease::Held
                );
                assert!(finished.lock().expect("sound").insert(job.id), "claimed twice");
            }
        }
    }))
    .await;
    assert_eq!(claim(&store, &an_owner(), 12).await, None);
}

async fn requeues_what_a_killed_server_ran(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let job = enqueue(&store, a_job("one", &["a"])).await.expect("accepted");
    let server = Uuid::now_v7();
    let (before, after, elsewhere) = (Owner::new(server), Owner::new(server), an_owner());
    assert_eq!(claim(&store, &before, 1).await.expect("a job").id, job.id);
    assert_eq!(
        store.requeue_orphans(&elsewhere, at(2)).await.expect("answers"),
        0,
        "another server's"
    );
    assert_eq!(
        store.requeue_orphans(&before, at(2)).await.expect("answers"),
        0,
        "its own"
    );
    assert_eq!(store.requeue_orphans(&after, at(2)).await.expect("answers"), 1);
    assert_eq!(
        store.job(job.id).await.expect("answers").expect("a job").state,
        JobState::Queued
    );
    let again = claim(&store, &after, 3).await.expect("at once");
    assert_eq!((again.id, again.attempts), (job.id, 2));

    assert_eq!(
        store
            .requeue(job.id, &after, Attempt::Counts, at(4))
            .await
            .expect("answers"),
        Lease::Held
    );
    assert_eq!(claim(&store, &elsewhere, 5).await.expect("at once").attempts, 3);
    assert_eq!(
        store
            .requeue(job.id, &elsewhere, Attempt::Forgiven, at(6))
            .await
            .expect("answers"),
        Lease::Held
    );
    assert_eq!(claim(&store, &elsewhere, 7).await.expect("at once").attempts, 3);
}

async fn renews_a_lease_without_a_word(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    enqueue(&store, a_job("one", &["a"])).await.expect("accepted");
    let (slow, quick) = (an_owner(), an_owner());
    let job = claim(&store, &slow, 0).await.expect("a job");
    let renewed = store.renew_lease(job.id, &slow, at(50), LEASE).await;
    assert_eq!(renewed.expect("answers"), Lease::Held);
    assert_eq!(claim(&store, &quick, 109).await, None, "the lease was renewed");
    assert_eq!(
        store.job(job.id).await.expect("answers"),
        Some(job.clone()),
        "and nothing else"
    );
    claim(&store, &quick, 110).await.expect("the lease ran out");
    let renewed = store.renew_lease(job.id, &slow, at(111), LEASE).await;
    assert_eq!(renewed.expect("answers"), Lease::Lost);
}
