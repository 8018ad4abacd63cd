//! What unlearning promises: closed forms are what they would be had the task or class never been learned, trained adapters
//! stay.

use std::ops::Range;

use candle_core::{Device, Tensor};
use clipkeep::adapter::{
    Base, FitInput, Fitted, Head, Ridge, Scorer, Statistics, Towers, Unlearned, fit, statistics, unlearn,
};
use clipkeep::domain::{Anchors, Keep, ModelConfig, Strategy, VersionNumber};

use crate::closed_forms::{assert_close, assert_same_weights, closed_form};
use crate::strategies::quick;
use crate::world::{World, carry_on, values};

pub(crate) const A: Range<usize> = 0..4;
pub(crate) const B: Range<usize> = 4..7;
pub(crate) const C: Range<usize> = 7..12;

/// Tasks learned one after another, with what is kept of each as the store gives it back.
pub(crate) struct Learned {
    pub(crate) head: Head,
    statistics: Vec<Statistics>,
    anchors: Tensor,
}

pub(crate) fn learned(world: &World, tasks: &[Range<usize>], config: &ModelConfig) -> Learned {
    let mut so_far: Option<Learned> = None;
    for (version, task) in (0..).zip(tasks) {
        let (features, labels) = world.rows(task.start, task.end);
        let own = world.anchors.narrow(0, task.start, task.len()).expect("anchors");
        let anchors = match &so_far {
            Some(base) => Tensor::cat(&[&base.anchors, &own], 0).expect("joined"),
            None => own,
        };
        let known = anchors.dims()[0] - task.len();
        let labels: Vec<u32> = labels
            .iter()
            .map(|label| label - task.start as u32 + known as u32)
            .collect();
        let remembered = so_far.as_ref().map(|base| merged(&base.statistics));
        let base = so_far.as_ref().zip(remembered.as_ref());
        let input = FitInput {
            base: base.map(|(base, statistics)| Base {
                version: VersionNumber(version),
                head: &base.head,
                statistics,
            }),
            anchors: &anchors,
            features: &features,
            labels: &labels,
            scale: 20.0,
            towers: Towers::default(),
            config,
        };
        let Fitted {
            head,
            statistics: own,
            ..
        } = fit(&input, &mut carry_on).expect("fitted");
        let mut kept = so_far.map_or_else(Vec::new, |base| base.statistics);
        kept.push(stored(&own));
        so_far = Some(Learned {
            head,
            statistics: kept,
            anchors,
        });
    }
    so_far.expect("a task")
}

fn stored(own: &Statistics) -> Statistics {
    let bytes = statistics::encode(own).expect("encoded");
    statistics::decode(&bytes, &Device::Cpu).expect("decoded")
}

fn merged(statistics: &[Statistics]) -> Statistics {
    let mut sum = Statistics::default();
    for task in statistics {
        sum.extend(task.clone()).expect("of the same kind");
    }
    sum
}

/// A, B and C without B, and A and C.
fn both_ways(config: &ModelConfig) -> (Unlearned, Head, World) {
    let world = World::new(12);
    let all = learned(&world, &[A, B, C], config);
    let keep: Vec<u32> = A.chain(C).map(|class| class as u32).collect();
    let remaining = merged(&[all.statistics[0].clone(), all.statistics[2].clone()]);
    let unlearned = unlearn(&all.head, &remaining, &keep, config).expect("unlearned");
    (unlearned, learned(&world, &[A, C], config).head, world)
}

#[test]
fn closed_forms_are_as_if_the_task_had_never_been_learned() {
    for strategy in [Strategy::Gda, Strategy::Ridge] {
        let (unlearned, never, _) = both_ways(&quick(strategy));
        assert!(unlearned.exact, "{strategy:?}");
        assert_eq!(unlearned.head.columns(), 9);
        assert_close(&closed_form(&unlearned.head), &closed_form(&never), 1e-6);
        assert_same_weights(&unlearned.head, &never);
    }
}

/// A, B and C with the class at `place` of B taken out, and whether what is left of B's statistics is exact.
fn without_class(config: &ModelConfig, place: usize) -> (Unlearned, bool) {
    let all = learned(&World::new(12), &[A, B, C], config);
    let projection = all.head.ridge().map(Ridge::projection);
    let rest = all.statistics[1]
        .clone()
        .without(place, projection)
        .expect("left");
    let remaining = [
        all.statistics[0].clone(),
        stored(&rest.statistics),
        all.statistics[2].clone(),
    ];
    let gone = (B.start + place) as u32;
    let keep: Vec<u32> = (0..12).filter(|class| *class != gone).collect();
    let unlearned = unlearn(&all.head, &merged(&remaining), &keep, config).expect("unlearned");
    (unlearned, rest.is_exact)
}

