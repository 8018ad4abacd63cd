//! Opening the store, and opening it again.

use std::fmt::Write as _;
use std::path::Path;

use clipkeep::store::{Location, Store, StoreError};
use futures::future::join_all;

use crate::scene::{a_job, an_example, at, model_name, with_model};
use crate::setup::{Database, on_both};

on_both!(
    reopens_with_its_content,
    opens_many_times_at_once,
    refuses_a_schema_of_the_future
);

async fn reopens_with_its_content(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    store.ping().await.expect("answers");
    let migrations = database.count("select count(*) from _sqlx_migrations").await;
    store.close().await;
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))));

    let store = database.open().await;
    assert!(store.model(&model_name()).await.expect("answers").is_some());
    assert_eq!(
        database.count("select count(*) from _sqlx_migrations").await,
        migrations
    );
}

async fn opens_many_times_at_once(database: Database) {
    let stores = join_all((0..8).map(|_| {
        let location = database.location();
        tokio::spawn(async move { Store::connect(location, 2).await.expect("the store opens") })
    }))
    .await;
    for store in stores {
        with_model(&store.expect("no panic")).await;
    }
    assert_eq!(database.count("select count(*) from model").await, 1);
}

async fn refuses_a_schema_of_the_future(database: Database) {
    database.open().await.close().await;
    database
        .tamper(if database.is_sqlite() {
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
             values (99991231, 'later', true, x'00', 0)"
        } else {
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
             values (99991231, 'later', true, '\\x00', 0)"
        })
        .await;
    assert!(matches!(
        Store::connect(database.location(), 1).await,
        Err(StoreError::Migrate(_))
    ));
}

#[tokio::test]
async fn sqlite_overwrites_images_and_gives_their_space_back() {
    const IMAGE: usize = 1 << 20;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("clipkeep.db");
    let location = Location::file(&path).expect("a location");
    let store = Store::connect(location, 2).await.expect("the store opens");
    with_model(&store).await;
    let mark = b"an image that nobody may find again";
    let job = a_job("one", &["a"]);
    let mut draft = store.begin_job(job.clone()).await.expect("accepted");
    let image: Vec<u8> = mark.iter().copied().cycle().take(IMAGE).collect();
    draft
        .add_image(an_example(0, &image), &image)
        .await
        .expect("added");
    draft.commit().await.expect("queued");
    store
        .cancel_job(job.id, at(2))
        .await
        .expect("cancelled")
        .expect("a job");
    // The log keeps it until something else is written over it.
    let log = directory.path().join("clipkeep.db-wal");
    let has_mark = |path: &Path| {
        let file = std::fs::read(path).expect("read");
        file.windows(mark.len()).any(|bytes| bytes == mark)
    };
    assert!(has_mark(&log));
    store.give_back_space().await.expect("given back");
    assert!(!has_mark(&log) && !has_mark(&path));
    store.close().await;
    let left = std::fs::metadata(&path).expect("a file").len();
    assert!(left < IMAGE as u64 / 2, "{left} bytes are left");
    assert!(!has_mark(&path));
}

#[tokio::test]
async fn sqlite_needs_the_directory_to_exist() {
    let directory = tempfile::tempdir().expect("a directory");
    let location = Location::file(&directory.path().join("missing/clipkeep.db")).expect("a location");
    assert!(matches!(
        Store::connect(location, 1).await,
        Err(StoreError::Unavailable(_))
    ));
}

#[tokio::test]
async fn sqlite_writes_ahead_and_leaves_no_lock_behind() {
    crate::setup::on_sqlite(|database| {
        Box::pin(async move {
            let store = database.open().await;
            assert_eq!(
                database
                    .count("select count(*) from pragma_journal_mode where journal_mode = 'wal'")
                    .await,
                1
            );
            // Another process, in the middle of our transaction.
            let other = database.open().await;
            with_model(&store).await;
            let draft = store
                .begin_job(crate::scene::a_job("birds", &["heron"]))
                .await
                .expect("begun");
            assert!(
                other
                    .model(&model_name())
                    .await
                    .expect("reads while another writes")
                    .is_some()
            );
            drop(draft);
            crate::scene::enqueue(&other, crate::scene::a_job("birds", &["heron"]))
                .await
                .expect("free again");
        })
    })
    .await;
}

#[tokio::test]
async fn errors_keep_the_password() {
    for url in [
        "postgres://me:hunter2@localhost:1/clipkeep",
        "postgres://me:hunter2@localhost:nonsense/clipkeep",
        "postgres://me:hunter2@localhost:1/clipkeep?sslmode=hunter3",
        "postgres://me:hunter2@[broken/clipkeep",
    ] {
        let error = Store::connect(Location::from_url(url).expect("a location"), 1)
            .await
            .expect_err("no such server");
        let mut shown = format!("{error:?} {error}");
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            write!(shown, " {error}").expect("a String takes every write");
            source = error.source();
        }
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
