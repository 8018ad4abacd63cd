//! Models.

use clipkeep::domain::{ModelConfig, ModelName};
use clipkeep::store::CreateModelError;

use crate::scene::at;
use crate::setup::{Database, on_both};

on_both!(keeps_models, pages_models_by_name);

async fn keeps_models(database: Database) {
    let store = database.open().await;
    let name: ModelName = "birds".parse().expect("a name");
    let config = ModelConfig {
        epochs: 3,
        learning_rate: 0.1 + 0.2,
        seed: u64::MAX,
        ..ModelConfig::default()
    };
    assert_eq!(store.model(&name).await.expect("answers"), None);
    let model = store.create_model(&name, &config, at(5)).await.expect("created");
    assert_eq!(
        (model.active, model.created_at, &model.config),
        (None, at(5), &config)
    );
    assert_eq!(store.model(&name).await.expect("answers"), Some(model.clone()));

    let again = store.create_model(&name, &ModelConfig::default(), at(6)).await;
    assert!(matches!(again, Err(CreateModelError::Exists(taken)) if taken == name));
    let ensured = store
        .ensure_model(&name, &ModelConfig::default(), at(6))
        .await
        .expect("there");
    assert_eq!(ensured, model, "what exists stays");
}

async fn pages_models_by_name(database: Database) {
    let store = database.open().await;
    for name in ["b", "a.1", "B", "a-1", "a_1"] {
        store
            .create_model(&name.parse().expect("a name"), &ModelConfig::default(), at(0))
            .await
            .expect("created");
    }
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let page = store.models(after.as_ref(), 2).await.expect("answers");
        let Some(last) = page.last() else { break };
        after = Some(last.name.clone());
        names.extend(page.into_iter().map(|model| model.name.to_string()));
    }
    assert_eq!(names, ["B", "a-1", "a.1", "a_1", "b"]);
}
