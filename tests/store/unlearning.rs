//! A version that does without a task, and what its line knows from then on.

use clipkeep::domain::{JobKind, JobState, Tally, VersionNumber};
use clipkeep::store::{EnqueueError, NewJob, Publication, PublishError, Store, TaskScore};

use crate::publishing::activate;
use crate::scene::{
    a_job, a_publication, an_owner, claim, enqueue, label, learn, model_name, task_name, with_model,
};
use crate::setup::{Database, on_both};

on_both!(
    a_line_knows_a_task_no_more,
    what_was_unlearned_can_be_learned_again,
    refuses_what_cannot_be_unlearned,
    looks_again_when_it_publishes,
    histories_are_the_same_read_at_once,
);

fn unlearning(task: &str) -> NewJob {
    NewJob {
        kind: JobKind::Unlearn,
        ..a_job(task, &[])
    }
}

pub(crate) fn tally(correct: u32) -> Tally {
    Tally { correct, total: 10 }
}

/// Unlearns a task from the queue to the version, which scores so on the tasks of these versions.
pub(crate) async fn unlearn(
    store: &Store,
    task: &str,
    scores: &[(u32, u32)],
) -> Result<VersionNumber, PublishError> {
    do_without(store, unlearning(task), scores, b"").await
}

/// Takes a job that unlearns from the queue to the version, which keeps `rest` of the task.
pub(crate) async fn do_without(
    store: &Store,
    job: NewJob,
    scores: &[(u32, u32)],
    rest: &[u8],
) -> Result<VersionNumber, PublishError> {
    let owner = an_owner();
    let task = job.task.clone();
    enqueue(store, job).await.expect("accepted");
    let job = claim(store, &owner, 10).await.expect("a job");
    assert_eq!((job.kind, &job.task), (JobKind::Unlearn, &task));
    let model = store.model(&model_name()).await.expect("answers");
    let base = model.expect("a model").active;
    let score = |&(version, correct): &(u32, u32)| TaskScore {
        task: Some(VersionNumber(version)),
        tally: tally(correct),
        zero_shot: tally(1),
    };
    let publication = Publication {
        classes: Vec::new(),
        held_out: Vec::new(),
        train_count: 0,
        held_out_count: 0,
        scores: scores.iter().map(score).collect(),
        statistics: rest,
        ..a_publication(&job, &owner, base, b"less")
    };
    store
        .publish(publication)
        .await
        .map(|(version, _)| version.number)
}

/// 1 one → 2 two → 3 three → 4 less two.
async fn without_the_second(store: &Store) {
    with_model(store).await;
    for task in ["one", "two", "three"] {
        learn(store, task).await.expect("published");
    }
    let published = unlearn(store, "two", &[(1, 8), (3, 7)]).await.expect("published");
    assert_eq!(published, VersionNumber(4));
}

pub(crate) async fn tasks(store: &Store, version: u32) -> Vec<String> {
    let tasks = store.tasks(&model_name(), VersionNumber(version)).await;
    tasks
        .expect("answers")
        .into_iter()
        .map(|task| task.name.to_string())
        .collect()
}

async fn a_line_knows_a_task_no_more(database: Database) {
    let store = database.open().await;
    without_the_second(&store).await;
    let (model, four) = (model_name(), VersionNumber(4));
    assert_eq!(tasks(&store, 4).await, ["one", "three"]);
    assert_eq!(
        tasks(&store, 3).await,
        ["one", "two", "three"],
        "older versions know it"
    );
    assert_eq!(
        store.lineage(&model, four).await.expect("answers"),
        [1, 2, 3, 4].map(VersionNumber)
    );
    let known = [1, 3].map(VersionNumber);
    assert_eq!(store.known(&model, four).await.expect("answers"), known);

    let rows = store.tallies(&model, four).await.expect("answers");
    let shape: Vec<(u32, Vec<u32>)> = rows
        .iter()
        .map(|row| (row.version.0, row.tasks.iter().map(|t| t.task.0).collect()))
        .collect();
    assert_eq!(
        shape,
        [(1, vec![1]), (2, vec![1]), (3, vec![1, 3]), (4, vec![1, 3])]
    );
    let last: Vec<Tally> = rows[3].tasks.iter().map(|task| task.tally).collect();
    assert_eq!(last, [tally(8), tally(7)]);
    let history = store.accuracy(&model, four).await.expect("answers");
    assert_eq!(history.versions, [1, 2, 3, 4].map(VersionNumber));

    let version = store.version(&model, four).await.expect("answers");
    let version = version.expect("a version");
    assert_eq!((version.kind, version.task.as_str()), (JobKind::Unlearn, "two"));
    assert_eq!(version.parent, Some(VersionNumber(3)));
    let job = store.job(version.job).await.expect("answers").expect("a job");
    assert_eq!((job.state, job.version), (JobState::Succeeded, Some(four)));
    let log = store.activations(&model, None, 1).await.expect("answers");
    assert_eq!(log[0].activation.version, four);
}