#[test]
fn closed_forms_are_as_if_the_class_had_never_been_learned() {
    for strategy in [Strategy::Gda, Strategy::Ridge] {
        for (place, rest) in [(0, 5..7), (2, 4..6)] {
            let (unlearned, is_exact) = without_class(&quick(strategy), place);
            let never = learned(&World::new(12), &[A, rest, C], &quick(strategy));
            assert!(unlearned.exact && is_exact, "{strategy:?}");
            assert_same_weights(&unlearned.head, &never.head);
            let (found, expected) = (closed_form(&unlearned.head), closed_form(&never.head));
            match strategy {
                Strategy::Ridge => assert_eq!(found, expected, "sums are kept to the bit"),
                _ => assert_close(&found, &expected, 1e-6),
            }
        }
    }
}

#[test]
fn without_its_rows_something_of_a_class_stays_and_is_owned_up_to() {
    for strategy in [Strategy::Gda, Strategy::Ridge] {
        let config = ModelConfig {
            keep: Keep::Needed,
            ..quick(strategy)
        };
        let (unlearned, is_exact) = without_class(&config, 1);
        assert!(!is_exact && !unlearned.exact, "{strategy:?}");
        assert_eq!(unlearned.head.columns(), 11);
        let kept = learned(&World::new(12), &[A, B, C], &config).statistics;
        assert!(
            kept.iter()
                .flat_map(|task| &task.classes)
                .all(|class| class.rows.is_none())
        );
    }
}

#[test]
fn a_class_that_is_not_there_cannot_be_taken_out() {
    let all = learned(&World::new(12), &[A, B], &quick(Strategy::Ridge));
    let task = &all.statistics[1];
    assert!(task.clone().without(3, None).is_err());
    assert!(
        task.clone().without(1, None).is_err(),
        "its projection is missing"
    );
    let nothing = Statistics::default().without(0, None).expect("nothing to take");
    assert!(nothing.is_exact && nothing.statistics.classes.is_empty());
}

#[test]
fn anchors_are_as_if_the_task_had_never_been_learned() {
    let (unlearned, never, world) = both_ways(&quick(Strategy::ZeroShot));
    assert!(unlearned.exact);
    let rows = |head: &Head| head.probabilities(&world.features).expect("scored").concat();
    assert_close(&rows(&unlearned.head), &rows(&never), 1e-6);
}

#[test]
fn whitening_and_prototypes_are_made_anew_and_adapters_stay() {
    for anchors in [Anchors::Text, Anchors::Examples] {
        let config = ModelConfig {
            anchors,
            ..quick(Strategy::Ensemble)
        };
        let (unlearned, never, world) = both_ways(&config);
        assert!(!unlearned.exact);
        let before = learned(&world, &[A, B, C], &config);
        let linear = |head: &Head| head.linear().map(|linear| values(&linear.weight));
        assert_eq!(linear(&unlearned.head), linear(&before.head), "as it was trained");

        // The prototypes' parts stand in the snapshot alone.
        let (one, other) = (tensors(&unlearned.head), tensors(&never));
        let place = unlearned.head.terms().len() - 1;
        assert!(matches!(
            unlearned.head.terms()[place].scorer,
            Scorer::Prototypes(_)
        ));
        for part in ["centre", "transform", "rows"] {
            let name = format!("{place}.{part}");
            assert_close(&one[&name], &other[&name], 1e-5);
        }
        assert_eq!(one["anchors"], other["anchors"]);
        let name = format!("{place}.linear.weight");
        assert_eq!(one[&name], tensors(&before.head)[&name], "as it was trained");
    }
}

#[test]
fn statistics_of_other_classes_are_refused() {
    let world = World::new(12);
    let config = quick(Strategy::Gda);
    let all = learned(&world, &[A, B, C], &config);
    let keep = [0, 1, 2, 3];
    assert!(unlearn(&all.head, &merged(&all.statistics), &keep, &config).is_err());
    assert!(unlearn(&all.head, &Statistics::default(), &keep, &config).is_err());
}

fn tensors(head: &Head) -> std::collections::BTreeMap<String, Vec<f32>> {
    let classes = (0..head.columns()).map(crate::strategies::a_class).collect();
    let snapshot = clipkeep::adapter::Snapshot::new(classes, head.clone(), String::new());
    let bytes = snapshot.and_then(|snapshot| snapshot.encode()).expect("encoded");
    let found = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).expect("tensors");
    found
        .iter()
        .map(|(name, tensor)| (name.clone(), values(tensor)))
        .collect()
}
