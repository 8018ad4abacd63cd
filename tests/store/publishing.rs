//! From a finished job to a version that answers: everything or nothing.

use clipkeep::domain::{Digest, JobState, Label, VersionNumber};
use clipkeep::store::{Activate, PublishError, Store, TaskScore};
use futures::future::join_all;

use crate::scene::{
    LEASE, a_backbone, a_job, a_publication, an_owner, at, claim, enqueue, label, learn, model_name,
    task_name, with_model,
};
use crate::setup::{Database, on_both};

on_both!(
    publishes_everything_at_once,
    leaves_nothing_when_the_base_moved,
    leaves_nothing_when_the_lease_is_lost,
    leaves_nothing_when_a_statement_fails,
    knows_what_the_base_knows,
    numbers_versions_once,
    serialises_publishers,
    publishes_large_snapshots,
);

/// Rows of all that a publication writes.
const TRACES: &str = "select (select count(*) from version) + (select count(*) from class)
    + (select count(*) from held_out) + (select count(*) from tally) + (select count(*) from activation)";

pub(crate) async fn activate(store: &Store, version: u32) {
    let wish = Activate {
        model: model_name(),
        version: VersionNumber(version),
        expected: None,
        actor: "http".to_owned(),
        reason: None,
        now: at(50),
    };
    store.activate(wish).await.expect("activated");
}

async fn active(store: &Store) -> Option<VersionNumber> {
    store
        .model(&model_name())
        .await
        .expect("answers")
        .expect("a model")
        .active
}

async fn publishes_everything_at_once(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let (version, activation) = learn(&store, "birds").await.expect("published");
    assert_eq!((version.number, version.parent), (VersionNumber(1), None));
    assert_eq!((version.bytes, version.digest), (5, Digest::of(b"birds")));
    assert_eq!(
        (activation.version, activation.previous, activation.at),
        (VersionNumber(1), None, at(100))
    );
    assert_eq!(activation.actor, format!("job:{}", version.job));
    assert_eq!(active(&store).await, Some(VersionNumber(1)));

    let read = store
        .version(&model_name(), VersionNumber(1))
        .await
        .expect("answers");
    assert_eq!(read.as_ref(), Some(&version));
    let log = store.activations(&model_name(), None, 9).await.expect("answers");
    assert_eq!(
        log.into_iter().map(|entry| entry.activation).collect::<Vec<_>>(),
        [activation]
    );
    let job = store.job(version.job).await.expect("answers").expect("a job");
    assert_eq!(
        (job.state, job.version),
        (JobState::Succeeded, Some(VersionNumber(1)))
    );
    assert_eq!(job.report, version.report);
    let last = store
        .job_events(job.id, 0, 9)
        .await
        .expect("answers")
        .pop()
        .expect("an event");
    assert_eq!(
        (last.name.as_str(), last.data["version"].as_u64()),
        ("state", Some(1))
    );
    assert_eq!(database.count("select count(*) from job_example").await, 0);
    assert_eq!(database.count("select count(*) from job_label").await, 0);
    assert_eq!(database.count(TRACES).await, 5);
}

async fn leaves_nothing_when_the_base_moved(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    learn(&store, "one").await.expect("published");
    learn(&store, "two").await.expect("published");
    let before = database.count(TRACES).await;
    enqueue(&store, a_job("three", &["c"])).await.expect("accepted");
    let owner = an_owner();
    let job = claim(&store, &owner, 10).await.expect("a job");
    activate(&store, 1).await;
    for base in [Some(VersionNumber(2)), None] {
        let outcome = store.publish(a_publication(&job, &owner, base, b"three")).await;
        assert!(
            matches!(
                outcome,
                Err(PublishError::BaseMoved {
                    active: Some(VersionNumber(1))
                })
            ),
            "{outcome:?}"
        );
    }
    assert_eq!(database.count(TRACES).await, before + 1, "the activation alone");
    assert_eq!(
        store.job(job.id).await.expect("answers").expect("a job").state,
        JobState::Running
    );

    let (version, _) = store
        .publish(a_publication(&job, &owner, Some(VersionNumber(1)), b"three"))
        .await
        .expect("published");
    assert_eq!(
        (version.number, version.parent),
        (VersionNumber(3), Some(VersionNumber(1)))
    );
}

async fn leaves_nothing_when_the_lease_is_lost(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let queued = enqueue(&store, a_job("one", &["a"])).await.expect("accepted");
    let (slow, quick) = (an_owner(), an_owner());
    let early = store.publish(a_publication(&queued, &slow, None, b"early")).await;
    assert!(matches!(early, Err(PublishError::LeaseLost)));
    let job = claim(&store, &slow, 0).await.expect("a job");
    claim(&store, &quick, 60).await.expect("the lease ran out");
    let late = store.publish(a_publication(&job, &slow, None, b"late")).await;
    assert!(matches!(late, Err(PublishError::LeaseLost)));
    assert_eq!((database.count(TRACES).await, active(&store).await), (0, None));

    store
        .publish(a_publication(&job, &quick, None, b"one"))
        .await
        .expect("published");
    let twice = store
        .publish(a_publication(&job, &quick, Some(VersionNumber(1)), b"one"))
        .await;
    assert!(
        matches!(twice, Err(PublishError::LeaseLost)),
        "a job publishes once"
    );
    assert_eq!(active(&store).await, Some(VersionNumber(1)));
}

