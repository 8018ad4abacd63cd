//! Versions that were learned elsewhere: everything of them or nothing.

use clipkeep::domain::{
    Class, ClassId, Content, Digest, JobId, JobKind, JobState, ModelConfig, ModelName, VersionNumber,
};
use clipkeep::store::{Arrival, EnqueueError, Import, ImportError, NewJob, Store};
use serde_json::json;

use crate::publishing::activate;
use crate::scene::{
    a_backbone, a_job, an_owner, at, claim, enqueue, label, learn, model_name, task_name, with_model,
};
use crate::setup::{Database, on_both};

on_both!(
    takes_a_version_in_at_once,
    keeps_one_aside,
    is_learned_on_top_of,
    leaves_nothing_when_it_cannot_be_taken_in,
    takes_classes_in_once_however_many_try,
);

/// Rows of all that an import writes.
const TRACES: &str = "select (select count(*) from version) + (select count(*) from class)
    + (select count(*) from job) + (select count(*) from job_event) + (select count(*) from activation)";

fn classes() -> Vec<Class> {
    let class = |text| Class {
        id: ClassId::new(),
        label: label(text),
        prompt: None,
        task: task_name("elsewhere"),
    };
    ["heron", "egret"].map(class).into()
}

fn an_import(classes: Vec<Class>, arrival: Arrival) -> Import<'static> {
    Import {
        job: JobId::new(),
        model: model_name(),
        task: task_name("imported"),
        backbone: a_backbone(),
        snapshot: Content::of(b"from elsewhere".to_vec()),
        statistics: b"statistics",
        config: ModelConfig::default(),
        report: json!({"imported": {}}),
        classes,
        train_count: 12,
        arrival,
        now: at(200),
    }
}

async fn active(store: &Store) -> Option<VersionNumber> {
    let model = store.model(&model_name()).await.expect("answers");
    model.expect("a model").active
}

async fn takes_a_version_in_at_once(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    learn(&store, "one").await.expect("published");
    let brought = classes();
    let version = store
        .import(an_import(brought.clone(), Arrival::Active))
        .await
        .expect("taken in");
    assert_eq!((version.number, version.parent), (VersionNumber(2), None));
    assert_eq!(
        (version.kind, version.task.as_str()),
        (JobKind::Import, "imported")
    );
    assert_eq!(active(&store).await, Some(version.number));
    let read = store.version(&model_name(), version.number).await;
    assert_eq!(read.expect("answers").as_ref(), Some(&version));

    let tasks = store.tasks(&model_name(), version.number).await.expect("answers");
    let [task] = tasks.as_slice() else {
        panic!("one task that holds everything: {tasks:?}")
    };
    assert_eq!((task.train, task.held_out), (12, 0));
    let ids = |classes: &[Class]| classes.iter().map(|class| class.id).collect::<Vec<_>>();
    assert_eq!(ids(&task.classes), ids(&brought));

    let job = store.job(version.job).await.expect("answers").expect("a job");
    assert_eq!((job.kind, job.state), (JobKind::Import, JobState::Succeeded));
    assert_eq!(job.version, Some(version.number));
    let events = store.job_events(job.id, 0, 9).await.expect("answers");
    let [event] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(
        (&event.data["state"], &event.data["version"]),
        (&json!("succeeded"), &json!(2))
    );
    let log = store.activations(&model_name(), None, 1).await.expect("answers");
    let entry = &log[0].activation;
    assert_eq!(entry.actor, format!("job:{}", job.id));
    assert_eq!(
        (entry.version, entry.previous),
        (version.number, Some(VersionNumber(1)))
    );
    assert!(
        claim(&store, &an_owner(), 300).await.is_none(),
        "there is nothing to run"
    );
}

async fn keeps_one_aside(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    learn(&store, "one").await.expect("published");
    let version = store
        .import(an_import(classes(), Arrival::Kept))
        .await
        .expect("taken in");
    assert_eq!(active(&store).await, Some(VersionNumber(1)));
    assert_eq!(database.count("select count(*) from activation").await, 1);
    activate(&store, version.number.0).await;
    assert_eq!(active(&store).await, Some(version.number));
}

async fn is_learned_on_top_of(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    store
        .import(an_import(classes(), Arrival::Active))
        .await
        .expect("taken in");
    let (next, _) = learn(&store, "one").await.expect("published");
    assert_eq!(next.parent, Some(VersionNumber(1)));
    let tasks = store.tasks(&model_name(), next.number).await.expect("answers");
    let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["imported", "one"]);
    let refused = store.begin_job(a_job("more", &["heron"])).await;
    assert!(matches!(refused, Err(EnqueueError::LabelExists(_))));
    let unlearning = NewJob {
        kind: JobKind::Unlearn,
        ..a_job("imported", &[])
    };
    enqueue(&store, unlearning)
        .await
        .expect("it is a task like another");
}

async fn leaves_nothing_when_it_cannot_be_taken_in(database: Database) {
    let store = database.open().await;
    let none = store.import(an_import(classes(), Arrival::Active)).await;
    assert!(matches!(none, Err(ImportError::UnknownModel(_))), "{none:?}");
    with_model(&store).await;
    let known = classes();
    store
        .import(an_import(known.clone(), Arrival::Active))
        .await
        .expect("taken in");
    let before = database.count(TRACES).await;

    let mixed = vec![classes().remove(0), known[1].clone()];
    let taken = store.import(an_import(mixed, Arrival::Active)).await;
    assert!(
        matches!(taken, Err(ImportError::ClassTaken(id)) if id == known[1].id),
        "{taken:?}"
    );
    let other = Import {
        backbone: Digest::of(b"another backbone"),
        ..an_import(classes(), Arrival::Active)
    };
    let other = store.import(other).await;
    assert!(matches!(other, Err(ImportError::OtherBackbone(_))), "{other:?}");
    assert_eq!(database.count(TRACES).await, before);
    assert_eq!(
        database.count("select next_version from model").await,
        2,
        "numbers leave no gap"
    );
}

async fn takes_classes_in_once_however_many_try(database: Database) {
    let (one, other) = (database.open().await, database.open().await);
    with_model(&one).await;
    let beside: ModelName = "beside".parse().expect("a name");
    one.ensure_model(&beside, &ModelConfig::default(), at(0))
        .await
        .expect("created");
    for _ in 0..20 {
        let classes = classes();
        let first = an_import(classes.clone(), Arrival::Kept);
        let second = Import {
            model: beside.clone(),
            ..an_import(classes, Arrival::Kept)
        };
        let both = tokio::join!(one.import(first), other.import(second));
        assert!(
            matches!(
                both,
                (Ok(_), Err(ImportError::ClassTaken(_))) | (Err(ImportError::ClassTaken(_)), Ok(_))
            ),
            "{both:?}"
        );
    }
}
