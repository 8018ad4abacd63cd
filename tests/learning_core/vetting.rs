//! Versions as files: what comes out is what went in, and what could not be learned on top of is refused.

use candle_core::{Device, Tensor};
use clipkeep::adapter::{
    CodecError, Imported, Snapshot, SnapshotError, Statistics, VettingError, Widths, export, statistics,
};
use clipkeep::domain::{Anchors, Class, ClassId, Digest, EnsembleWeights, ModelConfig, Rehearsal, Strategy};

use crate::strategies::{a_class, quick};
use crate::world::{DIM, World};

const WIDTHS: Widths = Widths {
    features: DIM,
    tokens: 3 * DIM,
};

fn with(strategy: Strategy) -> ModelConfig {
    quick(strategy)
}

/// A version of ten classes that this configuration makes, as bytes of the two codecs.
fn a_version(config: &ModelConfig) -> (Vec<u8>, Vec<u8>) {
    let fitted = World::new(10).first(10, config);
    let classes = (0..10).map(a_class).collect();
    let snapshot = Snapshot::new(classes, fitted.head, "here".to_owned()).expect("a snapshot");
    (
        snapshot.encode().expect("encoded"),
        statistics::encode(&fitted.statistics).expect("encoded"),
    )
}

fn a_file(config: &ModelConfig) -> Vec<u8> {
    let (snapshot, statistics) = a_version(config);
    export::encode(snapshot, statistics)
        .expect("laid together")
        .concat()
}

fn read(config: &ModelConfig) -> Imported {
    export::decode(a_file(config), &Device::Cpu).expect("read")
}

#[test]
fn both_parts_come_out_with_their_bytes() {
    for strategy in [
        Strategy::ZeroShot,
        Strategy::Linear,
        Strategy::Gda,
        Strategy::Ridge,
        Strategy::Ensemble,
    ] {
        let config = with(strategy);
        let (snapshot, kept) = a_version(&config);
        let file = export::encode(snapshot.clone(), kept.clone()).expect("laid together");
        let again = export::encode(snapshot.clone(), kept.clone()).expect("laid together");
        assert_eq!(file.concat(), again.concat(), "the same file each time");
        assert_eq!(file[0].len() % 8, 0, "tensors are aligned");

        let found = export::decode(file.concat(), &Device::Cpu).expect("read");
        let bytes = found.snapshot.encode().expect("encoded");
        assert_eq!(bytes, snapshot, "{strategy:?}");
        assert_eq!(Digest::of(&bytes), Digest::of(&snapshot));
        assert_eq!(statistics::encode(&found.statistics).expect("encoded"), kept);
        found.vetted(&config, WIDTHS).expect("good as it is");
    }
}

#[test]
fn a_snapshot_alone_will_do_where_nothing_is_remembered() {
    let forgetful = ModelConfig {
        rehearsal: Rehearsal::None,
        ..with(Strategy::Linear)
    };
    let (snapshot, _) = a_version(&forgetful);
    let found = export::decode(snapshot, &Device::Cpu).expect("read");
    found
        .clone()
        .vetted(&forgetful, WIDTHS)
        .expect("nothing is missing");
    let refused = found.vetted(&with(Strategy::Linear), WIDTHS);
    assert!(
        matches!(refused, Err(VettingError::StatisticsMissing(_))),
        "{refused:?}"
    );
}

#[test]
fn every_cut_is_noticed() {
    let file = a_file(&with(Strategy::Gda));
    for length in [0, 7, 8, 100, file.len() / 2, file.len() - 1] {
        let cut = export::decode(file[..length].to_vec(), &Device::Cpu);
        assert!(matches!(cut, Err(SnapshotError::Codec(_))), "{length} bytes");
    }
    let longer = [&file[..], &[0]].concat();
    assert!(export::decode(longer, &Device::Cpu).is_err(), "a byte too many");
}

#[test]
fn statistics_of_another_width_are_refused() {
    let (snapshot, kept) = a_version(&with(Strategy::Gda));
    // Two digits in the place of two: no tensor moves.
    let said = format!("\\\"dim\\\":{DIM}").into_bytes();
    let at = kept.windows(said.len()).position(|bytes| bytes == said);
    let end = at.expect("the width") + said.len();
    let mut changed = kept;
    changed[end - 2..end].copy_from_slice(b"99");
    let file = export::encode(snapshot, changed).expect("laid together").concat();
    let refused = export::decode(file, &Device::Cpu);
    assert!(
        matches!(
            refused,
            Err(SnapshotError::Codec(CodecError::Width {
                found: 99,
                expected: DIM
            }))
        ),
        "{refused:?}"
    );
}