async fn what_was_unlearned_can_be_learned_again(database: Database) {
    let store = database.open().await;
    without_the_second(&store).await;
    let (again, _) = learn(&store, "two").await.expect("its name and label are free");
    assert_eq!(again.number, VersionNumber(5));
    assert_eq!(tasks(&store, 5).await, ["one", "three", "two"]);
    let refused = store.begin_job(a_job("more", &["class of two"])).await;
    assert!(matches!(refused, Err(EnqueueError::LabelExists(taken)) if taken == label("class of two")));

    // Before it was unlearned, it is known on that branch.
    activate(&store, 3).await;
    let refused = store.begin_job(a_job("two", &["b"])).await;
    assert!(matches!(refused, Err(EnqueueError::TaskExists(_))));

    // And unlearned once more, where it was learned for the second time.
    activate(&store, 5).await;
    unlearn(&store, "two", &[]).await.expect("published");
    assert_eq!(tasks(&store, 6).await, ["one", "three"]);
}

async fn refuses_what_cannot_be_unlearned(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let refused = async |job: NewJob| match store.begin_job(job).await {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    };
    let error = refused(unlearning("one")).await;
    assert!(
        matches!(&error, EnqueueError::UnknownTask(task) if *task == task_name("one")),
        "{error}"
    );
    learn(&store, "one").await.expect("published");
    let error = refused(unlearning("two")).await;
    assert!(matches!(error, EnqueueError::UnknownTask(_)), "{error}");
    let error = refused(unlearning("one")).await;
    assert!(matches!(error, EnqueueError::OnlyTask(_)), "{error}");
    learn(&store, "two").await.expect("published");
    enqueue(&store, unlearning("two")).await.expect("accepted");
    let error = refused(unlearning("two")).await;
    assert!(matches!(error, EnqueueError::TaskInFlight(_)), "{error}");
}

async fn looks_again_when_it_publishes(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    for task in ["one", "two", "three"] {
        learn(&store, task).await.expect("published");
    }
    let owner = an_owner();
    enqueue(&store, unlearning("three")).await.expect("accepted");
    let job = claim(&store, &owner, 10).await.expect("a job");
    let publication = |base| Publication {
        classes: Vec::new(),
        held_out: Vec::new(),
        scores: Vec::new(),
        ..a_publication(&job, &owner, Some(VersionNumber(base)), b"less")
    };
    activate(&store, 2).await;
    let moved = store.publish(publication(3)).await;
    assert!(matches!(moved, Err(PublishError::BaseMoved { .. })), "{moved:?}");
    let unknown = store.publish(publication(2)).await;
    assert!(
        matches!(unknown, Err(PublishError::UnknownTask(_))),
        "{unknown:?}"
    );
    assert_eq!(database.count("select count(*) from version").await, 3);
    assert_eq!(
        database
            .count("select count(*) from job where state = 'running'")
            .await,
        1
    );
}

async fn histories_are_the_same_read_at_once(database: Database) {
    let store = database.open().await;
    without_the_second(&store).await;
    learn(&store, "four").await.expect("published");
    let model = model_name();
    let histories = store.histories(&model, VersionNumber(5)).await.expect("answers");
    for version in (1..=5).map(VersionNumber) {
        let one = store.accuracy(&model, version).await.expect("answers");
        assert_eq!(histories.of(version), one);
    }
}
