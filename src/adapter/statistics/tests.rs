//! Statistics: what they keep, and what survives their codec.

use candle_core::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::adapter::embedding::normalise;
use crate::adapter::gram::tests::plain;
use crate::adapter::rehearsal::tests::{documented, features, moments};

fn furthest(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    a.iter()
        .flatten()
        .zip(b.iter().flatten())
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

#[test]
fn full_rank_keeps_the_sample_covariance() {
    for count in [40, 9] {
        let features = normalise(&features(count, 8)).expect("normalised");
        let statistics = ClassStatistics::estimate(&features, 8).expect("estimated");
        let (mean, covariance) = moments(&features);
        let found: Vec<f32> = statistics.mean.to_vec1().expect("values");
        assert!(
            found
                .iter()
                .zip(&mean)
                .all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6)
        );
        assert!((statistics.residual - FLOOR).abs() < 1e-9, "nothing is left over");
        assert!(furthest(&documented(&statistics), &covariance) < 2.0 * FLOOR);
    }
}

#[test]
fn variance_outside_the_components_is_spread_evenly() {
    let features = normalise(&features(60, 8)).expect("normalised");
    let statistics = ClassStatistics::estimate(&features, 2).expect("estimated");
    let (_, covariance) = moments(&features);
    let trace = |matrix: &[Vec<f64>]| (0..8).map(|i| matrix[i][i]).sum::<f64>();
    assert_eq!(statistics.components.dims(), [2, 8]);
    assert!((trace(&documented(&statistics)) - trace(&covariance) - 8.0 * FLOOR).abs() < 1e-6);
}

#[test]
fn few_examples_are_shrunk_and_one_is_a_point() {
    let dim = 32;
    let statistics = ClassStatistics::estimate(&features(4, dim), 32).expect("estimated");
    assert_eq!(
        statistics.components.dims(),
        [3, dim],
        "never more than n − 1 directions"
    );
    let kept = statistics
        .components
        .sqr()
        .and_then(|s| s.sum_all())
        .and_then(|s| s.to_scalar::<f32>());
    let expected = SHRINKAGE * f64::from(kept.expect("a sum")) / dim as f64 + FLOOR;
    assert!((statistics.residual / expected - 1.0).abs() < 1e-4);

    let one = ClassStatistics::estimate(&features(1, dim), 32).expect("estimated");
    assert_eq!((one.components.dims(), one.residual), (&[0, dim][..], FLOOR));
    assert!(ClassStatistics::estimate(&features(0, dim), 32).is_err());
}

#[test]
fn statistics_survive_their_codec() {
    let rows = [4, 1, 50].map(|count| features(count, 6));
    let kept = Kept {
        rank: 3,
        exemplars: Some((2, Choice::Herding)),
        rows: true,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut statistics = Statistics::estimate(&rows, kept, &mut rng).expect("estimated");
    statistics.scatter = Some(Scatter::of(&rows).expect("a scatter"));
    statistics.gram = Some(plain(&rows).expect("sums"));
    let bytes = encode(&statistics).expect("encoded");
    let decoded = decode(&bytes, &Device::Cpu).expect("decoded");
    assert_eq!(decoded.classes.len(), 3);
    assert_eq!(decoded.scatter.as_ref().map(Scatter::freedom), Some(3 + 49));
    let gram = |statistics: &Statistics| {
        let gram = statistics.gram.as_ref().expect("sums").packed();
        gram.and_then(|packed| packed.to_vec1::<f64>()).expect("values")
    };
    assert_eq!(gram(&statistics), gram(&decoded));
    let all = |class: &ClassStatistics| {
        let rows = class.rows.as_ref().expect("rows");
        rows.to_vec2::<f32>().expect("values")
    };
    for (class, decoded) in statistics.classes.iter().zip(&decoded.classes) {
        assert_eq!(all(class), all(decoded), "to the bit");
    }
    let kept = |class: &ClassStatistics| {
        let rows = class.exemplars.as_ref().expect("exemplars");
        rows.dims()[0]
    };
    assert_eq!(decoded.classes.iter().map(kept).collect::<Vec<_>>(), [2, 1, 2]);
    for (before, after) in statistics.classes.iter().zip(&decoded.classes) {
        assert_eq!(before.count, after.count);
        assert_eq!(before.residual.to_bits(), after.residual.to_bits());
        assert_eq!(
            before.mean.to_vec1::<f32>().expect("values"),
            after.mean.to_vec1::<f32>().expect("values")
        );
        // Float16 keeps 11 bits: half a unit in the last place is 2⁻¹¹ of the value.
        let rounded = furthest(&documented(before), &documented(after));
        assert!(
            rounded < 2e-3 * documented(before)[0][0].max(before.residual),
            "{rounded}"
        );
    }
    assert_eq!(
        bytes,
        encode(&decoded).expect("encoded"),
        "and the same bytes again"
    );
    assert!(decode(&bytes[..bytes.len() - 1], &Device::Cpu).is_err());
    assert!(
        decode(&encode(&Statistics::default()).expect("encoded"), &Device::Cpu)
            .expect("decoded")
            .classes
            .is_empty()
    );
}

#[test]
fn taking_examples_out_is_never_having_had_them() {
    let rows = [features(9, 6), (features(5, 6) * 2.0).expect("wider")];
    let of = |rows: &[Tensor]| {
        let classes = rows.iter().map(|rows| ClassStatistics::estimate(rows, 0));
        Statistics {
            classes: classes.collect::<Result<_, _>>().expect("estimated"),
            scatter: Some(Scatter::of(rows).expect("a scatter")),
            ..Statistics::default()
        }
    };
    let out = |column: usize, count: usize| {
        let rows = rows[column].narrow(0, 0, count).expect("rows");
        (column, rows.to_dtype(DType::F64).expect("f64"))
    };
    let left = of(&rows).without_examples(&[out(1, 2), out(0, 3)]).expect("left");
    let rest = [rows[0].narrow(0, 3, 6), rows[1].narrow(0, 2, 3)].map(|rows| rows.expect("rows"));
    let expected = of(&rest);
    for (found, expected) in left.classes.iter().zip(&expected.classes) {
        assert_eq!(found.count, expected.count);
        let apart =
            (&found.mean - &expected.mean).and_then(|apart| apart.abs()?.max_all()?.to_scalar::<f32>());
        assert!(apart.expect("a number") < 1e-5);
    }
    let scatter = |statistics: &Statistics| statistics.scatter.as_ref().expect("a scatter").covariance();
    let ((found, _), (wanted, _)) = (
        scatter(&left).expect("found"),
        scatter(&expected).expect("expected"),
    );
    assert!(furthest(&found, &wanted) < 1e-4);
    assert_eq!(
        left.scatter.map(|s| s.freedom()),
        expected.scatter.map(|s| s.freedom())
    );
    assert!(
        of(&rows).without_examples(&[out(1, 5)]).is_err(),
        "none would be left"
    );
}