#[test]
fn another_strategy_s_version_is_refused() {
    let all = [
        Strategy::ZeroShot,
        Strategy::Linear,
        Strategy::Gda,
        Strategy::Ensemble,
    ];
    for made in all {
        for asked in all.into_iter().filter(|asked| *asked != made) {
            let refused = read(&with(made)).vetted(&with(asked), WIDTHS);
            let Err(error @ VettingError::Strategy { .. }) = refused else {
                panic!("{made:?} for {asked:?}: {refused:?}")
            };
            assert!(error.to_string().contains("adds up"), "{error}");
        }
    }
    let made = read(&with(Strategy::Ensemble));
    let examples = ModelConfig {
        anchors: Anchors::Examples,
        ..with(Strategy::Ensemble)
    };
    let refused = made.clone().vetted(&examples, WIDTHS);
    assert!(matches!(refused, Err(VettingError::Strategy { .. })));
    let heavier = ModelConfig {
        weights: EnsembleWeights {
            linear: 0.9,
            ..ModelConfig::default().weights
        },
        ..with(Strategy::Ensemble)
    };
    let refused = made.vetted(&heavier, WIDTHS);
    assert!(
        matches!(refused, Err(VettingError::Strategy { .. })),
        "other weights"
    );
}

#[test]
fn what_the_model_does_not_look_at_is_left_out() {
    let forgetful = ModelConfig {
        rehearsal: Rehearsal::None,
        ..with(Strategy::Linear)
    };
    let kept = read(&with(Strategy::Linear))
        .vetted(&forgetful, WIDTHS)
        .expect("taken in");
    assert!(kept.statistics.classes.is_empty() && kept.statistics.scatter.is_none());
}

#[test]
fn classes_must_be_classes() {
    let good = read(&with(Strategy::Gda));
    let vetted = |change: &dyn Fn(&mut Vec<Class>)| {
        let mut classes = good.snapshot.classes().to_vec();
        change(&mut classes);
        let snapshot = Snapshot::new(classes, good.snapshot.head().clone(), "here".to_owned());
        let changed = Imported {
            snapshot: snapshot.expect("as many classes"),
            statistics: good.statistics.clone(),
        };
        changed.vetted(&with(Strategy::Gda), WIDTHS)
    };
    let twice = vetted(&|classes| classes[3].label = classes[7].label.clone());
    assert!(matches!(twice, Err(VettingError::LabelTwice(_))), "{twice:?}");
    let same = vetted(&|classes| classes[3].id = classes[7].id);
    assert!(matches!(same, Err(VettingError::IdTwice(_))), "{same:?}");
    let prompt = vetted(&|classes| classes[3].prompt = Some("x".repeat(10_000)));
    assert!(matches!(prompt, Err(VettingError::Prompt { .. })), "{prompt:?}");
    let fresh = vetted(&|classes| classes[3].id = ClassId::new());
    assert!(fresh.is_ok(), "{fresh:?}");
    let twice = Widths {
        features: 2 * DIM,
        ..WIDTHS
    };
    let wide = good.clone().vetted(&with(Strategy::Gda), twice);
    assert!(matches!(wide, Err(VettingError::Width { .. })), "{wide:?}");
}

#[test]
fn numbers_must_be_of_a_size_that_embeddings_have() {
    let good = read(&with(Strategy::Gda));
    let unsound = |change: &dyn Fn(&mut Statistics)| {
        let mut statistics = good.statistics.clone();
        change(&mut statistics);
        let changed = Imported {
            snapshot: good.snapshot.clone(),
            statistics,
        };
        match changed.vetted(&with(Strategy::Gda), WIDTHS) {
            Err(VettingError::Unsound(what)) => what,
            other => panic!("{other:?}"),
        }
    };
    let far = |values: usize| Tensor::full(1e30_f32, values, &Device::Cpu).expect("a tensor");
    assert!(unsound(&|s| s.classes[1].count = 0).contains("examples"));
    assert!(unsound(&|s| s.classes[1].count += 1).contains("rows of a class"));
    let without_rows = |s: &mut Statistics| {
        *s = s.clone().without_rows();
        s.classes[1].count += 1;
    };
    assert!(unsound(&without_rows).contains("number of examples"));
    let long = |s: &mut Statistics| {
        let rows = s.classes[1].rows.as_ref().and_then(|rows| (rows * 2.0).ok());
        s.classes[1].rows = Some(rows.expect("rows"));
    };
    assert!(unsound(&long).contains("row longer than 1"));
    assert!(unsound(&|s| s.classes[1].count = usize::MAX).contains("examples"));
    assert!(unsound(&|s| s.classes[1].residual = -1.0).contains("residual"));
    assert!(unsound(&|s| s.classes[1].residual = f64::NAN).contains("residual"));
    assert!(unsound(&|s| s.classes[1].mean = far(DIM)).contains("mean"));
    let wide = |s: &mut Statistics| {
        s.classes[1].components = far(DIM).reshape((1, DIM)).expect("a row");
    };
    assert!(unsound(&wide).contains("variance"));
    let many = |s: &mut Statistics| {
        let rows = Tensor::zeros((DIM + 1, DIM), candle_core::DType::F32, &Device::Cpu);
        s.classes[1].components = rows.expect("rows");
    };
    assert!(unsound(&many).contains("directions"));
    let fewer = Imported {
        snapshot: good.snapshot.clone(),
        statistics: Statistics {
            classes: good.statistics.classes[1..].to_vec(),
            ..good.statistics.clone()
        },
    };
    let fewer = fewer.vetted(&with(Strategy::Gda), WIDTHS);
    assert!(
        matches!(fewer, Err(VettingError::StatisticsMissing(_))),
        "{fewer:?}"
    );
}
