//! What each strategy promises.

use candle_core::Device;
use clipkeep::adapter::{Head, Snapshot, evaluate};
use clipkeep::domain::{Anchors, Class, ClassId, ModelConfig, Strategy};

use crate::world::{World, config, values};

pub(crate) fn a_class(number: usize) -> Class {
    Class {
        id: ClassId::new(),
        label: format!("class {number}").parse().expect("a label"),
        prompt: None,
        task: "a task".parse().expect("a name"),
    }
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
        (Strategy::Gda, Anchors::Text, 1),
        (Strategy::Ensemble, Anchors::Text, 3),
        (Strategy::Ensemble, Anchors::Examples, 1),
    ] {
        let config = ModelConfig {
            strategy,
            anchors,
            ..config()
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

        let classes: Vec<Class> = (0..20).map(a_class).collect();
        let snapshot = Snapshot::new(classes, second.head.clone(), "here".to_owned()).expect("a snapshot");
        let bytes = snapshot.encode().expect("encoded");
        let back = Snapshot::decode(&bytes, &Device::Cpu).expect("decoded");
        let (features, _) = world.rows(0, 20);
        let logits = |head: &Head| values(&head.logits(&features).expect("scored"));
        let bits = |head: &Head| logits(head).into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(back.head()), bits(&second.head), "{strategy:?}");
        assert_eq!(bytes, back.encode().expect("encoded"));
    }
}

#[test]
fn closed_forms_do_not_depend_on_the_order_of_tasks() {
    let world = World::new(12);
    let config = ModelConfig {
        strategy: Strategy::Gda,
        ..config()
    };
    let joint = world.first(12, &config);
    let apart = world.second(&world.first(5, &config), 1, &config);
    let (features, _) = world.rows(0, 12);
    let logits = |head: &Head| values(&head.logits(&features).expect("scored"));
    for (one, other) in logits(&joint.head).iter().zip(logits(&apart.head)) {
        assert!(
            (one - other).abs() <= 1e-4 * one.abs().max(1.0),
            "{one} and {other}"
        );
    }
}
