//! A version that does without a class, and what its line knows from then on.

use clipkeep::domain::{Class, ClassId, JobKind, Tally, VersionNumber};
use clipkeep::store::{EnqueueError, NewJob, Publication, PublishError, Store};

use crate::publishing::activate;
use crate::scene::{
    a_job, a_publication, an_owner, claim, enqueue, label, model_name, task_name, with_model,
};
use crate::setup::{Database, on_both};
use crate::unlearning::{do_without, tally, tasks, unlearn};

on_both!(
    a_line_knows_a_class_no_more,
    the_last_class_takes_its_task_along,
    a_task_goes_after_its_class,
    refuses_classes_that_cannot_be_unlearned,
);

fn unlearning_class(task: &str, class: &str) -> NewJob {
    NewJob {
        kind: JobKind::Unlearn,
        ..a_job(task, &[class])
    }
}

/// Unlearns a class from the queue to the version, which keeps `rest` of its task.
async fn unlearn_class(
    store: &Store,
    task: &str,
    class: &str,
    rest: &[u8],
) -> Result<VersionNumber, PublishError> {
    do_without(store, unlearning_class(task, class), &[(1, 6)], rest).await
}

fn a_class(text: &str, task: &str) -> Class {
    Class {
        id: ClassId::new(),
        label: label(text),
        prompt: None,
        task: task_name(task),
    }
}

/// Learns a task of several classes; the version keeps `statistics`.
async fn learn_classes(store: &Store, task: &str, classes: &[&str], statistics: &[u8]) {
    let owner = an_owner();
    enqueue(store, a_job(task, classes)).await.expect("accepted");
    let job = claim(store, &owner, 10).await.expect("a job");
    let model = store.model(&model_name()).await.expect("answers");
    let publication = Publication {
        classes: classes.iter().map(|text| a_class(text, task)).collect(),
        held_out: Vec::new(),
        statistics,
        ..a_publication(&job, &owner, model.expect("a model").active, b"more")
    };
    store.publish(publication).await.expect("published");
}

async fn classes(store: &Store, version: u32) -> Vec<String> {
    let tasks = store.tasks(&model_name(), VersionNumber(version)).await;
    let classes = tasks.expect("answers").into_iter().flat_map(|task| task.classes);
    classes.map(|class| class.label.to_string()).collect()
}

/// 1 one of a, b, c → 2 two of d.
async fn with_three_classes(store: &Store) {
    with_model(store).await;
    learn_classes(store, "one", &["a", "b", "c"], b"a b c").await;
    learn_classes(store, "two", &["d"], b"d").await;
}

async fn a_line_knows_a_class_no_more(database: Database) {
    let store = database.open().await;
    with_three_classes(&store).await;
    let (model, [one, two, three, four]) = (model_name(), [1, 2, 3, 4].map(VersionNumber));
    assert_eq!(
        unlearn_class(&store, "one", "b", b"a c")
            .await
            .expect("published"),
        three
    );
    assert_eq!(
        unlearn_class(&store, "one", "a", b"c").await.expect("published"),
        four
    );
    assert_eq!(
        classes(&store, 2).await,
        ["a", "b", "c", "d"],
        "older versions know it"
    );
    assert_eq!(classes(&store, 3).await, ["a", "c", "d"]);
    assert_eq!(classes(&store, 4).await, ["c", "d"]);
    assert_eq!(tasks(&store, 4).await, ["one", "two"]);
    assert_eq!(store.known(&model, four).await.expect("answers"), [one, two]);
    for (at, kept) in [(two, "a b c"), (three, "a c"), (four, "c")] {
        let statistics = store.statistics(&model, at, one).await.expect("answers");
        assert_eq!(statistics.as_deref(), Some(kept.as_bytes()), "{at}");
        let others = store.statistics(&model, at, two).await.expect("answers");
        assert_eq!(others.as_deref(), Some(&b"d"[..]));
    }
    let history = store.accuracy(&model, four).await.expect("answers");
    assert_eq!(history.versions, [one, two, three, four]);
    let of_one: Vec<Tally> = history.matrix.rows().iter().map(|row| row[0]).collect();
    let nothing = Tally::default();
    assert_eq!(
        of_one,
        [nothing, nothing, nothing, tally(6)],
        "what versions did among other classes does not compare"
    );
    assert_eq!(history.matrix.rows()[3].len(), 2, "both tasks are known");
    assert_ne!(
        store.accuracy(&model, two).await.expect("answers").matrix.rows()[0][0],
        nothing
    );
    let histories = store.histories(&model, four).await.expect("answers");
    assert_eq!(histories.of(four), history);

    // Its label is free, the other ones are not; on the branch before, all are taken.
    let refused = store.begin_job(a_job("more", &["c"])).await;
    assert!(matches!(refused, Err(EnqueueError::LabelExists(taken)) if taken == label("c")));
    learn_classes(&store, "three", &["b"], b"b").await;
    assert_eq!(classes(&store, 5).await, ["c", "d", "b"]);
    activate(&store, 3).await;
    let refused = store.begin_job(a_job("more", &["a"])).await;
    assert!(matches!(refused, Err(EnqueueError::LabelExists(taken)) if taken == label("a")));
}

