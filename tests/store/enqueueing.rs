//! Jobs on their way into the queue.

use std::time::Duration;

use clipkeep::domain::{Digest, JobError, JobState, ModelConfig, NewClass, Split};
use clipkeep::store::{EnqueueError, NewExample, Store};
use futures::future::join_all;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::scene::{
    LEASE, a_backbone, a_job, an_example, an_owner, at, claim, enqueue, features, label, learn, model_name,
    task_name, with_model,
};
use crate::setup::{Database, on_both};

/// Far longer than a place should take to be free.
const LONG: Duration = Duration::from_secs(20);

on_both!(
    takes_in_a_job,
    counts_the_same_image_once,
    drops_a_draft_without_a_trace,
    refuses_what_is_being_learned,
    refuses_what_is_known,
    lets_one_of_many_win,
    leaves_connections_to_others_while_jobs_come_in,
);

async fn takes_in_a_job(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let mut new = a_job("vögel — 鳥", &["Purpurreiher", "鷺", "🦆", "' or 1=1 --"]);
    new.classes[1].prompt = Some("a wading bird, 鷺".to_owned());
    let classes: Vec<NewClass> = new.classes.clone();
    let image: Vec<u8> = (0..2 << 20).map(|i: u32| (i % 251) as u8).collect();

    let mut draft = store.begin_job(new.clone()).await.expect("accepted");
    let split = Some(Split::HeldOut);
    let example = NewExample {
        name: "3.jpg".to_owned(),
        class: 3,
        split,
        digest: Digest::of(&image),
    };
    assert!(draft.add_image(example, &image).await.expect("added"));
    assert!(
        draft
            .add_features(an_example(0, b"features"), &features(1.5))
            .await
            .expect("added")
    );
    assert_eq!(
        store.job(new.id).await.expect("answers"),
        None,
        "invisible until it is committed"
    );
    let job = draft.commit().await.expect("queued");

    assert_eq!(
        (job.state, job.phase, job.attempts, job.version),
        (JobState::Queued, None, 0, None)
    );
    assert_eq!((&job.report, job.created_at), (&Value::Null, at(1)));
    assert_eq!(store.job(new.id).await.expect("answers"), Some(job));
    assert_eq!(store.job_classes(new.id).await.expect("answers"), classes);
    let pending = store
        .pending_images(new.id, 0, 10, u64::MAX)
        .await
        .expect("answers");
    let [pending] = pending.as_slice() else {
        panic!("{} images", pending.len())
    };
    assert_eq!(
        (pending.position, pending.class, pending.split),
        (0, 3, Some(Split::HeldOut))
    );
    assert!(pending.image == image && pending.digest == Digest::of(&image));
    let encoded = store.encoded_examples(new.id).await.expect("answers");
    assert_eq!(
        (encoded.len(), encoded[0].split, &encoded[0].features),
        (1, None, &features(1.5))
    );
}

async fn counts_the_same_image_once(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let new = a_job("birds", &["heron", "egret"]);
    let mut draft = store.begin_job(new.clone()).await.expect("accepted");
    let one = an_example(0, b"one");
    for (example, image, added) in [
        (one.clone(), b"one", true),
        (one.clone(), b"one", false),
        (an_example(0, b"two"), b"two", true),
        (an_example(1, b"one"), b"one", true),
        (
            NewExample {
                split: Some(Split::Train),
                ..one.clone()
            },
            b"one",
            true,
        ),
        (
            NewExample {
                split: Some(Split::HeldOut),
                ..one.clone()
            },
            b"one",
            true,
        ),
        (
            NewExample {
                split: Some(Split::HeldOut),
                ..one.clone()
            },
            b"one",
            false,
        ),
    ] {
        assert_eq!(
            draft.add_image(example.clone(), image).await.expect("answers"),
            added,
            "{example:?}"
        );
    }
    assert!(!draft.add_features(one, &features(1.0)).await.expect("answers"));
    draft.commit().await.expect("queued");
    let counts = store.example_counts(new.id).await.expect("answers");
    assert_eq!((counts.total, counts.encoded, counts.discarded), (5, 0, 0));
}

async fn drops_a_draft_without_a_trace(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let new = a_job("birds", &["heron"]);
    let mut draft = store.begin_job(new.clone()).await.expect("accepted");
    draft
        .add_image(an_example(0, b"one"), b"one")
        .await
        .expect("added");
    drop(draft);
    assert_eq!(store.job(new.id).await.expect("answers"), None);
    assert_eq!(store.job_events(new.id, 0, 10).await.expect("answers"), []);
    enqueue(&store, new).await.expect("its names are free");
    assert_eq!(database.count("select count(*) from job_example").await, 0);
}