async fn leaves_nothing_when_a_statement_fails(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    enqueue(&store, a_job("one", &["a"])).await.expect("accepted");
    let owner = an_owner();
    let job = claim(&store, &owner, 0).await.expect("a job");
    let mut nonsense = a_publication(&job, &owner, None, b"one");
    let score = nonsense.scores[0];
    nonsense.scores.push(TaskScore {
        task: Some(VersionNumber(7)),
        ..score
    });
    assert!(
        matches!(store.publish(nonsense).await, Err(PublishError::Store(_))),
        "there is no version 7"
    );
    assert_eq!((database.count(TRACES).await, active(&store).await), (0, None));
    let (version, _) = store
        .publish(a_publication(&job, &owner, None, b"one"))
        .await
        .expect("published");
    assert_eq!(version.number, VersionNumber(1));
}

async fn knows_what_the_base_knows(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    learn(&store, "one").await.expect("published");
    // Version 2 stands beside a job that was accepted while version 1 was active, with the same names.
    learn(&store, "two").await.expect("published");
    activate(&store, 1).await;
    let owner = an_owner();
    enqueue(&store, a_job("two", &["b"]))
        .await
        .expect("version 1 does not know it");
    let job = claim(&store, &owner, 10).await.expect("a job");
    activate(&store, 2).await;
    let outcome = store
        .publish(a_publication(&job, &owner, Some(VersionNumber(2)), b"two"))
        .await;
    assert!(matches!(outcome, Err(PublishError::TaskExists(task)) if task == task_name("two")));

    store.cancel_job(job.id, at(20)).await.expect("cancelled");
    enqueue(&store, a_job("three", &["c"])).await.expect("accepted");
    let job = claim(&store, &owner, 30).await.expect("a job");
    let mut publication = a_publication(&job, &owner, Some(VersionNumber(2)), b"three");
    let known: Label = label("class of one");
    publication.classes[0].label = known.clone();
    let outcome = store.publish(publication).await;
    assert!(matches!(outcome, Err(PublishError::LabelExists(label)) if label == known));
}

async fn numbers_versions_once(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    for (task, number) in [("one", 1), ("two", 2), ("three", 3)] {
        let (version, _) = learn(&store, task).await.expect("published");
        assert_eq!(version.number, VersionNumber(number));
    }
    activate(&store, 1).await;
    let (version, activation) = learn(&store, "four").await.expect("published");
    assert_eq!(
        (version.number, version.parent),
        (VersionNumber(4), Some(VersionNumber(1)))
    );
    assert_eq!(activation.previous, Some(VersionNumber(1)));
    let page = store.versions(&model_name(), None, 3).await.expect("answers");
    assert_eq!(
        page.iter().map(|version| version.number.0).collect::<Vec<_>>(),
        [4, 3, 2]
    );
    let page = store
        .versions(&model_name(), Some(VersionNumber(2)), 3)
        .await
        .expect("answers");
    assert_eq!(
        page.iter().map(|version| version.number.0).collect::<Vec<_>>(),
        [1]
    );
}

async fn serialises_publishers(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    enqueue(&store, a_job("one", &["a"])).await.expect("accepted");
    let owner = an_owner();
    let job = claim(&store, &owner, 0).await.expect("a job");
    // A worker that asks again because it did not hear the answer, while others roll back and forth.
    let outcomes = join_all((0..8).map(|_| {
        let (store, job, owner) = (store.clone(), job.clone(), owner);
        tokio::spawn(async move { store.publish(a_publication(&job, &owner, None, b"one")).await })
    }))
    .await;
    let published = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Ok(Ok(_))))
        .count();
    assert_eq!(published, 1, "{outcomes:?}");
    for outcome in outcomes {
        if let Err(error) = outcome.expect("no panic") {
            assert!(
                matches!(error, PublishError::LeaseLost | PublishError::BaseMoved { .. }),
                "{error:?}"
            );
        }
    }
    assert_eq!(database.count("select next_version from model").await, 2);

    learn(&store, "two").await.expect("published");
    let switches = join_all((0..8_u32).map(|i| {
        let store = store.clone();
        tokio::spawn(async move { activate(&store, i % 2 + 1).await })
    }))
    .await;
    assert!(switches.into_iter().all(|switch| switch.is_ok()));
    let log = store.activations(&model_name(), None, 99).await.expect("answers");
    assert_eq!(active(&store).await, Some(log[0].activation.version));
    for pair in log.windows(2) {
        assert_eq!(
            pair[0].activation.previous,
            Some(pair[1].activation.version),
            "the log has no gap"
        );
    }
}

async fn publishes_large_snapshots(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    enqueue(&store, a_job("one", &["a"])).await.expect("accepted");
    let owner = an_owner();
    let job = store
        .claim_job(&owner, a_backbone(), at(0), LEASE)
        .await
        .expect("answers")
        .expect("a job");
    let snapshot: Vec<u8> = (0..2 << 20)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut publication = a_publication(&job, &owner, None, &snapshot);
    publication.statistics = &snapshot[1..];
    let (version, _) = store.publish(publication).await.expect("published");
    let content = store
        .snapshot(&model_name(), version.number)
        .await
        .expect("intact")
        .expect("a snapshot");
    assert!(content.bytes() == snapshot && content.digest() == version.digest);
    let statistics = store
        .statistics(&model_name(), version.number, version.number)
        .await
        .expect("answers");
    assert!(statistics.as_deref() == Some(&snapshot[1..]));
}
