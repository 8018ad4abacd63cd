//! Images become features.

use clipkeep::domain::{JobId, Split};
use clipkeep::store::{ExampleCounts, Lease, NewExample, Owner, Store};

use crate::scene::{a_job, an_example, an_owner, at, claim, features, with_model};
use crate::setup::{Database, on_both};

on_both!(
    puts_features_in_the_place_of_images,
    keeps_why_an_image_was_discarded,
    lets_only_the_owner_write
);

async fn a_running_job(store: &Store, owner: &Owner) -> JobId {
    with_model(store).await;
    let new = a_job("birds", &["heron", "egret"]);
    let mut draft = store.begin_job(new.clone()).await.expect("accepted");
    for (class, image) in [(0, b"a"), (0, b"b"), (1, b"c"), (1, b"d")] {
        let example = NewExample {
            split: Some(Split::Train),
            ..an_example(class, image)
        };
        assert!(draft.add_image(example, image).await.expect("added"));
    }
    draft.commit().await.expect("queued");
    claim(store, owner, 2).await.expect("a job").id
}

async fn puts_features_in_the_place_of_images(database: Database) {
    let store = database.open().await;
    let owner = an_owner();
    let job = a_running_job(&store, &owner).await;
    let first = store.pending_images(job, 0, 2, u64::MAX).await.expect("answers");
    assert_eq!(
        first.iter().map(|example| &example.image[..]).collect::<Vec<_>>(),
        [b"a", b"b"]
    );
    // Each image is one byte.
    for (bytes, expected) in [(0, 1), (1, 1), (2, 2), (3, 3), (9, 4)] {
        let images = store.pending_images(job, 0, 9, bytes).await.expect("answers");
        assert_eq!(images.len(), expected, "at most {bytes} bytes, but one image");
    }

    let save = [(1, features(1.0)), (3, features(3.0))];
    assert_eq!(
        store.save_features(job, &owner, &save).await.expect("saved"),
        Lease::Held
    );
    let again = [(1, features(9.0)), (77, features(9.0))];
    assert_eq!(
        store
            .save_features(job, &owner, &again)
            .await
            .expect("passed over"),
        Lease::Held
    );

    let counts = store.example_counts(job).await.expect("answers");
    assert_eq!(
        counts,
        ExampleCounts {
            total: 4,
            encoded: 2,
            discarded: 0
        }
    );
    let pending = store.pending_images(job, 0, 9, u64::MAX).await.expect("answers");
    assert_eq!(
        pending.iter().map(|example| example.position).collect::<Vec<_>>(),
        [0, 2]
    );
    let behind = store.pending_images(job, 1, 9, u64::MAX).await.expect("answers");
    assert_eq!(
        behind.iter().map(|example| example.position).collect::<Vec<_>>(),
        [2]
    );
    assert!(
        store
            .pending_images(job, 3, 9, u64::MAX)
            .await
            .expect("answers")
            .is_empty()
    );
    let encoded = store.encoded_examples(job).await.expect("answers");
    let read: Vec<_> = encoded
        .iter()
        .map(|e| (e.position, e.class, e.split, e.features.clone()))
        .collect();
    let train = Some(Split::Train);
    assert_eq!(read, [(1, 0, train, features(1.0)), (3, 1, train, features(3.0))]);
    assert_eq!(
        database
            .count("select count(*) from job_example where image is not null")
            .await,
        2
    );
}

async fn keeps_why_an_image_was_discarded(database: Database) {
    let store = database.open().await;
    let owner = an_owner();
    let job = a_running_job(&store, &owner).await;
    assert_eq!(
        store
            .discard_example(job, &owner, 2, "not an image")
            .await
            .expect("discarded"),
        Lease::Held
    );
    let counts = store.example_counts(job).await.expect("answers");
    assert_eq!(
        counts,
        ExampleCounts {
            total: 4,
            encoded: 0,
            discarded: 1
        }
    );
    assert_eq!(
        store.discarded_examples(job).await.expect("answers"),
        [("1.jpg".to_owned(), "not an image".to_owned())]
    );
    assert_eq!(
        store
            .pending_images(job, 0, 9, u64::MAX)
            .await
            .expect("answers")
            .len(),
        3
    );
}

async fn lets_only_the_owner_write(database: Database) {
    let store = database.open().await;
    let owner = an_owner();
    let job = a_running_job(&store, &owner).await;
    let stranger = an_owner();
    let save = [(0, features(1.0))];
    assert_eq!(
        store.save_features(job, &stranger, &save).await.expect("answers"),
        Lease::Lost
    );
    assert_eq!(
        store
            .discard_example(job, &stranger, 0, "no")
            .await
            .expect("answers"),
        Lease::Lost
    );
    store.cancel_job(job, at(3)).await.expect("cancelled");
    assert_eq!(
        store.save_features(job, &owner, &save).await.expect("answers"),
        Lease::Lost
    );
    assert_eq!(
        store.example_counts(job).await.expect("answers"),
        ExampleCounts::default()
    );
}