async fn refuses_what_is_being_learned(database: Database) {
    let store = database.open().await;
    let unknown = enqueue(&store, a_job("birds", &["heron"])).await;
    assert!(matches!(unknown, Err(EnqueueError::UnknownModel(name)) if name == model_name()));
    with_model(&store).await;
    let first = enqueue(&store, a_job("birds", &["heron", "egret"]))
        .await
        .expect("accepted");

    let refused =
        async |task: &str, labels: &[&str]| enqueue(&store, a_job(task, labels)).await.expect_err("refused");
    let same_task = refused("birds", &["duck"]).await;
    assert!(matches!(same_task, EnqueueError::TaskInFlight(task) if task == task_name("birds")));
    let same_label = refused("waders", &["duck", "egret"]).await;
    assert!(matches!(same_label, EnqueueError::LabelInFlight(taken) if taken == label("egret")));
    let twice = refused("waders", &["duck", "duck"]).await;
    assert!(matches!(twice, EnqueueError::LabelTwice(twice) if twice == label("duck")));

    let mut elsewhere = a_job("birds", &["heron"]);
    elsewhere.model = "other".parse().expect("a name");
    store
        .create_model(&elsewhere.model, &ModelConfig::default(), at(0))
        .await
        .expect("created");
    enqueue(&store, elsewhere.clone())
        .await
        .expect("models do not share names");

    // An end frees the names, whichever it is.
    store
        .cancel_job(first.id, at(2))
        .await
        .expect("cancelled")
        .expect("a job");
    let second = enqueue(&store, a_job("birds", &["heron"]))
        .await
        .expect("accepted");
    store.cancel_job(elsewhere.id, at(2)).await.expect("cancelled");
    let owner = an_owner();
    assert_eq!(claim(&store, &owner, 3).await.expect("a job").id, second.id);
    let error = JobError {
        code: "bad".to_owned(),
        detail: "bad".to_owned(),
    };
    assert_eq!(
        store
            .fail_job(second.id, &owner, &error, at(4))
            .await
            .expect("failed"),
        clipkeep::store::Lease::Held
    );
    enqueue(&store, a_job("birds", &["heron"]))
        .await
        .expect("accepted");
}

async fn refuses_what_is_known(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    learn(&store, "birds").await.expect("published");
    let task = enqueue(&store, a_job("birds", &["duck"])).await;
    assert!(matches!(task, Err(EnqueueError::TaskExists(known)) if known == task_name("birds")));
    let known = enqueue(&store, a_job("waders", &["duck", "class of birds"])).await;
    assert!(matches!(known, Err(EnqueueError::LabelExists(known)) if known == label("class of birds")));
}

async fn lets_one_of_many_win(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let attempts = join_all((0..8).map(|i| {
        let store: Store = store.clone();
        tokio::spawn(async move {
            let labels = if i % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
            enqueue(&store, a_job(&format!("task {i}"), &labels)).await
        })
    }))
    .await;
    let outcomes: Vec<_> = attempts
        .into_iter()
        .map(|attempt| attempt.expect("no panic"))
        .collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for error in outcomes.into_iter().filter_map(Result::err) {
        assert!(matches!(error, EnqueueError::LabelInFlight(_)), "{error:?}");
    }
    assert!(
        store
            .claim_job(&an_owner(), a_backbone(), at(5), LEASE)
            .await
            .expect("answers")
            .is_some()
    );
}

async fn leaves_connections_to_others_while_jobs_come_in(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let places = if database.is_sqlite() { 1 } else { 2 };
    let begin = |number: usize| {
        let store = store.clone();
        async move {
            let (task, label) = (format!("task {number}"), format!("class {number}"));
            store.begin_job(a_job(&task, &[&label])).await
        }
    };
    let mut drafts = Vec::new();
    for number in 0..places {
        drafts.push(begin(number).await.expect("accepted"));
    }
    let more = tokio::spawn(join_all((places..places + 5).map(begin)));
    sleep(Duration::from_millis(300)).await;
    assert!(!more.is_finished(), "they wait for a place");
    for _ in 0..places {
        let name = model_name();
        let readers = timeout(LONG, join_all((0..4).map(|_| store.model(&name)))).await;
        let readers = readers.expect("in time");
        assert!(
            readers.into_iter().all(|found| matches!(found, Ok(Some(_)))),
            "reading goes on"
        );
        let draft = drafts.pop().expect("a draft");
        draft.commit().await.expect("queued");
    }
    more.abort();
    let last = timeout(LONG, begin(99)).await;
    last.expect("in time").expect("a place is free again");
}
