//! What strategies in closed form promise: that the order of learning leaves no trace.

use clipkeep::adapter::{Head, Scorer};
use clipkeep::domain::{Keep, ModelConfig, Strategy};

use crate::strategies::quick;
use crate::unlearning::{A, B, C, learned};
use crate::world::{World, values};

/// A head's weights of classes in closed form, row by row.
pub(crate) fn closed_form(head: &Head) -> Vec<f32> {
    let weights = head.terms().iter().find_map(|term| match &term.scorer {
        Scorer::Affine(affine) => Some(values(&affine.weight)),
        Scorer::Ridge(ridge) => Some(values(ridge.weight())),
        _ => None,
    });
    weights.expect("a closed form")
}

/// Equal but for what rounding in the store leaves, which is a share of the largest value.
pub(crate) fn assert_close(one: &[f32], other: &[f32], tolerance: f32) {
    assert_eq!(one.len(), other.len());
    let largest = one
        .iter()
        .fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for (one, other) in one.iter().zip(other) {
        assert!((one - other).abs() <= tolerance * largest, "{one} and {other}");
    }
}

/// What a head's terms are multiplied with, to as many digits as rounding in the store leaves.
pub(crate) fn assert_same_weights(one: &Head, other: &Head) {
    let weights = |head: &Head| head.terms().iter().map(|term| term.weight).collect::<Vec<_>>();
    let (one, other) = (weights(one), weights(other));
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(&other) {
        assert!(
            (one - other).abs() <= 1e-4 * one.abs().max(1.0),
            "{one} and {other}"
        );
    }
}

#[test]
fn the_order_of_tasks_does_not_matter_to_what_is_chosen_either() {
    let world = World::new(12);
    for strategy in [Strategy::Gda, Strategy::Ridge] {
        let config = quick(strategy);
        let forwards = learned(&world, &[A, B, C], &config).head;
        let backwards = learned(&world, &[C, A, B], &config).head;
        assert_same_weights(&forwards, &backwards);
        if let (Some(one), Some(other)) = (forwards.ridge(), backwards.ridge()) {
            assert_eq!(one.lambda().to_bits(), other.lambda().to_bits());
        }
        let width = closed_form(&forwards).len() / 12;
        let by_class = |head: &Head, order: Vec<usize>| {
            let rows = closed_form(head);
            let mut sorted = vec![0.0; rows.len()];
            for (row, class) in rows.chunks(width).zip(order) {
                sorted[class * width..(class + 1) * width].copy_from_slice(row);
            }
            sorted
        };
        assert_close(
            &by_class(&forwards, A.chain(B).chain(C).collect()),
            &by_class(&backwards, C.chain(A).chain(B).collect()),
            1e-6,
        );
    }
}

#[test]
fn without_rows_lambda_is_chosen_once() {
    let world = World::new(12);
    let config = ModelConfig {
        keep: Keep::Needed,
        ..quick(Strategy::Ridge)
    };
    let first = world.first(5, &config);
    let second = world.second(&first, 1, &config);
    assert!(first.report.lambda.is_some_and(|lambda| lambda > 0.0));
    assert_eq!(first.report.lambda, second.report.lambda);
    assert!(
        second
            .report
            .temperature
            .is_some_and(|temperature| temperature > 0.0)
    );
}