async fn the_last_class_takes_its_task_along(database: Database) {
    let store = database.open().await;
    with_three_classes(&store).await;
    unlearn_class(&store, "two", "d", b"").await.expect("published");
    assert_eq!(tasks(&store, 3).await, ["one"]);
    unlearn_class(&store, "one", "a", b"b c")
        .await
        .expect("published");
    unlearn_class(&store, "one", "c", b"b").await.expect("published");
    assert_eq!(classes(&store, 5).await, ["b"]);
    let refused = store.begin_job(unlearning_class("one", "b")).await;
    assert!(matches!(refused, Err(EnqueueError::OnlyTask(_))));
}

async fn a_task_goes_after_its_class(database: Database) {
    let store = database.open().await;
    with_three_classes(&store).await;
    unlearn_class(&store, "one", "b", b"a c")
        .await
        .expect("published");
    unlearn(&store, "one", &[]).await.expect("published");
    assert_eq!(classes(&store, 4).await, ["d"]);
    let (model, [one, four]) = (model_name(), [1, 4].map(VersionNumber));
    assert_eq!(
        store.statistics(&model, four, one).await.expect("answers"),
        None,
        "it is unknown"
    );
    learn_classes(&store, "one", &["a", "b", "c"], b"again").await;
    assert_eq!(classes(&store, 5).await, ["d", "a", "b", "c"]);
    activate(&store, 3).await;
    unlearn_class(&store, "one", "c", b"a").await.expect("published");
    assert_eq!(classes(&store, 6).await, ["a", "d"], "on the branch before");
}

async fn refuses_classes_that_cannot_be_unlearned(database: Database) {
    let store = database.open().await;
    with_three_classes(&store).await;
    let refused = async |job: NewJob| match store.begin_job(job).await {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    };
    let error = refused(unlearning_class("one", "d")).await;
    assert!(
        matches!(&error, EnqueueError::UnknownClass(class) if *class == label("d")),
        "{error}"
    );
    let error = refused(unlearning_class("three", "a")).await;
    assert!(matches!(error, EnqueueError::UnknownTask(_)), "{error}");
    unlearn_class(&store, "one", "b", b"a c")
        .await
        .expect("published");
    let error = refused(unlearning_class("one", "b")).await;
    assert!(
        matches!(error, EnqueueError::UnknownClass(_)),
        "gone already: {error}"
    );

    // What was accepted is looked at again when it is published.
    let owner = an_owner();
    enqueue(&store, unlearning_class("two", "d"))
        .await
        .expect("accepted");
    let job = claim(&store, &owner, 10).await.expect("a job");
    activate(&store, 1).await;
    let publication = Publication {
        classes: Vec::new(),
        held_out: Vec::new(),
        scores: Vec::new(),
        ..a_publication(&job, &owner, Some(VersionNumber(1)), b"less")
    };
    let unknown = store.publish(publication).await;
    assert!(
        matches!(unknown, Err(PublishError::UnknownTask(_))),
        "{unknown:?}"
    );
}
