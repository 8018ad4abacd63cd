//! Which version answers, and the log of it.

use clipkeep::domain::VersionNumber;
use clipkeep::store::{Activate, ActivateError, Activated, Announcement};

use crate::publishing::activate;
use crate::scene::{at, learn, model_name, with_model};
use crate::setup::{Database, on_both};

on_both!(
    logs_every_change,
    changes_nothing_twice,
    refuses_what_does_not_hold,
    announces_activations
);

fn wish(version: u32) -> Activate {
    Activate {
        model: model_name(),
        version: VersionNumber(version),
        expected: None,
        actor: "http".to_owned(),
        reason: Some("Rückschritt: 鷺 ist schlechter".to_owned()),
        now: at(200),
    }
}

async fn logs_every_change(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    learn(&store, "one").await.expect("published");
    learn(&store, "two").await.expect("published");
    let changed = store.activate(wish(1)).await.expect("activated");
    let Activated::Changed(activation) = changed else {
        panic!("{changed:?}")
    };
    assert_eq!(
        (activation.version, activation.previous),
        (VersionNumber(1), Some(VersionNumber(2)))
    );
    assert_eq!(activation.reason, wish(1).reason);

    let log = store.activations(&model_name(), None, 9).await.expect("answers");
    let told: Vec<_> = log
        .iter()
        .map(|entry| (entry.activation.version.0, entry.activation.reason.is_some()))
        .collect();
    assert_eq!(told, [(1, true), (2, false), (1, false)]);
    assert_eq!(log[0].activation, activation);
    let older = store
        .activations(&model_name(), Some(log[0].id), 1)
        .await
        .expect("answers");
    assert_eq!(older, log[1..2]);
    let model = store
        .model(&model_name())
        .await
        .expect("answers")
        .expect("a model");
    assert_eq!(model.active, Some(VersionNumber(1)));
}

async fn changes_nothing_twice(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    learn(&store, "one").await.expect("published");
    learn(&store, "two").await.expect("published");
    let Activated::Changed(first) = store.activate(wish(1)).await.expect("activated") else {
        panic!("changed")
    };
    let again = store
        .activate(Activate {
            now: at(300),
            ..wish(1)
        })
        .await
        .expect("activated");
    assert_eq!(again, Activated::Unchanged(first));
    assert_eq!(
        store
            .activations(&model_name(), None, 9)
            .await
            .expect("answers")
            .len(),
        3
    );
}

async fn refuses_what_does_not_hold(database: Database) {
    let store = database.open().await;
    assert!(
        matches!(store.activate(wish(1)).await, Err(ActivateError::UnknownModel(name)) if name == model_name())
    );
    with_model(&store).await;
    assert!(matches!(
        store.activate(wish(1)).await,
        Err(ActivateError::UnknownVersion(VersionNumber(1)))
    ));
    learn(&store, "one").await.expect("published");
    learn(&store, "two").await.expect("published");
    let stale = store
        .activate(Activate {
            expected: Some(VersionNumber(1)),
            ..wish(1)
        })
        .await;
    assert!(matches!(
        stale,
        Err(ActivateError::ActiveMoved {
            active: Some(VersionNumber(2))
        })
    ));
    assert_eq!(
        store
            .activations(&model_name(), None, 9)
            .await
            .expect("answers")
            .len(),
        2
    );
    store
        .activate(Activate {
            expected: Some(VersionNumber(2)),
            ..wish(1)
        })
        .await
        .expect("activated");
}

async fn announces_activations(database: Database) {
    let store = database.open().await;
    with_model(&store).await;
    let feed = store.activation_feed().await.expect("listens");
    if database.is_sqlite() {
        assert!(feed.is_none(), "one server has the file to itself");
        return;
    }
    let mut feed = feed.expect("a feed");
    let other = database.open().await;
    learn(&other, "one").await.expect("published");
    assert_eq!(
        feed.next().await.expect("news"),
        Announcement::Model(model_name())
    );
    learn(&other, "two").await.expect("published");
    assert_eq!(
        feed.next().await.expect("news"),
        Announcement::Model(model_name())
    );
    activate(&other, 1).await;
    assert_eq!(
        feed.next().await.expect("news"),
        Announcement::Model(model_name())
    );
}
