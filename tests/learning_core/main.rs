//! Learning on real CLIP features: it must beat both not learning and not remembering.
//!
//! The features come from outside the project (see [`data::imagenet`]); without them these tests say that they were
//! skipped. The full table: `cargo test --release --test learning_core -- --ignored --nocapture`.

mod data;
mod fitting;
mod sequence;

use clipkeep::domain::{ModelConfig, Rehearsal, Retention, Summary};

use self::sequence::Sequence;

fn forgetful() -> ModelConfig {
    ModelConfig {
        retention: Retention::None,
        rehearsal: Rehearsal::None,
        ..ModelConfig::default()
    }
}

fn show(name: &str, summary: Summary, seconds: f64) {
    let [average, last, forgetting] =
        [summary.average, summary.last, summary.forgetting].map(|share| 100.0 * share);
    println!("{name:28} {average:6.1} {last:6.1} {forgetting:6.1} {seconds:8.2} s");
}

#[test]
fn five_tasks_of_fifty_classes_are_learned_and_remembered() {
    let Some(data) = data::imagenet("learning five tasks of ImageNet") else {
        return;
    };
    let sequence = Sequence::new(&data, 5, 50, 1993);
    let zero_shot = sequence.zero_shot();
    let without = sequence.learn(&forgetful());
    let with = sequence.learn(&ModelConfig::default());
    show("zero-shot", zero_shot, 0.0);
    show("linear, forgetful", without.summary, without.last_fit_seconds);
    show("linear, default", with.summary, with.last_fit_seconds);
    let with = with.summary;
    assert!(with.last > zero_shot.last + 0.01, "learning must pay");
    assert!(
        with.average > zero_shot.average + 0.01,
        "learning must pay at every version"
    );
    assert!(with.last > without.summary.last + 0.05, "remembering must pay");
    assert!(with.forgetting < 0.12 && with.forgetting < 0.5 * without.summary.forgetting);
}

/// Average, last accuracy and forgetting in %, and the time of the tenth fit: ten tasks of 100 classes, four examples a
/// class, in three orders.
#[test]
#[ignore = "takes minutes: the full table"]
fn table() {
    let Some(data) = data::imagenet("the table over 1,000 ImageNet classes") else {
        return;
    };
    let default = ModelConfig::default();
    let rows = [
        ("linear, none, none", forgetful()),
        (
            "linear, gaussian, none",
            ModelConfig {
                retention: Retention::None,
                ..default.clone()
            },
        ),
        (
            "linear, gaussian, ratio 0.2",
            ModelConfig {
                retention: Retention::Importance { ratio: 0.2 },
                ..default.clone()
            },
        ),
        ("linear, gaussian, importance", default),
    ];
    for seed in [1993, 1994, 1995] {
        println!("order {seed:<24} average   last forget  last fit");
        let sequence = Sequence::new(&data, 10, 100, seed);
        show("zero-shot", sequence.zero_shot(), 0.0);
        for (name, config) in &rows {
            let outcome = sequence.learn(config);
            show(name, outcome.summary, outcome.last_fit_seconds);
        }
    }
}
