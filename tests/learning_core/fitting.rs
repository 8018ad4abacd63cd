//! Fits on made-up features: what they promise whatever they learn from.

use std::ops::ControlFlow;

use candle_core::Tensor;
use clipkeep::adapter::{
    Base, FitError, FitInput, FitProgress, Fitted, Head, Linear, Statistics, Towers, TrainingReport,
    evaluate, fit,
};
use clipkeep::domain::{Digest, ModelConfig, Rehearsal, Retention, VersionNumber};

use crate::world::{DIM, World, carry_on, config, values};

fn trained(fitted: &Fitted) -> &TrainingReport {
    fitted
        .report
        .adapter
        .as_ref()
        .expect("the linear adapter was trained")
}

fn linear(head: &Head) -> &Linear {
    head.linear().expect("an adapter was trained")
}

fn digest(head: &Head) -> Digest {
    let Linear { weight, bias } = linear(head);
    let bytes: Vec<u8> = [values(weight), values(bias)]
        .concat()
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    Digest::of(&bytes)
}

#[test]
fn a_second_task_is_learned_without_losing_the_first() {
    let world = World::new(20);
    let first = world.first(10, &config());
    let second = world.second(&first, 1, &config());
    let correct = |head: &Head, from, to| {
        let (features, labels) = world.rows(from, to);
        evaluate::correct(head, &features, labels)
            .expect("scored")
            .correct
    };
    let zero_shot = Head::zero_shot(world.anchors.clone(), 20.0).expect("a head");
    let untrained = correct(&zero_shot, 0, 20);
    assert!(
        correct(&second.head, 0, 20) > untrained + 10,
        "of 120, {untrained} were right before"
    );
    assert!(correct(&second.head, 0, 10) + 6 > correct(&first.head, 0, 10));
    assert_eq!((second.statistics.classes.len(), second.head.columns()), (10, 20));
    assert_eq!((second.report.examples, &second.report.prototypes), (60, &None));
    let report = trained(&second);
    assert!(report.last_loss < report.first_loss);
    assert_eq!((report.epochs, report.steps), (5, 5 * 4));
}

#[test]
fn the_same_input_gives_the_same_bytes_and_each_base_its_own() {
    let world = World::new(8);
    let first = world.first(4, &config());
    let before = digest(&first.head);
    let second = digest(&world.second(&first, 1, &config()).head);
    assert_eq!(second, digest(&world.second(&first, 1, &config()).head));
    assert_ne!(second, digest(&world.second(&first, 2, &config()).head));
    assert_ne!(
        second,
        digest(&world.second(&first, 1, &ModelConfig { seed: 7, ..config() }).head)
    );
    assert_eq!(before, digest(&first.head), "a base never changes");
}

#[test]
fn only_the_configured_share_of_weights_moves() {
    let world = World::new(8);
    let first = world.first(4, &config());
    let moved = |ratio| {
        let config = ModelConfig {
            retention: Retention::Importance { ratio },
            ..config()
        };
        let second = world.second(&first, 1, &config);
        let count = |part: fn(&Linear) -> &Tensor| {
            let [old, new] = [&first.head, &second.head].map(|head| values(part(linear(head))));
            old.iter()
                .zip(&new)
                .filter(|(old, new)| old.to_bits() != new.to_bits())
                .count()
        };
        assert_eq!(count(|linear| &linear.bias), DIM, "the bias stays new");
        count(|linear| &linear.weight)
    };
    assert_eq!(moved(0.25), DIM * DIM / 4);
    assert!(moved(1.0) > DIM * DIM * 9 / 10);
}

#[test]
fn the_length_of_features_does_not_matter() {
    let world = World::new(4);
    let longer = World {
        features: (&world.features * 16.0).expect("scaled"),
        ..World::new(4)
    };
    // A power of two changes no mantissa.
    assert_eq!(
        digest(&world.first(4, &config()).head),
        digest(&longer.first(4, &config()).head)
    );
}

#[test]
fn a_fit_stops_when_told() {
    let world = World::new(4);
    let config = config();
    let (features, labels) = world.rows(0, 4);
    let input = FitInput {
        base: None,
        anchors: &world.anchors,
        features: &features,
        labels,
        scale: 20.0,
        towers: Towers::default(),
        config: &config,
    };
    let mut seen = Vec::new();
    let mut observe = |progress: FitProgress| {
        seen.push((progress.epoch, progress.step));
        if progress.step == 3 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    assert!(matches!(fit(&input, &mut observe), Err(FitError::Stopped)));
    assert_eq!(seen, [(1, 1), (1, 2), (2, 3)]);
}

#[test]
fn numbers_that_run_away_are_an_error() {
    let world = World::new(4);
    // The first step leaves no weight that a product can be made of.
    let config = ModelConfig {
        learning_rate: 1e38,
        ..config()
    };
    let (features, labels) = world.rows(0, 4);
    let input = FitInput {
        base: None,
        anchors: &world.anchors,
        features: &features,
        labels,
        scale: 20.0,
        towers: Towers::default(),
        config: &config,
    };
    let mut losses = Vec::new();
    let mut observe = |progress: FitProgress| {
        losses.push(progress.loss);
        ControlFlow::Continue(())
    };
    match fit(&input, &mut observe) {
        Err(FitError::NotFinite { step, loss }) => {
            assert!(step > 1 && !loss.is_finite(), "{loss} at step {step}");
            assert_eq!(losses.len(), step - 1, "each step before it had a loss");
        }
        other => panic!("{other:?}"),
    }
    assert!(losses.iter().all(|loss| loss.is_finite()));
}

#[test]
fn input_that_does_not_fit_together_is_refused() {
    let world = World::new(6);
    let config = config();
    let first = world.first(3, &config);
    let (features, labels) = world.rows(3, 6);
    let version = VersionNumber(1);
    let good = FitInput {
        base: Some(Base {
            version,
            head: &first.head,
            statistics: &first.statistics,
        }),
        anchors: &world.anchors,
        features: &features,
        labels,
        scale: 20.0,
        towers: Towers::default(),
        config: &config,
    };
    let complaint = |input: FitInput<'_>| match fit(&input, &mut carry_on).expect_err("refused") {
        FitError::Input(complaint) => complaint,
        other => panic!("{other}"),
    };
    assert_eq!(
        complaint(FitInput {
            labels: &labels[1..],
            ..good
        }),
        "features do not match labels and anchors"
    );
    assert_eq!(
        complaint(FitInput { base: None, ..good }),
        "a new class has no examples"
    );
    let old = vec![0; labels.len()];
    assert_eq!(
        complaint(FitInput { labels: &old, ..good }),
        "a label is not a new class's column"
    );
    let same = vec![3; labels.len()];
    assert_eq!(
        complaint(FitInput {
            labels: &same,
            ..good
        }),
        "a new class has no examples"
    );
    let nothing = Statistics::default();
    let no_statistics = Some(Base {
        version,
        head: &first.head,
        statistics: &nothing,
    });
    assert_eq!(
        complaint(FitInput {
            base: no_statistics,
            ..good
        }),
        "statistics do not match the base's classes"
    );
    let forgetful = ModelConfig {
        rehearsal: Rehearsal::None,
        ..config.clone()
    };
    let fitted = fit(
        &FitInput {
            base: no_statistics,
            config: &forgetful,
            ..good
        },
        &mut carry_on,
    );
    let fitted = fitted.expect("nothing to rehearse, nothing to keep");
    assert!(fitted.statistics.classes.is_empty());
    assert_eq!(trained(&fitted).rehearsed, 0);
}
