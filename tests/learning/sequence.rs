//! One task after another.

use serde_json::{Value, json};

use crate::caller::Caller;
use crate::database::{Database, on_both};
use crate::lessons::{CLASSIFY, FIELDS, enrol, lesson, of_pupil, taught};
use crate::pictures::{FLORA, SKIES, png};
use crate::records::{batch, classes};
use crate::test_app::TestApp;

on_both!(learns_one_task_after_another_and_keeps_the_first);

/// The share of unseen pictures of these classes that are taken for what they are.
async fn hits(caller: &Caller, known: &[&str]) -> f64 {
    const EACH: u64 = 6;
    let mut right = 0;
    for class in known {
        let pictures: Vec<Vec<u8>> = (200..200 + EACH).map(|number| png(class, number)).collect();
        let answer = batch(caller, CLASSIFY, &pictures).await;
        right += classes(&answer)
            .iter()
            .filter(|found| found[0]["label"] == *class)
            .count();
    }
    right as f64 / (EACH as f64 * known.len() as f64)
}

async fn learns_one_task_after_another_and_keeps_the_first(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    enrol(&app).await;
    taught(&app, "flora", lesson(&FLORA)).await;
    let alone = hits(&app, &FLORA).await;
    assert!(alone >= 0.9, "two classes, chance is 0.5: {alone}");

    taught(&app, "skies", lesson(&SKIES)).await;
    let (old, new) = (hits(&app, &FLORA).await, hits(&app, &SKIES).await);
    assert!(new >= 0.75, "four classes, chance is 0.25: {new}");
    assert!(old >= 0.75, "the first task is kept: {old}");

    taught(&app, "fields", lesson(&FIELDS)).await;
    let all = [FLORA, SKIES, FIELDS].concat();
    let (kept, newest) = (hits(&app, &all[..4]).await, hits(&app, &FIELDS).await);
    assert!(newest >= 0.7, "six classes, chance is 0.17: {newest}");
    assert!(kept >= 0.7, "the older tasks are kept: {kept}");

    let accuracy = of_pupil(&app, "accuracy").await;
    assert_eq!(accuracy["tasks"], json!(["flora", "skies", "fields"]));
    assert_eq!(accuracy["versions"], json!([1, 2, 3]));
    for (i, row) in accuracy["matrix"].as_array().expect("rows").iter().enumerate() {
        let known = row.as_array().expect("a row").iter().map(Value::is_f64);
        assert!(known.eq((0..3).map(|j| j <= i)), "a triangle: {accuracy}");
    }
    assert_eq!(accuracy["n"], json!([8, 8, 8]));
    let number = |name: &str| accuracy[name].as_f64().expect("a number");
    assert!(number("forgetting") <= 0.25, "{accuracy}");
    assert!(number("average") >= 0.75, "{accuracy}");
}
