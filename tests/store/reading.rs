//! What a version knows, along its line.

use clipkeep::domain::{AccuracyMatrix, Digest, Tally, VersionNumber};
use clipkeep::store::{Store, StoreError, TaskScore};

use crate::publishing::activate;
use crate::scene::{a_job, a_publication, an_owner, claim, enqueue, features, learn, model_name, with_model};
use crate::setup::{Database, on_both};

on_both!(
    follows_a_branch,
    reads_what_was_held_out,
    scores_every_task_of_the_line,
    detects_a_damaged_snapshot,
    detects_a_damaged_row,
    finds_nothing_where_nothing_is,
);

/// 1 → 2 → 3, and 1 → 4.
async fn branched(store: &Store) {
    with_model(store).await;
    for task in ["one", "two", "three"] {
        learn(store, task).await.expect("published");
    }
    activate(store, 1).await;
    learn(store, "four").await.expect("published");
}

async fn follows_a_branch(database: Database) {
    let store = database.open().await;
    branched(&store).await;
    for (version, line, tasks) in [
        (3, vec![1, 2, 3], vec!["one", "two", "three"]),
        (4, vec![1, 4], vec!["one", "four"]),
        (1, vec![1], vec!["one"]),
    ] {
        let version = VersionNumber(version);
        let lineage = store.lineage(&model_name(), version).await.expect("answers");
        assert_eq!(lineage.iter().map(|number| number.0).collect::<Vec<_>>(), line);
        let known = store.tasks(&model_name(), version).await.expect("answers");
        assert_eq!(
            known.iter().map(|task| task.name.as_str()).collect::<Vec<_>>(),
            tasks
        );
        for (task, number) in known.iter().zip(&line) {
            assert_eq!((task.version.0, task.train, task.held_out), (*number, 40, 10));
            let [class] = task.classes.as_slice() else {
                panic!("{task:?}")
            };
            assert_eq!(class.label.as_str(), format!("class of {}", task.name));
            assert_eq!(
                (class.prompt.as_deref(), &class.task),
                (Some("a prompt — 提示"), &task.name)
            );
        }
        let brought = store.known(&model_name(), version).await.expect("answers");
        assert_eq!(brought.iter().map(|number| number.0).collect::<Vec<_>>(), line);
    }
}

async fn reads_what_was_held_out(database: Database) {
    let store = database.open().await;
    branched(&store).await;
    let task = &store
        .tasks(&model_name(), VersionNumber(4))
        .await
        .expect("answers")[1];
    let held_out = store
        .held_out_of(&model_name(), task.version)
        .await
        .expect("answers");
    let [example] = held_out.as_slice() else {
        panic!("{held_out:?}")
    };
    assert_eq!(
        (example.class, example.digest),
        (task.classes[0].id, Digest::of(b"held out"))
    );
    assert_eq!(example.features, features(2.0));
}

async fn scores_every_task_of_the_line(database: Database) {
    let store = database.open().await;
    branched(&store).await;
    enqueue(&store, a_job("five", &["e"])).await.expect("accepted");
    let owner = an_owner();
    let job = claim(&store, &owner, 10).await.expect("a job");
    let mut publication = a_publication(&job, &owner, Some(VersionNumber(4)), b"five");
    let tally = |correct| Tally { correct, total: 10 };
    publication.scores = vec![
        TaskScore {
            task: Some(VersionNumber(1)),
            tally: tally(7),
            zero_shot: tally(5),
        },
        TaskScore {
            task: None,
            tally: tally(9),
            zero_shot: tally(6),
        },
    ];
    store.publish(publication).await.expect("published");

    let rows = store
        .tallies(&model_name(), VersionNumber(5))
        .await
        .expect("answers");
    let shape: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row.version.0,
                row.tasks.iter().map(|t| t.task.0).collect::<Vec<_>>(),
            )
        })
        .collect();
    assert_eq!(shape, [(1, vec![1]), (4, vec![1, 4]), (5, vec![1, 4, 5])]);
    let newest = &rows[2].tasks;
    assert_eq!((newest[0].tally, newest[0].zero_shot), (tally(7), tally(5)));
    assert_eq!(
        newest[1].tally,
        Tally::default(),
        "a task that was not scored counts 0 of 0"
    );
    assert_eq!((newest[2].tally, newest[2].zero_shot), (tally(9), tally(6)));
    let matrix = rows
        .iter()
        .map(|row| row.tasks.iter().map(|task| task.tally).collect())
        .collect();
    assert!(AccuracyMatrix::new(matrix).is_some());
}

async fn detects_a_damaged_snapshot(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    learn(&store, "birds").await.expect("published");
    assert!(
        store
            .snapshot(&model_name(), VersionNumber(1))
            .await
            .expect("intact")
            .is_some()
    );
    database
        .tamper(if database.is_sqlite() {
            "update version set snapshot = x'6269726473ff'"
        } else {
            "update version set snapshot = '\\x6269726473ff'"
        })
        .await;
    let damaged = store.snapshot(&model_name(), VersionNumber(1)).await;
    assert!(
        matches!(damaged, Err(StoreError::Corrupt { what: "snapshot", .. })),
        "{damaged:?}"
    );
}

async fn detects_a_damaged_row(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    learn(&store, "birds").await.expect("published");
    database.tamper("update version set digest = 'sha256:12'").await;
    let damaged = store.version(&model_name(), VersionNumber(1)).await;
    assert!(
        matches!(damaged, Err(StoreError::Corrupt { what: "digest", .. })),
        "{damaged:?}"
    );
    database.tamper("update model set config = '{'").await;
    assert!(matches!(
        store.model(&model_name()).await,
        Err(StoreError::Corrupt { .. })
    ));
}

async fn finds_nothing_where_nothing_is(database: Database) {
    let store = database.open().await;
    let (model, one) = (model_name(), VersionNumber(1));
    assert_eq!(store.version(&model, one).await.expect("answers"), None);
    assert_eq!(store.versions(&model, None, 9).await.expect("answers"), []);
    assert_eq!(store.snapshot(&model, one).await.expect("answers"), None);
    assert_eq!(store.lineage(&model, one).await.expect("answers"), []);
    assert_eq!(store.tasks(&model, one).await.expect("answers"), []);
    assert_eq!(store.tallies(&model, one).await.expect("answers"), []);
    assert_eq!(store.held_out_of(&model, one).await.expect("answers"), []);
    assert_eq!(store.activations(&model, None, 9).await.expect("answers"), []);
}
