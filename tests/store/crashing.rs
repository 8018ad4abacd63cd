//! A process that is killed in the middle of whatever it does leaves whole steps behind.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use clipkeep::domain::JobState;
use clipkeep::store::{Lease, Location, Owner, Store};
use jiff::Timestamp;
use uuid::Uuid;

use crate::scene::{LEASE, a_backbone, a_job, a_publication, an_example, features, model_name, with_model};
use crate::setup::{Database, on_both};

on_both!(survives_being_killed);

/// Where the killed process finds its database; unset for all others.
const URL: &str = "CLIPKEEP_TEST_CRASH_URL";
/// What the process says of itself.
const OPENED: &str = "the store is open";
const PUBLISHED: &str = "a version is published";
const SERVER: Uuid = Uuid::from_u128(7);
const IMAGES: [&[u8]; 3] = [b"one", b"two", b"three"];

/// What must hold at any moment; each statement counts what breaks it.
const WHOLE: [&str; 6] = [
    // A version comes with all that belongs to it.
    "select count(*) from version where
        (select count(*) from class where class.model = version.model and class.version = number) <> 1
        or (select count(*) from held_out where held_out.model = version.model and held_out.version = number) <> 1
        or (select count(*) from tally where tally.model = version.model and tally.version = number) <> 1
        or (select count(*) from activation where activation.model = version.model and activation.version = number) <> 1
        or (select count(*) from job where job.id = version.job and state = 'succeeded' and job.version = number) <> 1",
    "select count(*) from job where (state = 'succeeded') <> (version is not null)",
    // A job that ended keeps no examples and no labels; one that did not has all of both, and encodes all at once.
    "select count(*) from job where state = 'succeeded' and (
        exists (select 1 from job_example where job = id) or exists (select 1 from job_label where job = id))",
    "select count(*) from job where state in ('queued', 'running') and (
        (select count(*) from job_example where job = id) <> 3 or (select count(*) from job_label where job = id) <> 1
        or (select count(features) from job_example where job = id) not in (0, 3))",
    // Nothing but the log moves what is active, and numbers leave no gap.
    "select count(*) from model where
        coalesce(active, 0) <> coalesce((select version from activation order by id desc limit 1), 0)
        or next_version <> (select count(*) + 1 from version)",
    "select count(*) from job where (select count(*) from job_event where job = id)
        <> (select coalesce(max(sequence), 0) from job_event where job = id)",
];

async fn survives_being_killed(database: Database) {
    const ROUNDS: u64 = 12;
    let store = database.open().await;
    with_model(&store).await;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args([
                "--exact",
                "crashing::learns_until_it_is_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(URL, database.address())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        // From the store's opening or from a first version on, to a different step each time.
        let sign = [OPENED, PUBLISHED][round as usize % 2];
        let mut said = BufReader::new(child.stdout.take().expect("its output")).lines();
        let line = said.find(|line| line.as_ref().is_ok_and(|line| line.ends_with(sign)));
        assert!(line.is_some(), "the process says {sign}");
        sleep(Duration::from_millis(7 * round));
        child.kill().expect("killed");
        child.wait().expect("gone");
        for statement in WHOLE {
            assert_eq!(database.count(statement).await, 0, "round {round}: {statement}");
        }
    }
    let published = database.count("select count(*) from version").await;
    assert!(published > 0, "no process came as far as a version");

    // What the last one left behind is taken up at once.
    let owner = Owner::new(SERVER);
    store
        .requeue_orphans(&owner, Timestamp::now())
        .await
        .expect("answers");
    while step(&store, &owner).await {}
    assert_eq!(
        database
            .count("select count(*) from job where state <> 'succeeded'")
            .await,
        0
    );
}

/// Takes one job from the queue to its version; `false` when there is none.
async fn step(store: &Store, owner: &Owner) -> bool {
    let Some(job) = store
        .claim_job(owner, a_backbone(), Timestamp::now(), LEASE)
        .await
        .expect("answers")
    else {
        return false;
    };
    assert_eq!(job.state, JobState::Running);
    let pending = store
        .pending_images(job.id, 0, 9, u64::MAX)
        .await
        .expect("answers");
    let encoded: Vec<_> = pending
        .iter()
        .map(|example| (example.position, features(1.0)))
        .collect();
    assert_eq!(
        store.save_features(job.id, owner, &encoded).await.expect("saved"),
        Lease::Held
    );
    let base = store
        .model(&model_name())
        .await
        .expect("answers")
        .expect("a model")
        .active;
    store
        .publish(a_publication(&job, owner, base, b"snapshot"))
        .await
        .expect("published");
    true
}

#[tokio::test]
#[ignore = "a process of `survives_being_killed`"]
async fn learns_until_it_is_killed() {
    let Ok(url) = std::env::var(URL) else { return };
    let store = Store::connect(Location::from_url(&url).expect("a location"), 2)
        .await
        .expect("the store opens");
    let owner = Owner::new(SERVER);
    store
        .requeue_orphans(&owner, Timestamp::now())
        .await
        .expect("answers");
    println!("{OPENED}");
    loop {
        while step(&store, &owner).await {
            println!("{PUBLISHED}");
        }
        let task = Uuid::now_v7().to_string();
        let mut draft = store
            .begin_job(a_job(&task, &[&format!("class of {task}")]))
            .await
            .expect("accepted");
        for image in IMAGES {
            draft.add_image(an_example(0, image), image).await.expect("added");
        }
        draft.commit().await.expect("queued");
    }
}
