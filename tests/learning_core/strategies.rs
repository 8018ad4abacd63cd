//! What each strategy promises.

use candle_core::{Device, Tensor};
use clipkeep::adapter::{Fitted, Head, Snapshot, evaluate};
use clipkeep::domain::{Anchors, Choice, Class, ClassId, Hinge, ModelConfig, Rehearsal, Retention, Strategy};
use uuid::Uuid;

use crate::world::{World, config, values};

/// A strategy's own configuration, in as many steps as the others here.
pub(crate) fn quick(strategy: Strategy) -> ModelConfig {
    let ModelConfig {
        epochs,
        min_steps,
        batch_size,
        learning_rate,
        ..
    } = config();
    ModelConfig {
        epochs,
        min_steps,
        batch_size,
        learning_rate,
        random_features: 256,
        ..ModelConfig::of(strategy)
    }
}

pub(crate) fn a_class(number: usize) -> Class {
    Class {
        id: ClassId::new(),
        label: format!("class {number}").parse().expect("a label"),
        prompt: None,
        task: "a task".parse().expect("a name"),
    }
}

/// A head as a snapshot's bytes. Its classes are the same each time.
pub(crate) fn encoded(head: &Head) -> Vec<u8> {
    let classes = (0..head.columns()).map(|number| Class {
        id: ClassId(Uuid::from_u128(number as u128)),
        ..a_class(number)
    });
    let snapshot = Snapshot::new(classes.collect(), head.clone(), "here".to_owned());
    snapshot.and_then(|snapshot| snapshot.encode()).expect("encoded")
}

/// A head out of its snapshot; fails unless it is as it was, bit for bit, and scores rows so.
fn through_its_snapshot(head: &Head, rows: &Tensor) -> Head {
    let bytes = encoded(head);
    let back = Snapshot::decode(&bytes, &Device::Cpu).expect("decoded");
    let bits = |head: &Head| {
        let logits = values(&head.logits(rows).expect("scored"));
        logits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(bits(back.head()), bits(head));
    let again = back.encode().expect("encoded");
    assert!(bytes == again, "{} and {} bytes", bytes.len(), again.len());
    back.head().clone()
}

/// Fails unless a version that was read back is what it was, and `next` learns the same on top of it.
pub(crate) fn lasts_through_its_snapshot(first: Fitted, rows: &Tensor, next: impl Fn(&Fitted) -> Fitted) {
    let second = next(&first).head;
    let stored = Fitted {
        head: through_its_snapshot(&first.head, rows),
        ..first
    };
    through_its_snapshot(&second, rows);
    assert!(encoded(&next(&stored).head) == encoded(&second));
}

#[test]
fn every_strategy_learns_and_lasts_through_its_snapshot() {
    let world = World::new(20);
    let right = |head: &Head| {
        let (features, labels) = world.rows(0, 20);
        evaluate::correct(head, &features, labels)
            .expect("scored")
            .correct
    };
    let untrained = right(&Head::zero_shot(world.anchors.clone(), 20.0).expect("a head"));
    for (strategy, anchors, terms) in [
        (Strategy::ZeroShot, Anchors::Text, 1),
        (Strategy::Linear, Anchors::Text, 1),
        (Strategy::Linear, Anchors::Examples, 1),
        (Strategy::Linear, Anchors::Blend, 1),
        (Strategy::Gda, Anchors::Text, 2),
        (Strategy::Gda, Anchors::Examples, 1),
        (Strategy::Ridge, Anchors::Text, 2),
        (Strategy::Ridge, Anchors::Examples, 1),
        (Strategy::Ensemble, Anchors::Text, 3),
        (Strategy::Ensemble, Anchors::Examples, 1),
    ] {
        let config = ModelConfig {
            anchors,
            ..quick(strategy)
        };
        let first = world.first(10, &config);
        let second = world.second(&first, 1, &config);
        assert_eq!(second.head.terms().len(), terms);
        let found = right(&second.head);
        match strategy {
            Strategy::ZeroShot => assert_eq!(found, untrained),
            _ => assert!(
                found > untrained + 10,
                "{strategy:?}: {found} of 120, {untrained} before"
            ),
        }

        let (features, _) = world.rows(0, 20);
        lasts_through_its_snapshot(first, &features, |first| world.second(first, 1, &config));
    }
}

/// How sure a head is of what it says, and how often it is right: the same if it is calibrated.
#[test]
fn calibrated_probabilities_are_about_as_high_as_they_are_right() {
    let world = World::new(20);
    for strategy in [Strategy::Gda, Strategy::Ridge] {
        let first = world.first(20, &quick(strategy));
        let (features, labels) = world.unseen(20);
        let chances = first.head.probabilities(&features).expect("scored");
        let mean = |values: &mut dyn Iterator<Item = f32>| values.sum::<f32>() / labels.len() as f32;
        let sure = mean(&mut chances.iter().map(|row| row.iter().copied().fold(0.0, f32::max)));
        let right = evaluate::correct(&first.head, &features, &labels).expect("scored");
        let right = right.correct as f32 / labels.len() as f32;
        assert!(
            (sure - right).abs() < 0.15,
            "{strategy:?}: {sure} sure and {right} right"
        );
    }
}

#[test]
fn exemplars_a_hinge_and_a_penalty_keep_old_classes_too() {
    let world = World::new(20);
    let right = |head: &Head| {
        let (features, labels) = world.rows(0, 10);
        evaluate::correct(head, &features, labels)
            .expect("scored")
            .correct
    };
    // So many steps that what is not held is lost.
    let config = || ModelConfig {
        epochs: 60,
        learning_rate: 1e-2,
        ..config()
    };
    let careless = ModelConfig {
        rehearsal: Rehearsal::None,
        retention: Retention::None,
        ..config()
    };
    let learned = |config: &ModelConfig| right(&world.second(&world.first(10, config), 1, config).head);
    let forgetful = learned(&careless);
    let exemplars = Rehearsal::Exemplars {
        per_class: 3,
        choice: Choice::Herding,
        per_example: 4.0,
    };
    let hinge = Hinge {
        threshold: 1.4,
        margin: 0.1,
        weight: 1.0,
    };
    for kept in [
        ModelConfig {
            rehearsal: exemplars,
            retention: Retention::None,
            ..config()
        },
        ModelConfig {
            hinge: Some(hinge),
            retention: Retention::None,
            ..config()
        },
        ModelConfig {
            retention: Retention::Penalty { strength: 1.0 },
            ..config()
        },
        ModelConfig {
            retention: Retention::Svd { bias: 0.5 },
            ..config()
        },
    ] {
        let found = learned(&kept);
        assert!(
            found > forgetful + 5,
            "{found} of 60, {forgetful} without care: {kept:?}"
        );
    }
}

#[test]
fn a_heavy_penalty_holds_the_weights_and_a_light_one_lets_go() {
    let world = World::new(20);
    let moved = |strength| {
        let config = ModelConfig {
            retention: Retention::Penalty { strength },
            ..config()
        };
        let first = world.first(10, &config);
        let second = world.second(&first, 1, &config);
        let [before, after] =
            [&first, &second].map(|fitted| values(&fitted.head.linear().expect("trained").weight));
        before
            .iter()
            .zip(&after)
            .map(|(a, b)| (a - b) * (a - b))
            .sum::<f32>()
    };
    let (held, free) = (moved(1e6), moved(1e-6));
    assert!(held < free / 4.0, "{held} and {free}");
}
