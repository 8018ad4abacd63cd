//! What the tests put into a store.

use std::time::Duration;

use clipkeep::domain::{
    Activation, Class, ClassId, Content, Digest, Features, Job, JobId, JobKind, Label, ModelConfig,
    ModelName, NewClass, Split, Tally, TaskName, Version, VersionNumber,
};
use clipkeep::store::{
    EnqueueError, HeldOut, JobDraft, NewExample, NewJob, Owner, Publication, PublishError, Store, TaskScore,
};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

pub(crate) const LEASE: Duration = Duration::from_mins(1);

/// A time, in seconds after the scene's beginning.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("a time")
}

pub(crate) fn model_name() -> ModelName {
    "default".parse().expect("a name")
}

pub(crate) fn label(text: &str) -> Label {
    text.parse().expect("a label")
}

pub(crate) fn task_name(text: &str) -> TaskName {
    text.parse().expect("a name")
}

/// The backbone that everything here is learned on.
pub(crate) fn a_backbone() -> Digest {
    Digest::of(b"a backbone")
}

pub(crate) fn an_owner() -> Owner {
    Owner::new(Uuid::now_v7())
}

pub(crate) fn features(value: f32) -> Features {
    Features::from_f32(&[value, -value, 0.25]).expect("in range")
}

pub(crate) async fn with_model(store: &Store) {
    store
        .ensure_model(&model_name(), &ModelConfig::default(), at(0))
        .await
        .expect("a model");
}

pub(crate) fn a_job(task: &str, labels: &[&str]) -> NewJob {
    NewJob {
        id: JobId::new(),
        kind: JobKind::Learn,
        model: model_name(),
        backbone: a_backbone(),
        task: task_name(task),
        classes: labels
            .iter()
            .map(|text| NewClass {
                label: label(text),
                prompt: None,
            })
            .collect(),
        now: at(1),
    }
}

pub(crate) fn an_example(class: u32, image: &[u8]) -> NewExample {
    NewExample {
        name: format!("{}.jpg", image.len()),
        class,
        split: None,
        digest: Digest::of(image),
    }
}

/// Begins a job, commits it as it is.
pub(crate) async fn enqueue(store: &Store, job: NewJob) -> Result<Job, EnqueueError> {
    let draft: JobDraft = store.begin_job(job).await?;
    Ok(draft.commit().await?)
}

pub(crate) async fn claim(store: &Store, owner: &Owner, second: i64) -> Option<Job> {
    store
        .claim_job(owner, a_backbone(), at(second), LEASE)
        .await
        .expect("the store answers")
}

/// What a job of one class with one held-out example publishes.
pub(crate) fn a_publication<'a>(
    job: &Job,
    owner: &'a Owner,
    base: Option<VersionNumber>,
    snapshot: &[u8],
) -> Publication<'a> {
    let class = ClassId::new();
    let right = |correct| Tally { correct, total: 4 };
    Publication {
        job: job.id,
        owner,
        base,
        snapshot: Content::of(snapshot.to_vec()),
        statistics: b"statistics",
        config: ModelConfig::default(),
        report: json!({"epochs": 15, "Größe": null}),
        classes: vec![Class {
            id: class,
            label: label(&format!("class of {}", job.task)),
            prompt: Some("a prompt — 提示".to_owned()),
            task: job.task.clone(),
        }],
        held_out: vec![HeldOut {
            class,
            digest: Digest::of(b"held out"),
            features: features(2.0),
        }],
        train_count: 40,
        held_out_count: 10,
        scores: vec![TaskScore {
            task: None,
            tally: right(3),
            zero_shot: right(1),
        }],
        actor: format!("job:{}", job.id),
        now: at(100),
    }
}

/// Learns a task of one class from the queue to the version.
pub(crate) async fn learn(store: &Store, task: &str) -> Result<(Version, Activation), PublishError> {
    let owner = an_owner();
    let mut draft = store
        .begin_job(a_job(task, &[&format!("class of {task}")]))
        .await
        .expect("accepted");
    draft
        .add_image(
            NewExample {
                split: Some(Split::Train),
                ..an_example(0, b"image")
            },
            b"image",
        )
        .await
        .expect("added");
    draft.commit().await.expect("queued");
    let job = claim(store, &owner, 10).await.expect("a job");
    let base = store
        .model(&model_name())
        .await
        .expect("answers")
        .expect("a model")
        .active;
    store
        .publish(a_publication(&job, &owner, base, task.as_bytes()))
        .await
}
